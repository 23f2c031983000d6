"""A small inspection dataset from real photographs: crops of a brick pavement, with defects painted into some.

The photograph is scikit-image's ``brick`` (512x512, grey). Its outer vertical quarters give the training crops, one
inner quarter those to calibrate on and the other those to test on: the three share no pixel. Crops of one quarter
do overlap, so a set holds far less than its number of images suggests. The defects are synthetic: they show that
a detector works, not how well it would do on a real line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from flowedge.files import write_whole_file

Grey: TypeAlias = NDArray[np.uint8]
Alpha: TypeAlias = NDArray[np.float32]

CROP: Final = 96
"""Side of a crop in pixels; the detector sees it enlarged to 256x256."""

_Columns: TypeAlias = tuple[int, int]
_QUARTERS: Final = MappingProxyType[str, tuple[_Columns, ...]](
    {"train": ((0, 128), (384, 512)), "calibration": ((128, 256),), "test": ((256, 384),)}
)
_EXPOSURE: Final = 0.06  # each photograph is up to so much brighter or darker than the original
_FAINTEST: Final = 0.1  # paint thinner than this is left out, so that the mask has an honest edge


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoPlan:
    """How many images of each sort, and the seed that decides all of them.

    Attributes:
        train: Good images to train on.
        calibration: Good images to fit the reference and the thresholds on; from another quarter.
        test_good: Good images to test on; from a third one.
        test_per_defect: Defective images of each kind, from the same quarter as ``test_good``.
    """

    train: int = 72
    calibration: int = 40
    test_good: int = 40
    test_per_defect: int = 15
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Photos:
    """The dataset on disk, in MVTec AD's layout.

    Attributes:
        root: The folder with ``train``, ``test`` and ``ground_truth``.
        train: The good images of ``train/good`` to train on.
        calibration: The other good images of ``train/good``.
    """

    root: Path
    train: tuple[Path, ...]
    calibration: tuple[Path, ...]


class Painted(NamedTuple):
    """A defective crop ``(CROP, CROP)`` and where it was painted; other pixels are the crop's own."""

    crop: Grey
    mask: NDArray[np.bool_]


class _Paint(NamedTuple):
    """What to lay over a crop, in grey levels, and how much of it, in 0..1; both ``(CROP, CROP)``."""

    colour: Alpha
    alpha: Alpha


def write_photos(root: Path, plan: PhotoPlan) -> Photos:
    """Write the dataset; the same plan gives the same bytes.

    Args:
        root: The folder to write to; made where it is not there.
        plan: How many images, and the seed.
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
            painted = paint_defect(crops.take("test"), kind, rng)
            _write(root / "test" / kind / f"{n:03}.png", painted.crop)
            _write(root / "ground_truth" / kind / f"{n:03}_mask.png", painted.mask.astype(np.uint8) * 255)
    return Photos(root=root, train=tuple(train), calibration=tuple(calibration))


def paint_defect(crop: Grey, kind: str, rng: np.random.Generator) -> Painted:
    """Paint one defect.

    Args:
        crop: ``(CROP, CROP)``; not modified.
        kind: A name of ``DEFECTS``.
        rng: Decides its place, size and strength.
    """
    paint = DEFECTS[kind](crop, rng)
    mask = paint.alpha >= _FAINTEST
    mixed = crop.astype(np.float32) + mask * paint.alpha * (paint.colour - crop)
    return Painted(_grey(mixed), mask)


class _Crops:
    """Crops at random places of the photograph's quarters, as a camera with a drifting exposure would take them."""

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


