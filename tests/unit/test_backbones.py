"""Compare feature extractors with forward hooks on the original networks, with random weights."""

from __future__ import annotations

import dataclasses
import lzma
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from flowedge.errors import CheckpointError
from flowedge.export.backbones import (
    backbone_from_checkpoint,
    feature_shapes,
    fill,
    module_from_backbone,
    pad_by_reflection,
)
from flowedge.export.backbones.efficientnet import STATIC_PADDING, torchvision_names
from flowedge.export.checkpoints.backbone import read_backbone_weights
from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.graph import ir
from flowedge.manifest import Family, Preprocessing

# float32 through tens of layers in another order of operations, relative to the largest feature.
CLOSE = 2e-5


def randomised(network: nn.Module) -> nn.Module:
    """Move every tensor off its initial value, and switch to evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim < 2:
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise - 0.5 if name.endswith(("bias", "mean")) else 0.5 + noise)
    return network.eval()


def weights_of(network: nn.Module) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def backbone(network: str, taps: Sequence[str], original: nn.Module, **options: Any) -> ir.Backbone:
    options.setdefault("padding", "zeros")
    return ir.Backbone(network=network, taps=tuple(taps), weights=weights_of(original), **options)


def image(*size: int) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def hooked(network: nn.Module, taps: Sequence[str], picture: Tensor) -> list[Tensor]:
    """Return the features that forward hooks on the taps receive."""
    seen: dict[str, Tensor] = {}

    def keep(tap: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[tap] = output

        return hook

    hooks = [network.get_submodule(tap).register_forward_hook(keep(tap)) for tap in taps]
    with torch.no_grad():
        network(picture)
    for hook in hooks:
        hook.remove()
    return [seen[tap] for tap in taps]


def as_map(tokens: Tensor) -> Tensor:
    """Turn tokens ``(N, prefix + side * side, C)`` into a map ``(N, C, side, side)``, pixel by pixel."""
    side = math.isqrt(tokens.shape[1])
    first = tokens.shape[1] - side * side
    rows = [
        torch.stack([tokens[:, first + side * row + column] for column in range(side)], -1)
        for row in range(side)
    ]
    return torch.stack(rows, -2)


def assert_same(features: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = CLOSE) -> None:
    assert len(features) == len(expected)
    for feature, wanted in zip(features, expected, strict=True):
        assert feature.shape == wanted.shape
        assert (feature - wanted).abs().max() <= tolerance * wanted.abs().max()


def run(module: nn.Module, picture: Tensor) -> list[Tensor]:
    with torch.no_grad():
        features: list[Tensor] = module(picture)
    return features


# --- convolutional networks -----------------------------------------------------------------------------------

RESNET_TAPS = (("resnet18", ("layer1", "layer2", "layer3")), ("resnet34", ("layer3", "layer4")))


@pytest.mark.parametrize(("name", "taps"), [*RESNET_TAPS, ("resnet50", ("layer4",))])
def test_a_resnet_gives_what_hooks_on_torchvisions_network_see(name: str, taps: tuple[str, ...]) -> None:
    original = randomised(models.get_model(name, weights=None))
    module = module_from_backbone(backbone(name, taps, original))
    assert_same(run(module, image(64, 96)), hooked(original, taps, image(64, 96)))


@pytest.mark.parametrize(("name", "taps"), RESNET_TAPS)
def test_a_reflecting_resnet_pads_every_wide_convolution_by_reflection(
    name: str, taps: tuple[str, ...]
) -> None:
    original = randomised(models.get_model(name, weights=None))
    module = module_from_backbone(backbone(name, taps, original, padding="reflect"))
    for conv in original.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1):
            side = conv.kernel_size[0] // 2
            conv.padding = (0, 0)
            conv.register_forward_pre_hook(
                lambda _m, inputs, side=side: functional.pad(inputs[0], (side,) * 4, mode="reflect")
            )
    assert_same(run(module, image(128, 96)), hooked(original, taps, image(128, 96)))


def test_padding_by_reflection_leaves_convolutions_without_padding_alone() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3, padding=1))
    pad_by_reflection(network)
    assert [conv.padding_mode for conv in network if isinstance(conv, nn.Conv2d)] == ["zeros", "reflect"]


STACKS: Mapping[str, tuple[Callable[[], nn.Module], str, tuple[str, ...], list[int]]] = {
    "mobilenet_v3_large": (
        lambda: models.mobilenet_v3_large().features,
        "torchvision",
        ("6.block.3.0", "12.block.3.0", "15.block.3.0"),
        [40, 112, 160],
    ),
    "mobilenet_v3_small": (
        lambda: models.mobilenet_v3_small().features,
        "torchvision",
        ("3.block.2.0", "8.block.3.0", "11.block.3.0"),
        [24, 48, 96],
    ),
    "tf_efficientnet_b5": (
        lambda: timm.create_model("tf_efficientnet_b5"),
        "timm",
        ("blocks.2.4.bn3", "blocks.4.6.bn3", "blocks.5.8.bn3"),
        [64, 176, 304],
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_a_tap_within_a_residual_block_gives_what_a_hook_there_sees(name: str) -> None:
    build, naming, taps, channels = STACKS[name]
    original = randomised(build())
    module = module_from_backbone(backbone(name, taps, original, naming=naming))
    features = run(module, image(64, 64))
    assert [feature.shape[1] for feature in features] == channels
    assert_same(features, hooked(original, taps, image(64, 64)))


def test_a_network_that_computes_its_filters_is_not_left_without_them() -> None:
    original = randomised(timm.create_model("resnetblur18"))
    module = module_from_backbone(backbone("resnetblur18", ("layer2",), original))
    assert_same(run(module, image(64, 64)), hooked(original, ("layer2",), image(64, 64)))


# --- EfficientNet-B5 on a pyramid -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def efficientnet() -> models.EfficientNet:
    """Make torchvision's EfficientNet-B5 with random weights. A test leaves it as it was."""
    network = randomised(models.efficientnet_b5())
    assert isinstance(network, models.EfficientNet)
    return network


