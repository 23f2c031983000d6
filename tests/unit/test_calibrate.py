"""Calibration fits thresholds on the graphs that inspect, and infers no image more often than necessary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from flowedge.bundle import Bundle, clone_bundle
from flowedge.calibration import ThresholdRequest, calibrate_bundle
from flowedge.calibration.metrics import ValueHistogram
from flowedge.calibration.threshold import fit_pixel_threshold, fit_threshold
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.opening.opening import open_engine
from flowedge.runtime.verify import AGGREGATION_LIMIT
from support.block_graph import write_photographs
from support.family_graphs import FAMILIES, PRECISIONS, FamilyBundle
from support.recorded_reports import RecordedReports

pytestmark = pytest.mark.usefixtures("without_proof")

ENGINE = "openvino"  # which runs every precision
COUNT = 5  # photographs
REQUEST = ThresholdRequest(image=0.8, pixel=0.99)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return write_photographs(tmp_path_factory.mktemp("photographs") / "good", COUNT)


def copied(made: FamilyBundle, folder: Path, precisions: Sequence[str] = PRECISIONS) -> Bundle:
    manifest = made.bundle.manifest
    graphs = tuple(graph for graph in manifest.graphs if graph.precision in precisions)
    target = folder / made.bundle.path.name
    return clone_bundle(made.bundle, target, manifest=msgspec.structs.replace(manifest, graphs=graphs))


@pytest.mark.parametrize(
    ("family", "precisions"),
    [
        ("uflow", PRECISIONS),
        *((family, ("fp32", "int8-cpu")) for family in FAMILIES if family != "uflow"),
        *(
            pytest.param(family, PRECISIONS, marks=pytest.mark.slow)
            for family in FAMILIES
            if family != "uflow"
        ),
    ],
)
def test_thresholds_are_fitted_on_what_the_graphs_answer(
    family_bundle: Callable[[str], FamilyBundle],
    photographs: tuple[Path, ...],
    tmp_path: Path,
    family: str,
    precisions: Sequence[str],
) -> None:
    bundle = copied(family_bundle(family), tmp_path, precisions)
    assert len(bundle.manifest.graphs) == len(precisions)
    done = calibrate_bundle(bundle, photographs, request=REQUEST, engine=ENGINE, threads=1).bundle
    for graph in done.manifest.graphs:
        session = open_engine(ENGINE, done, graph.precision, threads=1)
        scores, maps, pixels = [], [], ValueHistogram()
        with Detector(done, session) as detect:
            for path in photographs:
                result = detect(read_image(path))
                scores.append(result.score)
                maps.append(result.network_map)
                pixels.add(result.network_map)
        image = fit_threshold(scores, method="quantile", parameter=0.8).threshold
        assert graph.thresholds.image == image, "to the last bit"
        pixel = fit_pixel_threshold(pixels, method="quantile", parameter=0.99, images=COUNT).threshold
        assert graph.thresholds.pixel is not None
        limit = AGGREGATION_LIMIT * max(1.0, float(np.abs(scores).max()))
        assert graph.thresholds.pixel.value == pytest.approx(pixel.value, abs=limit, rel=0)
        median, sure = np.quantile(maps, [0.5, 0.9995], method="nearest")
        assert graph.colours is not None
        assert graph.colours.low == pytest.approx(median, abs=limit, rel=0)
        assert graph.colours.high == pytest.approx(2 * sure - median, abs=3 * limit, rel=0)


@pytest.mark.parametrize("family", ["cflow", "fastflow"])  # with a reference and without
def test_each_graph_infers_each_image_once(
    family_bundle: Callable[[str], FamilyBundle],
    photographs: tuple[Path, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    bundle = copied(family_bundle(family), tmp_path)
    seen: list[str] = []
    detect = Detector.__call__

    def counted(self: Detector, frame: Any) -> Any:
        seen.append(self.precision)
        return detect(self, frame)

    monkeypatch.setattr(Detector, "__call__", counted)
    first = calibrate_bundle(bundle, photographs, request=REQUEST, engine=ENGINE, threads=1)
    for precision in {graph.precision for graph in bundle.manifest.graphs}:
        # Random networks score much alike, so some lie within rounding of the threshold.
        assert COUNT <= seen.count(precision) < (2 * COUNT if family == "cflow" else COUNT + 1)
    known = {graph.precision: graph for graph in first.record.graphs if graph.precision != "fp16"}
    seen.clear()
    reports = RecordedReports()
    second = calibrate_bundle(
        first.bundle,
        photographs,
        known=known,
        request=REQUEST,
        engine=ENGINE,
        threads=1,
        reports=reports,
    )
    assert set(seen) == {"fp16"}
    assert reports.counts == [(n, COUNT) for n in range(1, COUNT + 1)], (
        "and progress ends where it was said to"
    )
    assert second.record.graphs == first.record.graphs
    assert second.bundle.manifest.graphs == first.bundle.manifest.graphs
