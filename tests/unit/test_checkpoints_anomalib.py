"""Checkpoints of every generation of anomalib are read, key for key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import Checkpoint, permutation_kind, read_checkpoint
from flowedge.export.checkpoints.backbone import recognise_backbone
from flowedge.manifest import PartScale, Preprocessing, SourceScale
from support.checkpoint_files import (
    State,
    aio_block,
    cross_coupling,
    fake_class,
    module_tree,
    prefixed,
    resnet,
    save,
    sequence,
    values,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CFLOW_HYPER = {
    "backbone": "resnet18",
    "layers": ["layer1", "layer2"],
    "clamp_alpha": 1.7,
    "condition_vector": 4,
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def cflow_state(rng: np.random.Generator, kind: str = "hard") -> State:
    state = prefixed("encoder.feature_extractor.", resnet(rng, (2, 2)))
    for level, channels in enumerate((64, 128)):
        state |= prefixed(f"decoders.{level}.", sequence(rng, channels, condition=4, kind=kind))
    return state


def fastflow_state(rng: np.random.Generator, layers: tuple[str, str]) -> State:
    state = prefixed("feature_extractor.", resnet(rng, (2, 2, 2)))
    for level, (channels, side) in enumerate(((6, 8), (10, 4), (14, 2))):
        state |= prefixed(f"fast_flow_blocks.{level}.", sequence(rng, channels, kernel=3, layers=layers))
        state |= {f"norms.{level}.{part}": values(rng, channels, side, side) for part in ("weight", "bias")}
    return state


def uflow_state(rng: np.random.Generator) -> State:
    state = prefixed("feature_extractor.feature_extractor.", resnet(rng, (2, 2, 2)))
    for n, channels in ((0, 8), (1, 8), (5, 6), (6, 6)):
        state |= prefixed(f"flow.module_list.{n}.", aio_block(rng, channels, kernel=3))
    state["flow.module_list.3.downsample_kernel"] = torch.zeros(4, 1, 2, 2)
    for level, (channels, side) in enumerate(((5, 8), (8, 4))):
        for part in ("weight", "bias"):
            name = f"feature_extractor.feature_normalizations.{level}.{part}"
            state[name] = values(rng, channels, side, side)
    return state


def csflow_state(rng: np.random.Generator) -> State:
    nets = ("cross_convolution1", "cross_convolution2")
    state: State = {}
    for k in range(2):
        state |= prefixed(f"graph.graph.module_list.{1 + 2 * k}.", cross_coupling(rng, nets))
    pruned = {
        "features.0.0.weight": values(rng, 48, 3, 3, 3),
        "features.6.8.block.3.0.weight": values(rng, 1, 1, 1, 1),
    }
    start = "feature_extractor.feature_extractor."
    whole = pruned | {"features.8.0.weight": values(rng, 1), "classifier.1.weight": values(rng, 1)}
    return state | prefixed(f"{start}backbone.", whole) | prefixed(f"{start}feature_extractor.", pruned)


def lightning(state: State, **entries: object) -> dict[str, object]:
    """Put a Lightning checkpoint around the model's state dict."""
    wrapped = prefixed("model.", state)
    extra = entries.pop("extra_state", {})
    assert isinstance(extra, dict)
    return {"epoch": 1, "pytorch-lightning_version": "2.4", "state_dict": wrapped | extra} | entries


def version_2_7(state: State, hyper: dict[str, object], transform: object) -> dict[str, object]:
    names = ("_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")
    fitted = dict(zip(names, (0.5, math.nan, 0.1, 0.9, 0.2, 0.8), strict=True))
    return lightning(
        state,
        hyper_parameters=hyper,
        anomalib_components_enabled={"pre_processor": True},
        anomalib_pre_processor_config={"transform": transform},
        anomalib_post_processor_config={"enable_normalization": True, "image_sensitivity": 0.4},
        extra_state={f"post_processor.{name}": torch.tensor(value) for name, value in fitted.items()},
    )


def described(*steps: tuple[str, Mapping[str, object]]) -> dict[str, object]:
    """Describe a Compose as anomalib 2.7 writes it."""
    module = "torchvision.transforms.v2."
    inner = [{"class_path": module + kind, "init_args": args} for kind, args in steps]
    return {"class_path": module + "Compose", "init_args": {"transforms": inner}}


RESIZE = ("Resize", {"size": [40, 48], "interpolation": "bilinear", "max_size": None, "antialias": True})
NORMALIZE = ("Normalize", {"mean": list(MEAN), "std": list(STD), "inplace": False})


def float32(value: float) -> float:
    """Make a scalar tensor of a state dict."""
    return float(np.float32(value))


