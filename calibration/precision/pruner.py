"""Observe the hidden units of a graph on images, and make graphs that keep some of them.

The number of kept units is a multiple of 16, or of 8 in small layers, because engines compute so many channels at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from flowedge.calibration.precision.hidden_layers import HiddenLayer, hidden_layers_of, macs_of
from flowedge.calibration.precision.hidden_units import (
    UnitMoments,
    UnitOrder,
    interpolation,
    order_of_units,
)
from flowedge.calibration.precision.in_order import in_order
from flowedge.calibration.precision.pruned_graph import leave_out_units, weights_of_units
from flowedge.calibration.precision.ranges import groups_of_tensors, session_with_outputs
from flowedge.errors import PrecisionError
from flowedge.onnx_files import load_graph
from flowedge.runtime.device.denormals import flushing_denormals

Counts = Mapping[str, int]
"""The number of units that each hidden layer keeps, by the name of the layer."""

_POSITIONS_PER_UNIT: Final = 64
_WIDE, _NARROW = 128, 16


class PruningStep(NamedTuple):
    """One step of a search: a layer keeps no more than this number of its units."""

    layer: str
    kept: int


class Pruner:
    """Makes pruned graphs of one fp32 graph.

    Attributes:
        layers: The hidden layers of the graph.
        macs: The multiply-accumulates of the whole graph for one image.
        input: The name of the graph's input.
    """

    def __init__(self, source: Path) -> None:
        """Read the file of an fp32 graph."""
        self._source = source
        self._model = load_graph(source)
        self.layers = hidden_layers_of(self._model)
        self.macs = macs_of(self._model)
        self.input: str = self._model.graph.input[0].name
        self._moments: dict[str, UnitMoments] = {}
        self._orders: dict[str, UnitOrder] = {}

    def observe(self, images: Iterable[NDArray[Any]], count: int, threads: int | None) -> Iterator[None]:
        """Take the values of all hidden units on images, and order the units. Yield after each image.

        Some positions of each image are taken, chosen by a generator with a fixed seed.

        Args:
            images: The graph's inputs for one image each.
            count: The number of images.
            threads: The number of images that run at a time.
        """
        sized = groups_of_tensors(self._source, [layer.tensor for layer in self.layers])
        sessions = [(session_with_outputs(self._source, group, 1), group) for group, _ in sized]
        layers = {layer.tensor: layer for layer in self.layers}
        self._moments = {layer.name: UnitMoments(layer.units) for layer in self.layers}

        def sampled(item: tuple[int, NDArray[Any]]) -> list[tuple[str, NDArray[np.float32]]]:
            number, image = item
            found: list[tuple[str, NDArray[np.float32]]] = []
            for session, group in sessions:
                with flushing_denormals():
                    answers: Sequence[Any] = session.run(list(group), {session.get_inputs()[0].name: image})
                for tensor, answer in zip(group, answers, strict=True):
                    layer = layers[tensor]
                    values = answer[0].reshape(layer.units, -1)
                    wanted = min(-(-_POSITIONS_PER_UNIT * layer.units // count), values.shape[1])
                    places = np.random.default_rng([number, layer.units]).permutation(values.shape[1])
                    found.append((layer.name, values[:, places[:wanted]]))
            return found

        largest = max(size for _, size in sized)
        for one in in_order(sampled, enumerate(images), threads, bytes_each=largest):
            for name, values in one:
                self._moments[name].add(values)
            yield
        self._orders = {
            layer.name: order_of_units(
                self._moments[layer.name].products(constant=layer.has_constant),
                weights_of_units(self._model, layer),
            )
            for layer in self.layers
        }

    def counts_of_share(self, share: float) -> dict[str, int]:
        """Return the numbers of kept units for a share of each layer, which is above 0 and below 1."""
        return {layer.name: _nearest_choice(layer.units, share) for layer in self.layers}

    def error(self, layer: str, kept: int) -> float:
        """Return the share of a layer's effect on its readers that its first kept units do not give."""
        return float(self._orders[layer].errors[kept])

    def saved(self, pruned: Path) -> float:
        """Return the share of the graph's multiply-accumulates that a pruned graph saves, in 0..1.

        Args:
            pruned: The file of the pruned graph.
        """
        return 1 - macs_of(load_graph(pruned)) / max(self.macs, 1)

    def _saved_by(self, layer: HiddenLayer, left_out: int) -> float:
        """Return the share that one layer alone saves."""
        return layer.macs * left_out / layer.units / max(self.macs, 1)

    def model(self, counts: Counts) -> onnx.ModelProto:
        """Return the graph in which each layer keeps some of its units."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        found = {
            layer.name: interpolation(
                self._moments[layer.name],
                self._orders[layer.name],
                counts[layer.name],
                constant=layer.has_constant,
            )
            for layer in self.layers
            if counts[layer.name] < layer.units
        }
        leave_out_units(model, self.layers, found)
        return model

    def steps(self, sensitivities: Mapping[str, float]) -> tuple[PruningStep, ...]:
        """Return the steps of a search from the whole graph to the smallest one.

        The next step is always the one with the smallest expected squared change of the map for what it saves.

        Args:
            sensitivities: For each layer, the squared change of the map for an error of 1 of the layer.
        """
        waiting: list[tuple[float, int, int]] = []
        choices = [choices_of_layer(layer.units) for layer in self.layers]

        def push(number: int, place: int) -> None:
            if place + 1 < len(choices[number]):
                layer, before, after = self.layers[number], choices[number][place], choices[number][place + 1]
                change = self.error(layer.name, after) - self.error(layer.name, before)
                saved = self._saved_by(layer, before - after)
                heapq.heappush(waiting, (sensitivities[layer.name] * change / saved, number, place + 1))

        for number in range(len(self.layers)):
            push(number, 0)
        found: list[PruningStep] = []
        while waiting:
            _, number, place = heapq.heappop(waiting)
            found.append(PruningStep(self.layers[number].name, choices[number][place]))
            push(number, place)
        return tuple(found)


def choices_of_layer(units: int) -> list[int]:
    """Return the numbers of units that a layer may keep, from all of them down to the fewest."""
    step = 16 if units >= _WIDE else 8 if units >= _NARROW else 1
    return [units, *range((units - 1) // step * step, 0, -step)]


def _nearest_choice(units: int, share: float) -> int:
    """Return the number of units to keep that is nearest to a share."""
    return min(choices_of_layer(units), key=lambda kept: abs(kept - share * units))


def check_has_hidden_layers(source: Path, family: str) -> None:
    """Refuse a graph without a hidden layer whose units can be left out, before anyone waits for its calibration.

    Args:
        source: The file of the fp32 graph.
        family: The family of the flow, for the message.

    Raises:
        PrecisionError: The graph has no such layer.
    """
    if not hidden_layers_of(load_graph(source)):
        raise PrecisionError(
            f"--prune: the flow of family {family} has no hidden units that can be left out. They would have to "
            "lie between two convolutions of a coupling subnet, without a norm over all hidden units, as MSFlow's "
            "subnets have. Nothing was written. Leave --prune out."
        )
