"""Run a batch: list the images, make the parts that are missing, and check that every image has exactly one row."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import pyarrow

from flowedge.errors import DataError
from flowedge.progress import SILENT, Reports
from flowedge.runtime.batch.chunks import Chunk, Columns
from flowedge.runtime.batch.inspector import BatchInspector
from flowedge.runtime.batch.listing import Listing, described
from flowedge.runtime.batch.on_ray import parts_by_ray
from flowedge.runtime.batch.output import IDENTITY, PartFolder, identity_of
from flowedge.runtime.batch.part_maker import Identity, Job, PartDone, PartMaker
from flowedge.runtime.batch.processes import parts_by_processes
from flowedge.runtime.batch.reading import is_address
from flowedge.runtime.batch.rows import ROWS, files_of_rows
from flowedge.runtime.device.cores import usable_cores
from flowedge.text import printable

FILE_SUFFIXES: Final = (".parquet", ".pq")
_PARTS: Final = ".parts"
_MOST_WORKERS: Final = 8
_FOLDERS: Final = "folders"


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a batch.

    Attributes:
        bundle: The folder of a bundle or of a pack.
        product: The product of a pack.
        engine: A name of ``flowedge.runtime.ENGINES``. Without a name, the first that opens is taken.
        precision: The precision of the graph.
        threads: The number of CPU threads of one inference.
        source_scale: True gives the score and the verdict that anomalib would give.
        min_region_px: The number of pixels below which a region is left out.
        batch: The largest number of images in one run of the engine.
        readers: The number of threads of each process that read and decode.
        part_images: The number of images of a part.
        labels: The word ``folders``, or a CSV file with the columns ``image`` and ``label``. Without either, images
            have no label.
        columns: The columns of tables, and the field of samples with the label.
        workers: The number of processes or actors. Without a number there is one for each core, at most 8, or one for
            an engine on a GPU.
        ray: The word ``local``, or the address of a Ray cluster. Without either, processes of this machine do the work.
    """

    bundle: str
    product: str | None = None
    engine: str | None = None
    precision: str = "fp32"
    threads: int | None = None
    source_scale: bool = False
    min_region_px: int = 1
    batch: int = 8
    readers: int = 4
    part_images: int = 1000
    labels: str | None = None
    columns: Columns = Columns()
    workers: int | None = None
    ray: str | None = None


class BatchSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a batch.

    Attributes:
        out: The Parquet file, or the folder of Parquet files.
        rows: The number of rows in the output, one for each image.
        judged: The number of rows that this run has made.
        verdicts: The number of rows by verdict.
        bundle_sha256: The SHA-256 of the bundle's manifest.
        precision: The precision of the graph.
        engine: The engine that computed.
        workers: The number of processes or actors.
        seconds: The time of this run.
        first_problem: The first reason of this run why an image was not inspected.
    """

    out: str
    rows: int
    judged: int
    verdicts: dict[str, int]
    bundle_sha256: str
    precision: str
    engine: str
    workers: int
    seconds: float
    first_problem: str = ""


def run_batch(
    sources: Sequence[str], out: str, settings: BatchSettings, *, reports: Reports = SILENT
) -> BatchSummary:
    """Judge the images of sources into a Parquet file or a folder of Parquet files.

    A run that is given again goes on where the one before ended. Images that have a row are not judged again, unless
    they changed.

    Args:
        sources: Folders, patterns, files, and addresses that fsspec reads: images, tar shards or Parquet tables.
        out: A file that ends in ``.parquet``, or a folder, on this machine or in an object store.
        settings: The settings.
        reports: Told how far the work is.

    Raises:
        DataError: A source has no images, or the output holds something else or the rows of another bundle or of
            other settings, or another job writes there.
        FlowEdgeError: The bundle cannot be opened, the engine stopped, or a store does not answer. The same call goes
            on later.
    """
    begun = time.monotonic()
    if not is_address(out):
        out = os.path.abspath(out)
    is_file = out.lower().endswith(FILE_SUFFIXES)
    parts = PartFolder(f"{out}{_PARTS}" if is_file else out)
    reports.step("opening the bundle")
    identity, engine, device = _opened(settings)
    if (
        is_file
        and not parts.names()
        and os.path.basename(out) in (around := PartFolder(os.path.dirname(out)))
    ):
        _check(around, [os.path.basename(out)], identity, out)
        parts.take(out)
    parts.make()
    workers, threads = _shares(settings, device)
    job = Job(
        bundle=os.path.abspath(settings.bundle),
        parts=parts.place,
        identity=identity,
        columns=settings.columns,
        threads=threads,
        batch=settings.batch,
        readers=settings.readers,
    )
    judged, problem = 0, ""
    with parts.lock(), Listing() as listing:
        names = parts.names()
        _check(parts, names, identity, out)
        reports.step("listing the images")
        for note in listing.add(sources, settings.columns):
            reports.note(note)
        if settings.labels == _FOLDERS:
            listing.label_by_folder()
        elif settings.labels is not None:
            listing.read_labels(Path(settings.labels))
        listing.add_done(parts, names)
        outdated = listing.outdated()
        for part, files in outdated.items():
            reports.note(f"{len(files)} files changed and are judged again, the first is {files[0]}")
            _drop(parts, part, files)
        files_listed, images, done = listing.totals()
        reports.note(described(files_listed, done))
        reports.step("judging", images)
        for made in _made(job, listing.chunks(settings.part_images), workers, settings, device):
            judged += made.rows
            problem = problem or made.problem
            reports.advance(made.rows)
        reports.step("checking the rows")
        names = parts.names()
        counts = listing.count(parts, names)
        if counts.lost:
            raise DataError(
                f"{out} has no rows for {counts.lost} images. Give the same command again to go on."
            )
        if counts.rows != counts.images:
            raise DataError(
                f"{out} has {counts.rows} rows for {counts.images} images. Two jobs may have written there at once. "
                "Remove the output, and give the command again."
            )
        if is_file:
            # The only part may be the file itself, which an earlier job has finished.
            if judged or outdated or names != [parts.name_of_taken(out)]:
                reports.step("joining the parts")
                metadata = {IDENTITY: msgspec.json.encode(identity)}
                parts.join(_by_first_image(parts, names), out, ROWS.with_metadata(metadata))
            parts.delete()
    return BatchSummary(
        out=out,
        rows=counts.rows,
        judged=judged,
        verdicts=counts.verdicts,
        bundle_sha256=identity.bundle_sha256,
        precision=identity.precision,
        engine=engine,
        workers=workers,
        seconds=time.monotonic() - begun,
        first_problem=problem,
    )


def _opened(settings: BatchSettings) -> tuple[Identity, str, str]:
    """Open the bundle once, so that whatever is wrong with it shows before the work begins.

    Returns:
        The identity of the output, the engine, and the kind of device that the engine computes on.
    """
    inspector = BatchInspector(
        settings.bundle,
        product=settings.product,
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads,
        source_scale=settings.source_scale,
        min_region_px=settings.min_region_px,
    )
    try:
        detector = inspector.detector
        identity = Identity(
            bundle_sha256=inspector.bundle_sha256,
            product=settings.product or "",
            precision=detector.precision,
            engine=settings.engine or "",
            source_scale=settings.source_scale,
            min_region_px=settings.min_region_px,
            labels=_name_of_labels(settings),
            id=settings.columns.id or "",
            content=settings.columns.content,
        )
        return identity, detector.engine_name, detector.engine.spec.device
    finally:
        inspector.close()


def _name_of_labels(settings: BatchSettings) -> str:
    if settings.labels is None or settings.labels == _FOLDERS:
        return settings.labels or (f"column {settings.columns.label}" if settings.columns.label else "")
    try:
        return f"table {hashlib.sha256(Path(settings.labels).read_bytes()).hexdigest()}"
    except OSError as error:
        raise DataError(
            f"{settings.labels} cannot be read: {error.strerror}. Name a CSV file with the columns image and label, or "
            "the word folders."
        ) from error


def _shares(settings: BatchSettings, device: str) -> tuple[int, int | None]:
    """Return the number of workers, and the number of CPU threads of each."""
    cpus = usable_cores()
    if device != "cpu":
        return settings.workers or 1, settings.threads
    workers = settings.workers or max(1, min(_MOST_WORKERS, cpus // (settings.threads or 1)))
    return workers, settings.threads or max(1, cpus // workers)


def _made(
    job: Job, chunks: Iterator[Chunk], workers: int, settings: BatchSettings, device: str
) -> Iterator[PartDone]:
    """Make the parts of chunks by whatever the settings name."""
    if settings.ray is not None:
        yield from parts_by_ray(job, chunks, workers, settings.ray, gpus=0 if device == "cpu" else 1)
    elif workers > 1:
        yield from parts_by_processes(job, chunks, workers)
    else:
        maker = PartMaker(job)
        try:
            yield from map(maker.make, chunks)
        finally:
            maker.close()


def _check(parts: PartFolder, names: Sequence[str], identity: Identity, out: str) -> None:
    """Refuse an output that holds something else than the rows of this job.

    Raises:
        DataError: A file is no part, or the part of a job with another bundle or other settings.
    """
    for name in names:
        found = None
        if name.endswith(FILE_SUFFIXES):
            with parts.open(name) as part:
                found = identity_of(part)
        if found is None:
            raise DataError(
                f"{printable(out)} holds a file that flowedge batch did not write, {printable(name)}. Name another -o, "
                "or remove the file."
            )
        there = msgspec.json.decode(found, type=Identity)
        if there.bundle_sha256 != identity.bundle_sha256:
            raise DataError(
                f"{printable(out)} holds the results of another bundle, whose SHA-256 is {there.bundle_sha256}. This "
                f"bundle's is {identity.bundle_sha256}. Name another -o, or remove the output."
            )
        if there != identity:
            words = [
                f"{field} is {getattr(there, field) or 'not set'} there and {getattr(identity, field) or 'not set'} now"
                for field in Identity.__struct_fields__
                if getattr(there, field) != getattr(identity, field)
            ]
            raise DataError(
                f"{printable(out)} holds results of other settings: {', '.join(words)}. Give the same options again, "
                "name another -o, or remove the output."
            )


def _drop(parts: PartFolder, name: str, files: Sequence[str]) -> None:
    """Remove the rows of files that changed from a part."""
    with parts.open(name) as part:
        table = part.read()
    gone = set(files)
    left = table.filter(pyarrow.array([one not in gone for one in files_of_rows(table).to_pylist()]))
    if len(left):
        parts.put(name, left)
    else:
        parts.remove(name)


def _by_first_image(parts: PartFolder, names: Sequence[str]) -> list[str]:
    """Return the parts in the order of their first images, which is the same after any interruption."""

    def first(name: str) -> str:
        with parts.open(name) as part:
            batch = next(part.iter_batches(1, columns=["image"]), None)
        return "" if batch is None or not len(batch) else str(batch["image"][0])

    return sorted(names, key=first)
