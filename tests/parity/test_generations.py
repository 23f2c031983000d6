"""Compare every generation of FrEIA's block, from file to lowered flow, with its formula in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, layer_norm

import flowedge
from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import read_checkpoint
from flowedge.export.families import FAMILIES
from flowedge.export.graph import ir
from flowedge.export.graph.emit import Flow
from flowedge.export.graph.passes import lower
from support.checkpoint_files import State, prefixed, resnet, save, sequence, values
from support.command_line import flowedge as run_flowedge
from support.small_cflow import small_cflow_checkpoint

Kind: TypeAlias = Literal["index", "hard", "soft", "householder"]
Variant: TypeAlias = Literal["tanh", "tanh_over_alpha"]
Floats: TypeAlias = NDArray[np.float64]
# The last layers of a resnet18: how many levels there are says which.
WIDTHS: Final = (128, 256, 512)
SIZES: Final = ((5, 4), (3, 2), (2, 1))
TOLERANCE: Final = 1e-5


def rng_of(*parts: object) -> np.random.Generator:
    return np.random.default_rng(list("-".join(map(str, parts)).encode()))


# --- the formula -----------------------------------------------------------------------------------------------


def block_by_formula(
    x: Tensor, state: Mapping[str, Tensor], alpha: float, variant: Variant, code: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute one block on ``(1, C, H, W)``: its output, and the sum of its log-scales ``(1, 1, H, W)``.

    Ardizzone et al., FrEIA: y = W (s v + o), v = (x1, x2 exp(g) + t), g = alpha tanh(a) or alpha tanh(a / alpha).
    """
    channels = x.shape[1]
    passive, active = x[:, : channels - channels // 2], x[:, channels - channels // 2 :]
    r = passive if code is None else torch.cat([passive, code], 1)
    layers = sorted({int(name.split(".")[1]) for name in state if name.startswith("subnet.")})
    for n, layer in enumerate(layers):
        weight = state[f"subnet.{layer}.weight"]
        weight = weight.reshape(*weight.shape, *(1,) * (4 - weight.ndim))
        r = conv2d(r.relu() if n else r, weight, state[f"subnet.{layer}.bias"], padding=weight.shape[2] // 2)
    a, t = 0.1 * r[:, : channels // 2], 0.1 * r[:, channels // 2 :]
    g = alpha * torch.tanh(a) if variant == "tanh" else alpha * torch.tanh(a / alpha)
    v = torch.cat([passive, active * g.exp() + t], 1)
    scale = 0.2 * torch.log1p(torch.exp(0.5 * state["global_scale"])).reshape(1, -1, 1, 1)
    u = scale * v + state["global_offset"].reshape(1, -1, 1, 1)
    return permuted(u, state), g.sum(1, keepdim=True)


def permuted(u: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    if "vk_householder" in state:
        matrix = state["w_0"].reshape(u.shape[1], -1)
        for v in state["vk_householder"]:
            matrix = matrix @ (torch.eye(len(v), dtype=v.dtype) - 2 * torch.outer(v, v) / v.dot(v))
    elif state["w_perm"].ndim == 1:
        return u[:, state["w_perm"].long()]
    else:
        matrix = state["w_perm"].reshape(u.shape[1], -1)
    return torch.einsum("ij,njhw->nihw", matrix, u)


def position_code(length: int, height: int, width: int) -> Tensor:
    """Return sines and cosines of the column in the first half of the channels, and of the row in the second."""
    half = length // 2
    code = np.zeros((1, length, height, width))
    for i in range(half // 2):
        omega = np.exp(-2 * i * np.log(10000) / half)
        for start, position in ((0, np.arange(width)[None, :]), (half, np.arange(height)[:, None])):
            code[0, start + 2 * i] = np.sin(position * omega)
            code[0, start + 2 * i + 1] = np.cos(position * omega)
    return torch.from_numpy(code)


def levels_by_formula(
    features: Sequence[Tensor], flows: Sequence[State], alpha: float, variant: Variant, *, condition: int
) -> list[Floats]:
    """CFLOW's log-likelihood per dimension without its constants (``condition`` at least 0), or, for -1, mean z^2."""
    levels = []
    for x, flow in zip(features, flows, strict=True):
        channels, code = x.shape[1], None
        if condition > 0:
            code = position_code(condition, *x.shape[2:])
        log_det = torch.zeros(())
        for k in range(len({name.split(".")[1] for name in flow})):
            start = f"module_list.{k}."
            state = {n.removeprefix(start): t.double() for n, t in flow.items() if n.startswith(start)}
            x, g = block_by_formula(x, state, alpha, variant, code)
            log_det = log_det + g
        square = (x**2).sum(1, keepdim=True)
        level = square / channels if condition < 0 else (log_det - 0.5 * square) / channels
        levels.append(level.numpy())
    return levels


def lowered_levels(
    path: Path, features: Sequence[Tensor], settings: Mapping[str, str]
) -> tuple[dict[str, object], list[Floats]]:
    """Run the export of a file in float64, and return its levels and the values that it assumed."""
    checkpoint = read_checkpoint(path, settings=settings)
    shapes = [(x.shape[1], x.shape[2], x.shape[3]) for x in features]
    backbone = ir.Backbone(network="none", taps=(), padding="zeros", weights={})
    size: Any = checkpoint.hyperparameters["input_size"]
    model = FAMILIES[checkpoint.family].flow_model(checkpoint, backbone, shapes, size)
    with torch.no_grad():
        answers = Flow(lower(model)).double()(list(features))
    return dict(checkpoint.hyperparameters), [level.numpy() for level in answers]


def assert_close(found: Sequence[Floats], expected: Sequence[Floats]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * float(np.abs(other).max()))


def features_of(rng: np.random.Generator, widths: Sequence[int]) -> list[Tensor]:
    sizes = SIZES[: len(widths)]
    return [
        torch.from_numpy(rng.standard_normal((1, c, *s)) + 0.3) for c, s in zip(widths, sizes, strict=True)
    ]


def flow_of(rng: np.random.Generator, channels: int, kind: Kind, **options: Any) -> State:
    """Make a flow of two blocks. FrEIA keeps reflections and their start in place of the matrix."""
    flow = sequence(rng, channels, kind="soft" if kind == "householder" else kind, **options)
    if kind == "householder":
        for name in [name for name in flow if name.endswith(".w_perm")]:
            start = name.removesuffix("w_perm")
            flow[f"{start}w_0"] = flow.pop(name)
            del flow[f"{start}w_perm_inv"]
            flow[f"{start}vk_householder"] = values(rng, 3, channels)
    return flow


# --- official CFLOW: conditional and unconditional, one to three levels, every permutation --------------------


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("condition", [0, 8], ids=["freia-flow", "freia-cflow"])
@pytest.mark.parametrize(
    ("kind", "variant"),
    [("hard", "tanh"), ("soft", "tanh"), ("index", "tanh_over_alpha"), ("householder", "tanh")],
)
def test_official_cflow_of_any_depth_and_generation(
    kind: Kind, variant: Variant, condition: int, count: int, tmp_path: Path
) -> None:
    rng = rng_of(kind, condition, count)
    widths = WIDTHS[-count:]
    flows = [flow_of(rng, c, kind, condition=condition) for c in widths]
    decoder = "freia-cflow" if condition else "freia-flow"
    path = tmp_path / f"mvtec_resnet18_{decoder}_pl{count}_cb2_inp64_run0_cable.pt"
    save(path, {"encoder_state_dict": resnet(rng), "decoder_state_dict": flows})
    features = features_of(rng, widths)
    decided, found = lowered_levels(path, features, {})
    assert decided["layers"] == ("layer2", "layer3", "layer4")[-count:]
    assert decided["clamp_variant"] == variant
    assert_close(found, levels_by_formula(features, flows, 1.9, variant, condition=condition))


@pytest.mark.parametrize("variant", ["tanh", "tanh_over_alpha"])
@pytest.mark.parametrize("kind", ["soft", "index", "householder"])
def test_the_users_word_on_the_clamp_changes_what_is_computed(
    kind: Kind, variant: Variant, tmp_path: Path
) -> None:
    rng = rng_of(kind)
    flows = [flow_of(rng, 512, kind, condition=8)]
    path = save(tmp_path / "m.pt", {"encoder_state_dict": resnet(rng), "decoder_state_dict": flows})
    features = features_of(rng, (512,))
    settings = {"clamp_variant": variant, "clamp": "1.5"}
    _, found = lowered_levels(path, features, settings)
    assert_close(found, levels_by_formula(features, flows, 1.5, variant, condition=8))
    other: Variant = "tanh" if variant == "tanh_over_alpha" else "tanh_over_alpha"
    (wrong,) = levels_by_formula(features, flows, 1.5, other, condition=8)
    assert np.abs(wrong - found[0]).max() > 100 * TOLERANCE * np.abs(found[0]).max()


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        ("householder", "tanh_over_alpha"),
        pytest.param("householder", "tanh", marks=pytest.mark.slow),
        pytest.param("soft", "tanh_over_alpha", marks=pytest.mark.slow),
    ],
)
def test_a_graph_of_a_later_block_agrees_with_freias_own_modules(
    kind: Kind, variant: Variant, tmp_path: Path
) -> None:
    rng = rng_of(kind, variant, "modules")
    stored = small_cflow_checkpoint()
    state = {name: tensor for name, tensor in stored["state_dict"].items() if ".decoders." not in name}
    for level, channels in enumerate((64, 128)):
        state |= prefixed(f"model.decoders.{level}.", flow_of(rng, channels, kind, condition=8))
    path = save(tmp_path / "m.ckpt", {**stored, "state_dict": state})
    bundle = tmp_path / "m.flowedge"
    done = run_flowedge("export", path, "-o", bundle, "--set", f"clamp_variant={variant}")
    assert done.status == 0, done.stderr
    done = run_flowedge("verify", bundle, "--against", path)
    assert done.status == 0, done.stdout + done.stderr


# --- FastFlow: three generations of the subnet's names, and odd channels --------------------------------------


@pytest.mark.parametrize(
    ("flow_name", "layers", "prefix"),
    [
        ("nf_flows", ("0", "2"), ""),
        ("fast_flow_blocks", ("0", "2"), "model."),
        ("fast_flow_blocks", ("1", "4"), "model."),
        ("fast_flow_blocks", ("1", "4"), ""),
    ],
    ids=["official", "anomalib 0.3 and 2.7", "anomalib 0.6 to 2.6", "TVTVision"],
)
@pytest.mark.parametrize("kind", ["hard", "index"])
def test_fastflow_of_any_generation(
    kind: Kind, flow_name: str, layers: tuple[str, str], prefix: str, tmp_path: Path
) -> None:
    rng = rng_of(kind, flow_name, layers)
    widths = (7, 10)
    flows = [
        flow_of(rng, c, kind, kernel=kernel, layers=layers) for c, kernel in zip(widths, (3, 1), strict=True)
    ]
    state = prefixed("feature_extractor.", resnet(rng, (2, 2, 2)))
    features = features_of(rng, widths)
    normed = []
    for level, (flow, x) in enumerate(zip(flows, features, strict=True)):
        weight, bias = (values(rng, *x.shape[1:]) for _ in range(2))
        state |= prefixed(f"{flow_name}.{level}.", flow)
        state |= {f"norms.{level}.weight": weight, f"norms.{level}.bias": bias}
        normed.append(layer_norm(x, x.shape[1:], weight.double(), bias.double()))
    path = save(tmp_path / "m.pt", {"state_dict": prefixed(prefix, state)})
    decided, found = lowered_levels(path, features, {})
    variant: Variant = "tanh" if kind == "hard" or prefix else "tanh_over_alpha"
    assert decided["clamp_variant"] == variant
    assert_close(found, levels_by_formula(normed, flows, 2.0, variant, condition=-1))


def test_norms_of_another_shape_than_the_features_are_refused(tmp_path: Path) -> None:
    rng = rng_of("norms")
    state = prefixed("feature_extractor.", resnet(rng, (2, 2, 2)))
    for level, channels in enumerate((7, 10)):
        state |= prefixed(f"nf_flows.{level}.", flow_of(rng, channels, "hard", kernel=3))
        state |= {f"norms.{level}.{part}": values(rng, channels, 4, 4) for part in ("weight", "bias")}
    path = save(tmp_path / "m.pt", {"state_dict": state})
    features = [torch.zeros(1, 7, 4, 4), torch.zeros(1, 10, 2, 2)]
    with pytest.raises(CheckpointError, match=r"norms\.1\.weight has shape \(10, 4, 4\), .* \(10, 2, 2\)"):
        lowered_levels(path, features, {})


@pytest.mark.slow  # test_checkpoints_official.py reads the number of pixels, and test_score.py takes their mean
def test_a_bundle_of_tvtvisions_cflow_scores_by_its_hundred_largest_pixels(tmp_path: Path) -> None:
    stored = small_cflow_checkpoint()["state_dict"]
    state = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    path = save(tmp_path / "best.pt", {"step": 3, "model_state_dict": state, "best_score": 0.5})
    bundle = tmp_path / "tv.flowedge"
    done = run_flowedge("export", path, "-o", bundle, "--image-size", "64", "64")
    assert done.status == 0, done.stderr
    frame = rng_of("tv").integers(0, 256, (50, 70, 3), dtype=np.uint8)
    with flowedge.load(bundle) as detector:
        result = detector(frame)
    pixels = np.sort(result.network_map, axis=None)
    assert result.score == pytest.approx(float(pixels[-100:].mean()), rel=1e-5)
    assert result.score < 0.999 * pixels[-1]
