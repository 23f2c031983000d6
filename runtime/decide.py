"""Decide from the outputs of a graph: scores, maps, numbers of false alarms and verdicts. No engine takes part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import BundleError
from flowedge.manifest import SourceScale
from flowedge.runtime.nfa import NotInspectedError, check_form, log_nfa_of_outputs, warm_up
from flowedge.runtime.record import Verdict
from flowedge.runtime.source_scale import scaled_map, scaled_score, source_colours, source_thresholds


class Decided(NamedTuple):
    """The decision on one frame, over the network's input.

    Attributes:
        score: The image score, on the source's scale if that was chosen.
        verdict: The verdict by the thresholds.
        network_map: ``(h, w)`` float32, the anomaly map on the same scale.
        network_log_nfa: ``(h, w)`` float64, log10 of each pixel's number of false alarms. The value is None where it
            does not decide, and where the answer is not finite.
        levels: Per level, fine to coarse, ``(h, w)`` float32, the graph's ``level_i``, where the engine gave them.
    """

    score: float
    verdict: Verdict
    network_map: NDArray[np.float32]
    network_log_nfa: NDArray[np.float64] | None
    levels: tuple[NDArray[np.float32], ...]


class Decider:
    """Compares the outputs of a bundle's graph with the thresholds. Threads may share one.

    Attributes:
        thresholds: The thresholds that decide: those of the graph's precision, or the source's.
        colours: The colour scale of the map in pictures, on the scale of the thresholds.
    """

    def __init__(self, bundle: Bundle, precision: str, *, source_scale: bool = False) -> None:
        """Take the thresholds of a precision. A threshold by the NFA tree is compiled now, if Numba is there.

        Args:
            bundle: The bundle.
            precision: The precision of the graph whose outputs are judged.
            source_scale: True gives the normalised score and map and the verdict that anomalib would give.

        Raises:
            BundleError: The bundle has no graph of this precision, or its threshold needs outputs that the graph does
                not give. With ``source_scale``, the bundle has no such scale or was calibrated to another.
        """
        self._manifest = bundle.manifest
        self.thresholds = bundle.manifest.graph(precision).thresholds
        self.colours = bundle.manifest.graph(precision).colours
        self._scale = _source_scale(bundle, precision) if source_scale else None
        if self._scale is not None:
            self.thresholds = source_thresholds(self._scale)
            self.colours = source_colours(self._scale) or self.colours
        if self.thresholds.nfa is not None:
            check_form(bundle.manifest, self.thresholds.nfa.form)
            if self.thresholds.nfa.form == "tree":
                warm_up()

    def outputs_needed(self, given: Sequence[str]) -> list[str]:
        """List the outputs on which a decision and its map rest, in the order of the graph.

        Args:
            given: The outputs that the graph gives.
        """
        kinds = ["score", "anomaly_map"]
        if self.thresholds.nfa is not None:
            kinds += ["level", "energy", "count"]
        return [name for name in given if name in kinds or name.partition("_")[0] in kinds]

    def __call__(
        self, outputs: Mapping[str, NDArray[np.float32]], inside: NDArray[np.bool_] | None = None
    ) -> list[Decided]:
        """Decide on each image of a batch.

        An image whose score or map is not finite was not inspected, since NaN compares as smaller than any threshold.

        Args:
            outputs: The outputs of the graph by name, as an engine gives them. Levels may be left out.
            inside: ``(h, w)``, True for the pixels of the map whose number of false alarms decides. By default all do.
        """
        names = [f"level_{level}" for level in range(len(self._manifest.levels))]
        decided = self.decide(outputs["score"], outputs["anomaly_map"], self.log_nfas(outputs), inside)
        return [
            one._replace(levels=tuple(outputs[name][index, 0] for name in names if name in outputs))
            for index, one in enumerate(decided)
        ]

    def decide(
        self,
        scores: NDArray[np.float32],
        maps: NDArray[np.float32],
        log_nfas: Sequence[NDArray[np.float64] | None],
        inside: NDArray[np.bool_] | None = None,
    ) -> list[Decided]:
        """Decide by scores, maps and numbers of false alarms, wherever they come from.

        Args:
            scores: ``(N,)``, the image scores on the graph's scale.
            maps: ``(N, 1, h, w)``, the anomaly maps on the graph's scale.
            log_nfas: For each image what `log_nfas` gives.
            inside: ``(h, w)``, True for the pixels of the map whose number of false alarms decides. By default all do.

        Returns:
            The decisions without levels.
        """
        finite = np.isfinite(scores) & np.isfinite(maps).all(axis=(1, 2, 3))
        limit, nfa = self.thresholds.image, self.thresholds.nfa
        with np.errstate(invalid="ignore"):  # some of the NaNs that a graph may give are signals
            is_anomalous = None if limit is None else scores.astype(np.float64) > limit.value
        if self._scale is not None:
            scaled = scaled_score(scores, self._scale)
            scores, is_anomalous = scaled.value, scaled.is_anomalous
            maps = scaled_map(maps, self._scale).value
            finite &= np.isfinite(scores) & np.isfinite(maps).all(axis=(1, 2, 3))
        elif nfa is not None:
            finite &= np.array([log_nfa is not None for log_nfa in log_nfas])
            is_anomalous = np.array(
                [
                    log_nfa is not None
                    and float((log_nfa if inside is None else log_nfa[inside]).min()) < nfa.log_nfa
                    for log_nfa in log_nfas
                ]
            )
        return [
            Decided(
                score=float(scores[index]),
                verdict=_verdict(bool(finite[index]), is_anomalous, index),
                network_map=maps[index, 0],
                network_log_nfa=log_nfas[index],
                levels=(),
            )
            for index in range(len(scores))
        ]

    def log_nfas(self, outputs: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """Compute log10 of each pixel's number of false alarms for each image of a batch.

        Returns:
            For each image ``(h, w)`` float64 over the network's input. A value is None where the number does not
            decide, and where the answer is not finite.
        """
        return [self._log_nfa(outputs, index) for index in range(len(outputs["score"]))]

    def _log_nfa(self, outputs: Mapping[str, NDArray[np.float32]], index: int) -> NDArray[np.float64] | None:
        if self.thresholds.nfa is None:
            return None
        try:
            return log_nfa_of_outputs(outputs, index, self._manifest, self.thresholds.nfa.form)
        except NotInspectedError:
            return None


def _verdict(is_finite: bool, is_anomalous: NDArray[np.bool_] | None, index: int) -> Verdict:
    if not is_finite:
        return "not_inspected"
    if is_anomalous is None:
        return "unknown"
    return "anomalous" if is_anomalous[index] else "ok"


def _source_scale(bundle: Bundle, precision: str) -> SourceScale:
    """Read the scale of the source from a bundle.

    Raises:
        BundleError: The bundle holds no such scale, or its scores are no longer those that the scale belongs to.
    """
    scale = bundle.manifest.source_scale
    if scale is None:
        raise BundleError(
            f"{bundle.path} has no scale of its source: the checkpoint held no thresholds and ranges of anomalib's. "
            "Run it without the source's scale, after flowedge calibrate."
        )
    if bundle.manifest.graph(precision).scoring.normalisation == "fixed_reference":
        raise BundleError(
            f"{bundle.path} was calibrated to score maxima, and anomalib's thresholds belong to scores that each "
            "image normalises by itself. Export the checkpoint again for the source's scale, or run it without."
        )
    return scale
