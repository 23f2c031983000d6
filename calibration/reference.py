"""Fit the constants of ``fixed_reference`` scores on good images.

CFLOW and MSFlow turn each level's log-likelihood into a likelihood relative to a maximum, sum the levels, and
subtract from the largest sum (D. Gudovskiy et al., "CFLOW-AD", WACV 2022, section 4; Y. Zhou et al., "MSFlow",
TNNLS 2024). The official CFLOW takes both maxima over the whole test set; here they are taken over good images,
once, so that an image's answer depends on nothing but the image.

Plain maxima, as the official code: they are reproducible and need no choice. One outlying position of one good
image can therefore set a level's maximum. It lowers that level's share of the sum by the same factor at every
position, that is its weight against the other levels; the maximum of the sum only moves all scores, and the
thresholds fitted after it, by a constant. A high quantile would bound the first effect, at the price of one
more number to choose, and of maps that no longer agree with the source's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import CalibrationError
from flowedge.manifest import FixedReference

Levels: TypeAlias = tuple[NDArray[np.float32], ...]
LargestSum: TypeAlias = Callable[[Levels, tuple[float, ...]], float]


def fit_reference(
    levels: Iterable[Levels],
    *,
    map_sum: LargestSum,
    mul_sum: LargestSum | None = None,
    names: Sequence[str] | None = None,
) -> FixedReference:
    """Fit the maxima over good images.

    The sums need the levels' maxima over all images first, so the levels are written to a temporary file
    (5 kB an image for a CFLOW at 256x256) and read back: memory is that of one image, and no image is inferred
    twice.

    Args:
        levels: Per image, its levels fine to coarse, each ``(h, w)`` or any other shape that ``map_sum``
            takes, float32 log-likelihood per dimension. Read once.
        map_sum: From an image's levels and the levels' maxima, the largest value of
            sum over l of U_l(exp(level_l - max_l)), as the bundle's family computes its map.
        mul_sum: MSFlow only: from the same, the largest value of the sum of the levels' likelihoods.
        names: What to call the images in an error; their index by default.

    Raises:
        CalibrationError: No image, or an image's levels are not all finite.
        ValueError: An image's levels have other shapes than the first one's.
    """
    shapes: list[tuple[int, ...]] = []
    level_max: tuple[float, ...] = ()
    count = 0
    with tempfile.TemporaryFile(prefix="flowedge-levels-") as spool:
        for image in levels:
            if not shapes:
                shapes = [level.shape for level in image]
                level_max = (-np.inf,) * len(image)
            if [level.shape for level in image] != shapes:
                raise ValueError(f"levels {[level.shape for level in image]} after levels {shapes}")
            if not all(np.isfinite(level).all() for level in image):
                raise CalibrationError(
                    f"the likelihoods of {f'image {count}' if names is None else names[count]} are not all "
                    "finite. Remove the image, or run flowedge verify to see whether the precision is the cause."
                )
            level_max = tuple(max(m, float(level.max())) for m, level in zip(level_max, image, strict=True))
            for level in image:
                spool.write(np.ascontiguousarray(level, np.float32).tobytes())
            count += 1
        if count == 0:
            raise CalibrationError("the reference needs at least one good image, got none.")
        map_max, mul_max = -np.inf, -np.inf
        spool.seek(0)
        for _ in range(count):
            image = tuple(_read(spool.read(4 * int(np.prod(shape))), shape) for shape in shapes)
            map_max = max(map_max, map_sum(image, level_max))
            if mul_sum is not None:
                mul_max = max(mul_max, mul_sum(image, level_max))
    return FixedReference(level_max=level_max, map_max=map_max, mul_max=None if mul_sum is None else mul_max)


def _read(data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.frombuffer(data, np.float32).reshape(shape)
