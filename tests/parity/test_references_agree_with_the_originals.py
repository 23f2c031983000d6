"""Compare the reference networks with the answers of each family's original implementation to two images.

The levels and maps of ``golden.npz`` were made by the original code, so nothing of ours stands on both sides.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, get_args

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor, nn

from flowedge.export.backbones import backbone_from_checkpoint, feature_shapes, module_from_backbone
from flowedge.export.checkpoints import Checkpoint, read_checkpoint, with_backbone
from flowedge.export.families import FAMILIES
from flowedge.export.graph import ir
from flowedge.export.graph.emit import Flow
from flowedge.export.graph.passes import lower
from flowedge.export.reference.cflow import CflowReference
from flowedge.export.reference.csflow import CsflowReference
from flowedge.export.reference.fastflow import FastflowReference
from flowedge.export.reference.msflow import MsflowReference
from flowedge.export.reference.uflow import UflowReference
from flowedge.manifest import Family, Scoring
from support.oracles.scores import OracleAnswer, answer_from_levels

Floats: TypeAlias = NDArray[np.floating]
# The limit is relative to the largest magnitude. Sums of float32 in another order differed by 3e-7 at most.
LIMIT: Final = 1e-5
# CS-Flow behind its 36-block extractor: the record's own features are 1.1e-5 from the same network in float64.
DEEP_LIMIT: Final = 5e-5
PLAIN: Final = Scoring(normalisation="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One golden record: the checkpoint's file, the user's options for it, and the reference network."""

    file: str
    reference: Callable[[Checkpoint, nn.Module, Sequence[tuple[int, int, int]]], nn.Module]
    scoring: Scoring
    backbone_weights: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    limit: float = LIMIT


