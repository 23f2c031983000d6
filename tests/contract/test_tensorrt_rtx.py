"""TensorRT for RTX parses and builds every family's graph, on a machine without a GPU.

TensorRT for RTX has TensorRT's own parser and strong typing. The answers of engines need a GPU and are not tested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from torch import Tensor, nn

from flowedge.export.graph import ir
from flowedge.export.graph.onnx_export import onnx_from_model
from flowedge.export.graph.passes import lower
from support.family_graphs import FAMILIES, PRECISIONS, FamilyBundle
from support.random_flows import random_cflow, random_fastflow

trt: Any = pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx"
)

BATCHES = (1, 2, 4)


class Messages(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT says from a warning on."""

    def __init__(self) -> None:
        super().__init__()
        self.serious: list[str] = []

    def log(self, severity: Any, text: str) -> None:
        if severity <= trt.ILogger.WARNING:
            self.serious.append(f"{severity}: {text}")


MESSAGES = Messages()  # one for all: TensorRT-RTX warns of a second


class Wrapped(nn.Module):
    """Gives timm's features in the form of FlowEdge's backbones."""

    def __init__(self, network: str, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.network = timm.create_model(
            network, pretrained=False, features_only=True, exportable=True, out_indices=taps
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.network(image)
        return features


def parsed(graph: Path) -> tuple[Any, Any, Messages]:
    """Parse a graph without an error or a warning, and return builder, network and messages."""
    messages = MESSAGES
    messages.serious.clear()
    builder = trt.Builder(messages)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, messages)
    accepted = parser.parse_from_file(str(graph))
    errors = [str(parser.get_error(number)) for number in range(parser.num_errors)]
    assert accepted, errors
    assert not errors
    assert messages.serious == []
    return builder, network, messages


def complaints(plan: bytes) -> int:
    """Return the complaints of TensorRT-RTX about an engine's header, without those about the missing device."""
    runtime = trt.Runtime(MESSAGES)
    _, diagnostics = runtime.get_engine_validity(plan)
    kinds = trt.EngineInvalidityDiagnostics
    return int(diagnostics) & (int(kinds.MALFORMED_ENGINE) | int(kinds.VERSION_MISMATCH))


def test_the_header_check_can_fail() -> None:
    assert complaints(b"not an engine" * 400)


ON_GPUS = [name for name in PRECISIONS if name != "int8-cpu"]
# Each family once in the precision whose graph has the most kinds of nodes, and each precision besides.
BUILT = {
    *((family, "int8-gpu") for family in FAMILIES),
    ("uflow", "fp32"),
    ("msflow", "fp16"),
    ("cflow", "bf16"),
}


@pytest.mark.parametrize("precision", ON_GPUS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_graph_is_accepted_with_a_dynamic_batch(
    family_bundle: Callable[[str], FamilyBundle], family: str, precision: str
) -> None:
    bundle = family_bundle(family).bundle
    _, network, _ = parsed(bundle.graph_path(precision))
    (image,) = [network.get_input(number) for number in range(network.num_inputs)]
    assert tuple(image.shape) == (-1, 3, *bundle.manifest.image_size)


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        pytest.param(family, name, marks=() if (family, name) in BUILT else pytest.mark.slow)
        for family in FAMILIES
        for name in ON_GPUS
    ],
)
def test_every_familys_graph_becomes_an_engine(
    family_bundle: Callable[[str], FamilyBundle], family: str, precision: str
) -> None:
    bundle = family_bundle(family).bundle
    builder, network, messages = parsed(bundle.graph_path(precision))
    height, width = bundle.manifest.image_size
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((batch, 3, height, width) for batch in BATCHES))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, messages.serious
    assert messages.serious == []
    assert not complaints(bytes(plan)), "its own header check refuses it"


@pytest.mark.parametrize(
    ("make", "levels", "taps", "blocks", "most"),
    [
        (random_cflow, ((128, 32, 32), (256, 16, 16), (512, 8, 8)), (2, 3, 4), 2, 430),
        pytest.param(
            random_cflow,
            ((128, 32, 32), (256, 16, 16), (512, 8, 8)),
            (2, 3, 4),
            8,
            1200,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            random_fastflow,
            ((64, 64, 64), (128, 32, 32), (256, 16, 16)),
            (1, 2, 3),
            8,
            800,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["cflow of two blocks", "cflow", "fastflow"],
)
def test_a_resnet18_detector_has_few_layers(
    make: Callable[..., ir.FlowModel],
    levels: tuple[tuple[int, int, int], ...],
    taps: tuple[int, ...],
    blocks: int,
    most: int,
    tmp_path: Path,
) -> None:
    extra = {"condition": 128} if make is random_cflow else {}
    model = dataclasses.replace(make(0, sizes=levels, blocks=blocks, **extra), image_size=(256, 256))
    onnx_from_model(lower(model), Wrapped("resnet18", taps).eval(), tmp_path / "model.onnx")
    _, network, _ = parsed(tmp_path / "model.onnx")
    assert network.num_layers <= most
