"""The contract of a bundle's graph: the inputs and outputs that its manifest describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowedge.errors import BundleError
from flowedge.families import TRAITS
from flowedge.manifest import Manifest, level_outputs


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The type of one input or output. A dimension that the graph leaves open is None."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('N' if size is None else str(size) for size in self.shape)}]"


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
    graph: Path, manifest: Manifest, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> None:
    """Check the inputs and outputs of a graph against the manifest. Outputs may leave any dimension open.

    Raises:
        BundleError: An input or output is missing, is one too many, or has another type or shape.
    """
    taken = dict([input_of_graph(manifest)])
    wanted = outputs_of_graph(manifest)
    fits = (
        dict(inputs) == taken
        and outputs.keys() == wanted.keys()
        and all(_fits(outputs[name], spec) for name, spec in wanted.items())
    )
    if not fits:
        raise BundleError(
            f"{graph} is not the graph that its manifest describes: it should take {_listing(taken)} and give "
            f"{_listing(wanted)}; it takes {_listing(inputs)} and gives {_listing(outputs)}. "
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
