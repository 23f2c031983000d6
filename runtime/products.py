"""Inspect frames with the products of a pack, which share one backbone."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn
from weakref import WeakSet

from numpy.typing import NDArray

from flowedge.errors import ProcessError
from flowedge.pack import Pack
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.pixels import Color, Given, check_color, several
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.joined import close_engines, joined_of, open_products
from flowedge.runtime.result import Result
from flowedge.runtime.verify import Check, replay_selftest


class ProductLine:
    """The detectors of several products, which share one backbone. Changing the product loads nothing.

    Threads may share a line, as they may share a `flowedge.Detector`. Like a detector, a line belongs to the process
    that loaded it.

    Attributes:
        pack: The pack.
        products: The names of the products.

    Examples:
        >>> import numpy as np
        >>> import flowedge
        >>> frame = np.zeros((480, 640, 3), dtype=np.uint8)
        >>> with flowedge.load("line.flowedgepack") as line:
        ...     result = line(frame, product="bottle")
        ...     results = line.detect_products(frame)
        >>> results["bottle"].score == result.score
        True
    """

    def __init__(
        self,
        pack: Pack,
        engines: Mapping[str, Opened],
        *,
        source_scale: bool = False,
        min_region_px: int = 1,
    ) -> None:
        """Decide for each product with the thresholds of its own bundle.

        Args:
            pack: The pack.
            engines: The engines of some of its products, as `flowedge.runtime.opening.joined.open_products` gives them.
            source_scale: True gives the normalised score and map and the verdict that anomalib would give.
            min_region_px: The number of pixels of the frame below which a region is left out of `Result.regions`.

        Raises:
            BundleError: The cause is one of `flowedge.Detector`.
        """
        self.pack = pack
        self.products = tuple(engines)
        self._source_scale, self._min_region_px = source_scale, min_region_px
        self._detectors = {name: self._new_detector(name, opened) for name, opened in engines.items()}
        self._first = next(iter(self._detectors.values()))
        self._given: WeakSet[Detector] = WeakSet()
        self._is_closed = False
        self._process = os.getpid()

    @property
    def precision(self) -> str:
        """The precision of the graphs that compute."""
        return self._first.precision

    @property
    def engine_name(self) -> str:
        """The name of the engine that computes."""
        return self._first.engine_name

    @property
    def engine_reason(self) -> str:
        """The reason why this engine computes."""
        return self._first.engine_reason

    def __call__(self, frame: Given, *, product: str | None = None, color: Color = "rgb") -> Result:
        """Inspect one frame as one product.

        Args:
            frame: A frame such as `flowedge.Detector` takes.
            product: One of ``products``. The name may be left out where there is one product only.
            color: The channels of an array: ``rgb``, ``bgr`` or ``gray``.

        Raises:
            ValueError: There is no such product, none was named, or the line was closed.
            ImageError: The frame is of another type or shape, or does not become the graph's input.
            EngineUnavailableError: The device stopped.
            ProcessError: The process was forked after the line was loaded.
        """
        self._check_usable()
        return self._detector(product)(frame, color=color)

    def detect_batch(
        self,
        frames: Sequence[Given] | NDArray[Any],
        *,
        product: str | Sequence[str] | None = None,
        color: Color = "rgb",
    ) -> list[Result]:
        """Inspect several frames with one run of the backbone.

        Args:
            frames: A list of frames, or an array ``(N, H, W, 3)``.
            product: The product of all frames, or a list with the product of each frame.
            color: The channels of the arrays: ``rgb``, ``bgr`` or ``gray``.

        Returns:
            One result per frame, in order. A result does not depend on the other frames.

        Raises:
            ValueError: There is no such product, the list is not as long as the frames, or the line was closed.
            ImageError: A frame is of another type or shape, or ``frames`` is neither a sequence nor an array.
            EngineUnavailableError: The device stopped.
            ProcessError: The process was forked after the line was loaded.
        """
        self._check_usable()
        if product is None or isinstance(product, str):
            return self._detector(product).detect_batch(frames, color=color)
        if error := several(frames, color=color, pixel_range=self._first.bundle.manifest.pixel_range):
            raise error
        names = list(product)
        if len(names) != len(frames):
            raise ValueError(f"there are {len(frames)} frames and {len(names)} products: name one for each.")
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            self._detector(name)
            rows.setdefault(name, []).append(row)
        results: dict[int, Result] = {}
        for name, found in self._judged(frames, rows, color).items():
            results.update(zip(rows[name], found, strict=True))
        return [results[row] for row in range(len(frames))]

    def detect_products(
        self, frame: Given, products: str | Sequence[str] | None = None, *, color: Color = "rgb"
    ) -> dict[str, Result]:
        """Inspect one frame as several products, with one run of the backbone.

        Args:
            frame: A frame such as `flowedge.Detector` takes.
            products: One or some of ``products``. Without names, all products judge the frame.
            color: The channels of an array: ``rgb``, ``bgr`` or ``gray``.

        Returns:
            The result of each product, by name.

        Raises:
            ValueError: There is no such product, or the line was closed.
            ImageError: The frame is of another type or shape, or does not become the graph's input.
            EngineUnavailableError: The device stopped.
            ProcessError: The process was forked after the line was loaded.
        """
        self._check_usable()
        names = self.products if products is None else names_of(products)
        for name in names:
            self._detector(name)
        judged = self._judged([frame], {name: [0] for name in names}, color)
        return {name: results[0] for name, results in judged.items()}

    def detector(self, product: str | None = None) -> Detector:
        """Make a detector of one product, for code that takes a detector.

        The detector uses the engines of the line. Closing the detector frees nothing, and closing the line ends it.

        Args:
            product: One of ``products``. The name may be left out where there is one product only.

        Raises:
            ValueError: There is no such product, none was named, or the line was closed.
        """
        self._check_usable()
        chosen = self._detector(product)
        view = replace(chosen.engine, engine=joined_of(chosen.engine).view())
        detector = self._new_detector(chosen.bundle.path.name, view)
        self._given.add(detector)
        return detector

    def warm_up(self, frame_size: tuple[int, int] | None = None, *, batch: int = 1) -> None:
        """Inspect black frames as each product, so that no first frame waits for what an engine does once.

        Args:
            frame_size: The height and the width of the frames to come, as `flowedge.Detector.warm_up` takes them.
            batch: The number of frames at once.

        Raises:
            ValueError: The line was closed, or a number is below 1.
            ImageError: A frame of this size does not become the graph's input.
            EngineUnavailableError: The device stopped.
            ProcessError: The process was forked after the line was loaded.
        """
        self._check_usable()
        for detector in self._detectors.values():
            detector.warm_up(frame_size, batch=batch)

    def close(self) -> None:
        """Free the memory of the backbone and of all heads. The line cannot be used after it."""
        self._is_closed = True
        for detector in (*self._detectors.values(), *self._given):
            detector.close()
        if os.getpid() == self._process:
            close_engines({name: detector.engine for name, detector in self._detectors.items()})

    def __repr__(self) -> str:
        """Describe the line on one line: pack, products, engine and precision."""
        return (
            f"<ProductLine {str(self.pack.path)!r}: {', '.join(self.products)}, "
            f"{self.precision} on {self.engine_name}{', closed' if self._is_closed else ''}>"
        )

    def _check_usable(self) -> None:
        """Check that the line is open, and that this process loaded it.

        Raises:
            ValueError: The line was closed.
            ProcessError: The process was forked after the line was loaded.
        """
        if os.getpid() != self._process:
            raise self._not_here("cannot be used after a fork: its threads stayed in the other process")
        if self._is_closed:
            raise ValueError("this line was closed. Load the pack again, and close it after the last frame.")

    def _not_here(self, reason: str) -> ProcessError:
        return ProcessError(
            f"a line {reason}. Load the pack again in each process: flowedge.load({str(self.pack.path)!r})"
        )

    def _new_detector(self, product: str, engine: Opened) -> Detector:
        return Detector(
            self.pack.product(product),
            engine,
            source_scale=self._source_scale,
            min_region_px=self._min_region_px,
        )

    def _detector(self, product: str | None) -> Detector:
        """Find the detector of a product."""
        if product is None and len(self.products) == 1:
            product = self.products[0]
        if not isinstance(product, str) or product not in self._detectors:
            problem = "name the product" if product is None else f"there is no product {product!r}"
            raise ValueError(f"{problem}. The pack has: {', '.join(self.products)}.")
        return self._detectors[product]

    def _judged(
        self, frames: Sequence[Given] | NDArray[Any], rows: Mapping[str, list[int]], color: Color
    ) -> dict[str, list[Result]]:
        """Run the backbone on all frames, and the head of each product on the rows of its frames."""
        check_color(color)
        if not rows:
            return {}
        start = time.perf_counter()
        pixels, image = self._first.prepare(frames, color)
        prepared = time.perf_counter()
        features = joined_of(self._first.engine).features(image)
        shared = time.perf_counter()
        judged: dict[str, list[Result]] = {}
        for name, numbers in rows.items():
            detector = self._detectors[name]
            begun = time.perf_counter()
            everything = len(numbers) == len(frames)
            answers = joined_of(detector.engine).answers(
                features if everything else [feature[numbers] for feature in features]
            )
            head_ms = (time.perf_counter() - begun) * 1000 / len(numbers)
            judged[name] = detector.judge(
                [pixels[number] for number in numbers],
                answers,
                preprocess_ms=(prepared - start) * 1000 / len(frames),
                infer_ms=(shared - prepared) * 1000 / len(frames) + head_ms,
            )
        return judged

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            ProcessError: A line is always refused.
        """
        raise self._not_here("can be neither pickled nor copied: its engines belong to this process")

    def __enter__(self) -> ProductLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def names_of(products: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of products, each of them once. A single text is one name, and not a list of letters."""
    return (products,) if isinstance(products, str) else tuple(dict.fromkeys(products))


def verify_products(
    pack: Pack,
    products: Sequence[str],
    *,
    engine: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
) -> dict[str, tuple[Check, ...]]:
    """Replay the self-tests of some products of a pack on this machine.

    Returns:
        By product, the comparisons of `flowedge.runtime.verify.verify_bundle`.

    Raises:
        BundleError: The pack has no such product or precision, or a product has no self-test.
        EngineUnavailableError: The engine cannot run here.
    """
    engines = open_products(pack, products, engine, precision, threads=threads, is_proven=False)
    try:
        return {name: replay_selftest(pack.product(name), opened) for name, opened in engines.items()}
    finally:
        close_engines(engines)