def _scratch(crop: Grey, rng: np.random.Generator) -> _Paint:
    """A thin bent line, a little brighter than the brick or a little darker."""
    angle = rng.uniform(0, np.pi)
    length = rng.uniform(20, 55)
    along = np.linspace(-0.5, 0.5, 24) * length
    across = rng.uniform(-0.1, 0.1) * length * np.cos(np.linspace(-np.pi, np.pi, 24) * rng.uniform(0.4, 1.0))
    x0, y0 = rng.uniform(28, CROP - 28, size=2)
    x = x0 + along * np.cos(angle) - across * np.sin(angle)
    y = y0 + along * np.sin(angle) + across * np.cos(angle)
    fraction_bits = 4
    points = np.rint(np.stack([x, y], axis=1) * 2**fraction_bits).astype(np.int32)
    line = np.zeros_like(crop)
    cv2.polylines(line, [points], False, 255, 1, cv2.LINE_AA, fraction_bits)
    change = rng.uniform(14, 40) * rng.choice([-1, 1])
    return _Paint(crop + np.float32(change), line.astype(np.float32) / np.float32(255))


def _stain(crop: Grey, rng: np.random.Generator) -> _Paint:
    """Something spilt: the bricks show through, darker."""
    colour = crop * np.float32(rng.uniform(0.7, 0.9))
    return _Paint(colour, _blob(rng, rng.uniform(7, 16), softness=3.0))


def _moss(crop: Grey, rng: np.random.Generator) -> _Paint:
    """A thin growth: a photograph of grass, brought to the crop's mean brightness, half transparent."""
    grass: Grey = skimage.data.grass()  # type: ignore[no-untyped-call]
    y, x = rng.integers(grass.shape[0] - CROP + 1), rng.integers(grass.shape[1] - CROP + 1)
    patch = grass[y : y + CROP, x : x + CROP].astype(np.float32)
    colour = patch - patch.mean() + crop.mean()
    opacity = np.float32(rng.uniform(0.2, 0.5))
    return _Paint(colour, opacity * _blob(rng, rng.uniform(5, 11), softness=2.0))


def _pits(crop: Grey, rng: np.random.Generator) -> _Paint:
    """A few small holes close together."""
    y, x = np.mgrid[:CROP, :CROP].astype(np.float32)
    y0, x0 = rng.uniform(20, CROP - 20, size=2)
    alpha = np.zeros(crop.shape, np.float32)
    for _ in range(int(rng.integers(3, 9))):
        distance = np.hypot(y - np.float32(y0 + rng.normal(0, 5)), x - np.float32(x0 + rng.normal(0, 5)))
        alpha = np.maximum(
            alpha, np.clip(np.float32(rng.uniform(1.0, 2.0)) - distance + np.float32(0.5), 0, 1)
        )
    return _Paint(crop * np.float32(rng.uniform(0.6, 0.85)), alpha)


DEFECTS: Final = MappingProxyType[str, Callable[[Grey, np.random.Generator], _Paint]](
    {"moss": _moss, "pits": _pits, "scratch": _scratch, "stain": _stain}
)


def _blob(rng: np.random.Generator, radius: float, *, softness: float) -> Alpha:
    """A ragged spot, ``(CROP, CROP)`` in 0..1: a disc whose edge follows smooth noise.

    Args:
        rng: Decides its place and shape.
        radius: Mean radius in pixels.
        softness: Pixels from full paint to none, about.
    """
    y0, x0 = rng.uniform(radius + 8, CROP - radius - 8, size=2)
    noise = cv2.GaussianBlur(rng.standard_normal((CROP, CROP)).astype(np.float32), (0, 0), radius / 2)
    y, x = np.mgrid[:CROP, :CROP].astype(np.float32)
    distance = np.hypot(y - np.float32(y0), x - np.float32(x0))
    edge = np.float32(radius) * (1 + np.float32(0.5) * noise / np.abs(noise).max())
    alpha: Alpha = np.clip((edge - distance) / np.float32(softness) + np.float32(0.5), 0, 1)
    return alpha


def _grey(levels: NDArray[np.floating[Any]]) -> Grey:
    grey: Grey = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return grey


def _write(path: Path, grey: Grey) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, data = cv2.imencode(".png", grey)
    assert encoded
    write_whole_file(path, data.tobytes())
    return path
