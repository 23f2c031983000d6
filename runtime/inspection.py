"""Inspect image files one after the other, and write what was found beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.detector import Detector, Result, Verdict
from flowedge.runtime.images import PICTURES, read_image
from flowedge.runtime.nfa import Region
from flowedge.runtime.render import outline, overlay, write_png
from flowedge.text import printable


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """One image's line in the report.

    Attributes:
        image: The file's path as it was found.
        verdict: ``not_inspected`` also when the file could not be read.
        score: None when there is none.
        threshold: The image threshold that the verdict follows, None when it follows none.
        log_nfa: The image's lowest log10 number of false alarms; None when that does not decide.
        log_nfa_limit: The limit that it was compared with; below is anomalous.
        regions: What was detected by it, in pixels of the frame, surest first.
        anomalous_share: The share of the frame's pixels that are anomalous, 0..1; None where nothing decides.
        latency_ms: Preprocessing, inference and decision; not reading the file.
        precision: What the graph computed in.
        engine: What computed it.
        engine_reason: Why that one.
        overlay: The heatmap's file, where one was written.
        mask: The mask's file, where one was written.
        problem: Why the image was not inspected; empty otherwise.
    """

    image: str
    verdict: Verdict
    score: float | None
    threshold: float | None
    log_nfa: float | None = None
    log_nfa_limit: float | None = None
    regions: tuple[Region, ...] = ()
    anomalous_share: float | None
    latency_ms: float | None
    precision: str
    engine: str
    engine_reason: str
    overlay: str | None = None
    mask: str | None = None
    problem: str = ""


def inspect_images(
    detector: Detector, images: Sequence[Path], *, out: Path | None = None
) -> Iterator[Inspection]:
    """Inspect images in order.

    An image that cannot be read is reported as ``not_inspected``, its old pictures are removed, and the next one
    is taken.

    Args:
        detector: What inspects.
        images: Files; their common folder is cut from the names of what is written.
        out: Where ``NAME.overlay.png`` and, with a threshold for pixels, ``NAME.mask.png`` go; made where missing.

    Raises:
        ImageError: A picture cannot be written or removed.
    """
    names = _names(images)
    for path, name in zip(images, names, strict=True):
        target = None if out is None else out / name
        try:
            frame = read_image(path)
            result = detector(frame)
        except ImageError as error:
            _remove_pictures(target)
            yield _unread(detector, path, printable(str(error)))
            continue
        overlay, mask = _write_pictures(frame, result, target)
        yield _inspection(detector, path, result, overlay, mask)


def _remove_pictures(target: Path | None) -> None:
    """What an earlier run wrote for this image says nothing of it now."""
    if target is None:
        return
    for kind in PICTURES:
        try:
            target.with_name(target.name + kind).unlink(missing_ok=True)
        except OSError as error:
            raise ImageError(f"{target}{kind} cannot be removed: {error.strerror}.") from error


def _names(images: Sequence[Path]) -> list[Path]:
    """A relative name for each image that no other image has."""
    if not images:
        return []
    absolute = [path.resolve() for path in images]
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(root) for path in absolute]


def _write_pictures(
    frame: NDArray[np.uint8], result: Result, target: Path | None
) -> tuple[Path | None, Path | None]:
    if target is None:
        return None, None
    if result.verdict == "not_inspected":
        _remove_pictures(target)
        return None, None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{target.parent} cannot be made: {error.strerror}. Name another --out.") from error
    heat = target.with_name(target.name + PICTURES[0])
    picture = overlay(frame, result.anomaly_map, *_colour_range(result))
    if result.mask is None:
        write_png(heat, picture)
        return heat, None
    mask = result.mask.astype(np.uint8) * np.uint8(255)
    write_png(heat, outline(picture, mask))
    marked = target.with_name(target.name + PICTURES[1])
    write_png(marked, mask)
    return heat, marked


def _colour_range(result: Result) -> tuple[float, float]:
    """From the map's smallest value to its largest, or to the pixel threshold where that is higher."""
    low = float(np.nanmin(result.anomaly_map))
    high = float(np.nanmax(result.anomaly_map))
    if result.pixel_threshold is not None:
        high = max(high, result.pixel_threshold.value)
    return low, high if high > low else low + 1.0


def _inspection(
    detector: Detector, path: Path, result: Result, overlay: Path | None, mask: Path | None
) -> Inspection:
    timings = result.timings
    threshold, log_nfa_limit = _limits(detector)
    finite = result.verdict != "not_inspected"
    return Inspection(
        image=printable(str(path)),
        verdict=result.verdict,
        score=result.score if finite else None,
        threshold=threshold,
        log_nfa_limit=log_nfa_limit,
        log_nfa=result.log_nfa if finite else None,
        regions=result.regions if finite else (),
        anomalous_share=None if result.mask is None else float(result.mask.mean()),
        latency_ms=timings.preprocess_ms + timings.infer_ms + timings.decide_ms,
        precision=result.precision,
        engine=result.engine,
        engine_reason=result.engine_reason,
        overlay=None if overlay is None else printable(str(overlay)),
        mask=None if mask is None else printable(str(mask)),
        problem="" if finite else f"{printable(str(path))}: the network's answer is not finite",
    )


def _unread(detector: Detector, path: Path, problem: str) -> Inspection:
    threshold, log_nfa_limit = _limits(detector)
    return Inspection(
        image=printable(str(path)),
        verdict="not_inspected",
        score=None,
        threshold=threshold,
        log_nfa_limit=log_nfa_limit,
        anomalous_share=None,
        latency_ms=None,
        precision=detector.precision,
        engine=detector.engine.name,
        engine_reason=detector.engine.reason,
        problem=problem,
    )


def _limits(detector: Detector) -> tuple[float | None, float | None]:
    """Of the score and of log NFA: the one that decides, and None for the other."""
    nfa, image = detector.thresholds.nfa, detector.thresholds.image
    if nfa is not None:
        return None, nfa.log_nfa
    return None if image is None else image.value, None
