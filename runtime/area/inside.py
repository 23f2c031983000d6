"""Open an engine that computes only the part of the network that an area needs, and compare it with the whole one."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import EngineWrongError, SettingsError
from flowedge.graph_files import weights_beside
from flowedge.manifest import Manifest
from flowedge.runtime.area.crop import Cropped, Cut, cropped
from flowedge.runtime.area.graph_facts import CropError
from flowedge.runtime.area.windows import Box, Span
from flowedge.runtime.detector import Detector
from flowedge.runtime.opening.contract import GraphSource, TensorSpec, graph_of_bundle
from flowedge.runtime.opening.engine import engine_module
from flowedge.runtime.opening.engine_contract import Opened, Opening
from flowedge.runtime.opening.joined import Joined
from flowedge.runtime.opening.selftest import read_selftest
from flowedge.runtime.protocols import Engine

_WORTH: Final = 0.95  # of the multiply-accumulates; a graph that needs more is refused

LIMITS: Final[Mapping[str, float]] = {"fp32": 1e-5, "pruned": 1e-5, "fp16": 2e-3, "bf16": 2e-2}
"""The largest difference of the two maps inside of the area, as a share of the largest value of the map, by precision.

Libraries choose other orders of summation for other sizes. In float16 and bfloat16 the roundings of the layers add up.
INT8 has the limit of float16, for its layers that are not INT8."""


class InsideEngine:
    """An engine of a cropped graph, whose outputs are laid into maps of the whole size.

    Beside the computed part the anomaly maps hold the lowest value of it, and the levels NaN. The score is the largest
    value of the computed part. `flowedge.runtime.area.detector.AreaDetector` computes the score of the area itself.
    """

    def __init__(self, engine: Engine, manifest: Manifest, cuts: Mapping[str, Cut]) -> None:
        self.name = engine.name
        self.output_names = ("score", *cuts)
        self.batches = engine.batches
        self._engine, self._cuts = engine, cuts
        self._sizes = dict.fromkeys(cuts, manifest.image_size)
        self._sizes |= {
            f"level_{number}": (level.height, level.width) for number, level in enumerate(manifest.levels)
        }

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        given = self._engine.infer(*inputs)
        outputs: dict[str, NDArray[np.float32]] = {
            "score": given[self._cuts["anomaly_map"].name].max(axis=(1, 2, 3))
        }
        for name, cut in self._cuts.items():
            part = given[cut.name]
            is_level = name.startswith("level_")
            lowest = np.nan if is_level else part.min(axis=(1, 2, 3), keepdims=True)
            whole = np.empty((len(part), 1, *self._sizes[name]), np.float32)
            whole[:] = lowest
            rows, columns = cut.box
            whole[:, :, rows.start : rows.end, columns.start : columns.end] = part
            outputs[name] = whole
        return outputs

    def close(self) -> None:
        self._engine.close()


class CheckedEngine:
    """An engine of the whole graph that compares the map inside of an area with that of a cropped graph at each run.

    The self-test of a bundle runs through it, and so proves both.

    Attributes:
        inside: The engine of the cropped graph.
    """

    def __init__(self, whole: Engine, inside: InsideEngine, cells: NDArray[np.bool_], limit: float) -> None:
        self.name, self.output_names, self.batches = whole.name, whole.output_names, whole.batches
        self.inside = inside
        self._whole, self._cells, self._limit = whole, cells, limit

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run both graphs.

        Returns:
            The outputs of the whole graph.

        Raises:
            EngineWrongError: The maps inside of the area differ by more than the limit.
        """
        outputs = self._whole.infer(*inputs)
        expected, found = (
            one["anomaly_map"][:, 0, self._cells] for one in (outputs, self.inside.infer(*inputs))
        )
        largest = float(np.abs(outputs["anomaly_map"]).max())
        difference = float(np.abs(found - expected).max()) / largest if largest else 0.0
        if not difference <= self._limit:
            raise EngineWrongError(
                f"{self.name} gives other answers in the area where it computes the area alone: they differ by "
                f"{difference:.2g} of the map's largest value, and the limit is {self._limit:.0e}. Leave only_inside "
                "out."
            )
        return outputs

    def close(self) -> None:
        self.inside.close()
        self._whole.close()


