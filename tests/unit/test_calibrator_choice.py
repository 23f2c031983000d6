"""The calibrator is chosen by the answers of the graph with every block in INT8."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from flowedge.calibration.calibration_record import read_record
from flowedge.calibration.precision import PrecisionRequest, add_precisions
from flowedge.calibration.precision.calibrator_choice import Int8Searches, chosen_searches
from flowedge.calibration.precision.calibrators import CalibratorName
from flowedge.errors import PrecisionError
from support.block_graph import LIMITS, SIZE, Layer, write_block_bundle
from support.recorded_reports import RecordedReports

NAMES = ("percentile", "min-max", "mse")


class PretendedSearches:
    """Searches of two layouts that pass, or are as far from fp32, as a table tells."""

    def __init__(self, errors: dict[str, tuple[float, float]], passing: frozenset[str]) -> None:
        self.errors, self.passing = errors, passing
        self.made: list[str] = []
        self.closed: list[str] = []

    def __call__(self, name: CalibratorName) -> Int8Searches:
        self.made.append(name)
        graph: Any = SimpleNamespace(close=lambda: self.closed.append(name))
        by_name: Any = {
            layout: SimpleNamespace(
                passes_whole=lambda: name in self.passing, share_of_whole=lambda share=share: share
            )
            for layout, share in zip(("int8-gpu", "int8-cpu"), self.errors[name], strict=True)
        }
        return Int8Searches(name, graph, by_name)


@pytest.mark.parametrize("first", range(3))
def test_the_first_method_with_which_every_block_passes_is_taken(first: int) -> None:
    pretended = PretendedSearches(dict.fromkeys(NAMES, (2.0, 2.0)), frozenset(NAMES[first:]))
    told = RecordedReports()
    assert chosen_searches(pretended, told).calibrator == NAMES[first]
    assert pretended.made == list(NAMES[: first + 1]), "no further method is tried"
    assert pretended.closed == list(NAMES[:first])
    assert told.steps == []


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        (((3.0, 1.0), (2.0, 2.0), (4.0, 1.0)), "min-max"),
        (((3.0, 1.0), (2.0, 2.5), (1.0, 2.0)), "mse"),
        (((3.0, 1.0), (2.9, 1.0), (2.5, 1.0)), "percentile"),
    ],
    ids=["nearest in the worse layout", "nearest of all", "not clearly nearer than the first"],
)
def test_where_no_method_passes_the_nearest_is_taken(
    errors: tuple[tuple[float, float], ...], chosen: str
) -> None:
    pretended = PretendedSearches(dict(zip(NAMES, errors, strict=True)), frozenset())
    assert chosen_searches(pretended, RecordedReports()).calibrator == chosen
    assert sorted(pretended.closed) == sorted(set(NAMES) - {chosen})


def test_no_other_method_is_tried_for_a_graph_that_is_far_from_fp32() -> None:
    pretended = PretendedSearches({"percentile": (600.0, 1.0), "min-max": (1.0, 1.0)}, frozenset({"min-max"}))
    assert chosen_searches(pretended, RecordedReports()).calibrator == "percentile"
    assert pretended.made == ["percentile"]


@pytest.fixture
def grey(tmp_path: Path) -> tuple[Path, ...]:
    """Write grey pictures, one of them with a white spot, which is one of more than ten thousand pixels of all maps."""
    rng = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{n:02}.png" for n in range(14))
    for n, path in enumerate(paths):
        picture = rng.integers(135, 165, (*SIZE, 3), np.uint8)
        if n == 3:
            picture[10:12, 20:22] = 255
        assert cv2.imwrite(str(path), picture)
    return paths


@pytest.mark.usefixtures("without_proof")
def test_a_method_that_clips_rare_values_of_the_map_is_left_for_another(
    tmp_path: Path, grey: tuple[Path, ...]
) -> None:
    same, nothing = np.eye(4, dtype=np.float32)[:, :, None, None], np.zeros(4, np.float32)
    layers = [
        Layer("l0", np.full((4, 3, 2, 2), 1 / 12, np.float32), nothing, stride=2),
        *(Layer(f"l{n}", same, nothing) for n in (1, 2)),
    ]
    bundle = write_block_bundle(tmp_path / "grey.flowedge", layers)
    limits, told = {"int8": LIMITS}, RecordedReports()
    clipping = PrecisionRequest(wanted=("int8",), calibrator="percentile", limits=limits, defects_per_image=1)
    with pytest.raises(PrecisionError, match="cannot pass its gate"):
        add_precisions(bundle, grey, clipping, threads=1)
    request = PrecisionRequest(wanted=("int8",), limits=limits, defects_per_image=1)
    done, reports = add_precisions(bundle, grey, request, threads=1, reports=told)
    assert {one.calibrator for one in reports} == {"min-max"}
    assert not [block for one in reports for block in one.blocks if block.reason]
    assert any(note.startswith("int8: the ranges are those of --calibrator min-max") for note in told.notes)
    record = read_record(done)
    assert record is not None
    assert record.lower_precisions == reports
    assert "those of the calibrator min-max" in (done.path / "gate.int8-cpu.html").read_text()
