"""Read the frames that the gate compares: good images, synthetic defects made from them, and labelled images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.dataset import Dataset, read_mask
from flowedge.calibration.defects import DEFECTS, synthetic_defect
from flowedge.errors import CalibrationError, ImageError
from flowedge.progress import SILENT, Reports
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.pixel_range import PixelRange


class ComparedFrame(NamedTuple):
    """One frame of a comparison.

    A labelled frame has ``is_anomalous``. A synthetic defect has only a mask. A good frame has neither.
    """

    path: Path
    frame: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None = None
    is_anomalous: bool | None = None


def compared_frames(
    images: Sequence[Path],
    defects_per_image: int,
    labelled: Dataset | None = None,
    reports: Reports = SILENT,
    *,
    pixel_range: PixelRange | None = None,
) -> Iterator[ComparedFrame]:
    """Yield the frames that `flowedge.calibration.gates.compare` compares, in the order of comparison.

    The docstring of `flowedge.calibration.gates.compare` describes the arguments and errors.
    """
    if defects_per_image < 0:
        raise ValueError(f"defects_per_image must not be negative, got {defects_per_image}")
    samples = labelled.samples if labelled is not None else ()
    reports.step("comparing with fp32", len(images) + len(samples))
    for index, path in enumerate(images):
        yield from frames_of_image(path, index, defects_per_image, pixel_range)
        reports.advance()
    if labelled is not None:
        for one in labelled_frames(labelled, pixel_range):
            yield one
            reports.advance()


def frames_of_image(
    path: Path, index: int, defects: int, pixel_range: PixelRange | None
) -> Iterator[ComparedFrame]:
    """Yield a good image, and then synthetic defects made from it.

    Args:
        path: The image of a good part.
        index: The position of the image, which decides its defects. Their kinds continue from image to image.
        defects: The number of defects.
        pixel_range: The manifest's declaration of deep images, or None.

    Raises:
        ImageError: The image cannot be read, or is too small.
    """
    frame = read_image(path, pixel_range)
    yield ComparedFrame(path, frame)
    kinds = tuple(DEFECTS)
    with naming(path):
        for n in range(defects):
            kind = kinds[(index * defects + n) % len(kinds)]
            defect = synthetic_defect(frame, kind, np.random.default_rng([index, n]))
            yield ComparedFrame(path, defect.frame, defect.mask)


def labelled_frames(labelled: Dataset, pixel_range: PixelRange | None) -> Iterator[ComparedFrame]:
    """Yield the images of a labelled dataset, with their masks.

    Raises:
        DataError: A mask has another size than its image.
        ImageError: An image or a mask cannot be read.
    """
    for sample in labelled.samples:
        frame = read_image(sample.path, pixel_range)
        mask = None if sample.mask is None else read_mask(sample.mask, frame)
        yield ComparedFrame(sample.path, frame, mask, sample.is_anomalous)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's path to an error that was raised for its frame."""
    try:
        yield
    except (CalibrationError, ImageError) as error:
        raise type(error)(f"{path}: {error}") from error
