from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowedge.errors import ImageError
from flowedge.runtime.render import write_png

FRAME: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("image", [FRAME, FRAME[..., 0]], ids=["colour", "grey"])
def test_a_written_picture_reads_back_and_replaces_the_old_one(
    image: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "größe.png"
    path.write_bytes(b"old")
    write_png(path, image)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.png cannot be written: No such file or directory"):
        write_png(tmp_path / "absent" / "a.png", FRAME)
    taken = tmp_path / "taken.png"
    (taken / "by a folder").mkdir(parents=True)
    with pytest.raises(ImageError, match=r"taken\.png cannot be written"):
        write_png(taken, FRAME)
    assert list(tmp_path.iterdir()) == [taken]
