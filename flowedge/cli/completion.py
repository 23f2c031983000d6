"""Offer the values of options to a shell that completes a command, without importing an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import typer

ENGINE_NAMES: Final = (
    *("onnxruntime-cpu", "openvino", "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cuda-nhwc"),
    *("onnxruntime-cuda-tf32", "onnxruntime-tensorrt"),
    *("openvino:GPU", "openvino:NPU"),
)
"""The names of the engines, which are compared with the engines themselves in a test."""

COMPILED_NAMES: Final = ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt")
"""The names of the engines that are compiled ahead."""

CALIBRATOR_NAMES: Final = ("auto", "percentile", "min-max", "entropy", "mse")
"""The rules for the ranges of INT8."""

_PRECISIONS: Final = ("fp32", "pruned", "fp16", "bf16", "int8")


def engines(incomplete: str) -> list[str]:
    """Return the engines whose names begin so."""
    return [name for name in ENGINE_NAMES if name.startswith(incomplete)]


def compiled_engines(incomplete: str) -> list[str]:
    """Return the compiled engines whose names begin so."""
    return [name for name in COMPILED_NAMES if name.startswith(incomplete)]


def calibrators(incomplete: str) -> list[str]:
    """Return the rules for the ranges of INT8 whose names begin so."""
    return [name for name in CALIBRATOR_NAMES if name.startswith(incomplete)]


def precisions(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the precisions of the bundle in the command, or all where no bundle is named yet."""
    return [name for name in _of_bundle(ctx) if name.startswith(incomplete)]


def precisions_and_auto(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the same as `precisions`, and ``auto``."""
    return [name for name in (*_of_bundle(ctx), "auto") if name.startswith(incomplete)]


def graphs_and_all(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the exact names of the bundle's graphs, and ``all``."""
    return [name for name in (*_graphs(ctx), "all") if name.startswith(incomplete)]


def _of_bundle(ctx: typer.Context) -> tuple[str, ...]:
    """Return the precisions as commands that run a graph take them, where INT8 has one name for every device."""
    return tuple(dict.fromkeys(name.partition("-")[0] for name in _graphs(ctx)))


def _graphs(ctx: typer.Context) -> tuple[str, ...]:
    from flowedge.bundle_files import read_manifest
    from flowedge.errors import BundleError

    # The option whose value is missing yet ends the parsing, so arguments before it may still be unnamed.
    named = ctx.params.get("bundle") or next(iter(ctx.args), "")
    try:
        graphs = read_manifest(Path(named)).graphs
    except BundleError:  # the bundle is not there, or is not named yet
        return _PRECISIONS
    return tuple(graph.precision for graph in graphs)