def assumed(checkpoint: Checkpoint) -> dict[str, object]:
    return {a.name: a.value for a in checkpoint.assumed}


def test_version_2_7_holds_everything(tmp_path: Path, rng: np.random.Generator) -> None:
    state = cflow_state(rng)
    crop = ("CenterCrop", {"size": [32, 36]})
    path = save(
        tmp_path / "model.ckpt", version_2_7(state, dict(CFLOW_HYPER), described(RESIZE, crop, NORMALIZE))
    )
    checkpoint = read_checkpoint(path)
    assert (checkpoint.repository, checkpoint.generation, checkpoint.family) == ("anomalib", "2.7", "cflow")
    assert checkpoint.assumed == ()
    assert checkpoint.hyperparameters["clamp"] == 1.7
    assert checkpoint.hyperparameters["clamp_variant"] == "tanh"
    assert checkpoint.hyperparameters["layers"] == ("layer1", "layer2")
    assert checkpoint.hyperparameters["padding"] == "zeros"
    assert checkpoint.hyperparameters["input_size"] == (32, 36)
    assert checkpoint.preprocessing == Preprocessing(
        resize=(40, 48), crop=(32, 36), method="float_bilinear", mean=MEAN, std=STD
    )
    assert checkpoint.source_scale == SourceScale(
        rule="2.7",
        image=PartScale(threshold=0.5, minimum=float32(0.1), maximum=float32(0.9), sensitivity=0.4),
        pixel=PartScale(threshold=0.5, minimum=float32(0.2), maximum=float32(0.8), sensitivity=0.5),
    )
    np.testing.assert_array_equal(
        checkpoint.tensors["flow.1.1.subnet.1.weight"],
        state["decoders.1.module_list.1.subnet.2.weight"].numpy(),
    )
    assert "backbone.layer2.1.conv2.weight" in checkpoint.tensors


