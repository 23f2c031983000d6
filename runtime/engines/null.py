"""An engine that computes nothing: it answers constants of the shapes that the manifest gives.

The null engine needs no library, so a program around a detector can be tried and tested without one. The answers of the
null engine fail a bundle's self-test, so `flowedge.load` refuses this engine, and no part is ever judged by it. Open
the null engine with `flowedge.runtime.opening.unproven.open_unproven`, or make a `NullEngine` with the answers
that a test needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowedge.manifest import Manifest
from flowedge.runtime.opening.contract import TensorSpec, outputs_of_graph
from flowedge.runtime.opening.engine_contract import EngineSpec, Opening
from flowedge.runtime.protocols import Engine


class NullEngine:
    """An engine whose answers are given beforehand.

    Examples:
        >>> import numpy as np
        >>> from flowedge.bundle import open_bundle
        >>> from flowedge.runtime.engines.null import NullEngine
        >>> manifest = open_bundle("bottle.flowedge").manifest
        >>> engine = NullEngine(manifest, {"score": 3.0})
        >>> float(engine.infer(np.zeros((1, 3, *manifest.image_size), np.float32))["score"][0])
        3.0
    """

    name = "null"
    batches: tuple[int, int] | None = None

    def __init__(
        self,
        graph: Manifest | Mapping[str, TensorSpec],
        answers: Mapping[str, ArrayLike] = MappingProxyType({}),
    ) -> None:
        """Prepare the answers.

        Args:
            graph: The outputs that the engine gives, or the manifest that describes them.
            answers: By an output's name a number, or an array that fits the output of one image. All other outputs are
                zeros.

        Raises:
            ValueError: There is no such output, or an array does not fit it.
        """
        outputs = outputs_of_graph(graph) if isinstance(graph, Manifest) else graph
        self.output_names: tuple[str, ...] = tuple(outputs)
        unknown = ", ".join(answers.keys() - outputs.keys())
        if unknown:
            raise ValueError(f"the graph has no output {unknown}, but {', '.join(outputs)}")
        # Only the first dimension, the number of images, is open.
        shapes = {name: [size for size in spec.shape if size is not None] for name, spec in outputs.items()}
        self._answers = {
            name: np.broadcast_to(np.asarray(answers.get(name, 0), np.float32), shape)
            for name, shape in shapes.items()
        }
        self._is_closed = False

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        if self._is_closed:
            raise ValueError("the engine is closed")
        return {name: np.stack([answer] * len(inputs[0])) for name, answer in self._answers.items()}

    def close(self) -> None:
        self._is_closed = True


def load(opening: Opening) -> Engine:
    """Load no graph: the engine answers zeros, in the shapes that the manifest gives."""
    return NullEngine(opening.source.outputs)


def probe(spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Answer zeros in the shape of ``x``, as the test that an engine can run."""
    return np.zeros_like(x)
