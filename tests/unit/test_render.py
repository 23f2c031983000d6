from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowedge.errors import ImageError
from flowedge.runtime.colours import heatmap
from flowedge.runtime.render import RED, outline, overlay, write_png

FRAME: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
RAMP = np.broadcast_to(np.linspace(0, 1, 30, dtype=np.float32), (20, 30))


def test_an_overlay_mixes_frame_and_colours_by_opacity() -> None:
    colours = heatmap(RAMP, 0, 1)
    np.testing.assert_array_equal(overlay(FRAME, RAMP, 0, 1, opacity=0), FRAME)
    np.testing.assert_array_equal(overlay(FRAME, RAMP, 0, 1, opacity=1), colours)
    mixed = 0.75 * FRAME + 0.25 * colours.astype(np.float64)
    np.testing.assert_allclose(overlay(FRAME, RAMP, 0, 1, opacity=0.25), mixed, rtol=0, atol=0.51)


def test_what_was_not_inspected_keeps_the_frames_colours() -> None:
    cropped = RAMP.copy()
    cropped[:, :10] = np.nan
    drawn = overlay(FRAME, cropped, 0, 1)
    np.testing.assert_array_equal(drawn[:, :10], FRAME[:, :10])
    np.testing.assert_array_equal(drawn[:, 10:], overlay(FRAME, RAMP, 0, 1)[:, 10:])


def test_an_outline_follows_the_region_and_spares_the_rest() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 8:20] = 255
    before = FRAME.copy()
    drawn = outline(FRAME, mask, width_px=1)
    border = np.zeros((20, 30), bool)
    border[5:15, 8:20] = True
    border[6:14, 9:19] = False
    assert (drawn[border] == RED).all()
    np.testing.assert_array_equal(drawn[~border], FRAME[~border])
    np.testing.assert_array_equal(FRAME, before)


def test_an_empty_mask_draws_nothing() -> None:
    np.testing.assert_array_equal(outline(FRAME, np.zeros((20, 30), np.uint8)), FRAME)


def test_a_map_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"frame's size \(20, 30\), got \(20, 29\)"):
        overlay(FRAME, RAMP[:, 1:], 0, 1)
    with pytest.raises(ValueError, match=r"got \(1, 30\)"):
        outline(FRAME, np.zeros((1, 30), np.uint8))
    with pytest.raises(ValueError, match=r"opacity must be 0 to 1, got 1\.5"):
        overlay(FRAME, RAMP, 0, 1, opacity=1.5)


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
