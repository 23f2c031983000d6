"""A candidate is given up only where the gate would fail, and after few frames where that is plain."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

from flowedge.calibration.agreement import PairMoments, rank_correlation
from flowedge.calibration.compared_frames import ComparedFrame
from flowedge.calibration.gate_report import GateLimits
from flowedge.calibration.gates import Gate
from flowedge.calibration.precision.gate_images import GateImages
from flowedge.calibration.precision.in_order import in_order
from flowedge.calibration.precision.pieces import PiecedGraph
from flowedge.calibration.precision.trial_gate import (
    TrialGate,
    _isotonic,
    fp32_facts,
    largest_rank_correlation,
)
from flowedge.manifest import Preprocessing
from support.block_graph import random_layers, write_block_bundle, write_photographs
from unit.test_pieces import converter_of

SIZE = (12, 16)
PLAIN = Preprocessing(resize=SIZE, method="float_bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
LOOSE = GateLimits(
    map_correlation=0.9,
    map_error=20.0,
    rank_agreement=0.0,
    flips=1.0,
    image_auroc=1.0,
    pixel_auroc=1.0,
    aupro=1.0,
    quantile=0.9,
)
NOTHING = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Answer:
    score: float
    network_map: NDArray[np.float32]
    preprocessing: Preprocessing = PLAIN


def pairs_of(seed: int, noise: float) -> list[tuple[ComparedFrame, Answer, Answer]]:
    """Make ten good frames and ten defects, which a candidate answers with noise."""
    rng = np.random.default_rng(seed)
    pairs = []
    for n in range(20):
        mask = None
        fp32 = rng.normal(5, 1, SIZE)
        if n % 2:
            mask = np.zeros(SIZE, np.bool_)
            mask[2:5, 2:6] = True
            fp32[mask] += rng.uniform(0, 10)
        lower = 1.1 * fp32 + 0.3 + noise * rng.exponential() * rng.normal(size=SIZE)
        both = [Answer(float(m.max()), m.astype(np.float32)) for m in (fp32, lower)]
        pairs.append((ComparedFrame(Path("frame"), NOTHING, mask), both[0], both[1]))
    return pairs


@pytest.mark.parametrize(
    "limits",
    [
        LOOSE,
        msgspec.structs.replace(LOOSE, map_correlation=0.0, map_error=5.0),
        msgspec.structs.replace(LOOSE, map_correlation=0.0, flips=0.1),
        msgspec.structs.replace(LOOSE, map_correlation=0.0, rank_agreement=0.98),
    ],
)
def test_no_candidate_that_would_pass_is_given_up(limits: GateLimits) -> None:
    outcomes = {"passed": 0, "failed": 0, "early": 0}
    for seed in range(24):
        pairs = pairs_of(seed, noise=0.1 * seed)
        facts = fp32_facts((frame.mask is None, fp32) for frame, fp32, _ in pairs)
        gate, full = TrialGate(limits, facts), Gate(limits)
        given_up = False
        for n in np.random.default_rng(seed).permutation(len(pairs)):
            gate.add(*pairs[n])
            full.add(*pairs[n])
            if not given_up and gate.cannot_pass():
                given_up = True
        limited = [quantity for quantity in full.report().quantities if quantity.limit is not None]
        assert [q.name for q in limited] == [q.name for q in gate.report().quantities if q.limit is not None]
        assert gate.report().passed == full.report().passed
        if full.report().passed:
            outcomes["passed"] += 1
            assert not given_up
        else:
            outcomes["failed"] += 1
            outcomes["early"] += given_up
    assert min(outcomes["passed"], outcomes["failed"]) > 1
    assert outcomes["early"] == outcomes["failed"], "all of these limits are decided by the last frame"


def test_the_unexplained_part_is_that_of_a_fitted_line() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50))
    second += first
    pairs = PairMoments()
    pairs.add(first, second)
    slope, offset = np.polyfit(second, first, 1)
    assert pairs.unexplained() == pytest.approx(np.square(first - slope * second - offset).sum())
    assert pairs.unexplained() == pytest.approx((1 - pairs.correlation() ** 2) * first.var() * 50)
    assert PairMoments().unexplained() == 0.0


def test_the_bound_of_the_rank_correlation_is_above_it_and_meets_it_at_the_end() -> None:
    rng = np.random.default_rng(1)
    for noise in (0.0, 0.1, 0.5, 2.0):
        first = rng.normal(size=40)
        second = first + noise * rng.normal(size=40)
        if noise == 0.5:
            second[:15] = second[0]  # ties among the numbers that come last
        order = np.argsort(-np.arange(40))
        exact = rank_correlation(first, second)
        bounds = [
            largest_rank_correlation(sorted(first), first[known], second[known])  # type: ignore[arg-type]
            for known in (order[:m] for m in range(41))
        ]
        assert min(bounds) >= exact - 1e-12
        if noise != 0.5:
            assert bounds[-1] == pytest.approx(exact)
            assert (np.diff(bounds[20:]) < 1e-12).all(), "each further pair proves as much or more"
    values = rng.normal(size=200)
    np.testing.assert_allclose(_isotonic(values), isotonic_regression(values).x)


@pytest.fixture
def images(tmp_path: Path) -> Iterator[tuple[GateImages, PiecedGraph]]:
    bundle = write_block_bundle(tmp_path / "blocks.flowedge", random_layers(2, (8, 8, 8)))
    photographs = write_photographs(tmp_path / "good", 6)
    with contextlib.closing(GateImages(bundle, photographs, 1, 1)) as kept:
        first = kept._input_of([np.zeros((48, 64, 3), np.uint8)])
        graph = bundle.graph_path("fp32"), bundle.manifest.graph("fp32")
        yield kept, PiecedGraph(converter_of(*graph, first), "int8-cpu")


def test_a_hopeless_candidate_runs_on_the_worst_frame_alone(images: tuple[GateImages, PiecedGraph]) -> None:
    kept, graph = images
    ran: list[int] = []

    def candidate(bad: int | None) -> Any:
        def run(image: NDArray[Any]) -> Any:
            outputs = dict(graph.values(image))
            ran.append(len(ran))
            if bad is not None and len(ran) - 1 == bad:
                outputs["anomaly_map"] = outputs["anomaly_map"] + 1e6
            return outputs

        return run

    assert kept.trial(candidate(bad=7), LOOSE) is None
    assert len(ran) == 8, "six images and a defect of each, given up at the eighth frame"
    ran.clear()
    assert kept.trial(candidate(bad=0), LOOSE) is None
    assert len(ran) == 1, "the frame that failed before comes first"
    ran.clear()
    report = kept.trial(candidate(bad=0), LOOSE, to_the_end=True)
    assert report is not None
    assert not report.passed
    assert len(ran) == 12
    ran.clear()
    report = kept.trial(candidate(bad=None), LOOSE)
    assert report is not None
    assert report.passed
    assert len(ran) == 12


def test_inputs_beyond_the_space_on_disk_are_prepared_again(
    images: tuple[GateImages, PiecedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, graph = images
    seen: list[bytes] = []

    def candidate(image: NDArray[Any]) -> Any:
        seen.append(image.tobytes())
        return graph.values(image)

    monkeypatch.setattr("flowedge.calibration.precision.input_store._INPUT_BYTES", 5 * 4 * 3 * 48 * 64)
    for _ in range(2):
        assert kept.trial(candidate, LOOSE) is not None
    assert len(set(seen)) == 12, "each frame has the same input both times"


@pytest.mark.parametrize("threads", [1, 3])
def test_results_keep_the_order_of_their_items_and_no_call_begins_after_the_end(threads: int) -> None:
    begun: list[int] = []
    first = threading.Event()

    def call(item: int) -> int:
        begun.append(item)
        if threads > 1 and item == 0:
            first.wait(10)  # a later item is done before this one
        if item == 1:
            first.set()
        return item * item

    found = in_order(call, itertools.count(), threads)
    assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
    found.close()
    assert max(begun) <= 5 + 2 * threads

    at_once = [0, 0]

    def measured(item: int) -> int:
        at_once[0] += 1
        at_once[1] = max(at_once)
        at_once[0] -= 1
        return item

    assert list(in_order(measured, range(9), threads, bytes_each=2 << 30)) == list(range(9))
    assert at_once[1] == 1, "two calls would need too much memory"

    def fail(item: int) -> int:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(in_order(fail, range(9), threads))


def test_a_part_of_the_images_is_judged_by_its_own_facts(images: tuple[GateImages, PiecedGraph]) -> None:
    kept, graph = images
    assert kept.every_for_search == 1, "six images are too few to look at a part of them"
    ran: list[bytes] = []

    def candidate(image: NDArray[Any]) -> Any:
        ran.append(image.tobytes())
        return graph.values(image)

    strict = msgspec.structs.replace(LOOSE, map_correlation=0.999, rank_agreement=0.999)
    report = kept.trial(candidate, strict, every=4)
    assert report is not None
    assert report.passed
    assert (report.good_images, report.defect_images) == (2, 2), "the first image and the fifth"
    assert len(ran) == 4
    report = kept.trial(candidate, strict)
    assert report is not None
    assert (report.good_images, report.defect_images) == (6, 6)
