"""Draw the picture of the README from a finished demo.

    python tests/bench/picture_heatmap.py DEMO [PICTURE]      PICTURE is docs/images/heatmap.png by default

DEMO is the folder of ``flowedge demo``. For four kinds of defects the picture shows the first test image with the
verdict ``anomalous``: its photograph, its painted defect and the pixels that were found.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

import flowedge
from flowedge.calibration.dataset import Sample, read_dataset, read_mask
from flowedge.export.demo.end_to_end import BUNDLE, INSPECTED, PHOTOS
from flowedge.runtime.frames.images import read_image

KINDS: Final = ("blob", "cut-paste", "scratch", "texture")
ROWS: Final = ("photograph", "defect", "found")
SIDE: Final = 194
GAP: Final = 6
LEFT, TOP = 110, 30
PICTURE: Final = Path(__file__).resolve().parents[2] / "docs" / "images" / "heatmap.png"


def main(demo: Path, picture: Path = PICTURE) -> None:
    samples = read_dataset(demo / PHOTOS).samples
    width, height = (begin + count * (SIDE + GAP) for begin, count in ((LEFT, len(KINDS)), (TOP, len(ROWS))))
    canvas = np.full((height, width, 3), 255, np.uint8)
    for row, words in enumerate(ROWS):
        write(canvas, words, (0, TOP + row * (SIDE + GAP) + SIDE // 2))
    with flowedge.load(demo / BUNDLE) as detector:
        for column, kind in enumerate(KINDS):
            x = LEFT + column * (SIDE + GAP)
            write(canvas, kind, (x + SIDE // 3, TOP - 10))
            sample = first_found(detector, [one for one in samples if one.label == kind])
            for row, part in enumerate(parts(demo, sample)):
                y = TOP + row * (SIDE + GAP)
                canvas[y : y + SIDE, x : x + SIDE] = cv2.resize(
                    part, (SIDE, SIDE), interpolation=cv2.INTER_AREA
                )
    cv2.imwrite(str(picture), cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))


def first_found(detector: flowedge.Detector, samples: Sequence[Sample]) -> Sample:
    return next(one for one in samples if detector(read_image(one.path)).verdict == "anomalous")


def parts(demo: Path, sample: Sample) -> tuple[NDArray[np.uint8], ...]:
    """Return photograph, defect and overlay as ``(h, w, 3)`` uint8 RGB."""
    photo = read_image(sample.path)
    assert sample.mask is not None
    mask = np.where(read_mask(sample.mask, photo), np.uint8(255), np.uint8(0))
    overlay = read_image(demo / INSPECTED / sample.label / f"{sample.path.stem}.overlay.png")
    enlarged = np.asarray(cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), np.uint8)
    return enlarged, np.repeat(mask[..., None], 3, axis=2), overlay


def write(canvas: NDArray[np.uint8], words: str, place: tuple[int, int]) -> None:
    cv2.putText(canvas, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
