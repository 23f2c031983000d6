"""Compare the answers of an engine to a bundle's self-test with the answers recorded from the fp32 graph at export."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.manifest import Scoring
from flowedge.runtime.aggregate import aggregate
from flowedge.runtime.bench.protocol import Parity
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.selftest import read_pruned_answers, read_selftest
from flowedge.runtime.verify import infer_one_by_one, replay_selftest

LEAST_CORRELATION: Final = 0.99
"""The least correlation of a map with the expected map. An engine below this limit is wrong in every precision."""
LEAST_CORRELATION_INT8: Final = 0.95
"""The least correlation of an INT8 graph's map with the expected map.

The gate of an INT8 graph judged it on real images. On synthetic frames this limit only finds a graph of another
network.
"""


def parity_of(bundle: Bundle, session: Opened) -> Parity:
    """Replay the self-test on an engine that is open.

    Raises:
        BundleError: The bundle has no self-test.
    """
    manifest = bundle.manifest
    checks = replay_selftest(bundle, session)
    levels = [check for check in checks if check.name.startswith("level")]
    worst = max((check.value for check in levels), key=lambda value: math.inf if math.isnan(value) else value)
    selftest = read_selftest(bundle)
    pruned = read_pruned_answers(bundle, session.precision)
    answers, scoring = selftest.answers, _scoring_of(bundle, "fp32", session.precision)
    if pruned is not None:
        answers, scoring = pruned, _scoring_of(bundle, "pruned", session.precision)
    recorded = [answers[f"level_{number}"] for number in range(len(manifest.levels))]
    wanted = aggregate(recorded, scoring, manifest.family, manifest.image_size).anomaly_map
    got = infer_one_by_one(session, GraphInput(manifest)(selftest.frames))["anomaly_map"]
    correlation = lowest_correlation(got, wanted)
    failed = [
        f"{check.name}: {check.value:.2g}, limit {check.limit:.0e}" for check in checks if not check.passed
    ]
    least = LEAST_CORRELATION_INT8 if session.precision.startswith("int8") else LEAST_CORRELATION
    if correlation is not None and correlation < least:
        failed.append(f"map correlation: {correlation:.4f}, limit {least}")
    return Parity(
        is_right=not failed,
        worst_error=_finite(worst),
        limit=_finite(levels[0].limit),
        correlation=correlation,
        failed=tuple(failed),
    )


def lowest_correlation(got: NDArray[Any], wanted: NDArray[Any]) -> float | None:
    """Return the lowest of Pearson's correlations of the maps ``(N, ...)``, taken one by one.

    The value is None where a map is flat or not finite.
    """
    lowest = 1.0
    for one, other in zip(got, wanted, strict=True):
        a, b = (x.astype(np.float64).ravel() - x.astype(np.float64).mean() for x in (one, other))
        spread = float(np.linalg.norm(a) * np.linalg.norm(b))
        if not (math.isfinite(spread) and spread > 0):
            return None
        lowest = min(lowest, float(a @ b) / spread)
    return lowest


def _scoring_of(bundle: Bundle, precision: str, other: str) -> Scoring:
    """Return the scoring of a precision's graph, or that of another graph where the bundle has no such graph."""
    found = (graph for graph in bundle.manifest.graphs if graph.precision == precision)
    return next(found, bundle.manifest.graph(other)).scoring


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
