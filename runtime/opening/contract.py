"""Describe the graph that an engine loads: its file, its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowedge.bundle import Bundle
from flowedge.errors import BundleError
from flowedge.families import TRAITS
from flowedge.manifest import Manifest, level_outputs
from flowedge.runtime.device.engine_file import graph_hash


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The type of one input or output. A dimension that the graph leaves open is None."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('N' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSource:
    """One graph on disk, with all that an engine needs to know about it.

    Attributes:
        file: The graph's file.
        sha256: One hash of the file and of the weights beside it.
        owner: The folder of the bundle or pack that the file belongs to.
        precision: The precision of the graph.
        inputs: The types of the inputs by name, in the order in which an engine takes them.
        outputs: The types of the outputs by name.
    """

    file: Path
    sha256: str
    owner: Path
    precision: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


def graph_of_bundle(bundle: Bundle, precision: str) -> GraphSource:
    """Describe one graph of a bundle.

    Raises:
        BundleError: The bundle has no graph of this precision.
    """
    return GraphSource(
        file=bundle.graph_path(precision),
        sha256=graph_hash(bundle, precision),
        owner=bundle.path,
        precision=precision,
        inputs=dict([input_of_graph(bundle.manifest)]),
        outputs=outputs_of_graph(bundle.manifest),
    )


def input_of_graph(manifest: Manifest) -> tuple[str, TensorSpec]:
    """Return the name and the type of the one input of a bundle's graphs."""
    if manifest.frame_size is not None:
        return "frame", TensorSpec("uint8", (None, *manifest.frame_size, 3))
    return "image", TensorSpec("float32", (None, 3, *manifest.image_size))


def outputs_of_graph(manifest: Manifest) -> dict[str, TensorSpec]:
    """Return the names and the types of the outputs of a bundle's graphs. The number of images is open."""
    height, width = manifest.image_size
    outputs = {
        "score": TensorSpec("float32", (None,)),
        "anomaly_map": TensorSpec("float32", (None, 1, height, width)),
    }
    for name, level in level_outputs(manifest.levels, manifest.nfa).items():
        outputs[name] = TensorSpec("float32", (None, 1, level.height, level.width))
    if TRAITS[manifest.family].multiplicative_map:
        outputs["anomaly_map_mul"] = outputs["anomaly_map"]
    return outputs


def check_contract(
    source: GraphSource, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> None:
    """Check the inputs and outputs of a loaded graph against its description. Outputs may leave any dimension open.

    Raises:
        BundleError: An input or output is missing, is one too many, or has another type or shape.
    """
    fits = (
        dict(inputs) == dict(source.inputs)
        and outputs.keys() == source.outputs.keys()
        and all(_fits(outputs[name], spec) for name, spec in source.outputs.items())
    )
    if not fits:
        raise BundleError(
            f"{source.file} is not the graph that its manifest describes: it should take {_listing(source.inputs)} and "
            f"give {_listing(source.outputs)}; it takes {_listing(inputs)} and gives {_listing(outputs)}. "
            "Export the bundle again."
        )


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    return (
        found.dtype == wanted.dtype
        and len(found.shape) == len(wanted.shape)
        and all(
            one is None or other is None or one == other
            for one, other in zip(found.shape, wanted.shape, strict=True)
        )
    )


def _listing(specs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in specs.items()) or "nothing"
