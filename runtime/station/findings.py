"""Bring the findings of a result to the size of a picture, for the page and the archive, without delaying the line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.geometry import map_to_frame
from flowedge.manifest import ColourScale, NfaThreshold, Threshold
from flowedge.runtime.area.result import AreaResult
from flowedge.runtime.regions import Region
from flowedge.runtime.report.pictures import shrunk
from flowedge.runtime.result import Result
from flowedge.runtime.station.record import Record

_LEAST_PX: Final = 480


@dataclass(frozen=True, kw_only=True, eq=False)
class SmallFindings:
    """The findings of a result on a smaller frame. `flowedge.runtime.result.Result` describes the attributes.

    The boxes are those of the result's own regions. A region of one pixel stays visible in the mask.
    """

    frame: NDArray[np.uint8]
    verdict: str
    score: float
    image_threshold: Threshold | None
    pixel_threshold: Threshold | None
    colours: ColourScale | None
    nfa: NfaThreshold | None
    problem: str
    log_nfa: float | None
    small_map: NDArray[np.float32]
    small_log_nfa: NDArray[np.float32] | None
    small_mask: NDArray[np.bool_] | None
    small_regions: tuple[Region, ...]

    # Pyright accepts no field of a dataclass where the protocol of a drawing has a cached property.
    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]:
        return self.small_map

    @cached_property
    def log_nfa_map(self) -> NDArray[np.float32] | None:
        return self.small_log_nfa

    @cached_property
    def mask(self) -> NDArray[np.bool_] | None:
        return self.small_mask

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        return self.small_regions


def findings_of(record: Record, result: Result, longest_px: int) -> SmallFindings:
    """Return the findings that explain a record, at the size that `small_findings` gives them."""
    findings = small_findings(result, longest_px)
    if findings.verdict == "ok" and record.signal == "nok" and record.regions:
        # The score accepts the frame and its regions reject it. A drawing of an accepted frame would hide them.
        return dataclasses.replace(findings, verdict="anomalous")
    return findings


def small_findings(result: Result, longest_px: int) -> SmallFindings:
    """Return the findings of a result at a size whose longer side has at most so many pixels.

    Only maps that the line has made already are taken from the result, and nothing is computed in it. So the line's
    threads never wait for a picture.
    """
    frame = resized_frame(result.frame, longest_px)
    size = (frame.shape[0], frame.shape[1])
    made: dict[str, Any] = vars(result)
    anomaly_map = _small_map(made.get("anomaly_map"), result.network_map, result, size)
    log_nfa = None
    if result.network_log_nfa is not None:
        log_nfa = _small_map(made.get("log_nfa_map"), result.network_log_nfa.astype(np.float32), result, size)
    mask = made.get("mask")
    return SmallFindings(
        frame=frame,
        verdict=result.verdict,
        score=result.score,
        image_threshold=result.image_threshold,
        pixel_threshold=result.pixel_threshold,
        colours=result.colours,
        nfa=result.nfa,
        problem=result.problem,
        log_nfa=result.log_nfa,
        small_map=anomaly_map,
        small_log_nfa=log_nfa,
        small_mask=None if mask is None else _covered(mask, size),
        small_regions=_scaled(made.get("regions", ()), result.frame_size, size),
    )


def _small_map(
    made: NDArray[np.float32] | None, network: NDArray[np.float32], result: Result, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return a map over the small frame, NaN where the frame was not inspected."""
    if made is not None:
        return _resized(made, size)
    area = result.area.inside if isinstance(result, AreaResult) else None
    is_over_frame = isinstance(result, AreaResult) and result.is_stitched
    values = _resized(network, size) if is_over_frame else map_to_frame(network, result.preprocessing, size)
    if area is None:
        return values
    return np.where(_resized(area.astype(np.float32), size) >= 0.5, values, np.float32(np.nan))


def resized_frame(frame: NDArray[np.uint8], longest_px: int) -> NDArray[np.uint8]:
    """Return a frame at the size of a picture. A small frame is enlarged by a whole factor, so that lines stay thin."""
    factor = min(_LEAST_PX, longest_px) // max(frame.shape[:2])
    if factor > 1:
        return frame.repeat(factor, axis=0).repeat(factor, axis=1)
    return shrunk(frame, longest_px)


def _covered(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask on the frame of a picture. A pixel of the smaller mask is set where any pixel below it is."""
    shares = _resized(mask.astype(np.float32), size)
    return np.asarray(shares > (0 if size < mask.shape else 0.5))


def _resized(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    if values.shape == size:
        return values
    how = cv2.INTER_AREA if size < values.shape else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, size[::-1], interpolation=how), np.float32)


def _scaled(regions: tuple[Region, ...], frame: tuple[int, int], size: tuple[int, int]) -> tuple[Region, ...]:
    """Return regions whose boxes are those on the small frame. All other attributes stay."""
    down, across = size[0] / frame[0], size[1] / frame[1]
    return tuple(
        dataclasses.replace(
            one,
            top=int(one.top * down),
            left=int(one.left * across),
            height_px=max(1, round(one.height_px * down)),
            width_px=max(1, round(one.width_px * across)),
        )
        for one in regions
    )
