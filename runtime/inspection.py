"""Inspect image files one after the other, and write what was found beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.detector import Detector, Result, Verdict
from flowedge.runtime.finding import PICTURES
from flowedge.runtime.images import read_image
from flowedge.runtime.nfa import Region
from flowedge.runtime.render import outline, overlay, write_png
from flowedge.text import printable

_LONGEST_NAME: Final = 255  # bytes of a file's name on Linux


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
        problem: The reason why the image was not inspected, or why its pictures could not be written; else empty.
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
    is taken. Where pictures cannot be written or removed, the image keeps its verdict and has a ``problem``.

    Args:
        detector: What inspects.
        images: Files; their common folder is cut from the names of what is written.
        out: Where ``NAME.overlay.png`` and, with a threshold for pixels, ``NAME.mask.png`` go; made where missing. A
            name that leaves no room for these ends is shortened.

    Raises:
        ImageError: The folder ``out`` cannot be made.
    """
    pixel_range = detector.bundle.manifest.pixel_range
    for path, name in zip(images, _names(images), strict=True):
        target = None if out is None else out / name
        try:
            frame = read_image(path, pixel_range)
            result = detector(frame)
        except ImageError as error:
            yield _unread(detector, path, " ".join([printable(str(error)), *_remove_pictures(target)]))
            continue
        if out is not None and result.verdict != "not_inspected":
            _make(out)  # not before there is a picture to write, and where it cannot be made no image has any
        yield _inspection(detector, path, result, _write_pictures(frame, result, target))


class _Pictures(NamedTuple):
    """The files that were written for one image, and the problem that came up, or an empty text."""

    overlay: Path | None = None
    mask: Path | None = None
    problem: str = ""


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder} cannot be made: {error.strerror}. Name another --out.") from error


def _picture(target: Path, kind: str) -> Path:
    """Return where a picture of an image goes. A name without room for its end keeps its beginning and a hash."""
    name = os.fsencode(target.name)
    if len(name) + len(kind) > _LONGEST_NAME:
        mark = f"~{hashlib.sha256(name).hexdigest()[:16]}"
        # Half of a character may be left at the cut, which is no text.
        kept = name[: _LONGEST_NAME - len(kind) - len(mark)].decode("utf-8", "ignore")
        return target.with_name(f"{kept}{mark}{kind}")
    return target.with_name(target.name + kind)


def _remove_pictures(target: Path | None) -> list[str]:
    """Remove the pictures of an earlier run, which say nothing of the image now, and return what stood in the way."""
    problems: list[str] = []
    for kind in PICTURES if target is not None else ():
        assert target is not None
        picture = _picture(target, kind)
        try:
            # A read-only file system refuses to remove even what is not there.
            if os.path.lexists(picture):
                picture.unlink(missing_ok=True)
        except OSError as error:
            problems.append(
                f"{printable(str(picture))} is of an earlier run and cannot be removed: {error.strerror}."
            )
    return problems


def _names(images: Sequence[Path]) -> list[Path]:
    """Return a relative name for each image that no other image has."""
    if not images:
        return []
    # A link keeps its own name, so that two links to one file are two images.
    absolute = [Path(os.path.abspath(path)) for path in images]
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(root) for path in absolute]


def _write_pictures(frame: NDArray[np.uint8], result: Result, target: Path | None) -> _Pictures:
    if target is None:
        return _Pictures()
    if result.verdict == "not_inspected":
        return _Pictures(problem=" ".join(_remove_pictures(target)))
    heat, marked = (_picture(target, kind) for kind in PICTURES)
    picture = overlay(frame, result.anomaly_map, *_colour_range(result))
    try:
        _make(target.parent)
        if result.mask is None:
            write_png(heat, picture)
            return _Pictures(overlay=heat)
        mask = result.mask.astype(np.uint8) * np.uint8(255)
        write_png(heat, outline(picture, mask))
        write_png(marked, mask)
    except ImageError as error:
        # A picture of an earlier run beside this verdict would mislead.
        return _Pictures(problem=" ".join([printable(str(error)), *_remove_pictures(target)]))
    return _Pictures(overlay=heat, mask=marked)


def _colour_range(result: Result) -> tuple[float, float]:
    """From the map's smallest value to its largest, or to the pixel threshold where that is higher."""
    low = float(np.nanmin(result.anomaly_map))
    high = float(np.nanmax(result.anomaly_map))
    if result.pixel_threshold is not None:
        high = max(high, result.pixel_threshold.value)
    return low, high if high > low else low + 1.0


def _inspection(detector: Detector, path: Path, result: Result, pictures: _Pictures) -> Inspection:
    timings = result.timings
    threshold, log_nfa_limit = _limits(detector)
    finite = result.verdict != "not_inspected"
    problem = "" if finite else f"{printable(str(path))}: {result.problem}"
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
        overlay=None if pictures.overlay is None else printable(str(pictures.overlay)),
        mask=None if pictures.mask is None else printable(str(pictures.mask)),
        problem=" ".join(filter(None, (problem, pictures.problem))),
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
    """Return the limits of the score and of log NFA, of which only the one that decides is set."""
    nfa, image = detector.thresholds.nfa, detector.thresholds.image
    if nfa is not None:
        return None, nfa.log_nfa
    return None if image is None else image.value, None
