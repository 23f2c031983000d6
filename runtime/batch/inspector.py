"""Judge tables of images with one detector in each process, for this machine, Ray, Dask and Spark."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow
from numpy.typing import NDArray

from flowedge.bundle_files import hash_of_bundle
from flowedge.errors import FlowEdgeError, ImageError
from flowedge.pack import folder_of_product
from flowedge.runtime.batch.reading import bytes_of_cell, read_address
from flowedge.runtime.batch.rows import ROWS, StoredImage, facts_of_image, facts_of_record
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.images import check_content, image_from_bytes
from flowedge.runtime.from_path import load
from flowedge.runtime.inspection import batch_of, not_inspected
from flowedge.signature import required_keys

_NAME: Final = "the image"  # Rows of equal content share a problem, so the problem names no file.
_REMEMBERED: Final = 10_000

_Facts = dict[str, Any]


@dataclass(slots=True)
class _Loaded:
    """An image that a thread has read, with its answer or the input of the engine.

    Attributes:
        sha256: The hash of the content. The hash is None where the content could not be read.
        answer: The answer, which may be there already.
        pixels: The frame. The value is None where the engine is not needed.
        prepared: The engine's input.
        prepare_ms: The time of making the engine's input, in ms.
    """

    sha256: str | None
    answer: Future[_Facts]
    pixels: NDArray[np.uint8] | None = None
    prepared: NDArray[Any] | None = None
    prepare_ms: float = 0


class BatchInspector:
    """A callable that judges a table of images and gives a table with a row for each, in the same order.

    An inspector can be pickled, and opens its bundle where it is first called. The copies that a process gets of one
    inspector are one inspector there, with one engine. Threads may share it. Threads of its own read and decode images
    while the engine computes. Images of equal content are judged once, as long as a process
    remembers the answer.

    Examples:
        >>> import pyarrow
        >>> from flowedge.runtime.batch.inspector import BatchInspector
        >>> inspector = BatchInspector("bottle.flowedge")
        >>> rows = inspector(pyarrow.table({"image": ["photos/missing.png"]}))
        >>> rows["verdict"].to_pylist()
        ['not_inspected']
    """

    def __init__(
        self,
        bundle: str | PathLike[str],
        *,
        product: str | None = None,
        engine: str | None = None,
        precision: str = "fp32",
        threads: int | None = None,
        source_scale: bool = False,
        min_region_px: int = 1,
        batch: int = 8,
        readers: int = 4,
        image: str = "image",
        content: str = "content",
        label: str = "label",
    ) -> None:
        """Keep the settings. The bundle is opened by the first call.

        Args:
            bundle: The folder of a bundle or of a pack. Every node of a cluster must have it at this place.
            product: The product of a pack.
            engine: A name of ``flowedge.runtime.ENGINES``. Without a name, the first that opens is taken.
            precision: The precision of the graph.
            threads: The number of CPU threads of one inference. Without a number the engine decides.
            source_scale: True gives the score and the verdict that anomalib would give.
            min_region_px: The number of pixels below which a region is left out.
            batch: The largest number of images in one run of the engine.
            readers: The number of threads that read and decode.
            image: The column with the name of an image: a path, or an address that fsspec reads.
            content: The column with the bytes of the image file. A table without the column holds names alone, and the
                inspector reads the files.
            label: The column with the label of an image. A table may be without the column.

        Raises:
            ValueError: ``batch`` or ``readers`` is below 1.
        """
        for name, value in {"batch": batch, "readers": readers}.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self._bundle, self._product = fspath(bundle), product
        self._loading: dict[str, Any] = {
            "engine": engine,
            "precision": precision,
            "threads": threads,
            "source_scale": source_scale,
            "min_region_px": min_region_px,
            "levels": False,
            # The processes of a cluster may have another environment than this one.
            "require_signature": required_keys(None),
        }
        self._batch, self._readers = batch, readers
        self._columns = {"image": image, "content": content, "label": label}
        self._lock = threading.Lock()
        self._detector: Detector | None = None
        self._bundle_sha256 = ""
        # The answers by the hash of the content, the oldest first.
        self._known: dict[str, Future[_Facts]] = {}

    def __call__(self, images: Any) -> Any:
        """Judge a table of images.

        Args:
            images: A ``pyarrow.Table`` or ``pyarrow.RecordBatch``, a ``pandas.DataFrame``, or a dictionary of NumPy
                arrays as Ray gives them. The columns are named in `BatchInspector`.

        Returns:
            A table of the given type with the columns `flowedge.runtime.batch.rows.ROWS`.

        Raises:
            FlowEdgeError: The bundle cannot be opened, or the engine stopped.
            ValueError: The table has no column with the names of the images.
        """
        if isinstance(images, pyarrow.Table):
            return self.table(self._stored(images))
        if isinstance(images, pyarrow.RecordBatch):
            rows = self.table(self._stored(pyarrow.Table.from_batches([images])))
            return pyarrow.RecordBatch.from_pylist(rows.to_pylist(), schema=ROWS)
        if isinstance(images, dict):
            rows = self.table(self._stored(pyarrow.table({name: list(one) for name, one in images.items()})))
            return {name: np.asarray(rows[name].to_pylist(), object) for name in ROWS.names}
        return self.table(self._stored(pyarrow.Table.from_pandas(images, preserve_index=False))).to_pandas()

    def map_arrow(self, batches: Iterable[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        """Judge batches of images one after the other, as Spark's ``mapInArrow`` calls a function."""
        for batch in batches:
            yield self(batch)

    def table(self, images: Iterable[StoredImage]) -> pyarrow.Table:
        """Judge images, and return their rows as one table."""
        return pyarrow.Table.from_pylist(list(self.rows(images)), schema=ROWS)

    def rows(self, images: Iterable[StoredImage]) -> Iterator[dict[str, Any]]:
        """Judge images, and give the row of each in their order.

        Args:
            images: The images. The next ones are read while the engine computes.

        Raises:
            FlowEdgeError: The bundle cannot be opened, the engine stopped, or a store does not answer.
        """
        smallest, largest = batch_of(self.detector, self._batch)
        threads = ThreadPoolExecutor(self._readers, thread_name_prefix="flowedge-read")
        answers: deque[tuple[StoredImage, str | None, Future[_Facts]]] = deque()
        waiting: list[_Loaded] = []
        own: dict[Future[_Facts], str] = {}
        try:
            for image, loaded in self._loaded(images, threads, ahead=largest + 2 * self._readers):
                answers.append((image, loaded.sha256, self._answer(loaded, waiting, own)))
                # A long row of images with known answers would keep a few others waiting for a full batch.
                if len(waiting) == largest or len(answers) > 4 * largest:
                    self._judge(waiting, smallest, threads)
                    waiting = []
                while answers and (answers[0][2].done() or len(answers) > 4 * largest):
                    row = self._row(*answers[0])
                    own.pop(answers.popleft()[2], None)
                    yield row
            self._judge(waiting, smallest, threads)
            while answers:
                row = self._row(*answers[0])
                own.pop(answers.popleft()[2], None)
                yield row
        finally:
            threads.shutdown(cancel_futures=True)
            self._forget_unanswered(own)

    def _loaded(
        self, images: Iterable[StoredImage], threads: ThreadPoolExecutor, *, ahead: int
    ) -> Iterator[tuple[StoredImage, _Loaded]]:
        """Give the images in their order, and let threads read so many of those that follow."""
        reading: deque[tuple[StoredImage, Future[_Loaded]]] = deque()
        for image in images:
            reading.append((image, threads.submit(self._load, image)))
            if len(reading) > ahead:
                first, future = reading.popleft()
                yield first, future.result()
        while reading:
            first, future = reading.popleft()
            yield first, future.result()

    @property
    def detector(self) -> Detector:
        """The detector of this process. The first use opens it."""
        with self._lock:
            if self._detector is None:
                loaded: Detector = load(folder_of_product(Path(self._bundle), self._product), **self._loading)
                self._bundle_sha256 = hash_of_bundle(loaded.bundle.path)
                self._detector = loaded
            return self._detector

    @property
    def bundle_sha256(self) -> str:
        """The SHA-256 of the bundle's manifest, which has those of all its files."""
        _ = self.detector
        return self._bundle_sha256

    def close(self) -> None:
        """Free the engine. The next call opens it anew."""
        if self._detector is not None:
            self._detector.close()
        self._forget()

    def _forget(self) -> None:
        self._detector, self._bundle_sha256, self._known = None, "", {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone, since an engine belongs to its process."""
        return _shared, ({name: getattr(self, name) for name in _SETTINGS},)

    def _stored(self, images: pyarrow.Table) -> Iterator[StoredImage]:
        named = self._columns["image"]
        if named not in images.column_names:
            raise ValueError(
                f"the table has no column {named!r} with the names of the images, but {images.column_names}. "
                "Name the column: BatchInspector(..., image=NAME)."
            )
        absent = [None] * len(images)
        names = images[named].to_pylist()
        contents, labels = (
            images[self._columns[one]] if self._columns[one] in images.column_names else absent
            for one in ("content", "label")
        )
        for name, content, label in zip(names, contents, labels, strict=True):
            yield StoredImage(
                image=str(name), read=_reader(str(name), content), label=None if label is None else str(label)
            )

    def _load(self, image: StoredImage) -> _Loaded:
        """Read, decode and prepare one image, in a thread."""
        sha256 = None
        try:
            content = image.read()
            check_content(_NAME, len(content))
            sha256 = hashlib.sha256(content).hexdigest()
            if (known := self._known.get(sha256)) is not None:
                return _Loaded(sha256, known)
            pixels = image_from_bytes(_NAME, content, self.detector.bundle.manifest.pixel_range)
            begun = time.perf_counter()
            _, prepared = self.detector.prepare([pixels])
            return _Loaded(sha256, Future(), pixels, prepared, (time.perf_counter() - begun) * 1000)
        except ImageError as error:
            record = not_inspected(self.detector, _NAME, str(error))
            return _Loaded(sha256, _done(facts_of_record(record, None)))

    def _answer(
        self, loaded: _Loaded, waiting: list[_Loaded], own: dict[Future[_Facts], str]
    ) -> Future[_Facts]:
        """Return the answer to an image, which waits for the engine where nobody has asked for the same content."""
        if loaded.pixels is None or loaded.sha256 is None:
            return loaded.answer
        with self._lock:
            if (known := self._known.get(loaded.sha256)) is not None:
                return known
            self._known[loaded.sha256] = loaded.answer
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
        own[loaded.answer] = loaded.sha256
        waiting.append(loaded)
        return loaded.answer

    def _forget_unanswered(self, own: dict[Future[_Facts], str]) -> None:
        """Forget the answers that a call leaves open, so that the next call judges the images itself.

        Args:
            own: The answers of the call that it has not given yet, with the hashes of the images.
        """
        for answer, sha256 in own.items():
            if answer.done() and answer.exception() is None:
                continue
            with self._lock:
                if self._known.get(sha256) is answer:
                    del self._known[sha256]
            if not answer.done():  # another thread may wait for it
                answer.set_exception(
                    FlowEdgeError(
                        "another call that judged an image of the same content has ended. Try again."
                    )
                )

    def _judge(self, waiting: list[_Loaded], smallest: int, threads: ThreadPoolExecutor) -> None:
        """Run the engine on the images that wait, and let a thread decide on the outputs."""
        if not waiting:
            return
        inputs = [loaded.prepared for loaded in waiting if loaded.prepared is not None]
        inputs += inputs[-1:] * (smallest - len(inputs))
        begun = time.perf_counter()
        outputs = self.detector.infer(self.detector.joined(inputs))
        infer_ms = (time.perf_counter() - begun) * 1000 / len(waiting)
        outputs = {name: values[: len(waiting)] for name, values in outputs.items()}
        threads.submit(self._decide, waiting, outputs, infer_ms)

    def _decide(
        self, waiting: list[_Loaded], outputs: dict[str, NDArray[np.float32]], infer_ms: float
    ) -> None:
        """Decide on a batch, in a thread, and set the answers."""
        try:
            frames = [loaded.pixels for loaded in waiting if loaded.pixels is not None]
            prepare_ms = sum(loaded.prepare_ms for loaded in waiting) / len(waiting)
            results = self.detector.judge(frames, outputs, preprocess_ms=prepare_ms, infer_ms=infer_ms)
            for loaded, result in zip(waiting, results, strict=True):
                loaded.answer.set_result(facts_of_record(result.record(_NAME), result.frame_size))
        except BaseException as error:
            for loaded in waiting:
                if not loaded.answer.done():
                    loaded.answer.set_exception(error)

    def _row(self, image: StoredImage, sha256: str | None, answer: Future[_Facts]) -> dict[str, Any]:
        return {
            **facts_of_image(image, sha256),
            **answer.result(),
            "product": self._product or "",
            "bundle_sha256": self._bundle_sha256,
        }


_SETTINGS: Final = ("_bundle", "_product", "_loading", "_batch", "_readers", "_columns")
_SHARED: Final[dict[str, BatchInspector]] = {}
_SHARED_LOCK: Final = threading.Lock()


def _shared(settings: dict[str, Any]) -> BatchInspector:
    """Return the inspector of this process with these settings, since Dask and Spark send a copy with each task."""
    with _SHARED_LOCK:
        found = _SHARED.get(key := repr(settings))
        if found is None:
            _SHARED[key] = found = BatchInspector(settings["_bundle"])
            found.__dict__.update(settings)
        return found


def _reader(name: str, content: Any) -> Callable[[], bytes]:
    if content is None:
        return lambda: read_address(name)
    # A scalar of Arrow copies its bytes when they are asked for.
    return lambda: bytes_of_cell(content.as_py() if hasattr(content, "as_py") else content)


def _done(facts: _Facts) -> Future[_Facts]:
    answer: Future[_Facts] = Future()
    answer.set_result(facts)
    return answer
