"""Verify that a bundle on this machine gives the answers that were recorded at its export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import BundleError, ImageError
from flowedge.manifest import Manifest
from flowedge.runtime.aggregate import aggregate
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.nfa import window_sides
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.selftest import (
    SelfTest,
    read_pruned_answers,
    read_rounded_answers,
    read_selftest,
)
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.protocols import Engine

# Largest difference from the expected answers, relative to the quantity's largest magnitude. fp32 only re-associates
# sums (about 1e-6 is seen). Half precision has 11 bits, and a backbone is tens of layers deep. INT8 was judged by its
# gate on real images. Here the limit only excludes the answers of another network.
PARITY_LIMITS: Final[Mapping[str, float]] = MappingProxyType(
    {"fp32": 1e-4, "pruned": 1e-4, "fp16": 3e-2, "bf16": 2e-1, "int8-cpu": 0.5, "int8-gpu": 0.5}
)
# Largest difference of a count from the expected answers, relative to the largest that its window can hold: a latent
# that is next to the threshold may fall on either side of it.
COUNT_LIMITS: Final[Mapping[str, float]] = MappingProxyType(
    {"fp32": 1e-2, "pruned": 1e-2, "fp16": 5e-2, "bf16": 2e-1, "int8-cpu": 0.5, "int8-gpu": 0.5}
)
# Root mean square distance from the recorded answers of an INT8 graph, in units of what eight bits cost that graph. Two
# right engines round a value on the edge between two steps to either side, and may leave out one rounding in a fused
# sum, which moves the answers by about one such unit. Kernels that were wrong moved them by four to sixty.
ROUNDING_LIMIT: Final = 3.0
_SMALLEST_ROUNDING: Final = (
    1e-3  # relative: a graph whose eight bits cost less is compared as a float16 graph is
)
AGGREGATION_LIMIT: Final = 1e-5
# An engine that rounds the factors of a product to 11 bits errs by 2**-11 for each. A map is resized by two products.
_ROUNDED_AGGREGATION_LIMIT: Final = 2e-3
# Largest difference of a map or score in a batch from the same alone. An engine sums in another order for each batch.
BATCH_LIMIT: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison, which has passed when ``value <= limit``.

    Attributes:
        name: The quantity that was compared, and its counterpart.
        value: The worst difference, relative to the largest magnitude expected. NaN never passes.
        limit: The largest value that passes.
    """

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """True where the difference is within the limit."""
        return self.value <= self.limit


def verify_bundle(
    bundle: Bundle, *, engine: str | None = None, precision: str = "fp32", threads: int | None = None
) -> tuple[Check, ...]:
    """Replay the bundle's self-test.

    Three comparisons are made:

    1. The levels, and the energies and counts where there are some, with the expected answers recorded at export.
    2. The graph's map and score with the host's aggregation of the graph's own levels.
    3. Each frame alone with the same frame in a batch, in both orders.

    Raises:
        BundleError: The bundle has no such graph or no self-test.
        EngineUnavailableError: The engine cannot run here.
    """
    session = open_unproven(engine, bundle, precision, threads=threads)
    try:
        return replay_selftest(bundle, session)
    finally:
        session.close()


def replay_selftest(bundle: Bundle, session: Opened) -> tuple[Check, ...]:
    """Replay the bundle's self-test on an engine that has loaded one of the bundle's graphs.

    Raises:
        BundleError: The bundle has no self-test, or its frames do not become the graph's input.
        EngineUnavailableError: The device stopped.
    """
    selftest = read_selftest(bundle)
    images = images_of_selftest(bundle, selftest)
    # Infinite values and NaN fail their check, and NumPy's warnings would add nothing.
    with np.errstate(all="ignore"):
        return tuple(_checks(bundle, session, images, selftest.answers))


def images_of_selftest(bundle: Bundle, selftest: SelfTest) -> NDArray[Any]:
    """Make the input ``(K, ...)`` of a bundle's graphs from the K frames of its self-test.

    Raises:
        BundleError: The frames do not become the graph's input.
    """
    try:
        return GraphInput(bundle.manifest)(selftest.frames)
    except ImageError as error:
        raise BundleError(
            f"{bundle.path}: the frames of the self-test do not fit the manifest: {error} Export the bundle again."
        ) from error


