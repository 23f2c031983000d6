"""Write a dataset in MVTec AD's layout in milliseconds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_dataset(root: Path) -> None:
    """Write noise for good images, and noise with a white square for a defect."""
    random = np.random.default_rng(0)
    for kind, count in (("train/good", 8), ("test/good", 2), ("test/square", 2)):
        (root / kind).mkdir(parents=True)
        for number in range(count):
            image = random.integers(60, 120, (64, 64, 3), dtype=np.uint8)
            if kind == "test/square":
                image[16:32, 16:32] = 255
            assert cv2.imwrite(str(root / kind / f"{number:03}.png"), image)
    masks = root / "ground_truth" / "square"
    masks.mkdir(parents=True)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[16:32, 16:32] = 255
    for number in range(2):
        assert cv2.imwrite(str(masks / f"{number:03}_mask.png"), mask)
