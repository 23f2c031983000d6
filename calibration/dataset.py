"""List a labelled folder of images in the layout of the MVTec AD dataset, or a plain folder of good images.

    dataset/train/good/*.png
    dataset/test/good/*.png
    dataset/test/<defect>/*.png
    dataset/ground_truth/<defect>/<stem>_mask.png    or <stem>.png, not zero where the defect is

Only file names are kept. Images and masks are read one at a time, when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import DataError
from flowedge.runtime.frames.finding import IMAGE_SUFFIXES, sort_out
from flowedge.runtime.frames.images import read_picture
from flowedge.text import printable

# JPEG and WebP are left out, because they smear a mask's edges and every pixel that is not zero counts as defect.
MASK_SUFFIXES: Final = frozenset({".png", ".bmp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm"})
GOOD: Final = "good"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Describes one labelled image.

    Attributes:
        path: The image file.
        label: The printable name of the image's folder, which is ``"good"`` or a kind of defect.
        is_anomalous: False exactly when the label is ``"good"``.
        mask: The file that marks the image's defect pixels. The value is None for a good image, and for every image of
            a class without masks.
    """

    path: Path
    label: str
    is_anomalous: bool
    mask: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The test images of a dataset, by class and name.

    Attributes:
        root: The folder that holds ``test``.
        samples: Not empty.
        classes_without_masks: The defect classes that have no mask at all. Pixel metrics need masks for every class.
    """

    root: Path
    samples: tuple[Sample, ...]
    classes_without_masks: tuple[str, ...]


def read_dataset(folder: Path) -> Dataset:
    """List the test images of a dataset in MVTec AD's layout, with their labels and masks.

    Args:
        folder: The dataset's root, or its ``test`` folder.

    Raises:
        DataError: There is no ``test`` folder or no image in it, it or a folder of masks cannot be listed, an image of
            a class with masks lacks its own, or two files could be the mask of one image. A class folder that cannot be
            listed is a sample itself, which cannot be read.
    """
    root = folder.parent if folder.name == "test" and not os.path.isdir(folder / "test") else folder
    test = root / "test"
    if not os.path.isdir(test):
        raise DataError(
            f"{folder} has no test folder. Name the folder that holds test/good, test/<defect> and "
            "ground_truth/<defect>, as the MVTec AD dataset lays them out."
        )
    samples: list[Sample] = []
    without_masks: list[str] = []
    for class_folder in sorted(path for path in _entries(test) if os.path.isdir(path)):
        if class_folder.name.startswith("."):
            continue
        label = printable(class_folder.name)
        try:
            images = _images(class_folder)
        except DataError:  # Reading the folder as an image gives the reason.
            samples.append(Sample(path=class_folder, label=label, is_anomalous=label != GOOD, mask=None))
            continue
        masks = {} if label == GOOD else _masks(images, root / "ground_truth" / class_folder.name)
        if label != GOOD and images and not masks:
            without_masks.append(label)
        samples.extend(
            Sample(path=image, label=label, is_anomalous=label != GOOD, mask=masks.get(image))
            for image in images
        )
    if not samples:
        raise DataError(
            f"{test} has no images in class folders. Put good images in {test / GOOD} and each kind of defect "
            f"in a folder of its own. Readable are {_listed(IMAGE_SUFFIXES)}."
        )
    return Dataset(root=root, samples=tuple(samples), classes_without_masks=tuple(without_masks))


def good_images(folder: Path) -> tuple[Path, ...]:
    """Return the good images to fit on, by name.

    Args:
        folder: A folder of good images, or a dataset's root, whose ``train/good`` is taken.

    Raises:
        DataError: There is no such folder, it cannot be listed, or no image is in it. A dataset's ``test`` folder is
            never taken instead, because metrics of images that were fitted on are worthless.
    """
    train = folder / "train" / GOOD
    chosen = train if os.path.isdir(train) else folder
    if not os.path.isdir(chosen):
        raise DataError(f"{folder} is not a folder. Name a folder of good images.")
    images = _images(chosen)
    if not images:
        raise DataError(
            f"{chosen} holds no images, and its subfolders are not searched. Name a folder of good images, or a "
            f"dataset with {Path('train', GOOD)}. "
            f"Readable are {_listed(IMAGE_SUFFIXES)}."
        )
    return tuple(images)


def read_mask(path: Path, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Read a mask as ``(H, W)`` booleans, true wherever the file is not zero.

    Args:
        path: The mask.
        image: The ``(H, W, 3)`` image that the mask belongs to.

    Raises:
        DataError: The mask has another size than the image.
        ImageError: The file cannot be read.
    """
    levels = read_picture(path)
    defects: NDArray[np.bool_] = (levels if levels.ndim == 2 else levels.max(axis=2)) > 0
    if defects.shape != image.shape[:2]:
        raise DataError(
            f"{path} is {defects.shape[1]}x{defects.shape[0]} pixels, its image "
            f"{image.shape[1]}x{image.shape[0]}. A mask must have its image's size: export the mask again."
        )
    return defects


def _masks(images: list[Path], folder: Path) -> Mapping[Path, Path]:
    """Return each image's mask. The mapping is empty where the class has no mask at all."""
    by_stem: dict[str, Path] = {}
    for file in sorted(_entries(folder)) if os.path.isdir(folder) else []:
        if file.suffix.lower() not in MASK_SUFFIXES or file.name.startswith("."):
            continue
        stem = file.stem.removesuffix("_mask")
        if stem in by_stem:
            raise DataError(
                f"{by_stem[stem]} and {file} could both be the mask of {stem}. Remove one of them."
            )
        by_stem[stem] = file
    if not by_stem:
        return {}
    for image in images:
        if image.stem not in by_stem:
            raise DataError(
                f"{image} has no mask: {folder / f'{image.stem}_mask.png'} is missing, and other images of "
                f"{folder.name} have theirs. Add it, or remove the folder {folder} to go without pixel metrics."
            )
    return {image: by_stem[image.stem] for image in images}


def _images(folder: Path) -> list[Path]:
    """List the folder's images by name. A file that looks like an image and cannot be read is among them."""
    return sorted(sort_out(path for path in _entries(folder) if not os.path.isdir(path)).images)


def _entries(folder: Path) -> list[Path]:
    """List everything in a folder.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from error


def _listed(suffixes: frozenset[str]) -> str:
    return ", ".join(sorted(suffixes))
