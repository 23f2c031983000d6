"""Write checkpoints of full size with random weights, key for key as their repositories do.

Every model is a row of ``MODELS``; ``write_checkpoint`` makes its file. Nothing is left at a neutral value, and
everything is scaled as training leaves it, so that float32 can carry the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
import torch
import torchvision
from torch import Tensor, nn

from bench.settled import settle_batch_norms
from flowedge.manifest import Family

State = dict[str, Tensor]
Layout = Literal["official", "anomalib"]

SEED = 7
MODEL, BACKBONE = "model.pt", "backbone.pth"
_RESNET_CHANNELS = {"resnet18": (64, 128, 256, 512), "wide_resnet50_2": (256, 512, 1024, 2048)}
_TOKENS = {"deit_base_distilled_patch16_384": 768, "cait_m48_448": 768}
_EFFICIENTNET_CHANNELS = 304
_NEUTRAL_SCALE = 9.98648  # where FrEIA starts its global scale: a factor of 1


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """One model.

    Attributes:
        layout: Whose file it is.
        network: The backbone.
        size: Height and width of the input, pixels.
        soft: Rotations instead of permutations between the blocks.
        hidden: Channels of CS-Flow's subnets.
    """

    family: Family
    layout: Layout
    network: str
    size: int
    soft: bool = False
    hidden: int = 1024

    @property
    def name(self) -> str:
        """A unique name that fits a file."""
        return f"{self.family}-{self.layout}-{self.network}"

    @property
    def has_backbone_file(self) -> bool:
        """True where the backbone's weights are in a file of their own."""
        return self.layout == "official" and self.family in ("csflow", "msflow")

    def export_options(self, folder: Path) -> list[str]:
        """Return the options of ``flowedge export`` that the checkpoint needs."""
        size = ["--image-size", str(self.size), str(self.size)]
        return [*size, "--backbone-weights", str(folder / BACKBONE)] if self.has_backbone_file else size


MODELS: Mapping[str, FullSize] = {
    model.name: model
    for model in (
        FullSize(family="cflow", layout="official", network="resnet18", size=256, soft=True),
        FullSize(family="cflow", layout="official", network="wide_resnet50_2", size=256, soft=True),
        FullSize(family="cflow", layout="anomalib", network="resnet18", size=256),
        FullSize(family="cflow", layout="anomalib", network="wide_resnet50_2", size=256),
        FullSize(family="fastflow", layout="official", network="resnet18", size=256),
        FullSize(family="fastflow", layout="official", network="wide_resnet50_2", size=256),
        FullSize(family="fastflow", layout="official", network="deit_base_distilled_patch16_384", size=384),
        FullSize(family="fastflow", layout="official", network="cait_m48_448", size=448),
        FullSize(family="fastflow", layout="anomalib", network="resnet18", size=256),
        FullSize(family="uflow", layout="official", network="resnet18", size=448),
        FullSize(family="uflow", layout="official", network="wide_resnet50_2", size=448),
        FullSize(family="uflow", layout="official", network="mcait", size=448),
        FullSize(family="uflow", layout="anomalib", network="resnet18", size=448),
        FullSize(family="msflow", layout="official", network="wide_resnet50_2", size=512),
        FullSize(family="csflow", layout="official", network="efficientnet_b5", size=256),
        FullSize(family="csflow", layout="anomalib", network="efficientnet_b5", size=256),
    )
}