class WorstDifference:
    """The worst difference of answers from what was expected, over as many images as are added one after the other.

    Attributes:
        difference: The largest absolute difference. Once a NaN was added, it is NaN.
        largest: The largest magnitude that was expected. Once a NaN was added, it is NaN.
    """

    def __init__(self) -> None:
        self.difference = 0.0
        self.largest = 0.0

    def add(self, got: NDArray[np.floating], expected: NDArray[np.floating]) -> None:
        """Add answers and the expected answers, two arrays of one shape."""
        difference = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()
        self.difference = float(np.maximum(self.difference, difference))  # which keeps a NaN
        self.largest = float(np.maximum(self.largest, np.abs(expected).max()))

    @property
    def relative(self) -> float:
        """The worst difference over the largest magnitude expected. The quotient is NaN where any value was NaN."""
        return float(self.difference / np.maximum(self.largest, np.finfo(np.float32).tiny))


def _answer_difference(got: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Compute the worst difference of maps or scores, relative to the largest magnitude expected and to 1 at least.

    Maps and scores are sums of likelihoods of at most 1, or differences of such sums. In a flat map the values are
    small, but the sums that they come from were rounded at the size of 1.
    """
    scale = max(float(np.abs(expected).max()), 1.0)
    return float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max() / scale)


def check_of_output(
    manifest: Manifest, precision: str, name: str, worst: WorstDifference, against: str
) -> Check:
    """Make the check of one ``(N, 1, h, w)`` output of the graph.

    Args:
        manifest: The manifest of the bundle.
        precision: The precision of the graph.
        name: The name of the output, such as ``level_0``.
        worst: The worst difference of the graph's answers from the expected ones.
        against: The name of the expected answers in the check.
    """
    value, limit = worst.relative, PARITY_LIMITS.get(precision, np.inf)
    if name.startswith("count"):
        assert manifest.nfa is not None
        number = int(name.removeprefix("count_"))
        side = window_sides(manifest.nfa.window, len(manifest.levels))[number]
        value = worst.difference / (manifest.levels[number].channels * side**2)
        limit = COUNT_LIMITS.get(precision, np.inf)
    return Check(name=f"{name.replace('_', ' ')} against {against}", value=value, limit=limit)


def checks_of_rounding(
    manifest: Manifest,
    precision: str,
    got: Mapping[str, NDArray[np.floating]],
    rounded: Mapping[str, NDArray[np.floating]],
    expected: Mapping[str, NDArray[np.floating]],
) -> Iterator[Check]:
    """Compare an engine's answers to an INT8 graph with those of the graph itself, in units of its rounding.

    The unit is the root mean square distance of the graph's own answers from the expected ones, at the output where
    that is largest, relative to the output's largest magnitude or, for a count, to the largest that its window can
    hold.

    Args:
        manifest: The manifest of the bundle.
        precision: The precision of the graph.
        got: The engine's answers ``(K, 1, h, w)``, by the name of the output.
        rounded: The answers of the graph evaluated as ONNX defines it, with every rounding and no fusion.
        expected: The expected answers, in float32.
    """
    sizes = {name: _size_of_output(manifest, name, answer) for name, answer in expected.items()}
    for kind in dict.fromkeys(name.partition("_")[0] for name in expected):
        names = [name for name in expected if name.partition("_")[0] == kind]
        cost = max(root_mean_square(rounded[name], expected[name]) / sizes[name] for name in names)
        limit = max(ROUNDING_LIMIT * cost, _SMALLEST_ROUNDING)
        for name in names:
            value = root_mean_square(got[name], rounded[name]) / sizes[name]
            against = f"the recorded {precision} answers"
            yield Check(name=f"{name.replace('_', ' ')} against {against}", value=value, limit=limit)


def root_mean_square(got: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the root mean square of the difference of two arrays of one shape, NaN where either holds one."""
    return float(np.sqrt(np.square(got.astype(np.float64) - expected.astype(np.float64)).mean()))


def _size_of_output(manifest: Manifest, name: str, expected: NDArray[np.floating]) -> float:
    """Return the unit of a difference of an output: its largest magnitude, or the most that a window can count."""
    if not name.startswith("count"):
        return max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    assert manifest.nfa is not None
    number = int(name.removeprefix("count_"))
    side = window_sides(manifest.nfa.window, len(manifest.levels))[number]
    return float(manifest.levels[number].channels * side**2)


def infer_one_by_one(session: Engine, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """Infer each image or frame alone, and stack the answers along N."""
    singles = [infer_in_batches(session, image[None]) for image in images]
    return {name: np.concatenate([single[name] for single in singles]) for name in session.output_names}


def infer_in_batches(session: Engine, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """Infer all images in one batch, or in the fewest batches of sizes that the engine takes.

    A batch that is smaller than the engine's smallest is filled up with its last image, whose further answers are left
    out.
    """
    smallest, largest = session.batches or (1, len(images))
    parts: list[dict[str, NDArray[np.float32]]] = []
    for first in range(0, len(images), largest):
        part = images[first : first + largest]
        filled = np.concatenate([part, *[part[-1:]] * (smallest - len(part))])
        answers = session.infer(np.ascontiguousarray(filled))
        parts.append({name: answer[: len(part)] for name, answer in answers.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in session.output_names}


def _checks(
    bundle: Bundle,
    session: Opened,
    images: NDArray[Any],
    expected: Mapping[str, NDArray[np.float32]],
) -> Iterator[Check]:
    rounding = session.spec.covered_by or session.precision
    limit = PARITY_LIMITS.get(rounding, np.inf)
    alone = infer_one_by_one(session, images)
    yield from checks_of_answers(bundle, session.precision, alone, expected, rounding=rounding)
    batch = infer_in_batches(session, images)
    backwards = infer_in_batches(session, images[::-1])
    batch_limit = BATCH_LIMIT if limit <= PARITY_LIMITS["fp32"] else limit
    for name in ("score", "anomaly_map"):
        value = max(
            _answer_difference(batch[name], alone[name]),
            _answer_difference(backwards[name][::-1], alone[name]),
        )
        yield Check(name=f"{name}: in a batch against alone", value=value, limit=batch_limit)


def checks_of_answers(
    bundle: Bundle,
    precision: str,
    alone: Mapping[str, NDArray[np.float32]],
    expected: Mapping[str, NDArray[np.float32]],
    *,
    rounding: str | None = None,
) -> Iterator[Check]:
    """Compare an engine's answers to the frames of the self-test with the expected answers and with the host.

    Args:
        bundle: The bundle.
        precision: The precision of the graph that answered.
        alone: The engine's answers, by the name of the output, to each frame alone.
        expected: The expected answers of the self-test, by the name of the output.
        rounding: The precision whose limits hold, where the engine rounds more than the graph states.
    """
    manifest = bundle.manifest
    limits = rounding or precision
    scoring, against = manifest.graph(precision).scoring, "the expected answers"
    # A pruned graph answers synthetic frames differently, so its own recorded answers take their place. Like an INT8
    # graph it was judged by its gate on real images, and the limit of INT8 excludes the answers of another network.
    pruned = read_pruned_answers(bundle, precision)
    if pruned is not None:
        if precision == "pruned":
            for name, answer in expected.items():
                worst = WorstDifference()
                worst.add(alone[name], answer)
                yield check_of_output(manifest, "int8-cpu", name, worst, against)
        expected, against = pruned, "the recorded pruned answers"
    for name, answer in expected.items():
        worst = WorstDifference()
        worst.add(alone[name], answer)
        yield check_of_output(manifest, limits, name, worst, against)
    rounded = read_rounded_answers(bundle, precision) if precision != "pruned" else None
    if rounded is not None:
        yield from checks_of_rounding(manifest, precision, alone, rounded, expected)
    levels = [alone[f"level_{number}"] for number in range(len(manifest.levels))]
    host = aggregate(levels, scoring, manifest.family, manifest.image_size)
    for name, answer in (("anomaly_map", host.anomaly_map), ("score", host.score)):
        value = _answer_difference(alone[name], answer)
        limit = AGGREGATION_LIMIT if limits == precision else _ROUNDED_AGGREGATION_LIMIT
        yield Check(name=f"{name}: graph against host", value=value, limit=limit)