def open_inside(
    detector: Detector, cells: NDArray[np.bool_], level_cells: Sequence[NDArray[np.bool_]]
) -> tuple[Opened, InsideEngine]:
    """Load a graph that computes what an area needs on the engine of a detector, and compare the two graphs.

    Args:
        detector: A detector of the whole frame.
        cells: ``(h, w)``, True for the cells of the anomaly map that belong to the area.
        level_cells: For each level, True for the cells that belong to the area.

    Returns:
        The engine of the whole graph, which also checks the other one, and the engine of the cropped graph.

    Raises:
        SettingsError: The bundle, the engine or the area does not allow it. The message says why.
        EngineWrongError: The two differ in the area by more than the limit of the precision.
        EngineUnavailableError: The engine cannot run the cropped graph.
    """
    bundle, whole = detector.bundle, detector.engine
    _check_allowed(detector)
    named = {"anomaly_map": _around(cells)}
    if "anomaly_map_mul" in whole.output_names:
        named["anomaly_map_mul"] = named["anomaly_map"]
    named |= {f"level_{number}": _box_of(one) for number, one in enumerate(level_cells)}
    graph = bundle.manifest.graph(detector.precision)
    try:
        part = cropped(bundle.read(graph.file), named)
    except CropError as error:
        raise SettingsError(
            f"only_inside is not possible with {bundle.path}: {error} Leave the key out."
        ) from error
    if part.share > _WORTH:
        raise SettingsError(
            f"only_inside saves nothing with {bundle.path}: this area needs {part.share:.0%} of the network's "
            "computation, because its layers see far around each position. Leave the key out."
        )
    inside = InsideEngine(_loaded(detector, part), bundle.manifest, part.outputs)
    checked = CheckedEngine(whole.engine, inside, cells, LIMITS.get(whole.precision, LIMITS["fp16"]))
    try:
        _, image = detector.prepare(read_selftest(bundle).frames)
        checked.infer(image)
    except BaseException:
        inside.close()
        raise
    reason = f"{whole.reason}. It computes {part.share:.0%} of the network, for the area alone"
    return replace(whole, engine=checked, reason=reason), inside


def _check_allowed(detector: Detector) -> None:
    bundle, engine = detector.bundle, detector.engine
    problem = ""
    if isinstance(engine.engine, Joined):
        problem = "the products of a pack share a backbone that computes the whole frame"
    elif engine.spec.compiled:
        problem = f"the engine {engine.name} is compiled for the whole graph"
    elif bundle.manifest.graph(detector.precision).scoring.normalisation == "per_image":
        problem = "each image is normalised by the maximum of all of it. Run flowedge calibrate first"
    elif detector.thresholds.nfa is not None:
        problem = "the number of false alarms of a pixel depends on the whole image"
    if problem:
        raise SettingsError(
            f"only_inside is not possible with {bundle.path}: {problem}. Or leave the key out."
        )


def _box_of(cells: NDArray[np.bool_]) -> Box:
    rows, columns = (np.flatnonzero(cells.any(axis=axis)) for axis in (1, 0))
    return Span(int(rows[0]), int(rows[-1]) + 1), Span(int(columns[0]), int(columns[-1]) + 1)


def _around(cells: NDArray[np.bool_]) -> Box:
    """Return the box of some cells with one cell around it, which the map over the frame interpolates with."""
    rows, columns = (
        Span(max(span.start - 1, 0), min(span.end + 1, length))
        for span, length in zip(_box_of(cells), cells.shape, strict=True)
    )
    return rows, columns


def _loaded(detector: Detector, part: Cropped) -> Engine:
    """Load the cropped graph, whose file is removed when the engine has read it."""
    whole = graph_of_bundle(detector.bundle, detector.precision)
    outputs = {
        cut.name: TensorSpec("float32", (None, 1, cut.box[0].length, cut.box[1].length))
        for cut in part.outputs.values()
    }
    opened = detector.engine
    with tempfile.TemporaryDirectory(prefix="flowedge-area-") as folder:
        file = Path(folder, whole.file.name)
        file.write_bytes(part.data)
        beside = weights_beside(whole.file)
        if beside.exists():
            try:
                os.link(beside, weights_beside(file))
            except OSError:
                shutil.copyfile(beside, weights_beside(file))
        source = GraphSource(
            file=file,
            sha256=hashlib.sha256(part.data).hexdigest(),
            owner=whole.owner,
            precision=whole.precision,
            inputs=whole.inputs,
            outputs=outputs,
        )
        return engine_module(opened.spec).load(
            Opening(spec=opened.spec, source=source, threads=opened.threads)
        )
