"""Make preprocessings with the numbers of ImageNet, and frames that show how they round and clip."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowedge.manifest import Preprocessing, ResizeMethod


def preprocessing_of(
    method: ResizeMethod,
    resize: tuple[int, int],
    keep_aspect: bool = False,
    crop: tuple[int, int] | None = None,
) -> Preprocessing:
    """Make a preprocessing with the mean and the standard deviation of ImageNet."""
    return Preprocessing(
        resize=resize,
        keep_aspect=keep_aspect,
        method=method,
        crop=crop,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def frame_of(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Make a frame of noise with an upper half of black and white, where rounding and clipping show."""
    frame = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    upper = frame[: size[0] // 2]
    upper[:] = np.where(upper > 127, 255, 0)
    return frame
