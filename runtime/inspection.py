"""Inspect frames of any source one after the other, and make the record of each."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from flowedge.errors import ImageError
from flowedge.runtime.detector import Detector
from flowedge.runtime.image_files import ImageFiles
from flowedge.runtime.lanes import in_order, lanes_of, readers_beside
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
    (inspected,) = inspect_batch(detector, [frame])
    return inspected


def inspect_batch(
    detector: Inspects, frames: Sequence[Frame], *, smallest: int = 1
) -> list[tuple[Inspection, Result | None]]:
    """Inspect several frames in one run of the engine and make their records, as `inspect` does for one frame.

    A frame that could not be read or that the detector refuses takes no other frame with it.

    Args:
        detector: The detector.
        frames: The frames, which may differ in size.
        smallest: The smallest number of images that the engine takes. A run of fewer is filled up with its last image.
    """
    pixels = [frame.pixels for frame in frames if not frame.problem]
    try:
        results = iter(detector.detect_batch(pixels + pixels[-1:] * (smallest - len(pixels))))
    except ImageError as error:
        if len(frames) == 1:
            return [(not_inspected(detector, frames[0].id, str(error)), None)]
        # The detector refuses a batch as a whole where it refuses one of the frames. Alone, each gets its own answer.
        return [inspect_batch(detector, [frame], smallest=smallest)[0] for frame in frames]
    inspected: list[tuple[Inspection, Result | None]] = []
    for frame in frames:
        if frame.problem:
            inspected.append((not_inspected(detector, frame.id, frame.problem), None))
        else:
            result = next(results)
            inspected.append((_record(frame, result), result))
    return inspected


def inspect_all(
    detector: Inspects,
    source: Source,
    sinks: Sequence[Sink] = (),
    *,
    batch: tuple[int, int] = (1, 1),
    lanes: int = 1,
    limit: int | None = None,
) -> Iterator[Inspection]:
    """Inspect the frames of a source in order, and give the record of each after all sinks have taken it.

    Args:
        detector: The detector.
        source: The source of the frames. The caller closes it.
        sinks: Each completes the record for the next one. The caller closes them.
        batch: The smallest and the largest number of images of one run of the engine.
        lanes: The number of threads that inspect at once. With more than 1, a frame is taken from the source before the
            records of the frames before it are given, so a camera gets 1.
        limit: The number of frames after which the inspection ends.

    Raises:
        FlowEdgeError: A sink can store no record at all, or the detector cannot go on.
    """
    smallest, largest = batch
    frames = itertools.islice(source.frames(), limit)
    batches = iter(lambda: list(itertools.islice(frames, largest)), [])

    def inspected(together: list[Frame]) -> Iterator[tuple[Frame, tuple[Inspection, Result | None]]]:
        return zip(together, inspect_batch(detector, together, smallest=smallest), strict=True)

    in_turn = in_order(inspected, batches, lanes=lanes, size=_bytes_of)
    with contextlib.closing(in_turn) as answers:
        for frame, (record, result) in itertools.chain.from_iterable(answers):
            for sink in sinks:
                record = sink.put(frame, record, result)
            yield record


def batch_of(detector: Detector, wanted: int) -> tuple[int, int]:
    """Return the smallest and the largest number of images of one run, as near to a wish as the engine allows.

    Args:
        detector: The detector, whose engine may have been built for a range of numbers.
        wanted: The number of images that the caller wants in one run.
    """
    smallest, largest = detector.engine.batches or (1, wanted)
    return smallest, min(max(wanted, smallest), largest)


def inspect_images(
    detector: Detector,
    images: Sequence[Path],
    *,
    out: Path | None = None,
    style: Style = "overlay",
    sinks: Sequence[Sink] = (),
    batch: int = 1,
) -> Iterator[Inspection]:
    """Inspect image files in order. The record of each is given before the next batch is read.

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
        batch: The number of images of one run of the engine, see `batch_of`.

    Raises:
        FlowEdgeError: The folder ``out`` cannot be made, or a sink can store no record at all.
    """
    readers = readers_beside(detector.engine) if len(images) > 1 else 1
    source = ImageFiles(images, detector.bundle.manifest.pixel_range, readers=readers)
    lanes = lanes_of(detector.engine)
    yield from inspect_source(
        detector, source, images, out=out, style=style, sinks=sinks, batch=batch, lanes=lanes
    )


def inspect_source(
    detector: Detector,
    source: Source,
    images: Sequence[Path] = (),
    *,
    out: Path | None = None,
    style: Style = "overlay",
    sinks: Sequence[Sink] = (),
    batch: int = 1,
    lanes: int = 1,
    limit: int | None = None,
) -> Iterator[Inspection]:
    """Inspect the frames of a source in order, as `inspect_images` does for image files, and close the source.

    Args:
        detector: The detector.
        source: The source.
        images: The files that the frames come from, where they do, for the names of the pictures.
        out: The folder of the pictures.
        style: The style of the pictures.
        sinks: Each takes the record after the pictures were written.
        batch: The number of images of one run of the engine.
        lanes: The number of threads that inspect at once, see `inspect_all`.
        limit: The number of frames after which the inspection ends.

    Raises:
        FlowEdgeError: The folder ``out`` cannot be made, or a sink can store no record at all.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        pictures: list[Sink] = []
        if out is not None:
            pictures.append(stack.enter_context(contextlib.closing(PictureFolder(out, images, style=style))))
        yield from inspect_all(
            detector,
            source,
            [*pictures, *sinks],
            batch=batch_of(detector, batch),
            lanes=lanes,
            limit=limit,
        )


def _bytes_of(frames: Sequence[Frame]) -> int:
    return sum(frame.pixels.nbytes for frame in frames)


def _record(frame: Frame, result: Result) -> Inspection:
    record = result.record(printable(frame.id))
    if frame.decoder:
        record = msgspec.structs.replace(record, engine_reason=f"{record.engine_reason}. {frame.decoder}")
    if result.verdict != "not_inspected":
        return record
    return msgspec.structs.replace(record, problem=f"{record.image}: {record.problem}")


def not_inspected(detector: Inspects, image: str, problem: str) -> Inspection:
    """Make the record of a frame that could not be read, or that the detector refused.

    Args:
        detector: The detector.
        image: The name of the frame.
        problem: The reason.
    """
    threshold, log_nfa_limit = _limits(detector)
    return Inspection(
        image=printable(image),
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
