"""Inspect frames of any source one after the other, and make the record of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from flowedge.errors import ImageError
from flowedge.runtime.detector import Detector
from flowedge.runtime.image_files import ImageFiles
from flowedge.runtime.pictures import PictureFolder
from flowedge.runtime.protocols import Frame, Inspects, Sink, Source
from flowedge.runtime.record import Inspection
from flowedge.runtime.render import Style
from flowedge.runtime.result import Result
from flowedge.text import printable


def inspect(detector: Inspects, frame: Frame) -> tuple[Inspection, Result | None]:
    """Inspect one frame and make its record.

    Args:
        detector: The detector.
        frame: A frame of any source.

    Returns:
        The record, and the detector's result. The result is None for a frame that could not be read or that the
        detector refused. The record of such a frame has the verdict ``not_inspected`` and a problem.
    """
    if frame.problem:
        return _not_inspected(detector, frame, frame.problem), None
    try:
        result = detector(frame.pixels)
    except ImageError as error:
        return _not_inspected(detector, frame, str(error)), None
    return _record(frame, result), result


def inspect_all(detector: Inspects, source: Source, sinks: Sequence[Sink] = ()) -> Iterator[Inspection]:
    """Inspect the frames of a source in order, and give the record of each after all sinks have taken it.

    Args:
        detector: The detector.
        source: The source of the frames. The caller closes it.
        sinks: Each completes the record for the next one. The caller closes them.

    Raises:
        FlowEdgeError: A sink can store no record at all, or the detector cannot go on.
    """
    for frame in source.frames():
        record, result = inspect(detector, frame)
        for sink in sinks:
            record = sink.put(frame, record, result)
        yield record


def inspect_images(
    detector: Detector,
    images: Sequence[Path],
    *,
    out: Path | None = None,
    style: Style = "overlay",
    sinks: Sequence[Sink] = (),
) -> Iterator[Inspection]:
    """Inspect image files in order. The record of each is given before the next file is read.

    The record of an image that cannot be read has the verdict ``not_inspected``. The old pictures of this image are
    removed, and the next image follows. Where pictures cannot be written or removed, the image keeps its verdict and
    has a ``problem``.

    Args:
        detector: The detector.
        images: The files. The common folder of the files is left out of the names of the pictures.
        out: The folder of the pictures, see `flowedge.runtime.pictures.PictureFolder`. Without a folder no pictures are
            written.
        style: The style of the pictures, see `flowedge.runtime.render.draw`.
        sinks: Each takes the record after the pictures were written, for instance a report. The caller closes them.

    Raises:
        FlowEdgeError: The folder ``out`` cannot be made, or a sink can store no record at all.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(
            contextlib.closing(ImageFiles(images, detector.bundle.manifest.pixel_range))
        )
        pictures: list[Sink] = []
        if out is not None:
            pictures.append(stack.enter_context(contextlib.closing(PictureFolder(out, images, style=style))))
        yield from inspect_all(detector, source, [*pictures, *sinks])


def _record(frame: Frame, result: Result) -> Inspection:
    record = result.record(printable(frame.id))
    if result.verdict != "not_inspected":
        return record
    return msgspec.structs.replace(record, problem=f"{record.image}: {record.problem}")


def _not_inspected(detector: Inspects, frame: Frame, problem: str) -> Inspection:
    threshold, log_nfa_limit = _limits(detector)
    return Inspection(
        image=printable(frame.id),
        verdict="not_inspected",
        score=None,
        threshold=threshold,
        log_nfa_limit=log_nfa_limit,
        anomalous_share=None,
        latency_ms=None,
        precision=detector.precision,
        engine=detector.engine_name,
        engine_reason=detector.engine_reason,
        problem=printable(problem),
    )


def _limits(detector: Inspects) -> tuple[float | None, float | None]:
    """Return the limits of the score and of log NFA, of which only the one that decides is set."""
    nfa, image = detector.thresholds.nfa, detector.thresholds.image
    if nfa is not None:
        return None, nfa.log_nfa
    return None if image is None else image.value, None