RECORDS: Final[Mapping[Family, Record]] = {
    "cflow": Record(
        file="mvtec_resnet18_freia-cflow_pl3_cb2_inp256_run0_bottle.pt",
        reference=CflowReference,
        scoring=Scoring(normalisation="per_image"),
    ),
    "csflow": Record(
        file="bottle_test",
        reference=CsflowReference,
        scoring=Scoring(normalisation="none", csflow_map="finest"),
        backbone_weights="efficientnet-b5.pth",
        limit=DEEP_LIMIT,
    ),
    "fastflow": Record(file="9.pt", reference=FastflowReference, scoring=PLAIN),
    "msflow": Record(
        file="best_det.pt",
        reference=MsflowReference,
        scoring=Scoring(normalisation="per_image", top_fraction=0.03),
        backbone_weights="resnet18.pth",
        settings={"input_size": "256x256"},
    ),
    "uflow": Record(file="bottle_auroc.ckpt", reference=UflowReference, scoring=PLAIN),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answered:
    """The answers of the original (``golden``) and of the reference network. Levels are ``(2, 1, h, w)``."""

    family: Family
    golden: Mapping[str, Floats]
    levels: list[Tensor]
    answer: OracleAnswer
    limit: float


class Features(nn.Module):
    """Gives the same features for every image, in place of a backbone."""

    def __init__(self, features: Sequence[Floats]) -> None:
        super().__init__()
        self.features = [torch.from_numpy(np.asarray(one, np.float32)) for one in features]

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Return ``(C, h, w)`` of each level."""
        return [(one.shape[1], one.shape[2], one.shape[3]) for one in self.features]

    def forward(self, _image: Tensor) -> list[Tensor]:
        return self.features


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch use one thread, because several wait for each other at every small layer of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def golden(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decompress the checkpoints of the records, one folder each."""
    tool = shared / "tools" / "unpack_golden.py"
    if not tool.is_file() or not (shared / "golden").is_dir():
        pytest.skip("the golden records (../shared/golden) are not beside this checkout")
    folder = tmp_path_factory.mktemp("golden")
    subprocess.run([sys.executable, tool, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module", params=RECORDS)
def answered(request: pytest.FixtureRequest, golden: Path) -> Answered:
    """Return both answers for one family."""
    family: Family = request.param
    record = RECORDS[family]
    checkpoint = checkpoint_of(golden, family)
    backbone = module_from_backbone(backbone_from_checkpoint(checkpoint))
    arrays = arrays_of(golden, family)
    image = torch.from_numpy(arrays["x"])
    size = (image.shape[2], image.shape[3])
    levels = record.reference(checkpoint, backbone, feature_shapes(backbone, size))(image)
    answer = answer_from_levels(levels, family, record.scoring, size)
    return Answered(family=family, golden=arrays, levels=levels, answer=answer, limit=record.limit)


def arrays_of(golden: Path, family: Family) -> Mapping[str, Floats]:
    with np.load(golden / f"{family}_official" / "golden.npz") as archive:
        return dict(archive)


@functools.cache
def checkpoint_of(golden: Path, family: Family) -> Checkpoint:
    record = RECORDS[family]
    folder = golden / f"{family}_official"
    weights = folder / record.backbone_weights if record.backbone_weights else None
    return with_backbone(read_checkpoint(folder / record.file, settings=record.settings), weights)


def difference(got: Tensor | Floats, wanted: Floats) -> float:
    """Return the worst difference over the largest expected magnitude."""
    got = np.asarray(got, dtype=np.float64).reshape(wanted.shape)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def golden_level(arrays: Mapping[str, Floats], level: int) -> Floats:
    """Return a level ``(2, h, w)`` of the record. U-Flow's record holds z itself."""
    if f"z_{level}" in arrays:
        z = arrays[f"z_{level}"].astype(np.float64)
        return np.asarray((z * z).mean(1))
    name = "log_prob" if f"log_prob_{level}" in arrays else "z_mean_sq"
    return arrays[f"{name}_{level}"].astype(np.float64)


def enlarged(level: Floats, size: int) -> Floats:
    """Enlarge bilinearly with half-pixel centres by OpenCV, which shares no code with torch."""
    return np.stack(
        [np.asarray(cv2.resize(one, (size, size), interpolation=cv2.INTER_LINEAR)) for one in level]
    )


# --- the five records -----------------------------------------------------------------------------------------


def test_every_family_has_a_record() -> None:
    assert set(RECORDS) == set(get_args(Family))


def test_the_levels_are_the_originals(answered: Answered) -> None:
    assert len(answered.levels) == 3
    for number, level in enumerate(answered.levels):
        wanted = golden_level(answered.golden, number)
        got = level.numpy().astype(np.float64).reshape(wanted.shape)
        if answered.family == "cflow":  # whose reference drops the constants
            got += np.mean(wanted - got)
        error = difference(got, wanted)
        print(f"{answered.family} level {number}: {error:.1e}")
        assert error < answered.limit


def test_the_map_is_the_originals(answered: Answered) -> None:
    if answered.family == "csflow":  # whose original enlarges its finest level for display only
        wanted = enlarged(answered.golden["z_mean_sq_0"], 256)
    else:
        wanted = answered.golden["map_add" if answered.family == "msflow" else "anomaly_map"]
    error = difference(answered.answer.anomaly_map, wanted)
    print(f"{answered.family} map: {error:.1e}")
    assert answered.answer.anomaly_map.shape == (2, 1, 256, 256)
    assert error < answered.limit


def test_the_score_is_the_originals(answered: Answered) -> None:
    error = difference(answered.answer.score, answered.golden["score"])
    print(f"{answered.family} score: {error:.1e}")
    assert error < answered.limit


def test_only_msflow_has_a_multiplied_map_and_it_is_the_originals(answered: Answered) -> None:
    multiplied = answered.answer.anomaly_map_mul
    assert (multiplied is not None) == (answered.family == "msflow")
    if multiplied is not None:
        error = difference(multiplied, answered.golden["map_mul"])
        print(f"msflow multiplied map: {error:.1e}")
        assert error < answered.limit


# --- what the records do not exercise, by ways that must give the same answers --------------------------------


def test_fastflow_without_norms_takes_features_as_they_are(golden: Path) -> None:
    checkpoint = checkpoint_of(golden, "fastflow")
    arrays = arrays_of(golden, "fastflow")
    backbone = module_from_backbone(backbone_from_checkpoint(checkpoint))
    with torch.inference_mode():
        raw = [feature.numpy().astype(np.float64) for feature in backbone(torch.from_numpy(arrays["x"][:1]))]
    normalised = []
    for level, feature in enumerate(raw):
        weight, bias = (checkpoint.tensors[f"norms.{level}.{part}"] for part in ("weight", "bias"))
        normalised.append((feature - feature.mean()) / np.sqrt(feature.var() + 1e-5) * weight + bias)
    flow_only = {n: tensor for n, tensor in checkpoint.tensors.items() if not n.startswith("norms.")}
    features = Features(normalised)
    reference = FastflowReference(
        dataclasses.replace(checkpoint, tensors=flow_only), features, features.shapes
    )
    for number, level in enumerate(reference(torch.empty(1))):
        assert difference(level, golden_level(arrays, number)[:1]) < LIMIT


@pytest.mark.parametrize("gammas", ["used", "folded and not used", "folded and absent"])
def test_csflow_behind_the_originals_own_features_gives_the_originals_levels(
    golden: Path, gammas: str
) -> None:
    checkpoint = checkpoint_of(golden, "csflow")
    if gammas != "used":
        checkpoint = with_gammas_in_the_weights(checkpoint, kept=gammas == "folded and not used")
    arrays = arrays_of(golden, "csflow")
    features = Features([arrays[f"features_{level}"] for level in range(3)])
    for number, level in enumerate(CsflowReference(checkpoint, features, features.shapes)(torch.empty(2))):
        assert difference(level, golden_level(arrays, number)) < LIMIT


def with_gammas_in_the_weights(checkpoint: Checkpoint, *, kept: bool) -> Checkpoint:
    """Multiply the gammas into the weights, and leave them in the record unused (``kept``) or remove them.

    ``conv_scale{l}_1``, ``up_conv{from}{to}`` and ``down_conv{from}{to}`` give level ``l`` or ``to``.
    """
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        match = re.fullmatch(r"(flow\.\d+\.net.\.)(?:conv_scale(.)_1|(?:up|down)_conv.(.))\.\w+", name)
        if match:
            tensors[name] = tensor * checkpoint.tensors[f"{match[1]}gamma{match[2] or match[3]}"]
        elif kept or ".gamma" not in name:
            tensors[name] = tensor
    values = {**checkpoint.hyperparameters, "use_gamma": not kept}
    return dataclasses.replace(checkpoint, tensors=tensors, hyperparameters=values)


def averaged(x: Floats) -> Floats:
    """Average nine pixels by SciPy, with zeros beyond the border, at every second pixel."""
    return np.asarray(ndimage.uniform_filter(x, (1, 1, 3, 3), mode="constant"))[..., ::2, ::2]


def largest(x: Floats) -> Floats:
    return np.asarray(ndimage.maximum_filter(x, (1, 1, 3, 3), mode="constant", cval=-np.inf))[..., ::2, ::2]


@pytest.mark.parametrize(("pool_type", "pooled"), [("avg", averaged), ("max", largest)])
def test_msflow_pools_as_scipy_does(golden: Path, pool_type: str, pooled: Callable[[Floats], Floats]) -> None:
    checkpoint = checkpoint_of(golden, "msflow")
    rng = np.random.default_rng(7)
    raw = [rng.standard_normal((1, c, s, s)) for c, s in ((64, 16), (128, 8), (256, 4))]

    def levels(name: str, features: Features) -> list[Tensor]:
        values = {**checkpoint.hyperparameters, "pool_type": name}
        reference = MsflowReference(
            dataclasses.replace(checkpoint, hyperparameters=values), features, features.shapes
        )
        answers: list[Tensor] = reference(torch.empty(1))
        return answers

    outside = levels("none", Features([pooled(feature) for feature in raw]))
    for level, wanted in zip(levels(pool_type, Features(raw)), outside, strict=True):
        assert difference(level, wanted.numpy()) < LIMIT


@pytest.mark.parametrize("pool_type", ["avg", "max", "none"])
def test_msflow_lowers_each_way_of_pooling(golden: Path, pool_type: str) -> None:
    checkpoint = checkpoint_of(golden, "msflow")
    values = {**checkpoint.hyperparameters, "pool_type": pool_type}
    checkpoint = dataclasses.replace(checkpoint, hyperparameters=values)
    rng = np.random.default_rng(8)
    features = Features([rng.standard_normal((2, c, s, s)) for c, s in ((64, 16), (128, 8), (256, 4))])
    backbone = ir.Backbone(network="none", taps=(), padding="zeros", weights={})
    model = FAMILIES["msflow"].flow_model(checkpoint, backbone, features.shapes, (64, 64))
    reference = MsflowReference(checkpoint, features, features.shapes)
    levels = Flow(lower(model))(features.features)
    for level, wanted in zip(levels, reference(torch.empty(2)), strict=True):
        assert difference(level.detach(), wanted.numpy()) < LIMIT


def test_csflows_product_map_is_the_product_of_its_enlarged_levels() -> None:
    rng = np.random.default_rng(5)
    arrays = [rng.gamma(2.0, size=(2, side, side)).astype(np.float32) for side in (8, 4, 2)]
    levels = [torch.from_numpy(one)[:, None] for one in arrays]
    scoring = Scoring(normalisation="none", csflow_map="product")
    answer = answer_from_levels(levels, "csflow", scoring, (64, 64))
    wanted = np.prod([enlarged(one, 64) for one in arrays], axis=0)
    assert difference(answer.anomaly_map, wanted) < LIMIT


@pytest.mark.parametrize(("family", "what"), [("csflow", "csflow_map"), ("msflow", "top_fraction")])
def test_a_scoring_that_lacks_what_the_family_needs_is_refused_by_its_name(family: Family, what: str) -> None:
    with pytest.raises(ValueError, match=f"{what}.*None"):
        answer_from_levels([torch.zeros(1, 1, 2, 2)], family, PLAIN, (4, 4))
