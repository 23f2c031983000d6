"""Write a small inspection dataset: crops of a photograph of bricks, with defects painted into some of them.

The photograph is scikit-image's ``brick`` (512x512, grey). The training crops come from the photograph's two outer
vertical quarters. One inner quarter gives the crops to calibrate on, and the other gives the crops to test on. The
three sets share no pixel. Crops of one quarter overlap, so a set holds far less information than its number of images
suggests. The defects are those of `flowedge.calibration.defects`. Painted defects show that a detector works, but not
how well it would do on a real line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from flowedge.calibration.defects import DEFECTS, synthetic_defect
from flowedge.files import write_whole_file

Grey: TypeAlias = NDArray[np.uint8]

CROP: Final = 96
"""The side of a crop in pixels. The detector enlarges each crop to 256x256."""

_Columns: TypeAlias = tuple[int, int]
_QUARTERS: Final = MappingProxyType[str, tuple[_Columns, ...]](
    {"train": ((0, 128), (384, 512)), "calibration": ((128, 256),), "test": ((256, 384),)}
)
_EXPOSURE: Final = 0.06  # each crop is made brighter or darker than the original by at most this share


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoPlan:
    """Numbers of images of each sort, and the seed that decides all of them.

    Attributes:
        train: Number of good images to train on.
        calibration: Number of good images to fit score maxima and thresholds on, from another quarter than ``train``.
        test_good: Number of good images to test on, from a third quarter.
        test_per_defect: Number of test images of each kind of defect, from the quarter of ``test_good``.
        seed: Seed of all crops and defects.
    """

    train: int = 72
    calibration: int = 40
    test_good: int = 40
    test_per_defect: int = 10
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Photos:
    """The dataset on disk, in MVTec AD's layout.

    Attributes:
        root: The folder with ``train``, ``test`` and ``ground_truth``.
        train: Files of ``train/good`` to train on.
        calibration: Files of ``train/good`` to calibrate on.
    """

    root: Path
    train: tuple[Path, ...]
    calibration: tuple[Path, ...]


def write_photos(root: Path, plan: PhotoPlan) -> Photos:
    """Write the dataset. Equal plans give equal bytes.

    Args:
        root: The folder to write to, which is made where it does not exist.
        plan: Numbers of images, and the seed.
    """
    good = root / "train" / "good"
    crops = _Crops(plan.seed)
    train = [_write(good / f"train_{n:03}.png", crops.take("train")) for n in range(plan.train)]
    calibration = [
        _write(good / f"calibration_{n:03}.png", crops.take("calibration")) for n in range(plan.calibration)
    ]
    for n in range(plan.test_good):
        _write(root / "test" / "good" / f"{n:03}.png", crops.take("test"))
    rng = np.random.default_rng([plan.seed, 1])
    for kind in DEFECTS:
        for n in range(plan.test_per_defect):
            crop = np.repeat(crops.take("test")[..., None], 3, axis=2)
            defect = synthetic_defect(crop, kind, rng)
            _write(root / "test" / kind / f"{n:03}.png", defect.frame[..., 0])
            _write(root / "ground_truth" / kind / f"{n:03}_mask.png", defect.mask.astype(np.uint8) * 255)
    return Photos(root=root, train=tuple(train), calibration=tuple(calibration))


class _Crops:
    """Draw crops at random places of the photograph's quarters, each with a slightly different exposure."""

    def __init__(self, seed: int) -> None:
        self._photograph: Grey = skimage.data.brick()  # type: ignore[no-untyped-call]
        self._rng = np.random.default_rng([seed, 0])

    def take(self, use: str) -> Grey:
        quarters = _QUARTERS[use]
        left, right = quarters[int(self._rng.integers(len(quarters)))]
        y = int(self._rng.integers(self._photograph.shape[0] - CROP + 1))
        x = int(self._rng.integers(left, right - CROP + 1))
        crop = self._photograph[y : y + CROP, x : x + CROP].astype(np.float32)
        if self._rng.random() < 0.5:
            crop = crop[:, ::-1]
        exposure = self._rng.uniform(1 - _EXPOSURE, 1 + _EXPOSURE)
        return _grey(crop * np.float32(exposure))


def _grey(levels: NDArray[np.floating[Any]]) -> Grey:
    grey: Grey = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return grey


def _write(path: Path, grey: Grey) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, data = cv2.imencode(".png", grey)
    assert encoded
    write_whole_file(path, data.tobytes())
    return path