def write_checkpoint(model: FullSize, folder: Path) -> Path:
    """Write the model's file and, where it is apart, the backbone's into ``folder``, and return the path."""
    torch.manual_seed(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        backbone = _backbone(model.network)
        if model.has_backbone_file:
            torch.save(backbone, folder / BACKBONE)
        torch.save(_FILES[model.family](model, backbone), folder / MODEL)
    return folder / MODEL


# --- the files ------------------------------------------------------------------------------------------------


def _cflow(model: FullSize, backbone: State) -> object:
    decoders = [
        dict(_sequence(channels, 8, model.soft, _linear_subnet(channels, 128)))
        for channels in _RESNET_CHANNELS[model.network][1:]
    ]
    if model.layout == "official":
        return {"encoder_state_dict": backbone, "decoder_state_dict": decoders}
    state = _prefixed("encoder.feature_extractor.", backbone)
    for level, decoder in enumerate(decoders):
        state |= _prefixed(f"decoders.{level}.", decoder)
    hyper = {"backbone": model.network, "layers": ["layer2", "layer3", "layer4"], "clamp_alpha": 1.9}
    return _lightning(state, model, hyper)


def _fastflow(model: FullSize, backbone: State) -> object:
    official = model.layout == "official"
    flows = "nf_flows" if official else "fast_flow_blocks"
    state = _prefixed("feature_extractor.", _without_last_layer(backbone))
    if model.network in _TOKENS:
        channels = _TOKENS[model.network]
        flow = _sequence(channels, 20, False, _convolutional_subnet(channels, 0.16))
        state |= _prefixed(f"{flows}.0.", dict(flow))
    else:
        only_3x3 = official and model.network == "resnet18"
        for level, channels in enumerate(_RESNET_CHANNELS[model.network][:3]):
            subnet = _convolutional_subnet(channels, 1.0, only_3x3=only_3x3)
            state |= _prefixed(f"{flows}.{level}.", dict(_sequence(channels, 8, False, subnet)))
            state |= _layer_norm(f"norms.{level}.", channels, model.size // (4 * 2**level))
    if official:
        return {"epoch": 499, "model_state_dict": state}
    return _lightning(state, model, {"backbone": model.network})


def _uflow(model: FullSize, backbone: State) -> object:
    official, transformers = model.layout == "official", model.network == "mcait"
    features = (768, 384) if transformers else _RESNET_CHANNELS[model.network][:3]
    extractor = "extractor." if official else "feature_extractor."
    state = _prefixed(f"feature_extractor.{'' if transformers else extractor}", _without_last_layer(backbone))
    if not transformers:
        for level, channels in enumerate(features):
            prefix = f"feature_extractor.feature_normalizations.{level}."
            state |= _layer_norm(prefix, channels, model.size // (4 * 2**level))
    node, width = 0, 0
    for level in reversed(range(len(features))):
        width += features[level]
        subnet = _convolutional_subnet(width, 0.16 if transformers else 1.0)
        for block in range(4):
            state |= _prefixed(f"flow.module_list.{node + block}.", _block(width, False, subnet(block)))
        node += 4
        if level:
            rising = 4 * (width // 8)
            state[f"flow.module_list.{node + 1}.downsample_kernel"] = _pixel_shuffle(rising)
            node, width = node + 3, rising // 4
    if official:
        return {"state_dict": _prefixed("model.", state) | {"pixel_aupro.fpr_limit": torch.tensor(0.3)}}
    return _lightning(state, model, {"backbone": model.network, "affine_clamp": 2.0})


def _msflow(model: FullSize, _backbone: State) -> object:
    widths = _RESNET_CHANNELS[model.network][:3]
    parallel = [
        dict(_sequence(width, blocks, False, _normed_subnet(width, 64)))
        for width, blocks in zip(widths, (2, 5, 8), strict=True)
    ]
    fusion: State = {}
    for level, width in enumerate(widths):
        order = torch.randperm(width)
        fusion |= {f"module_list.{level}.perm": order, f"module_list.{level}.perm_inv": order.argsort()}
    total = sum(widths) // 2
    for net in ("subnet_1", "subnet_2"):
        start = f"module_list.3.{net}."
        fusion |= _conv(f"{start}cross_convs.conv1.", total, total // 4, 3)
        fusion |= _vector_norm(f"{start}cross_convs.norm.", total // 4)
        fusion |= _conv(f"{start}cross_convs.conv2.", total // 4, total, 3)
        for level, width in enumerate(widths):
            for head in ("conv_s", "conv_t"):
                fusion |= _conv(f"{start}{head}.{level}.", width // 2, width // 2, 3)
    return {"epoch": 24, "fusion_flow": fusion, "parallel_flows": parallel}


def _csflow(model: FullSize, backbone: State) -> object:
    half, hidden = _EFFICIENTNET_CHANNELS // 2, model.hidden
    official = model.layout == "official"
    nets = ("s1", "s2") if official else ("cross_convolution1", "cross_convolution2")
    state: State = {}
    for number, kernel in enumerate((3, 3, 3, 5)):
        for net in nets:
            prefix = (
                f"module_list.{4 + 2 * number}." if official else f"graph.graph.module_list.{1 + 2 * number}."
            )
            state |= _prefixed(f"{prefix}{net}.", _cross_net(half, hidden, kernel))
    if official:
        return state
    pruned = {
        name: t
        for name, t in backbone.items()
        if not name.startswith(("classifier", "features.7", "features.8"))
    }
    state |= _prefixed("feature_extractor.feature_extractor.feature_extractor.", pruned)
    hyper = {"cross_conv_hidden_channels": hidden, "n_coupling_blocks": 4, "clamp": 3, "num_channels": 3}
    return _lightning(state, model, hyper)


_FILES: Mapping[Family, Callable[[FullSize, State], object]] = {
    "cflow": _cflow,
    "fastflow": _fastflow,
    "uflow": _uflow,
    "msflow": _msflow,
    "csflow": _csflow,
}


def _lightning(state: State, model: FullSize, hyper: Mapping[str, object]) -> object:
    """Put a checkpoint of anomalib 2.7 around a state dict."""
    module = "torchvision.transforms.v2."
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "inplace": False}
    resize = {"size": [model.size] * 2, "interpolation": "bilinear", "max_size": None, "antialias": True}
    steps = [
        {"class_path": f"{module}{kind}", "init_args": args}
        for kind, args in (("Resize", resize), ("Normalize", statistics))
    ]
    compose = {"class_path": f"{module}Compose", "init_args": {"transforms": steps}}
    return {
        "state_dict": _prefixed("model.", state) | {"post_processor.image_min": torch.tensor(float("nan"))},
        "hyper_parameters": dict(hyper),
        "anomalib_components_enabled": {"pre_processor": True},
        "anomalib_pre_processor_config": {"transform": compose},
        "anomalib_post_processor_config": {"image_sensitivity": 0.5, "pixel_sensitivity": 0.5},
    }


# --- their parts ----------------------------------------------------------------------------------------------

Subnet = Callable[[int], State]  # a block's number to its subnet's tensors


def _sequence(channels: int, blocks: int, soft: bool, subnet: Subnet) -> Iterator[tuple[str, Tensor]]:
    for block in range(blocks):
        yield from _prefixed(f"module_list.{block}.", _block(channels, soft, subnet(block))).items()


def _block(channels: int, soft: bool, subnet: State) -> State:
    """Make one all-in-one block, on vectors where its subnet has matrices."""
    tail = (1,) * (next(iter(subnet.values())).ndim - 2)
    matrix = (
        torch.linalg.qr(torch.randn(channels, channels)).Q
        if soft
        else torch.eye(channels)[torch.randperm(channels)]
    )
    return {
        "global_scale": _NEUTRAL_SCALE + 0.5 * torch.randn(1, channels, *tail),
        "global_offset": 0.05 * torch.randn(1, channels, *tail),
        "w_perm": matrix.reshape(channels, channels, *tail),
        "w_perm_inv": matrix.T.contiguous().reshape(channels, channels, *tail),
        **_prefixed("subnet.", subnet),
    }


def _linear_subnet(channels: int, condition: int) -> Subnet:
    seen = channels - channels // 2 + condition
    return lambda _block: {**_linear("0.", seen, 2 * seen), **_linear("2.", 2 * seen, 2 * (channels // 2))}


def _convolutional_subnet(channels: int, ratio: float, *, only_3x3: bool = False) -> Subnet:
    seen = channels - channels // 2
    hidden = int(seen * ratio)

    def subnet(block: int) -> State:
        kernel = 1 if block % 2 and not only_3x3 else 3
        return {**_conv("0.", seen, hidden, kernel), **_conv("2.", hidden, 2 * (channels // 2), kernel)}

    return subnet


def _normed_subnet(channels: int, condition: int) -> Subnet:
    seen = channels - channels // 2 + condition
    return lambda _block: {
        **_conv("conv1.", seen, seen, 3),
        **_vector_norm("ln.", seen),
        **_conv("conv2.", seen, 2 * (channels // 2), 3),
    }


def _cross_net(half: int, hidden: int, kernel: int) -> State:
    state = {f"gamma{level}": 0.1 + 0.2 * torch.rand(1) for level in range(3)}  # training starts them at 0
    for level in range(3):
        state |= _conv(f"conv_scale{level}_0.", half, hidden, kernel)
    for name in (
        "conv_scale0_1",
        "conv_scale1_1",
        "conv_scale2_1",
        "up_conv10",
        "up_conv21",
        "down_conv01",
        "down_conv12",
    ):
        state |= _conv(f"{name}.", hidden, 2 * half, kernel)
    return state


def _conv(prefix: str, inputs: int, outputs: int, kernel: int) -> State:
    return _prefixed(prefix, nn.Conv2d(inputs, outputs, kernel).state_dict())


def _linear(prefix: str, inputs: int, outputs: int) -> State:
    return _prefixed(prefix, nn.Linear(inputs, outputs).state_dict())


def _vector_norm(prefix: str, channels: int) -> State:
    return {f"{prefix}weight": 1 + 0.1 * torch.randn(channels), f"{prefix}bias": 0.1 * torch.randn(channels)}


def _layer_norm(prefix: str, channels: int, side: int) -> State:
    shape = (channels, side, side)
    return {f"{prefix}weight": 1 + 0.1 * torch.randn(shape), f"{prefix}bias": 0.1 * torch.randn(shape)}


def _pixel_shuffle(channels: int) -> Tensor:
    """Return the constant kernel of FrEIA's ``IRevNetUpsampling`` over ``channels`` of the coarse level."""
    kernel = torch.zeros(channels, 1, 2, 2)
    for place in range(channels):
        kernel[place, 0, place % 4 // 2, place % 2] = 1
    return kernel


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


# --- backbones ------------------------------------------------------------------------------------------------


def _backbone(network: str) -> State:
    if network == "mcait":
        pair = (("extractor1.", "cait_m48_448"), ("extractor2.", "cait_s24_224"))
        return {k: v for prefix, one in pair for k, v in _prefixed(prefix, _transformer(one)).items()}
    if network in _TOKENS:
        return _transformer(network)
    if network == "efficientnet_b5":
        module: nn.Module = torchvision.models.efficientnet_b5()
    else:
        module = timm.create_model(network, pretrained=False, num_classes=0)
    settle_batch_norms(module, (128, 128))
    return dict(module.state_dict())


def _without_last_layer(backbone: State) -> State:
    """Leave out the last layer of a ResNet, which FastFlow and U-Flow do not run."""
    return {name: tensor for name, tensor in backbone.items() if not name.startswith("layer4.")}


def _transformer(network: str) -> State:
    """Scale up the branches of a CaiT, which timm starts at a hundred-thousandth."""
    state: State = timm.create_model(network, pretrained=False).state_dict()
    return {name: torch.full_like(t, 0.1) if "gamma_" in name else t for name, t in state.items()}
