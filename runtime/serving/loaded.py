"""Open a bundle or a pack for serving, and judge frames by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.manifest import Manifest
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.images import image_from_bytes
from flowedge.runtime.from_path import load
from flowedge.runtime.lanes import lanes_of, threads_for_many
from flowedge.runtime.products import ProductLine
from flowedge.runtime.result import Result
from flowedge.runtime.serving.refusal import RequestError
from flowedge.runtime.serving.settings import ModelSettings
from flowedge.signature import Required
from flowedge.text import shown

_BATCH_OF_A_DEVICE: Final = 8


class LoadedModel:
    """A bundle or a pack that is loaded. Threads may share it.

    Attributes:
        products: The names of the products of a pack. A bundle has none.
        manifest: The manifest of the bundle, or that of the first product of the pack.
        engine: The name of the engine that computes.
        precision: The precision of the graph.
        lanes: The number of batches that are to be worked on at once.
    """

    def __init__(self, settings: ModelSettings, require_signature: Required = None) -> None:
        """Load the graphs and warm them up.

        Args:
            settings: The bundle or the pack, and how it is opened.
            require_signature: The trusted keys, as `flowedge.load` takes them.

        Raises:
            FlowEdgeError: The bundle cannot be trusted, or the engine cannot run on this machine.
            ValueError: A setting is not allowed.
        """
        opened: Detector | ProductLine = load(
            settings.bundle,
            engine=settings.engine,
            precision=settings.precision,
            threads=threads_for_many(settings.threads),
            min_region_px=settings.min_region_px,
            require_signature=require_signature,
        )
        self._opened = opened
        self.products: tuple[str, ...] = ()
        if isinstance(opened, ProductLine):
            self.products = opened.products
            first = opened.detector(self.products[0])
        else:
            first = opened
        self.manifest: Manifest = first.bundle.manifest
        self._batches = first.engine.batches
        self._usual_batch = 1 if first.engine.spec.device == "cpu" else _BATCH_OF_A_DEVICE
        self.lanes = lanes_of(first.engine)
        self.engine, self.precision = opened.engine_name, opened.precision
        try:
            opened.warm_up(batch=self.batch_of(1)[0])
        except BaseException:
            opened.close()
            raise

    def batch_of(self, wanted: int | None) -> tuple[int, int]:
        """Return the smallest and the largest number of frames of one run, as near to a wish as the engine allows."""
        wanted = wanted or self._usual_batch
        smallest, largest = self._batches or (1, wanted)
        return smallest, min(max(wanted, smallest), largest)

    def product_of(self, name: str | None) -> str | None:
        """Check the product that a request names, and return it.

        Raises:
            RequestError: There is no such product, or none was named.
        """
        if not self.products:
            if name is not None:
                raise RequestError("this model is the bundle of one product. Leave the product out.")
            return None
        if name is None and len(self.products) == 1:
            return self.products[0]
        if name is None or name not in self.products:
            problem = "name the product" if name is None else f"there is no product {shown(name)}"
            raise RequestError(f"{problem}. This model has: {', '.join(self.products)}.")
        return name

    def frame_of(self, content: bytes) -> NDArray[np.uint8]:
        """Decode a picture to a frame.

        Raises:
            ImageError: The picture is damaged, not whole, or has more than 8 bits without a declared range.
        """
        return image_from_bytes("the picture", content, self.manifest.pixel_range)

    def judge(self, frames: Sequence[NDArray[Any]], products: Sequence[str | None]) -> list[Result]:
        """Judge frames in one run of the backbone, and return a result for each.

        Args:
            frames: The frames, ``(H, W, 3)`` uint8 each.
            products: The product of each frame. For a bundle each is None.

        Raises:
            ImageError: A frame does not become the graph's input.
            EngineUnavailableError: The device stopped.
        """
        smallest = self.batch_of(1)[0]
        # An engine that was built for several frames gets the last frame again.
        missing = max(0, smallest - len(frames))
        given = [*frames, *[frames[-1]] * missing]
        if isinstance(self._opened, ProductLine):
            names = [name or self.products[0] for name in (*products, *[products[-1]] * missing)]
            results = self._opened.detect_batch(given, product=names)
        else:
            results = self._opened.detect_batch(given)
        return results[: len(frames)]

    def close(self) -> None:
        """Free the memory."""
        self._opened.close()