def test_a_soft_permutation_of_anomalib_leaves_no_doubt_about_the_clamp(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = save(
        tmp_path / "m.ckpt", version_2_7(cflow_state(rng, "soft"), dict(CFLOW_HYPER), described(RESIZE))
    )
    checkpoint = read_checkpoint(path)
    assert permutation_kind(checkpoint.tensors["flow.0.0.w_perm"]) == "soft"
    assert "clamp_variant" not in assumed(checkpoint)


def test_what_the_user_gives_overrides_the_file_and_is_recorded(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    crop = ("CenterCrop", {"size": [32, 36]})
    path = save(
        tmp_path / "m.ckpt", version_2_7(cflow_state(rng), dict(CFLOW_HYPER), described(RESIZE, crop))
    )
    checkpoint = read_checkpoint(path, settings={"input_size": "64x96", "clamp": "2"})
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.crop) == ((64, 96), None)
    assert [(a.name, a.value, a.given) for a in checkpoint.assumed] == [
        ("clamp", 2.0, True),
        ("input_size", [64, 96], True),
    ]
    assert checkpoint.assumed[0].why == "The file says 1.7."


def test_a_resize_of_the_shorter_side_keeps_the_aspect(tmp_path: Path, rng: np.random.Generator) -> None:
    spec = described(("Resize", {"size": [40]}), ("CenterCrop", {"size": [32, 32]}), NORMALIZE)
    checkpoint = read_checkpoint(
        save(tmp_path / "m.ckpt", version_2_7(cflow_state(rng), dict(CFLOW_HYPER), spec))
    )
    assert checkpoint.preprocessing.keep_aspect
    assert checkpoint.preprocessing.resize == (40, 40)
    assert checkpoint.preprocessing.crop == (32, 32)


@pytest.mark.parametrize(
    "step", [("GaussianBlur", {}), ("RandomCrop", {"size": 9}), ("Resize", {"size": 9, "max_size": 99})]
)
def test_a_step_that_cannot_be_reproduced_is_refused(
    step: tuple[str, dict[str, object]], tmp_path: Path, rng: np.random.Generator
) -> None:
    spec = described(step, NORMALIZE)
    with pytest.raises(CheckpointError, match=rf"the step {step[0]}"):
        read_checkpoint(save(tmp_path / "m.ckpt", version_2_7(cflow_state(rng), dict(CFLOW_HYPER), spec)))


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([RESIZE, ("CenterCrop", {"size": 48}), ("CenterCrop", {"size": 32})], "the step CenterCrop"),
        ([RESIZE, RESIZE, NORMALIZE], "the step Resize"),
        ([RESIZE, NORMALIZE, NORMALIZE], "the step Normalize"),
    ],
)
def test_steps_that_would_be_lost_are_refused(
    steps: list[tuple[str, Mapping[str, object]]], reason: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    file = version_2_7(cflow_state(rng), dict(CFLOW_HYPER), described(*steps))
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(save(tmp_path / "m.ckpt", file))


@pytest.mark.parametrize("change", [{"interpolation": "nearest"}, {"antialias": False}])
def test_another_resize_needs_the_users_word(
    change: dict[str, object], tmp_path: Path, rng: np.random.Generator
) -> None:
    spec = described(("Resize", {**RESIZE[1], **change}), NORMALIZE)
    path = save(tmp_path / "m.ckpt", version_2_7(cflow_state(rng), dict(CFLOW_HYPER), spec))
    with pytest.raises(CheckpointError, match="--set resize_method=VALUE"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, settings={"resize_method": "cv2_bilinear"})
    assert checkpoint.preprocessing.method == "cv2_bilinear"


def test_version_2_7_without_a_transform_asks_for_the_size(tmp_path: Path, rng: np.random.Generator) -> None:
    path = save(tmp_path / "m.ckpt", version_2_7(cflow_state(rng), dict(CFLOW_HYPER), None))
    with pytest.raises(CheckpointError, match="--set input_size=VALUE"):
        read_checkpoint(path)
    assert read_checkpoint(path, settings={"input_size": "128"}).preprocessing.resize == (128, 128)


def test_version_2_7_fastflow_without_a_transform_knows_its_size(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    file = version_2_7(fastflow_state(rng, ("0", "2")), {"backbone": "resnet18"}, None)
    checkpoint = read_checkpoint(save(tmp_path / "m.ckpt", file))
    assert checkpoint.hyperparameters["input_size"] == (32, 32)
    assert assumed(checkpoint)["clamp"] == 2.0


@pytest.mark.parametrize(
    ("family", "clamp"), [("cflow", 1.9), ("csflow", 3.0), ("fastflow", 2.0), ("uflow", 2.0)]
)
def test_a_file_without_a_clamp_gets_the_default_of_its_model_in_anomalib(
    family: str, clamp: float, tmp_path: Path, rng: np.random.Generator
) -> None:
    """The defaults are those of anomalib 2.7's classes, and of FrEIA's block for FastFlow."""
    states: dict[str, Callable[[], State]] = {
        "cflow": lambda: cflow_state(rng),
        "csflow": lambda: csflow_state(rng),
        "fastflow": lambda: fastflow_state(rng, ("0", "2")),
        "uflow": lambda: uflow_state(rng),
    }
    hyper = {name: value for name, value in CFLOW_HYPER.items() if name != "clamp_alpha"}
    size = (32, 32) if family in ("fastflow", "uflow") else (40, 48)
    resize = ("Resize", dict(RESIZE[1]) | {"size": list(size)})
    file = version_2_7(states[family](), hyper, described(resize, NORMALIZE))
    checkpoint = read_checkpoint(save(tmp_path / "m.ckpt", file))
    assert checkpoint.family == family
    assert checkpoint.hyperparameters["clamp"] == clamp
    assert assumed(checkpoint)["clamp"] == clamp


@pytest.mark.parametrize("layers", [("0", "2"), ("1", "4")])
def test_fastflow_subnets_are_read_in_numeric_order(
    layers: tuple[str, str], tmp_path: Path, rng: np.random.Generator
) -> None:
    state = fastflow_state(rng, layers)
    checkpoint = read_checkpoint(save(tmp_path / "m.ckpt", version_2_7(state, {}, None)))
    for i, layer in enumerate(layers):
        np.testing.assert_array_equal(
            checkpoint.tensors[f"flow.2.0.subnet.{i}.weight"],
            state[f"fast_flow_blocks.2.module_list.0.subnet.{layer}.weight"].numpy(),
        )


@pytest.mark.parametrize("container", [False, True], ids=["alone", "tv_container"])
@pytest.mark.parametrize("layers", [("0", "2"), ("1", "4")])
def test_a_fastflow_without_its_trainer_is_whose_its_subnets_say(
    layers: tuple[str, str], container: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    state = fastflow_state(rng, layers)
    file = {"step": 1, "model_state_dict": state, "best_score": 0.9} if container else state
    checkpoint = read_checkpoint(save(tmp_path / "m.pt", file))
    if not container and layers == ("0", "2"):  # TVTVision numbers them 1 and 4
        assert (checkpoint.repository, checkpoint.generation) == ("anomalib", "unknown")
        assert assumed(checkpoint)["resize_method"] == "float_bilinear"
    else:
        assert checkpoint.repository == "Taitran2202/TVTVision"
        why = {one.name: one.why for one in checkpoint.assumed}["resize_method"]
        assert ("anomalib" in why) != container, "only a bare state dict may be anomalib's"


def test_version_2_0_reads_the_transform_out_of_the_pickled_pre_processor(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = fake_class(monkeypatch, "anomalib.pre_processing.pre_processor", "PreProcessor")
    transform = transforms.Compose(
        [transforms.Resize((32, 32), antialias=True), transforms.Normalize(list(MEAN), list(STD))]
    )
    processor = module_tree(kind, {})
    processor.__dict__["_modules"]["transform"] = transform
    hyper = {"backbone": "resnet18", "affine_clamp": 1.5, "pre_processor": processor, "visualizer": True}
    checkpoint = read_checkpoint(
        save(tmp_path / "m.ckpt", lightning(uflow_state(rng), hyper_parameters=hyper))
    )
    assert (checkpoint.family, checkpoint.generation) == ("uflow", "2.0-2.6")
    assert checkpoint.hyperparameters["clamp"] == 1.5
    assert checkpoint.assumed == ()
    assert checkpoint.preprocessing == Preprocessing(
        resize=(32, 32), method="float_bilinear", mean=MEAN, std=STD
    )


def test_version_2_0_with_its_own_default_transform_assumes_it(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    hyper = dict(CFLOW_HYPER) | {"pre_processor": True, "post_processor": True}
    checkpoint = read_checkpoint(
        save(tmp_path / "m.ckpt", lightning(cflow_state(rng), hyper_parameters=hyper))
    )
    assert checkpoint.generation == "2.0-2.6"
    assert assumed(checkpoint)["input_size"] == [256, 256]


@pytest.mark.parametrize("per_map", [False, True], ids=["1.0", "1.2"])
def test_version_1_has_a_pickled_transform_and_text_among_its_tensors(
    per_map: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    transform = transforms.Compose(
        [
            transforms.Resize((64, 48), antialias=True),
            transforms.CenterCrop((32, 40)),
            transforms.Normalize(list(MEAN), list(STD)),
        ]
    )
    bounds = {"normalization_metrics.min": 0.25, "normalization_metrics.max": 0.75}
    if per_map:
        bounds = {
            f"normalization_metrics.{part}.{bound}": value
            for part, low in (("anomaly_maps", 0.25), ("pred_scores", 0.125))
            for bound, value in (("min", low), ("max", 0.75))
        }
    scalars = {"image_threshold.value": 0.5, "pixel_threshold.value": 0.375} | bounds
    text: dict[str, object] = {"image_threshold_class": "anomalib.metrics.F1AdaptiveThreshold"}
    extra = {name: torch.tensor(value) for name, value in scalars.items()} | text
    file = lightning(
        cflow_state(rng), hyper_parameters=dict(CFLOW_HYPER), transform=transform, extra_state=extra
    )
    checkpoint = read_checkpoint(save(tmp_path / "m.ckpt", file))
    assert checkpoint.generation == "1.x"
    assert checkpoint.preprocessing == Preprocessing(
        resize=(64, 48), crop=(32, 40), method="float_bilinear", mean=MEAN, std=STD
    )
    assert checkpoint.source_scale == SourceScale(
        rule="0.x-1.x",
        image=PartScale(threshold=0.5, minimum=0.125 if per_map else 0.25, maximum=0.75),
        pixel=PartScale(threshold=0.375, minimum=0.25, maximum=0.75),
    )


def omega(monkeypatch: pytest.MonkeyPatch, value: object) -> object:
    """Write a value as nodes of OmegaConf, which is not installed."""
    if isinstance(value, dict):
        kind, content = "DictConfig", {key: omega(monkeypatch, item) for key, item in value.items()}
    elif isinstance(value, list):
        node = fake_class(monkeypatch, "omegaconf.listconfig", "ListConfig")()
        node.__dict__["_content"] = [omega(monkeypatch, item) for item in value]
        return node
    else:
        node = fake_class(monkeypatch, "omegaconf.nodes", "AnyNode")()
        node.__dict__["_val"] = value
        return node
    node = fake_class(monkeypatch, f"omegaconf.{kind.lower()}", kind)()
    node.__dict__["_content"] = content
    return node


@pytest.mark.parametrize(
    ("dataset", "resize", "crop", "mean"),
    [
        (
            {"image_size": [256, 320], "center_crop": None, "normalization": "imagenet"},
            (256, 320),
            None,
            MEAN,
        ),
        ({"image_size": 256, "center_crop": 224}, (256, 256), (224, 224), MEAN),
        ({"image_size": 64, "normalization": "none"}, (64, 64), None, (0.0, 0.0, 0.0)),
    ],
)
def test_version_0_resizes_with_opencv_as_its_configuration_says(
    dataset: dict[str, object],
    resize: tuple[int, int],
    crop: tuple[int, int] | None,
    mean: tuple[float, float, float],
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = omega(monkeypatch, {"dataset": dataset, "model": {"name": "cflow"} | CFLOW_HYPER})
    path = save(tmp_path / "m.ckpt", lightning(cflow_state(rng), hyper_parameters=config, hparams_type="x"))
    checkpoint = read_checkpoint(path)
    assert checkpoint.generation == "0.x"
    assert checkpoint.hyperparameters["layers"] == ("layer1", "layer2")
    assert checkpoint.hyperparameters["clamp"] == 1.7
    assert checkpoint.preprocessing.method == "cv2_bilinear"
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.crop) == (resize, crop)
    assert checkpoint.preprocessing.mean == mean
    assert checkpoint.assumed == ()


def test_version_0_with_its_own_pipeline_file_asks_for_the_size(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = {"image_size": 256, "transform_config": {"train": "t.yaml", "eval": "e.yaml"}}
    config = omega(monkeypatch, {"dataset": dataset, "model": dict(CFLOW_HYPER)})
    path = save(tmp_path / "m.ckpt", lightning(cflow_state(rng), hyper_parameters=config))
    with pytest.raises(CheckpointError, match=r"e\.yaml.*--set input_size"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, settings={"input_size": "256"})
    why = {one.name: one.why for one in checkpoint.assumed}
    assert why.keys() == {"input_size", "resize_method", "mean", "std"}, "all of it is in that file"
    assert all("e.yaml" in reason for reason in why.values())


@pytest.mark.parametrize("family", ["cflow", "csflow"])
def test_version_0_without_its_configuration_is_known_by_its_thresholds(
    family: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """A model of 0.x that was made from its class has plain hyper-parameters, as one of 1.x."""
    hyper = {"input_size": (512, 640), "clamp": 3, "cross_conv_hidden_channels": 4}
    state = csflow_state(rng) if family == "csflow" else cflow_state(rng)
    extra = {"image_threshold.value": torch.tensor(0.5), "pixel_threshold.value": torch.tensor(0.5)}
    hyper |= dict(CFLOW_HYPER) if family == "cflow" else {}
    checkpoint = read_checkpoint(
        save(tmp_path / "m.ckpt", lightning(state, hyper_parameters=hyper, extra_state=extra))
    )
    assert checkpoint.generation == "0.x"
    assert checkpoint.preprocessing.resize == (512, 640)
    assert checkpoint.preprocessing.method == "cv2_bilinear"
    assert assumed(checkpoint).keys() >= {"resize_method", "mean", "std"}
    if family == "csflow":
        assert checkpoint.permutations is not None
        assert list(checkpoint.permutations[0][1][:5]) == [222, 196, 64, 232, 186]


def test_a_trainers_file_without_thresholds_leaves_the_version_open(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = save(tmp_path / "m.ckpt", lightning(csflow_state(rng), hyper_parameters={"clamp": 3}))
    checkpoint = read_checkpoint(path)
    assert checkpoint.generation == "unknown"
    assert assumed(checkpoint)["permutations"] == "shared"


@pytest.mark.parametrize("moments", [False, True], ids=["min_max", "cdf"])
def test_version_0_scales_by_a_range_or_by_the_normal_distribution(
    moments: bool, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = omega(monkeypatch, {"dataset": {"image_size": 64}, "model": dict(CFLOW_HYPER)})
    fitted = {"image_mean": -0.5, "image_std": 0.25, "pixel_mean": -1.5, "pixel_std": 0.75}
    fitted = fitted if moments else {"min": 0.25, "max": 0.75}
    extra = {f"normalization_metrics.{name}": torch.tensor(value) for name, value in fitted.items()}
    extra |= {"image_threshold.value": torch.tensor(0.5), "pixel_threshold.value": torch.tensor(0.375)}
    file = lightning(cflow_state(rng), hyper_parameters=config, extra_state=extra)
    scale = read_checkpoint(save(tmp_path / "m.ckpt", file)).source_scale
    if moments:
        assert scale == SourceScale(
            rule="0.x-cdf",
            image=PartScale(threshold=0.5, log_mean=-0.5, log_std=0.25),
            pixel=PartScale(threshold=0.375, log_mean=-1.5, log_std=0.75),
        )
    else:
        assert scale == SourceScale(
            rule="0.x-1.x",
            image=PartScale(threshold=0.5, minimum=0.25, maximum=0.75),
            pixel=PartScale(threshold=0.375, minimum=0.25, maximum=0.75),
        )


def test_version_2_0_keeps_its_sensitivities_in_the_pickled_post_processor(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = fake_class(monkeypatch, "anomalib.post_processing.post_processor", "PostProcessor")
    processor = module_tree(kind, {}, image_sensitivity=0.25, enable_threshold_matching=False)
    file = lightning(
        cflow_state(rng),
        hyper_parameters=dict(CFLOW_HYPER) | {"pre_processor": True, "post_processor": processor},
        extra_state={"post_processor._image_threshold": torch.tensor(0.5)},
    )
    assert read_checkpoint(save(tmp_path / "m.ckpt", file)).source_scale == SourceScale(
        rule="2.0-2.6",
        image=PartScale(threshold=0.5, sensitivity=0.25),
        pixel=PartScale(sensitivity=0.5),
    )


@pytest.mark.parametrize("sensitivity", [10**400, -0.1, 1.5, math.nan])
def test_a_sensitivity_that_is_none_is_refused(
    sensitivity: float, tmp_path: Path, rng: np.random.Generator
) -> None:
    file = version_2_7(cflow_state(rng), dict(CFLOW_HYPER), described(RESIZE))
    file["anomalib_post_processor_config"] = {"pixel_sensitivity": sensitivity}
    with pytest.raises(CheckpointError, match=r"pixel_sensitivity is .*, expected 0 to 1"):
        read_checkpoint(save(tmp_path / "m.ckpt", file))


@pytest.mark.parametrize(
    ("settings", "image", "pixel"),
    [
        (
            {},
            PartScale(threshold=0.5, minimum=0.25, maximum=2, sensitivity=0.5),
            PartScale(threshold=0.5, minimum=0.125, maximum=3, sensitivity=0.5),
        ),
        (
            {"enable_threshold_matching": False, "pixel_sensitivity": 0.75},
            PartScale(threshold=0.5, minimum=0.25, maximum=2, sensitivity=0.5),
            PartScale(minimum=0.125, maximum=3, sensitivity=0.75),
        ),
        (
            {"enable_normalization": False, "enable_thresholding": False},
            PartScale(threshold=0.5),
            PartScale(threshold=0.5),
        ),
    ],
    ids=["defaults", "no matching", "nothing enabled"],
)
def test_version_2_7_leaves_out_what_it_was_told_to(
    settings: dict[str, object],
    image: PartScale,
    pixel: PartScale,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    file = version_2_7(cflow_state(rng), dict(CFLOW_HYPER), described(RESIZE))
    names = ("_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")
    state = file["state_dict"]
    assert isinstance(state, dict)
    for name, value in zip(names, (0.5, math.nan, 0.25, 2, 0.125, 3), strict=True):
        state[f"post_processor.{name}"] = torch.tensor(value)
    file["anomalib_post_processor_config"] = settings
    scale = read_checkpoint(save(tmp_path / "m.ckpt", file)).source_scale
    assert scale == SourceScale(rule="2.7", image=image, pixel=pixel)


@pytest.mark.parametrize("fitted", [{}, {"post_processor.image_min": torch.tensor(math.nan)}])
def test_a_model_that_was_never_validated_has_no_scale(
    fitted: State, tmp_path: Path, rng: np.random.Generator
) -> None:
    file = lightning(cflow_state(rng), hyper_parameters=dict(CFLOW_HYPER), extra_state=fitted)
    assert read_checkpoint(save(tmp_path / "m.ckpt", file)).source_scale is None


def test_csflow_of_version_0_drew_a_permutation_per_level(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = {"image_size": 768, "center_crop": None}
    config = omega(monkeypatch, {"dataset": dataset, "model": {"name": "csflow", "clamp": 3}})
    path = save(tmp_path / "m.ckpt", lightning(csflow_state(rng), hyper_parameters=config))
    checkpoint = read_checkpoint(path)
    assert checkpoint.hyperparameters["input_size"] == (768, 768)
    assert checkpoint.permutations is not None
    starts = [list(p[:5]) for p in checkpoint.permutations[0]]
    assert starts == [[66, 156, 247, 267, 145], [222, 196, 64, 232, 186], [14, 158, 98, 275, 225]]


def test_csflow_since_version_1_shares_one_permutation(tmp_path: Path, rng: np.random.Generator) -> None:
    state = csflow_state(rng)
    file = version_2_7(state, {"clamp": 3, "n_coupling_blocks": 2}, described(RESIZE, NORMALIZE))
    checkpoint = read_checkpoint(save(tmp_path / "m.ckpt", file))
    assert checkpoint.permutations is not None
    assert [[list(p[:5]) for p in levels] for levels in checkpoint.permutations] == [
        [[162, 295, 123, 299, 119]] * 3,
        [[192, 172, 10, 121, 108]] * 3,
    ]
    assert checkpoint.hyperparameters["padding"] == "symmetric"
    assert checkpoint.hyperparameters["backbone"] == "efficientnet_b5"
    assert checkpoint.backbone_naming == "torchvision"
    held = sorted(name for name in checkpoint.tensors if name.startswith("backbone."))
    assert held == ["backbone.features.0.0.weight", "backbone.features.6.8.block.3.0.weight"]
    np.testing.assert_array_equal(
        checkpoint.tensors["flow.1.net2.gamma1"],
        state["graph.graph.module_list.3.cross_convolution2.gamma1"].numpy(),
    )


def test_a_bare_csflow_state_dict_says_that_its_permutations_are_a_guess(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = save(tmp_path / "m.ckpt", {"state_dict": prefixed("model.", csflow_state(rng))})
    assert assumed(read_checkpoint(path))["permutations"] == "shared"
    per_level = read_checkpoint(path, settings={"permutations": "per_level"})
    assert per_level.permutations is not None
    assert list(per_level.permutations[0][1][:5]) == [222, 196, 64, 232, 186]


def test_a_pickled_module_reads_as_its_state_dict(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = fake_class(monkeypatch, "anomalib.models.image.cflow.lightning_model", "Cflow")
    attribute_dict = fake_class(monkeypatch, "lightning.fabric.utilities.data", "AttributeDict", (dict,))
    hyper = attribute_dict({"backbone": "resnet18", "clamp_alpha": 1.7})
    state = cflow_state(rng)
    processors = {"post_processor._image_threshold": torch.tensor(0.5)}
    module = module_tree(kind, prefixed("model.", state) | processors, _hparams=hyper)
    checkpoint = read_checkpoint(save(tmp_path / "model.pt", {"model": module}))
    assert (checkpoint.repository, checkpoint.generation) == ("anomalib", "2.x")
    part = PartScale(threshold=0.5, sensitivity=0.5)
    assert checkpoint.source_scale == SourceScale(rule="2.7", image=part, pixel=part)
    assert checkpoint.hyperparameters["clamp"] == 1.7
    assert checkpoint.hyperparameters["layers"] == ("layer1", "layer2")
    np.testing.assert_array_equal(
        checkpoint.tensors["flow.0.1.w_perm"], state["decoders.0.module_list.1.w_perm"].numpy()
    )


def test_a_torch_export_of_0_7_is_the_inner_module_with_its_generations_conventions(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = fake_class(monkeypatch, "anomalib.models.csflow.torch_model", "CsFlowModel")
    metadata = {"task": "classification", "image_threshold": 0.4, "min": 0.1, "max": 2.0}
    file = {"model": module_tree(kind, csflow_state(rng)), "metadata": metadata}
    checkpoint = read_checkpoint(save(tmp_path / "model.pt", file))
    assert checkpoint.source_scale is None, "the metadata's layout is nowhere described, so it is not read"
    assert (checkpoint.repository, checkpoint.generation) == ("anomalib", "0.x")
    assert checkpoint.permutations is not None
    assert list(checkpoint.permutations[0][1][:5]) == [222, 196, 64, 232, 186]
    assert "permutations" not in assumed(checkpoint)
    assert assumed(checkpoint)["input_size"] == [768, 768]
    assert assumed(checkpoint)["resize_method"] == "cv2_bilinear"


def test_a_torch_export_of_1_x_holds_its_transform_beside_the_model(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = fake_class(monkeypatch, "anomalib.deploy.export", "InferenceModel")
    module = module_tree(kind, prefixed("model.", cflow_state(rng)))
    module.__dict__["_modules"]["transform"] = transforms.Compose(
        [transforms.Resize((32, 48), antialias=True), transforms.Normalize(list(MEAN), list(STD))]
    )
    path = save(tmp_path / "model.pt", {"model": module, "metadata": {"task": "segmentation"}})
    checkpoint = read_checkpoint(path)
    assert checkpoint.generation == "1.x"
    assert checkpoint.preprocessing == Preprocessing(
        resize=(32, 48), method="float_bilinear", mean=MEAN, std=STD
    )
    assert checkpoint.hyperparameters["layers"] == ("layer1", "layer2")


@pytest.mark.parametrize(
    "clamp", [0, -2.0, math.nan, -math.inf, 10**400, False, [3]], ids=lambda c: f"{c!r:.9}"
)
def test_a_stored_clamp_that_clamps_nothing_is_refused(
    clamp: object, tmp_path: Path, rng: np.random.Generator
) -> None:
    cases = (
        (cflow_state(rng), dict(CFLOW_HYPER) | {"clamp_alpha": clamp}),
        (csflow_state(rng), {"clamp": clamp}),
        (uflow_state(rng), {"backbone": "resnet18", "affine_clamp": clamp}),
    )
    for state, hyper in cases:
        path = save(tmp_path / "m.ckpt", version_2_7(state, hyper, described(RESIZE)))
        with pytest.raises(CheckpointError, match=r"clamp is .*, not a positive number"):
            read_checkpoint(path)


def test_a_threshold_without_a_value_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    file = version_2_7(cflow_state(rng), dict(CFLOW_HYPER), described(RESIZE))
    state = file["state_dict"]
    assert isinstance(state, dict)
    state["post_processor.image_min"] = torch.empty((), device="meta")
    with pytest.raises(CheckpointError, match=r"post_processor\.image_min has a shape, \(\), and no values"):
        read_checkpoint(save(tmp_path / "m.ckpt", file))


def test_layers_that_do_not_match_the_levels_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    hyper = dict(CFLOW_HYPER) | {"layers": ["layer1", "layer2", "layer3"]}
    with pytest.raises(CheckpointError, match="are 3, and the flow has 2 levels"):
        read_checkpoint(save(tmp_path / "m.ckpt", version_2_7(cflow_state(rng), hyper, described(RESIZE))))


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/etc", "../resnet18", ""]
)
def test_a_network_name_that_a_library_would_fetch_is_refused(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    hyper = dict(CFLOW_HYPER) | {"backbone": name}
    path = save(tmp_path / "m.ckpt", version_2_7(cflow_state(rng), hyper, described(RESIZE)))
    with pytest.raises(CheckpointError, match="no plain name"):
        read_checkpoint(path)
    good = save(tmp_path / "m.ckpt", version_2_7(cflow_state(rng), dict(CFLOW_HYPER), described(RESIZE)))
    with pytest.raises(CheckpointError, match="--set backbone="):
        read_checkpoint(good, settings={"backbone": name})


def test_a_pickled_module_that_holds_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module_tree(fake_class(monkeypatch, "anomalib.models", "Loop"), {})
    module.__dict__["_modules"]["again"] = module
    with pytest.raises(CheckpointError, match="the limit is"):
        read_checkpoint(save(tmp_path / "m.pt", {"model": module}))


def test_hyper_parameters_that_hold_themselves_are_read_once(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    hyper: dict[str, object] = dict(CFLOW_HYPER)
    hyper["self"] = hyper
    for depth in range(60):  # 2 ** 60 paths through 60 objects
        hyper = dict(CFLOW_HYPER) | {"left": hyper, "right": hyper, "depth": depth}
    checkpoint = read_checkpoint(
        save(tmp_path / "m.ckpt", version_2_7(cflow_state(rng), hyper, described(RESIZE)))
    )
    assert checkpoint.hyperparameters["clamp"] == 1.7


@pytest.mark.parametrize(
    ("counts", "bottleneck", "name"),
    [
        ((2, 2, 2, 2), None, "resnet18"),
        ((2, 2), None, "resnet18"),
        ((3, 4, 6), None, "resnet34"),
        ((3, 4, 6, 3), (64, 64), "resnet50"),
        ((3, 4, 23), (64, 64), "resnet101"),
        ((3, 4, 6), (128, 128), "wide_resnet50_2"),
        ((3, 4, 23, 3), (128, 128), "wide_resnet101_2"),
        ((3, 4, 6, 3), (128, 4), "resnext50_32x4d"),
        ((3, 4, 23, 3), (256, 8), "resnext101_32x8d"),
        ((1, 1, 1, 1), None, None),
        ((3, 4, 6, 3), (99, 99), None),
    ],
)
def test_a_resnet_is_known_by_its_blocks(
    counts: tuple[int, ...], bottleneck: tuple[int, int] | None, name: str | None, rng: np.random.Generator
) -> None:
    arrays = {key: tensor.numpy() for key, tensor in resnet(rng, counts).items()}
    if bottleneck is not None:
        arrays["layer1.0.conv3.weight"] = np.zeros((256, 64, 1, 1), np.float32)
        arrays["layer1.0.conv2.weight"] = np.zeros((*bottleneck, 3, 3), np.float32)
    assert recognise_backbone(arrays) == (name, "timm")


def test_a_resnet_with_a_misshapen_convolution_is_not_recognised(rng: np.random.Generator) -> None:
    arrays = {key: tensor.numpy() for key, tensor in resnet(rng, (3, 4, 6)).items()}
    arrays |= {f"layer1.0.conv{n}.weight": np.zeros(64, np.float32) for n in (2, 3)}
    assert recognise_backbone(arrays) == (None, "timm")
