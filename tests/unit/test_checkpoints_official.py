"""Files of the official repositories and of TVTVision are read, key for key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import Checkpoint, read_backbone_weights, read_checkpoint, with_backbone
from flowedge.manifest import Preprocessing
from support.checkpoint_files import (
    State,
    aio_block,
    cross_coupling,
    fake_class,
    prefixed,
    resnet,
    save,
    sequence,
    values,
)

CFLOW_NAME = "mvtec_resnet18_freia-cflow_pl3_cb2_inp128_run0_metal_nut_2022.pt"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def assumed(checkpoint: Checkpoint) -> dict[str, tuple[object, bool]]:
    """Return each assumed value, and whether the user gave it, by name."""
    return {a.name: (a.value, a.given) for a in checkpoint.assumed}


def assert_same(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    """Check that the record holds these tensors, up to axes of length 1."""
    for name, tensor in expected.items():
        np.testing.assert_array_equal(
            checkpoint.tensors[name], tensor.numpy().reshape(checkpoint.tensors[name].shape)
        )


# --- CFLOW ----------------------------------------------------------------------------------------------------


def cflow_file(rng: np.random.Generator, kind: str = "soft", condition: int = 4) -> dict[str, object]:
    decoders = [sequence(rng, c, condition=condition, kind=kind) for c in (128, 256, 512)]
    return {"encoder_state_dict": resnet(rng), "decoder_state_dict": decoders}


def test_official_cflow_takes_the_rest_from_its_name(tmp_path: Path, rng: np.random.Generator) -> None:
    file = cflow_file(rng)
    checkpoint = read_checkpoint(save(tmp_path / CFLOW_NAME, file))
    assert (checkpoint.repository, checkpoint.generation) == ("gudovskiy/cflow-ad", "official")
    assert checkpoint.hyperparameters["backbone"] == "resnet18"
    assert checkpoint.hyperparameters["layers"] == ("layer2", "layer3", "layer4")
    assert checkpoint.hyperparameters["padding"] == "reflect"
    assert checkpoint.hyperparameters["input_size"] == (128, 128)
    assert checkpoint.preprocessing == Preprocessing(
        resize=(128, 128), method="pil_lanczos", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    assert set(assumed(checkpoint)) == {"clamp", "clamp_variant", "resize_method", "mean", "std"}
    decoders = file["decoder_state_dict"]
    assert isinstance(decoders, list)
    assert_same(
        checkpoint,
        {
            "flow.1.0.global_scale": decoders[1]["module_list.0.global_scale"],
            "flow.2.1.w_perm": decoders[2]["module_list.1.w_perm"],
            "flow.0.1.subnet.0.weight": decoders[0]["module_list.1.subnet.0.weight"],
            "flow.0.1.subnet.1.bias": decoders[0]["module_list.1.subnet.2.bias"],
        },
    )
    assert not any("w_perm_inv" in name for name in checkpoint.tensors)
    assert all(array.dtype in (np.float32, np.int64) for array in checkpoint.tensors.values())


def test_official_cflow_under_another_name_assumes_the_size(tmp_path: Path, rng: np.random.Generator) -> None:
    checkpoint = read_checkpoint(save(tmp_path / "model.pt", cflow_file(rng)))
    assert assumed(checkpoint)["input_size"] == ([256, 256], False)


def test_official_cflow_on_surveillance_has_other_statistics(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = save(tmp_path / CFLOW_NAME.replace("mvtec", "stc"), cflow_file(rng))
    assert read_checkpoint(path).preprocessing.std == (0.225, 0.225, 0.225)


@pytest.mark.parametrize(
    ("kind", "variant", "is_assumed"),
    [("hard", "tanh", False), ("soft", "tanh", True), ("index", "tanh_over_alpha", True)],
)
def test_the_permutation_tells_the_clamp(
    kind: str, variant: str, is_assumed: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = save(tmp_path / CFLOW_NAME, cflow_file(rng, kind))
    checkpoint = read_checkpoint(path)
    assert checkpoint.hyperparameters["clamp_variant"] == variant
    assert ("clamp_variant" in assumed(checkpoint)) is is_assumed
    other = "tanh" if variant == "tanh_over_alpha" else "tanh_over_alpha"
    chosen = read_checkpoint(path, settings={"clamp_variant": other})
    assert assumed(chosen)["clamp_variant"] == (other, True)
    assert chosen.hyperparameters["clamp_variant"] == other


def test_an_official_cflow_on_a_resnet_that_cannot_have_trained_is_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    file = cflow_file(rng)
    file["decoder_state_dict"] = [sequence(rng, c) for c in (64, 128, 256)]
    with pytest.raises(CheckpointError, match=r"\(64, 128, 256\) channels on resnet18"):
        read_checkpoint(save(tmp_path / CFLOW_NAME, file))


def test_a_mobilenet_is_tapped_before_the_batch_norm_of_its_projections(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    encoder = {"0.0.weight": values(rng, 16, 3, 3, 3), "1.block.0.0.weight": values(rng, 16, 1, 3, 3)}
    for block in (6, 12, 13, 15):
        encoder |= {f"{block}.block.{part}.0.weight": values(rng, 1, 1, 1, 1) for part in (0, 1, 3)}
        encoder |= {f"{block}.block.2.fc1.weight": values(rng, 1, 1, 1, 1)}
    file = {"encoder_state_dict": encoder, "decoder_state_dict": [sequence(rng, c) for c in (40, 112, 160)]}
    name = CFLOW_NAME.replace("resnet18", "mobilenet_v3_large")
    checkpoint = read_checkpoint(save(tmp_path / name, file))
    assert checkpoint.hyperparameters["backbone"] == "mobilenet_v3_large"
    assert checkpoint.hyperparameters["layers"] == ("6.block.3.0", "12.block.3.0", "15.block.3.0")
    assert checkpoint.hyperparameters["padding"] == "zeros"


def test_an_efficientnet_is_tapped_before_the_residual_and_normalised_as_upstream_does(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    encoder = {"conv_stem.weight": values(rng, 48, 3, 3, 3)}
    encoder |= {
        f"blocks.{stage}.{block}.bn3.weight": values(rng, 1) for stage in range(1, 7) for block in range(11)
    }
    file = {"encoder_state_dict": encoder, "decoder_state_dict": [sequence(rng, c) for c in (64, 176, 304)]}
    name = CFLOW_NAME.replace("resnet18", "tf_efficientnet_b5")
    checkpoint = read_checkpoint(save(tmp_path / name, file))
    assert checkpoint.hyperparameters["backbone"] == "tf_efficientnet_b5"
    assert checkpoint.hyperparameters["layers"] == ("blocks.2.10.bn3", "blocks.4.10.bn3", "blocks.5.10.bn3")
    assert checkpoint.preprocessing.std == checkpoint.preprocessing.mean
    assert checkpoint.preprocessing.resize == (456, 456), "timm's, whatever the file's name says"
    assert assumed(checkpoint)["input_size"] == ([456, 456], False)
    chosen = read_checkpoint(save(tmp_path / name, file), settings={"input_size": "128"})
    assert chosen.preprocessing.resize == (128, 128)


def test_a_vision_transformer_is_tapped_in_upstreams_odd_order(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    encoder = {"pos_embed": torch.zeros(1, 197, 768)}
    file = {"encoder_state_dict": encoder, "decoder_state_dict": [sequence(rng, 768) for _ in range(3)]}
    name = CFLOW_NAME.replace("mvtec", "stc").replace("resnet18", "vit_base_patch16_224")
    checkpoint = read_checkpoint(save(tmp_path / name, file))
    assert checkpoint.hyperparameters["backbone"] == "vit_base_patch16_224"
    assert checkpoint.hyperparameters["layers"] == ("blocks.10", "blocks.2", "blocks.6")
    assert checkpoint.preprocessing.resize == (224, 224)
    statistics = (checkpoint.preprocessing.mean, checkpoint.preprocessing.std)
    assert statistics == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "also for the frames of stc"


# --- FastFlow -------------------------------------------------------------------------------------------------


def fastflow_state(rng: np.random.Generator, flows: str, layers: tuple[str, str] = ("0", "2")) -> State:
    state = prefixed("feature_extractor.", resnet(rng, (2, 2, 2)))
    for level, (channels, side) in enumerate(((6, 8), (10, 4), (14, 2))):
        state |= prefixed(f"{flows}.{level}.", sequence(rng, channels, kernel=3, layers=layers))
        state |= {f"norms.{level}.weight": values(rng, channels, side, side)}
        state |= {f"norms.{level}.bias": values(rng, channels, side, side)}
    return state


def test_official_fastflow_knows_its_size_from_its_norms(tmp_path: Path, rng: np.random.Generator) -> None:
    state = fastflow_state(rng, "nf_flows")
    file = {"epoch": 9, "model_state_dict": state, "optimizer_state_dict": {}}
    checkpoint = read_checkpoint(save(tmp_path / "9.pt", file))
    assert (checkpoint.repository, checkpoint.family) == ("gathierry/FastFlow", "fastflow")
    assert checkpoint.hyperparameters["input_size"] == (32, 32)
    assert checkpoint.hyperparameters["backbone"] == "resnet18"
    expected = Preprocessing(
        resize=(32, 32), keep_aspect=True, method="pil_bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    assert checkpoint.preprocessing == expected
    assert_same(
        checkpoint,
        {
            "norms.2.bias": state["norms.2.bias"],
            "flow.1.1.subnet.1.weight": state["nf_flows.1.module_list.1.subnet.2.weight"],
            "backbone.layer3.1.conv2.weight": state["feature_extractor.layer3.1.conv2.weight"],
        },
    )


def test_another_size_than_the_norms_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = save(tmp_path / "9.pt", {"model_state_dict": fastflow_state(rng, "nf_flows")})
    with pytest.raises(CheckpointError, match=r"input size is \(64, 64\).*input_size=32x32"):
        read_checkpoint(path, settings={"input_size": "64"})


def test_learned_reflections_stand_in_for_the_permutation(tmp_path: Path, rng: np.random.Generator) -> None:
    state = fastflow_state(rng, "nf_flows")
    start = "nf_flows.0.module_list.0."
    del state[f"{start}w_perm"], state[f"{start}w_perm_inv"]
    state |= {f"{start}vk_householder": values(rng, 2, 6), f"{start}w_0": values(rng, 6, 6, 1, 1)}
    checkpoint = read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))
    assert checkpoint.tensors["flow.0.0.vk_householder"].shape == (2, 6)
    assert checkpoint.tensors["flow.0.0.w_0"].shape == (6, 6)
    assert "flow.0.0.w_perm" not in checkpoint.tensors
    state[f"{start}w_0"] = values(rng, 5, 6, 1, 1)
    with pytest.raises(CheckpointError, match=r"flow\.0\.0\.w_0 has shape \(5, 6\)"):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


def test_a_permutation_index_that_repeats_a_channel_is_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    state = fastflow_state(rng, "nf_flows")
    state["nf_flows.0.module_list.0.w_perm"] = torch.tensor([0, 1, 2, 3, 4, 4])
    with pytest.raises(CheckpointError, match="no permutation of 6 channels"):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


@pytest.mark.parametrize(
    ("positions", "width", "extra", "name", "side"),
    [
        (578, 768, ("dist_token",), "deit_base_distilled_patch16_384", 384),
        (784, 768, ("blocks.0.attn.proj_l.weight",), "cait_m48_448", 448),
        (196, 384, ("blocks.0.attn.proj_l.weight",), "cait_s24_224", 224),
    ],
)
def test_a_transformer_is_known_by_its_position_code(
    positions: int,
    width: int,
    extra: tuple[str, ...],
    name: str,
    side: int,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    state = {"feature_extractor.pos_embed": torch.zeros(1, positions, width)}
    state |= {f"feature_extractor.{key}": values(rng, 1) for key in (*extra, "cls_token")}
    state |= prefixed("nf_flows.0.", sequence(rng, 6, kernel=1))
    checkpoint = read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))
    assert checkpoint.hyperparameters["backbone"] == name
    assert checkpoint.hyperparameters["input_size"] == (side, side)


# --- U-Flow ---------------------------------------------------------------------------------------------------


def uflow_flow(
    rng: np.random.Generator, steps: int, channels: tuple[int, ...]
) -> tuple[State, dict[str, int]]:
    """Return the tensors of U-Flow's graph, coarsest stage first, and the node of each ``{level}.{k}``."""
    state: State = {}
    nodes: dict[str, int] = {}
    for stage, width in enumerate(channels):
        for k in range(steps):
            n = stage * (steps + 3) + k
            nodes[f"{len(channels) - 1 - stage}.{k}"] = n
            state |= prefixed(f"flow.module_list.{n}.", aio_block(rng, width, kernel=3 - 2 * (k % 2)))
        if stage < len(channels) - 1:
            n = stage * (steps + 3) + steps + 1
            state[f"flow.module_list.{n}.downsample_kernel"] = torch.zeros(4 * (width // 8), 1, 2, 2)
    return state, nodes


def uflow_norms(rng: np.random.Generator, channels: tuple[int, ...]) -> State:
    """Return the norms of each level's features of a 64x96 image, for stages of these channels, coarsest first."""
    state: State = {}
    for stage, width in enumerate(channels):
        level, risen = len(channels) - 1 - stage, channels[stage - 1] // 8 if stage else 0
        for part in ("weight", "bias"):
            name = f"feature_extractor.feature_normalizations.{level}.{part}"
            state[name] = values(rng, width - risen, 16 >> level, 24 >> level)
    return state


def uflow_file(
    rng: np.random.Generator, flow: State, channels: tuple[int, ...] = (8, 6)
) -> dict[str, object]:
    """Write a Lightning checkpoint of U-Flow on a ResNet, for stages of these channels, coarsest first."""
    extractor = prefixed("feature_extractor.extractor.", resnet(rng, (2, 2, 2)))
    return {"state_dict": prefixed("model.", flow | extractor | uflow_norms(rng, channels))}


@pytest.mark.parametrize(("steps", "channels"), [(4, (16, 10, 8)), (1, (8, 6)), (2, (8, 8, 8, 8))])
def test_official_uflow_stages_become_levels(
    steps: int, channels: tuple[int, ...], tmp_path: Path, rng: np.random.Generator
) -> None:
    flow, nodes = uflow_flow(rng, steps, channels)
    state = flow | prefixed("feature_extractor.extractor.", resnet(rng, (2, 2, 2)))
    state |= uflow_norms(rng, channels)
    file = {"state_dict": prefixed("model.", state) | {"pixel_aupro.fpr_limit": torch.tensor(float("nan"))}}
    checkpoint = read_checkpoint(save(tmp_path / "bottle.ckpt", file))
    assert (checkpoint.repository, checkpoint.family) == ("mtailanian/uflow", "uflow")
    assert checkpoint.hyperparameters["input_size"] == (64, 96)
    assert_same(
        checkpoint,
        {f"flow.{key}.w_perm": flow[f"flow.module_list.{n}.w_perm"] for key, n in nodes.items()}
        | {"norms.0.weight": state["feature_extractor.feature_normalizations.0.weight"]},
    )
    assert sum(name.endswith("global_scale") for name in checkpoint.tensors) == steps * len(channels)


def test_official_uflow_with_two_transformers_keeps_both(tmp_path: Path, rng: np.random.Generator) -> None:
    flow, _ = uflow_flow(rng, 2, (8, 6))
    for number, (tokens, width) in enumerate(((784, 768), (196, 384)), start=1):
        flow[f"feature_extractor.extractor{number}.pos_embed"] = torch.zeros(1, tokens, width)
    checkpoint = read_checkpoint(save(tmp_path / "carpet.ckpt", {"state_dict": prefixed("model.", flow)}))
    assert checkpoint.repository == "mtailanian/uflow"
    assert checkpoint.hyperparameters["backbone"] == "mcait"
    assert checkpoint.hyperparameters["input_size"] == (448, 448)
    assert "backbone.extractor2.pos_embed" in checkpoint.tensors


def test_a_uflow_graph_that_lacks_a_block_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    flow, _ = uflow_flow(rng, 2, (8, 6))
    state = {name: t for name, t in flow.items() if not name.startswith("flow.module_list.6.")}
    state |= prefixed("feature_extractor.extractor.", resnet(rng, (2, 2, 2)))
    with pytest.raises(CheckpointError, match="blocks at"):
        read_checkpoint(save(tmp_path / "model.ckpt", {"state_dict": state}))


# --- MSFlow ---------------------------------------------------------------------------------------------------


def msflow_file(rng: np.random.Generator, order: tuple[int, int, int] = (2, 0, 1)) -> dict[str, object]:
    """Write a checkpoint of MSFlow on a resnet18, with the permutations of nodes 0 to 2 in the given order."""
    widths = (64, 128, 256)
    parallel = [
        sequence(rng, width, blocks=blocks, kernel=3, condition=8, layers=("conv1", "ln", "conv2"))
        for width, blocks in zip(widths, (1, 1, 2), strict=True)
    ]
    fusion: State = {}
    for node, level in enumerate(order):
        permutation = rng.permutation(widths[level])
        fusion[f"module_list.{node}.perm"] = torch.from_numpy(permutation)
        fusion[f"module_list.{node}.perm_inv"] = torch.from_numpy(np.argsort(permutation))
    total = sum(widths) // 2
    for net in ("subnet_1", "subnet_2"):
        start = f"module_list.3.{net}."
        fusion[f"{start}cross_convs.conv1.weight"] = values(rng, total // 4, total, 3, 3)
        fusion[f"{start}cross_convs.conv2.weight"] = values(rng, total, total // 4, 3, 3)
        fusion[f"{start}cross_convs.conv2.bias"] = values(rng, total)
        for name in ("conv1.bias", "norm.weight", "norm.bias"):
            fusion[f"{start}cross_convs.{name}"] = values(rng, total // 4)
        for level, width in enumerate(widths):
            for kind in "st":
                fusion[f"{start}conv_{kind}.{level}.weight"] = values(rng, width // 2, width // 2, 3, 3)
                fusion[f"{start}conv_{kind}.{level}.bias"] = values(rng, width // 2)
    return {"epoch": 1, "parallel_flows": parallel, "fusion_flow": fusion}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_msflow_permutations_belong_to_the_level_of_their_length(
    order: tuple[int, int, int], tmp_path: Path, rng: np.random.Generator
) -> None:
    file = msflow_file(rng, order)
    checkpoint = read_checkpoint(save(tmp_path / "best_det.pt", file))
    fusion, parallel = file["fusion_flow"], file["parallel_flows"]
    assert isinstance(fusion, dict)
    assert isinstance(parallel, list)
    expected = {
        f"fusion.perm.{level}": fusion[f"module_list.{node}.perm"] for node, level in enumerate(order)
    }
    expected |= {
        "fusion.net2.conv_t.1.weight": fusion["module_list.3.subnet_2.conv_t.1.weight"],
        "flow.2.1.subnet.0.weight": parallel[2]["module_list.1.subnet.conv1.weight"],
        "flow.2.1.subnet.1.bias": parallel[2]["module_list.1.subnet.ln.bias"],
        "flow.2.1.subnet.2.bias": parallel[2]["module_list.1.subnet.conv2.bias"],
    }
    assert_same(checkpoint, expected)
    assert checkpoint.backbone_naming is None
    settled = {"clamp_variant": "tanh", "padding": "reflect"}
    assert settled.items() <= checkpoint.hyperparameters.items()
    assert assumed(checkpoint)["top_k"] == (0.03, False)
    assert checkpoint.preprocessing == Preprocessing(
        resize=(512, 512), method="pil_lanczos", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def test_msflow_settings_reach_the_record(tmp_path: Path, rng: np.random.Generator) -> None:
    path = save(tmp_path / "best_det.pt", msflow_file(rng))
    checkpoint = read_checkpoint(path, settings={"input_size": "256x320", "pool_type": "max", "top_k": "0.1"})
    assert checkpoint.preprocessing.resize == (256, 320)
    assert assumed(checkpoint)["pool_type"] == ("max", True)
    assert checkpoint.hyperparameters["top_k"] == 0.1


def test_a_model_without_an_extractor_asks_for_it(tmp_path: Path, rng: np.random.Generator) -> None:
    checkpoint = read_checkpoint(save(tmp_path / "best_det.pt", msflow_file(rng)))
    with pytest.raises(CheckpointError, match=r"resnet18 weights.*--backbone-weights FILE"):
        with_backbone(checkpoint, None)
    weights = save(tmp_path / "resnet34.pth", resnet(rng, (3, 4, 6, 3)) | {"fc.weight": values(rng, 2, 2)})
    filled = with_backbone(checkpoint, weights)
    assert filled.hyperparameters["backbone"] == "resnet34"
    assert "backbone" not in assumed(filled)
    assert "backbone.layer4.2.conv1.weight" in filled.tensors
    assert "backbone.fc.weight" not in filled.tensors
    with pytest.raises(CheckpointError, match="holds its own feature extractor"):
        with_backbone(filled, weights)


def test_extractor_weights_may_be_safetensors(tmp_path: Path, rng: np.random.Generator) -> None:
    state = resnet(rng)
    safetensors.torch.save_file(state, tmp_path / "resnet18.safetensors")
    weights = read_backbone_weights(tmp_path / "resnet18.safetensors")
    assert weights.keys() == state.keys()
    np.testing.assert_array_equal(weights["conv1.weight"], state["conv1.weight"].numpy())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "resnet18.safetensors").read_bytes()[:100])
    for name, reason in {
        "cut.safetensors": "cannot be read as safetensors",
        "none.safetensors": "none",
    }.items():
        with pytest.raises(CheckpointError, match=reason):
            read_backbone_weights(tmp_path / name)


def test_weights_of_another_network_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = save(tmp_path / "best_det.pt", msflow_file(rng))
    weights = save(tmp_path / "resnet34.pth", resnet(rng, (3, 4, 6, 3)))
    named = read_checkpoint(path, settings={"backbone": "resnet18"})
    with pytest.raises(CheckpointError, match=r"holds resnet34, and best_det\.pt needs resnet18"):
        with_backbone(named, weights)


# --- CS-Flow --------------------------------------------------------------------------------------------------


def csflow_state(rng: np.random.Generator, blocks: int = 2) -> State:
    state: State = {}
    for k in range(blocks):
        kernel = 5 if k == blocks - 1 else 3
        state |= prefixed(f"module_list.{4 + 2 * k}.", cross_coupling(rng, ("s1", "s2"), kernel=kernel))
    return state


def csflow_module(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    state: State,
    permutations: list[list[torch.Tensor]],
    clamp: object = 2,
) -> object:
    """Make CS-Flow's pickled graph with None for each input, permutations and couplings in turn, and dummies."""
    classes = {
        name: fake_class(monkeypatch, "freia_funcs", name)
        for name in (
            *("ReversibleGraphNet", "ParallelPermute", "parallel_glow_coupling_layer"),
            *("CrossConvolutions", "InputNode", "dummy_data"),
        )
    }
    containers = fake_class(monkeypatch, "torch.nn.modules.container", "ModuleList")
    leaf = fake_class(monkeypatch, "torch.nn.modules.conv", "Conv2d")

    def module(kind: type, modules: dict[str, object] | None = None, **attributes: object) -> object:
        made = kind()
        made.__dict__ |= {"_parameters": {}, "_buffers": {}, "_modules": modules or {}} | attributes
        return made

    children: dict[str, object] = {"0": None, "1": None, "2": None}
    for k, levels in enumerate(permutations):
        children[str(3 + 2 * k)] = module(classes["ParallelPermute"], perm=levels)
        nets: dict[str, object] = {}
        for net in ("s1", "s2"):
            start = f"module_list.{4 + 2 * k}.{net}."
            own = {
                n.removeprefix(start): torch.nn.Parameter(t) for n, t in state.items() if n.startswith(start)
            }
            layers: dict[str, object] = {}
            for conv in {n.partition(".")[0] for n in own if "." in n}:
                parameters = {part: own[f"{conv}.{part}"] for part in ("weight", "bias")}
                layers[conv] = module(leaf, _parameters=parameters)
            gammas = {n: t for n, t in own.items() if "." not in n}
            nets[net] = module(classes["CrossConvolutions"], layers, _parameters=gammas)
        children[str(4 + 2 * k)] = module(classes["parallel_glow_coupling_layer"], nets, clamp=clamp)
    node, data = classes["InputNode"](), classes["dummy_data"]()
    data.__dict__["dims"] = (304, 6, 8)
    node.__dict__["data"] = data
    graph = {"module_list": module(containers, children)}
    return module(classes["ReversibleGraphNet"], graph, node_list=[node])


def test_a_pickled_csflow_gives_its_own_permutations_clamp_and_size(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = csflow_state(rng)
    permutations = [[torch.from_numpy(rng.permutation(304)) for _ in range(3)] for _ in range(2)]
    graph = csflow_module(rng, monkeypatch, state, permutations)
    path = save(tmp_path / "bottle_test", graph)
    monkeypatch.undo()
    checkpoint = read_checkpoint(path)
    assert (checkpoint.repository, checkpoint.family) == ("marco-rudolph/cs-flow", "csflow")
    assert checkpoint.hyperparameters["clamp"] == 2.0
    assert checkpoint.hyperparameters["input_size"] == (192, 256)
    assert checkpoint.permutations is not None
    np.testing.assert_array_equal(
        np.array(checkpoint.permutations), np.array([[p.numpy() for p in b] for b in permutations])
    )
    assert_same(
        checkpoint,
        {
            "flow.0.net1.conv_scale0_0.weight": state["module_list.4.s1.conv_scale0_0.weight"],
            "flow.1.net2.up_conv21.bias": state["module_list.6.s2.up_conv21.bias"],
            "flow.1.net1.gamma2": state["module_list.6.s1.gamma2"],
        },
    )


def test_a_bare_csflow_state_dict_regenerates_the_official_permutations(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    checkpoint = read_checkpoint(save(tmp_path / "model.pt", csflow_state(rng)))
    assert checkpoint.permutations is not None
    starts = [list(p[:5]) for p in checkpoint.permutations[0]]
    assert starts == [[66, 156, 247, 267, 145], [222, 196, 64, 232, 186], [14, 158, 98, 275, 225]]
    np.random.seed(1)  # as the original seeds the block before it draws three times
    expected = [np.random.permutation(304) for _ in range(3)]
    np.testing.assert_array_equal(np.array(checkpoint.permutations[1]), np.array(expected))
    assert assumed(checkpoint)["input_size"] == ([768, 768], False)
    assert assumed(checkpoint)["padding"] == ("static_0.7", False)
    assert assumed(checkpoint)["use_gamma"] == (True, False)


def test_gammas_that_are_all_zero_were_not_used(tmp_path: Path, rng: np.random.Generator) -> None:
    state = {n: torch.zeros(1) if ".gamma" in n else t for n, t in csflow_state(rng).items()}
    path = save(tmp_path / "model.pt", state)
    assert assumed(read_checkpoint(path))["use_gamma"] == (False, False)
    assert assumed(read_checkpoint(path, settings={"use_gamma": "true"}))["use_gamma"] == (True, True)


@pytest.mark.parametrize(
    "name",
    ["s1.conv_scale2_0.weight", "s2.conv_scale0_1.weight", "s1.down_conv12.bias", "s2.up_conv10.weight"],
)
def test_a_misshapen_csflow_tensor_is_named(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    state = csflow_state(rng)
    net = name.replace("s1", "net1").replace("s2", "net2").rpartition(".")[0]
    for misshapen in (state[f"module_list.4.{name}"][:-1], torch.tensor(1.0)):
        state[f"module_list.4.{name}"] = misshapen
        with pytest.raises(CheckpointError, match=rf"flow\.0\.{net}|flow\.0\.{net[:4]}"):
            read_checkpoint(save(tmp_path / "model.pt", state))


# --- TVTVision ------------------------------------------------------------------------------------------------


def tv_cflow(rng: np.random.Generator) -> State:
    state = prefixed("encoder.feature_extractor.", resnet(rng))
    for level, channels in enumerate((128, 256, 512)):
        state |= prefixed(f"decoders.{level}.", sequence(rng, channels, condition=4))
    return state


def tv_fastflow(rng: np.random.Generator) -> State:
    return fastflow_state(rng, "fast_flow_blocks", ("1", "4"))


@pytest.mark.parametrize(("family", "state"), [("cflow", tv_cflow), ("fastflow", tv_fastflow)])
def test_tvtvision_resizes_with_opencv(
    family: str, state: Callable[[np.random.Generator], State], tmp_path: Path, rng: np.random.Generator
) -> None:
    file = {"step": 3, "model_state_dict": state(rng), "best_score": np.float64(0.9)}
    checkpoint = read_checkpoint(save(tmp_path / "best.pt", file))
    assert (checkpoint.repository, checkpoint.family) == ("Taitran2202/TVTVision", family)
    assert checkpoint.preprocessing.method == "cv2_bilinear"
    assert checkpoint.hyperparameters["backbone"] == "resnet18"
    assert "flow.2.1.subnet.1.weight" in checkpoint.tensors
    if family == "cflow":
        assert checkpoint.hyperparameters["layers"] == ("layer2", "layer3", "layer4")
        assert assumed(checkpoint)["top_pixels"] == (100, False)


def test_a_bare_state_dict_of_anomalibs_inner_module_scores_by_the_largest_pixel(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = save(tmp_path / "model.pt", tv_cflow(rng))
    assert assumed(read_checkpoint(path))["top_pixels"] == (1, False)
    chosen = read_checkpoint(path, settings={"top_pixels": "100"})
    assert assumed(chosen)["top_pixels"] == (100, True)


# --- containers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_found_bare_or_wrapped_or_parallel(
    key: str | None, prefix: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    state = prefixed(prefix, fastflow_state(rng, "nf_flows"))
    checkpoint = read_checkpoint(save(tmp_path / "9.pt", {key: state} if key else state))
    assert checkpoint.repository == "gathierry/FastFlow"


def test_an_unknown_model_names_the_families_and_the_keys_found(tmp_path: Path) -> None:
    path = save(tmp_path / "bert.pt", {"embeddings.weight": torch.zeros(2), "pooler.bias": torch.zeros(2)})
    with pytest.raises(
        CheckpointError, match=r"'embeddings\.weight', 'pooler\.bias'.*cflow, csflow, fastflow"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("1.module_list.0.global_offset", lambda t: t[:, :-1], r"flow\.1\.0\.global_offset has shape \(9,\)"),
        ("1.module_list.1.w_perm", lambda t: t[:-1], r"flow\.1\.1\.w_perm has shape \(9, 10\)"),
        ("1.module_list.1.w_perm", torch.zeros_like, r"flow\.1\.1\.w_perm has only zeros and ones"),
        ("0.module_list.0.subnet.0.bias", lambda t: t[:-1], r"flow\.0\.0\.subnet\.0\.bias has shape \(2,\)"),
        (
            "0.module_list.0.subnet.0.weight",
            lambda t: t[:, :-1],
            r"flow\.0\.0\.subnet\.0\.weight .* at least 3",
        ),
        (
            "0.module_list.0.subnet.0.weight",
            lambda t: t[:, :, :2],
            r"flow\.0\.0\.subnet\.0\.weight has shape",
        ),
        ("2.module_list.1.subnet.2.weight", lambda t: t[:, :-1], r"flow\.2\.1\.subnet\.1\.weight has shape"),
        ("0.module_list.0.subnet.0.weight", torch.Tensor.long, r"flow\.0\.0\.subnet\.0\.weight holds whole"),
        (
            "2.module_list.1.subnet.2.weight",
            lambda t: t * torch.inf,
            r"flow\.2\.1\.subnet\.2\.weight has .* NaN",
        ),
    ],
)
def test_a_wrong_tensor_is_named_with_what_is_wrong(
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    message: str,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    state = fastflow_state(rng, "nf_flows")
    state[f"nf_flows.{name}"] = change(state[f"nf_flows.{name}"])
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


@pytest.mark.parametrize(
    "name", ["0.module_list.1.global_scale", "1.module_list.0.w_perm", "2.module_list.0.subnet.0.weight"]
)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    state = fastflow_state(rng, "nf_flows")
    del state[f"nf_flows.{name}"]
    level, _, k, rest = name.split(".", 3)
    with pytest.raises(CheckpointError, match=rf"flow\.{level}\.{k}\.{rest.partition('.')[0]}"):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(1, 6, 1, 1, device="meta"),
        torch.zeros(1, 6, 1, 1, dtype=torch.uint8).view(torch.bits8),
        torch.zeros(1, 6, 1, 1, dtype=torch.complex64),
        torch.zeros(1, 6, 1, 1).to_sparse(),
    ],
    ids=["without values", "bits", "complex", "sparse"],
)
@pytest.mark.parametrize(
    "name", ["nf_flows.0.module_list.0.global_scale", "norms.1.bias", "feature_extractor.conv1.weight"]
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_a_tensor_without_plain_values_is_named(
    name: str, tensor: torch.Tensor, tmp_path: Path, rng: np.random.Generator
) -> None:
    state = fastflow_state(rng, "nf_flows") | {name: tensor}
    last = name.partition("module_list.0.")[2] or name.removeprefix("feature_extractor.")
    with pytest.raises(CheckpointError, match=rf"{last} (has a shape|is a torch\.).* [sS]ave"):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


@pytest.mark.parametrize("layer", ["0", "2"])
def test_a_subnet_without_one_of_its_biases_is_refused(
    layer: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    fastflow, cflow = fastflow_state(rng, "nf_flows"), cflow_file(rng)
    uflow, _ = uflow_flow(rng, 1, (8, 6))
    decoders = cflow["decoder_state_dict"]
    assert isinstance(decoders, list)
    for state, prefix in ((fastflow, "nf_flows.1."), (decoders[1], ""), (uflow, "flow.")):
        del state[f"{prefix}module_list.0.subnet.{layer}.bias"]
    for file in ({"model_state_dict": fastflow}, cflow, uflow_file(rng, uflow)):
        with pytest.raises(CheckpointError, match=rf"lacks flow\.1\.0\.subnet\.{layer}\.bias"):
            read_checkpoint(save(tmp_path / "9.pt", file))


@pytest.mark.parametrize("layer", ["conv1", "ln", "conv2"])
def test_an_msflow_subnet_without_one_of_its_biases_is_refused(
    layer: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    file = msflow_file(rng)
    parallel = file["parallel_flows"]
    assert isinstance(parallel, list)
    del parallel[2][f"module_list.1.subnet.{layer}.bias"]
    with pytest.raises(CheckpointError, match=rf"lacks flow\.2\.1\.subnet\.{layer}\.bias"):
        read_checkpoint(save(tmp_path / "best_det.pt", file))


@pytest.mark.parametrize(
    ("layers", "kernel"), [(("0", "1", "2"), 3), (("0", "2"), None)], ids=["a norm", "no convolutions"]
)
def test_another_familys_subnet_is_refused(
    layers: tuple[str, ...], kernel: int | None, tmp_path: Path, rng: np.random.Generator
) -> None:
    state = {n: t for n, t in fastflow_state(rng, "nf_flows").items() if not n.startswith("nf_flows.0.")}
    state |= prefixed("nf_flows.0.", sequence(rng, 6, kernel=kernel, layers=layers))
    with pytest.raises(CheckpointError, match=r"flow\.0\.0\.subnet .* not those of a known subnet"):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


def test_convolutions_of_different_kernels_in_one_subnet_are_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    state = fastflow_state(rng, "nf_flows")
    state["nf_flows.0.module_list.0.subnet.2.weight"] = values(rng, 6, 3, 1, 1)
    with pytest.raises(
        CheckpointError, match=r"subnet\.1\.weight has shape \(6, 3, 1, 1\).* the same in all"
    ):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


@pytest.mark.parametrize("condition", [2, 6, 7])
def test_a_condition_that_is_no_position_code_is_refused(
    condition: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    msflow = msflow_file(rng)
    parallel = msflow["parallel_flows"]
    assert isinstance(parallel, list)
    parallel[0] = sequence(rng, 64, condition=condition, kernel=3, layers=("conv1", "ln", "conv2"))
    for file, inputs in ((msflow, 32 + condition), (cflow_file(rng, condition=condition), 64 + condition)):
        message = (
            rf"level 0 take {inputs} channels, {condition} of them a position code, expected a multiple of 4"
        )
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(save(tmp_path / CFLOW_NAME, file))


def test_a_condition_where_the_family_has_none_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    fastflow = {n: t for n, t in fastflow_state(rng, "nf_flows").items() if not n.startswith("nf_flows.0.")}
    fastflow |= prefixed("nf_flows.0.", sequence(rng, 6, kernel=3, condition=4))
    uflow, _ = uflow_flow(rng, 1, (8, 6))
    uflow |= prefixed("flow.module_list.4.", aio_block(rng, 6, kernel=3, condition=4))
    for file, family in (({"model_state_dict": fastflow}, "fastflow"), (uflow_file(rng, uflow), "uflow")):
        message = rf"level 0 take 7 channels, expected 3 for 6 channels: {family} has no condition"
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(save(tmp_path / "9.pt", file))


@pytest.mark.parametrize("settings", [{}, {"input_size": "32"}], ids=["", "with a size"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("0.bias",), r"lacks norms\.0\.bias"),
        (("2.weight",), r"lacks norms\.2\.weight"),
        (("1.weight", "1.bias"), r"lacks norms\.1\.weight"),
        (("2.weight", "2.bias"), r"lacks norms\.2\.weight"),
        (tuple(f"{n}.{part}" for n in range(3) for part in ("weight", "bias")), r"lacks norms\.0\.weight"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_convolutional_extractor_without_one_of_its_norms_is_refused(
    names: tuple[str, ...],
    message: str,
    settings: dict[str, str],
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    state = fastflow_state(rng, "nf_flows")
    flow, _ = uflow_flow(rng, 1, (8, 8, 8))
    uflow = uflow_file(rng, flow, (8, 8, 8))
    held = uflow["state_dict"]
    assert isinstance(held, dict)
    for name in names:
        del state[f"norms.{name}"], held[f"model.feature_extractor.feature_normalizations.{name}"]
    for file in ({"model_state_dict": state}, uflow):
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(save(tmp_path / "9.pt", file), settings=settings)


def test_a_norm_too_many_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    state = fastflow_state(rng, "nf_flows") | {
        f"norms.3.{p}": values(rng, 6, 1, 1) for p in ("weight", "bias")
    }
    with pytest.raises(CheckpointError, match=r"has norms\.3\.bias; .* its 3 levels"):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))
    state = {
        "feature_extractor.pos_embed": torch.zeros(1, 784, 768),
        "feature_extractor.cls_token": values(rng, 1),
    }
    state |= {"feature_extractor.blocks.0.attn.proj_l.weight": values(rng, 1)}
    state |= prefixed("nf_flows.0.", sequence(rng, 6, kernel=1))
    state |= {f"norms.0.{part}": values(rng, 6, 28, 28) for part in ("weight", "bias")}
    with pytest.raises(
        CheckpointError, match=r"has norms\.0\.weight, and there are none behind cait_m48_448"
    ):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


@pytest.mark.parametrize("shape", [(), (784,), (784, 768), (1, 0, 768), (1, 783, 768)])
def test_a_position_code_of_another_shape_is_refused(
    shape: tuple[int, ...], tmp_path: Path, rng: np.random.Generator
) -> None:
    state = {"feature_extractor.pos_embed": torch.zeros(shape)}
    state |= {"feature_extractor.blocks.0.attn.proj_l.weight": values(rng, 1)}
    state |= prefixed("nf_flows.0.", sequence(rng, 6, kernel=1))
    with pytest.raises(CheckpointError, match="pos_embed has shape"):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


@pytest.mark.parametrize(
    "permutation",
    [torch.arange(6.0), torch.arange(5), torch.tensor(0), torch.zeros(6, dtype=torch.int64)],
    ids=["float", "short", "a number", "zeros"],
)
def test_an_index_that_is_no_permutation_is_refused(
    permutation: torch.Tensor, tmp_path: Path, rng: np.random.Generator
) -> None:
    state = fastflow_state(rng, "nf_flows")
    state["nf_flows.0.module_list.0.w_perm"] = permutation
    with pytest.raises(
        CheckpointError, match=r"flow\.0\.0\.w_perm.* (no permutation of 6 channels|expected \(6, 6\))"
    ):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


@pytest.mark.parametrize(
    "vectors",
    [torch.zeros(2, 6), torch.zeros(0, 6), torch.zeros(6), torch.tensor(1.0)],
    ids=lambda t: str(t.shape),
)
def test_reflections_that_reflect_nothing_are_refused(
    vectors: torch.Tensor, tmp_path: Path, rng: np.random.Generator
) -> None:
    state = fastflow_state(rng, "nf_flows")
    start = "nf_flows.0.module_list.0."
    state |= {f"{start}vk_householder": vectors, f"{start}w_0": values(rng, 6, 6, 1, 1)}
    with pytest.raises(CheckpointError, match=r"flow\.0\.0\.vk_householder has shape"):
        read_checkpoint(save(tmp_path / "9.pt", {"model_state_dict": state}))


@pytest.mark.parametrize(
    "permutation",
    [torch.tensor(5), torch.arange(64.0), torch.arange(64)[None], torch.arange(63), torch.arange(1, 65)],
    ids=["a number", "float", "a matrix", "short", "from one"],
)
def test_an_msflow_permutation_of_no_level_is_refused(
    permutation: torch.Tensor, tmp_path: Path, rng: np.random.Generator
) -> None:
    file = msflow_file(rng)
    fusion = file["fusion_flow"]
    assert isinstance(fusion, dict)
    fusion["module_list.1.perm"] = permutation
    with pytest.raises(CheckpointError, match=r"module_list\.1\.perm, .* no permutation .* \(64, 128, 256\)"):
        read_checkpoint(save(tmp_path / "best_det.pt", file))


def test_two_msflow_permutations_of_one_level_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    file = msflow_file(rng)
    fusion = file["fusion_flow"]
    assert isinstance(fusion, dict)
    fusion["module_list.7.perm"] = torch.arange(64)
    with pytest.raises(CheckpointError, match=r"there twice, as fusion\.perm\.0"):
        read_checkpoint(save(tmp_path / "best_det.pt", file))


@pytest.mark.parametrize("kind", [torch.tensor(0), torch.arange(304.0), torch.arange(303)], ids=str)
def test_a_csflow_permutation_of_other_numbers_is_refused(
    kind: torch.Tensor, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = [[torch.arange(304)] * 3, [torch.arange(304), kind, torch.arange(304)]]
    path = save(tmp_path / "bottle_test", csflow_module(rng, monkeypatch, csflow_state(rng), levels))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"permutation 1 is .*, not three permutations of 304 channels"):
        read_checkpoint(path)


def test_a_csflow_scale_without_its_gamma_or_a_coupling_of_other_channels_is_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    state = csflow_state(rng)
    del state["module_list.6.s2.gamma1"]
    with pytest.raises(CheckpointError, match=r"flow\.1\.net2\.gamma1 is missing"):
        read_checkpoint(save(tmp_path / "model.pt", state))
    state["module_list.6.s2.gamma1"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"flow\.1\.net2\.gamma1 has shape \(2,\)"):
        read_checkpoint(save(tmp_path / "model.pt", state))
    state = csflow_state(rng) | prefixed("module_list.8.", cross_coupling(rng, ("s1", "s2"), 16))
    with pytest.raises(CheckpointError, match=r"the couplings have \[16, 304\] channels"):
        read_checkpoint(save(tmp_path / "model.pt", state))


@pytest.mark.parametrize(
    "clamp", [0, -1.5, math.nan, math.inf, 10**400, True, "3"], ids=lambda c: f"{c!r:.9}"
)
def test_a_csflow_with_a_clamp_that_clamps_nothing_is_refused(
    clamp: object, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    permutations = [[torch.arange(304)] * 3] * 2
    graph = csflow_module(rng, monkeypatch, csflow_state(rng), permutations, clamp)
    path = save(tmp_path / "bottle_test", graph)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"clamp is .*, not a positive number"):
        read_checkpoint(path)


@pytest.mark.parametrize("clamp", ["0", "-1", "nan", "inf", "1e999", "two"])
@pytest.mark.parametrize("family", ["cflow", "csflow", "fastflow", "uflow", "msflow"])
def test_no_family_takes_the_users_word_for_such_a_clamp(
    family: str, clamp: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    files: dict[str, Callable[[], Mapping[str, object]]] = {
        "cflow": lambda: cflow_file(rng),
        "csflow": lambda: csflow_state(rng),
        "fastflow": lambda: {"model_state_dict": fastflow_state(rng, "nf_flows")},
        "uflow": lambda: uflow_file(rng, uflow_flow(rng, 1, (8, 6))[0]),
        "msflow": lambda: msflow_file(rng),
    }
    with pytest.raises(CheckpointError, match=rf"--set clamp={clamp}: clamp is a positive number"):
        read_checkpoint(save(tmp_path / "model.pt", files[family]()), settings={"clamp": clamp})


@pytest.mark.parametrize("share", ["0", "-0.1", "1.5", "nan", "1e-400"])
def test_msflow_scores_by_a_share_of_the_pixels_or_not_at_all(
    share: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    with pytest.raises(CheckpointError, match=rf"--set top_k={share}: top_k is a fraction of the pixels"):
        read_checkpoint(save(tmp_path / "best_det.pt", msflow_file(rng)), settings={"top_k": share})


@pytest.mark.parametrize("node", [0, 1])
def test_a_uflow_graph_without_blocks_is_refused(node: int, tmp_path: Path, rng: np.random.Generator) -> None:
    state = {f"flow.module_list.{node}.downsample_kernel": torch.zeros(4, 1, 2, 2)}
    with pytest.raises(CheckpointError, match=rf"blocks at \[\] and up-samplings at \[{node}\]"):
        read_checkpoint(save(tmp_path / "model.ckpt", uflow_file(rng, state)))


@pytest.mark.parametrize("node", ["²", "x"])
def test_a_uflow_graph_whose_nodes_have_no_numbers_is_refused(
    node: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    state = {f"flow.module_list.{node}.downsample_kernel": torch.zeros(4, 1, 2, 2)}
    with pytest.raises(CheckpointError, match="up-samplings at"):
        read_checkpoint(save(tmp_path / "model.ckpt", {"state_dict": prefixed("model.", state)}))


@pytest.mark.parametrize(
    ("width", "shape"),
    [
        (16, (4, 1, 2, 2)),
        (16, (16, 1, 2, 2)),
        (16, (8, 1, 1, 2)),
        (16, ()),
        (6, (4, 1, 2, 2)),
        (6, (0, 1, 2, 2)),
    ],
)
def test_a_uflow_up_sampling_of_other_channels_is_refused(
    width: int, shape: tuple[int, ...], tmp_path: Path, rng: np.random.Generator
) -> None:
    flow, _ = uflow_flow(rng, 1, (width, 6))
    flow["flow.module_list.2.downsample_kernel"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=rf"up\.1\.downsample_kernel has shape .* C = {width} channels"):
        read_checkpoint(save(tmp_path / "model.ckpt", uflow_file(rng, flow)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clmap": "2"}, r"no setting 'clmap'; it has backbone, clamp, input_size"),
        ({"clamp": "two"}, r"--set clamp=two: clamp is a positive number"),
        ({"clamp": "nan"}, r"clamp is a positive number"),
        ({"clamp_variant": "sigmoid"}, r"tanh or tanh_over_alpha"),
        ({"input_size": "0"}, r"pixels"),
        ({"std": "1,1"}, r"three positive numbers"),
        ({"top_k": "0.1"}, r"fastflow has no setting 'top_k'"),
    ],
)
def test_a_wrong_setting_says_what_is_right(
    settings: dict[str, str], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = save(tmp_path / "9.pt", {"model_state_dict": fastflow_state(rng, "nf_flows")})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path, settings=settings)