def same_padding(version: str) -> dict[str, tuple[int, int]]:
    """Pad as TensorFlow's SAME does for a 456 px image. Version 0.6 forgets that the maps have shrunk."""
    padding, side = {}, 456
    for name, kernel in (
        ("features.0.0", 3),
        ("features.2.0.block.1.0", 3),
        ("features.3.0.block.1.0", 5),
        ("features.4.0.block.1.0", 3),
        ("features.6.0.block.1.0", 5),
    ):
        size = 456 if version == "static_0.6" else side
        total = max((math.ceil(size / 2) - 1) * 2 + kernel - size, 0)
        padding[name] = (total // 2, total - total // 2)
        side = math.ceil(side / 2)
    return padding


@pytest.mark.parametrize("version", ["static_0.6", "static_0.7"])
def test_static_padding_is_tensorflows_same_of_a_456_pixel_image(version: str) -> None:
    assert STATIC_PADDING[version] == same_padding(version)


@pytest.mark.parametrize("padding", ["zeros", "static_0.6", "static_0.7"])
def test_csflow_features_are_those_of_nearest_neighbour_images(
    padding: str, efficientnet: models.EfficientNet
) -> None:
    module = module_from_backbone(
        backbone(
            "efficientnet_b5",
            ("features.6.8",),
            efficientnet,
            padding=padding,
            naming="torchvision",
            pyramid=3,
        )
    )
    picture = image(128, 128)
    scales = [picture, *(functional.interpolate(picture, scale_factor=s) for s in (0.5, 0.25))]
    changed = {} if padding == "zeros" else same_padding(padding)
    convs = [efficientnet.get_submodule(name) for name in changed]
    before = [conv.padding for conv in convs]
    hooks = []
    for conv, (first, last) in zip(convs, changed.values(), strict=True):
        conv.padding = (0, 0)
        hooks.append(
            conv.register_forward_pre_hook(
                lambda _m, inputs, sides=(first, last) * 2: functional.pad(inputs[0], sides)
            )
        )
    expected = [hooked(efficientnet.features, ("6.8",), scale)[0] for scale in scales]
    for conv, hook, old in zip(convs, hooks, before, strict=True):
        hook.remove()
        conv.padding = old
    assert [feature.shape[1:] for feature in expected] == [(304, 4, 4), (304, 2, 2), (304, 1, 1)]
    assert_same(run(module, picture), expected)


def test_an_image_that_the_pyramid_cannot_halve_twice_is_refused(efficientnet: models.EfficientNet) -> None:
    options = backbone("efficientnet_b5", ("features.1.2",), efficientnet, naming="torchvision", pyramid=3)
    with pytest.raises(CheckpointError, match="must be multiples of 128"):
        feature_shapes(module_from_backbone(options), (256, 192))


@pytest.fixture(scope="module")
def official_efficientnet(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the state dict of efficientnet_pytorch in the record of CS-Flow."""
    target = tmp_path_factory.mktemp("efficientnet") / "efficientnet-b5.pth"
    packed = shared / "golden" / "csflow_official" / "efficientnet-b5.pth.xz"
    target.write_bytes(lzma.decompress(packed.read_bytes()))
    return target


def test_the_official_csflow_features_are_reproduced(official_efficientnet: Path, shared: Path) -> None:
    module = module_from_backbone(
        ir.Backbone(
            network="efficientnet_b5",
            taps=("features.6.8",),
            padding="static_0.7",
            weights=read_backbone_weights(official_efficientnet),
            naming="efficientnet_pytorch",
            pyramid=3,
        )
    )
    with np.load(shared / "golden" / "csflow_official" / "golden.npz") as record:
        expected = [torch.from_numpy(record[f"features_{level}"][:1]) for level in range(3)]
        assert_same(run(module, torch.from_numpy(record["x"][:1])), expected)


def test_the_two_libraries_name_efficientnets_tensors_in_the_same_order(official_efficientnet: Path) -> None:
    weights = read_backbone_weights(official_efficientnet)
    with torch.device("meta"):
        torchvision = models.efficientnet_b5().state_dict()
    assert list(torchvision_names(weights)) == list(torchvision)


# --- transformers ---------------------------------------------------------------------------------------------

TRANSFORMERS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "vit_base_patch16_224": (("blocks.2", "blocks.0", "blocks.1"), False),
    "deit_base_distilled_patch16_384": (("blocks.1",), True),
    "cait_s24_224": (("blocks.1",), True),
}


def transformer(name: str, blocks: int = 3) -> nn.Module:
    return randomised(timm.create_model(name, pretrained=False, depth=blocks))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformers_maps_are_its_tokens_in_the_order_of_the_taps(name: str) -> None:
    taps, final_norm = TRANSFORMERS[name]
    original: Any = transformer(name)
    module = module_from_backbone(backbone(name, taps, original, final_norm=final_norm))
    picture = image(*original.patch_embed.img_size)
    tokens = hooked(original, taps, picture)
    with torch.no_grad():
        expected = [as_map(original.norm(token) if final_norm else token) for token in tokens]
    assert_same(run(module, picture), expected)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """Make the two networks of U-Flow with one block each."""
    return transformer("cait_m48_448", 1), transformer("cait_s24_224", 1)


def mcait(pair: tuple[nn.Module, nn.Module]) -> ir.Backbone:
    named = {f"extractor{n}.{k}": v for n, part in enumerate(pair, 1) for k, v in weights_of(part).items()}
    return ir.Backbone(
        network="mcait",
        taps=("extractor1.blocks.0", "extractor2.blocks.0"),
        padding="zeros",
        weights=named,
        final_norm=True,
    )


def test_the_pair_runs_its_second_network_on_the_bicubically_shrunk_image(
    pair: tuple[nn.Module, nn.Module],
) -> None:
    module = module_from_backbone(mcait(pair))
    picture = image(448, 448)
    small = functional.interpolate(picture, size=(224, 224), mode="bicubic", align_corners=True)
    expected = []
    for network, scale in zip(pair, (picture, small), strict=True):
        (tokens,) = hooked(network, ("blocks.0",), scale)
        with torch.no_grad():
            expected.append(as_map(network.get_submodule("norm")(tokens)))
    assert [feature.shape[1:] for feature in expected] == [(768, 28, 28), (384, 14, 14)]
    assert_same(run(module, picture), expected)


def test_an_image_of_another_size_than_the_transformers_is_refused_with_its_size() -> None:
    name = "vit_base_patch16_224"
    module = module_from_backbone(backbone(name, ("blocks.0",), transformer(name, 1)))
    with pytest.raises(CheckpointError, match="--image-size 224 224"):
        feature_shapes(module, (256, 256))


@pytest.mark.parametrize(("padding", "smallest"), [("zeros", 9), ("reflect", 17)])
def test_an_image_too_small_for_the_backbone_is_refused_with_the_smallest_that_works(
    padding: Literal["zeros", "reflect"], smallest: int
) -> None:
    """The levels are layer2 and layer3 of a resnet18, with strides 8 and 16. Reflection needs a map of two pixels."""
    network = randomised(timm.create_model("resnet18", pretrained=False))
    module = module_from_backbone(backbone("resnet18", ("layer2", "layer3"), network, padding=padding))
    for size in ((8, 8), (smallest - 1, smallest - 1)):
        wanted = rf"{size[0]}x{size[1]} is too small .* smallest square one is {smallest}x{smallest}. Give --image-size"
        with pytest.raises(CheckpointError, match=wanted):
            feature_shapes(module, size)
    shapes = feature_shapes(module, (smallest, smallest))
    assert [feature.shape[1:] for feature in run(module, image(smallest, smallest))] == shapes


# --- the graph ------------------------------------------------------------------------------------------------

PLAIN = {
    *("Add", "Concat", "Conv", "Div", "Erf", "Expand", "Gather", "LayerNormalization", "MatMul", "Mul"),
    *("ReduceMean", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Squeeze", "Transpose"),
}


class Together(nn.Module):
    """Run several extractors in one graph, because tracing one graph is quicker than tracing three."""

    def __init__(self, *parts: tuple[nn.Module, int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for part, _ in parts)
        self.sides = [side for _, side in parts]

    def forward(self, picture: Tensor) -> list[Tensor]:
        return [
            feature
            for part, side in zip(self.parts, self.sides, strict=True)
            for feature in part(picture[..., :side, :side])
        ]


@pytest.mark.slow
def test_extractors_trace_to_plain_operators_that_answer_the_same_in_onnx_runtime(
    pair: tuple[nn.Module, nn.Module], efficientnet: models.EfficientNet, tmp_path: Path
) -> None:
    name = "vit_base_patch16_224"
    vit = backbone(name, ("blocks.0",), transformer(name, 1))
    pyramid = backbone("efficientnet_b5", ("features.1.0",), efficientnet, naming="torchvision", pyramid=3)
    module = Together(
        (module_from_backbone(mcait(pair)), 448),
        (module_from_backbone(vit), 224),
        (module_from_backbone(pyramid), 128),
    ).eval()
    path = tmp_path / "features.onnx"
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 3, 448, 448),),
            dynamo=True,
            verbose=False,
            opset_version=18,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )
    assert program is not None
    program.save(str(path))
    graph = onnx.load(str(path)).graph
    assert {(node.domain, node.op_type) for node in graph.node} <= {("", name) for name in PLAIN}
    held = sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type == 1)
    assert held <= 1.01 * sum(p.numel() for p in (*module.parameters(), *module.buffers()))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    picture = image(448, 448)
    answers = session.run(None, {session.get_inputs()[0].name: picture.numpy()})
    assert_same([torch.from_numpy(answer) for answer in answers], run(module, picture))


# --- weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return randomised(models.resnet18())


def test_weights_of_unused_layers_are_left_out_and_the_others_share_memory(resnet: nn.Module) -> None:
    given = backbone("resnet18", ("layer1",), resnet)
    module = module_from_backbone(given)
    held = {name.removeprefix("network.") for name, _ in module.named_parameters()}
    assert held == {
        name for name, _ in resnet.named_parameters() if name.startswith(("conv1", "bn1", "layer1"))
    }
    (first, *_) = module.parameters()
    assert np.shares_memory(first.detach().numpy(), given.weights["conv1.weight"])


def test_weights_without_the_unused_layers_and_batch_counters_are_enough(resnet: nn.Module) -> None:
    given = backbone("resnet18", ("layer1",), resnet)
    needed = {
        name: array
        for name, array in given.weights.items()
        if name.startswith(("conv1", "bn1", "layer1")) and "num_batches" not in name
    }
    pruned = module_from_backbone(dataclasses.replace(given, weights=needed))
    assert_same(run(pruned, image(64, 64)), run(module_from_backbone(given), image(64, 64)), 0)


def _without(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in weights.items() if name != "layer1.0.conv1.weight"}


def _with(name: str, *shape: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda weights: {**weights, name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, r"lacks 1 of its tensors: layer1\.0\.conv1\.weight"),
        (_with("layer1.7.conv1.weight", 64, 64, 3, 3), r"has unknown 1 .*: layer1\.7\.conv1\.weight"),
        (_with("heads.weight", 2), r"has unknown 1 .*: heads\.weight"),
        (_with("bn1.bias", 65), r"bn1\.bias has shape \(65,\), expected \(64,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[Mapping[str, Any]], dict[str, Any]], message: str, resnet: nn.Module
) -> None:
    given = backbone("resnet18", ("layer2",), resnet)
    with pytest.raises(CheckpointError, match=message):
        module_from_backbone(dataclasses.replace(given, weights=change(given.weights)))


def test_a_transformer_tolerates_its_own_unused_tensors_and_no_others() -> None:
    name = "deit_base_distilled_patch16_384"
    given = backbone(name, ("blocks.0",), transformer(name, 1), final_norm=True)
    more = _with("blocks.11.norm1.weight", 768)(given.weights)
    assert module_from_backbone(dataclasses.replace(given, weights=more))
    beyond = _with("blocks.12.norm1.weight", 768)(given.weights)
    with pytest.raises(CheckpointError, match=r"blocks\.12\.norm1\.weight"):
        module_from_backbone(dataclasses.replace(given, weights=beyond))


@pytest.mark.parametrize(
    ("network", "naming", "taps", "message"),
    [
        ("resnet19", "timm", ("layer1",), "cannot build the backbone 'resnet19'"),
        ("vit_enormous", "timm", ("blocks.0",), "cannot build the backbone 'vit_enormous'"),
        ("resnet18", "torchvision", ("layer1",), "none of torchvision's that are known here"),
        ("resnet18", "timm", ("layer5",), "has no layers named layer5; it has act1, layer1"),
        (
            "vit_base_patch16_224",
            "timm",
            ("blocks.12",),
            r"has no layers named blocks\.12; it has blocks\.0, …",
        ),
        ("mobilenet_v3_small", "torchvision", ("13.0",), r"has no layers named 13\.0; it has 0, 1"),
    ],
)
def test_an_unknown_network_or_layer_is_refused_with_what_there_is(
    network: str, naming: Literal["timm", "torchvision"], taps: tuple[str, ...], message: str
) -> None:
    unknown = ir.Backbone(network=network, taps=taps, padding="zeros", weights={}, naming=naming)
    with pytest.raises(CheckpointError, match=message):
        module_from_backbone(unknown)


def test_filling_reports_the_first_names_and_the_count_of_many() -> None:
    with pytest.raises(CheckpointError, match=r"it lacks 4 of its tensors: 0\.bias, 0\.weight, 1\.bias …"):
        fill(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), {}, "it")


def test_feature_shapes_are_those_of_the_features(resnet: nn.Module) -> None:
    module = module_from_backbone(backbone("resnet18", ("layer2", "layer3"), resnet))
    shapes = [tuple(feature.shape[1:]) for feature in run(module, image(96, 64))]
    assert feature_shapes(module, (96, 64)) == shapes


# --- from a checkpoint ----------------------------------------------------------------------------------------


def checkpoint(family: Family, **hyperparameters: object) -> Checkpoint:
    return Checkpoint(
        repository="anomalib",
        generation="2.7",
        family=family,
        tensors={"backbone.conv1.weight": np.zeros(1), "flow.0.0.w_perm": np.zeros(1)},
        backbone_naming="timm",
        hyperparameters=hyperparameters,
        assumed=(),
        preprocessing=Preprocessing(
            resize=(64, 64), method="pil_bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        file="model.ckpt",
        sha256="0" * 64,
    )


LAYERS_1_TO_3 = ("layer1", "layer2", "layer3")


@pytest.mark.parametrize(
    ("family", "hyperparameters", "taps", "padding", "final_norm", "pyramid"),
    [
        (
            "cflow",
            {"backbone": "resnet18", "layers": ["layer3", "layer4"], "padding": "reflect"},
            ("layer3", "layer4"),
            "reflect",
            False,
            1,
        ),
        (
            "cflow",
            {
                "backbone": "vit_base_patch16_224",
                "layers": ("blocks.10", "blocks.2", "blocks.6"),
                "padding": "zeros",
            },
            ("blocks.10", "blocks.2", "blocks.6"),
            "zeros",
            False,
            1,
        ),
        ("fastflow", {"backbone": "resnet18"}, LAYERS_1_TO_3, "zeros", True, 1),
        (
            "fastflow",
            {"backbone": "deit_base_distilled_patch16_384"},
            ("blocks.7",),
            "zeros",
            True,
            1,
        ),
        ("fastflow", {"backbone": "cait_m48_448"}, ("blocks.40",), "zeros", True, 1),
        ("uflow", {"backbone": "wide_resnet50_2"}, LAYERS_1_TO_3, "zeros", True, 1),
        ("uflow", {"backbone": "mcait"}, ("extractor1.blocks.40", "extractor2.blocks.20"), "zeros", True, 1),
        (
            "msflow",
            {"backbone": "wide_resnet50_2", "padding": "reflect"},
            LAYERS_1_TO_3,
            "reflect",
            False,
            1,
        ),
        (
            "csflow",
            {"backbone": "efficientnet_b5", "padding": "symmetric"},
            ("features.6.8",),
            "zeros",
            False,
            3,
        ),
        (
            "csflow",
            {"backbone": "efficientnet_b5", "padding": "static_0.6"},
            ("features.6.8",),
            "static_0.6",
            False,
            3,
        ),
    ],
)
def test_each_family_takes_the_features_of_its_official_implementation(
    family: Family,
    hyperparameters: Mapping[str, object],
    taps: tuple[str, ...],
    padding: str,
    final_norm: bool,
    pyramid: int,
) -> None:
    found = backbone_from_checkpoint(checkpoint(family, **hyperparameters))
    assert (found.taps, found.padding, found.pyramid) == (taps, padding, pyramid)
    assert found.final_norm == final_norm
    assert set(found.weights) == {"conv1.weight"}


def test_a_transformer_that_the_family_was_never_built_on_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not known which block of vit_base_patch16_224 fastflow takes"):
        backbone_from_checkpoint(checkpoint("fastflow", backbone="vit_base_patch16_224"))
