"""Make the input of a bundle's graph from frames: the network's input, or the frames themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.framing import Size
from flowedge.geometry import placement
from flowedge.manifest import Manifest
from flowedge.runtime.frames.preprocess import Preprocessor, check_frame


class GraphInput:
    """Makes the input of a bundle's graphs from frames. Threads may share one."""

    def __init__(self, manifest: Manifest, on_device: Callable[[Size], bool] | None = None) -> None:
        """Prepare for the frames of a bundle.

        Args:
            manifest: The manifest of the bundle.
            on_device: Returns True for the sizes of frames that the engine preprocesses itself. By default the host
                preprocesses all of them.
        """
        self._on_device = on_device
        self._preprocessing = manifest.preprocessing
        self._preprocessor = Preprocessor(manifest.preprocessing)
        self._image_size = manifest.image_size
        self._frame_size = manifest.frame_size

    def __call__(self, frames: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[Any]:
        """Make the graph's input from one frame or from several.

        Args:
            frames: The frames, each ``(H, W, 3)`` uint8, RGB, or one array of all frames. The frames are not modified.
                With a ``frame_size`` in the manifest, frames must have that size.

        Returns:
            A C-contiguous array ``(N, 3, h, w)`` float32. With a ``frame_size``, and for frames of one size that the
            engine preprocesses, the array is ``(N, H, W, 3)`` uint8, which for a single frame may be a view of it.

        Raises:
            ImageError: A frame is of another type or shape, exceeds a limit of `flowedge.runtime.device.limits`, or
                does not become the network's input.
        """
        if self._frame_size is None:
            for frame in frames:
                self._check_window(frame)
            sizes = {frame.shape[:2] for frame in frames}
            if self._on_device is None or len(sizes) > 1 or not self._on_device(sizes.pop()):
                images = [self._preprocessor(frame) for frame in frames]
                return images[0][None] if len(images) == 1 else np.stack(images)
        else:
            for frame in frames:
                self._check_size(frame, self._frame_size)
        if len(frames) == 1:
            return np.ascontiguousarray(frames[0])[None]
        return np.stack(list(frames))

    def joined(self, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Join inputs that were made one by one. Where they differ in size or kind, the host preprocesses the frames.

        Args:
            inputs: The inputs, at least one.
        """
        if len(inputs) > 1 and len({(one.shape[1:], one.dtype) for one in inputs}) > 1:
            inputs = [
                one if one.dtype != np.uint8 else np.stack([self._preprocessor(frame) for frame in one])
                for one in inputs
            ]
        return np.concatenate(inputs) if len(inputs) > 1 else inputs[0]

    def _check_window(self, frame: NDArray[np.uint8]) -> None:
        check_frame(frame)
        # Before the work: the sizes that a manifest names may be anything.
        window = placement(self._preprocessing, frame.shape[:2]).window
        if window != self._image_size:
            height, width = self._image_size
            raise ImageError(
                f"a frame of {frame.shape[0]}x{frame.shape[1]} becomes {window[0]}x{window[1]} pixels "
                f"by the bundle's preprocessing, its graph takes {height}x{width}: the model's own pipeline resizes "
                f"the shorter side only. Crop the frames to the aspect of {height}x{width}."
            )

    def _check_size(self, frame: NDArray[np.uint8], size: tuple[int, int]) -> None:
        check_frame(frame)
        if frame.shape[:2] != size:
            raise ImageError(
                f"a frame is {frame.shape[0]}x{frame.shape[1]} pixels, the bundle's graph takes frames of "
                f"{size[0]}x{size[1]} (height x width) and no others. Export again with "
                f"--frame-size {frame.shape[0]}x{frame.shape[1]}, or without for frames of any size."
            )
