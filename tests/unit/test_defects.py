"""Every kind of synthetic defect changes every frame within limits, and looks as it should."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flowedge.calibration.defects import AREA, DEFECTS, VISIBLE, synthetic_defect, synthetic_defects
from flowedge.errors import ImageError

KINDS = sorted(DEFECTS)
SURFACES = ("flat", "black", "white", "noise", "grey stripes", "checkers")


def frame_of(surface: str, height: int, width: int) -> NDArray[np.uint8]:
    """Make a frame on which a careless defect would change nothing, or leave the range."""
    y, x = np.mgrid[:height, :width]
    plane = {
        "flat": np.full((height, width), 127),
        "black": np.zeros((height, width)),
        "white": np.full((height, width), 255),
        "noise": np.random.default_rng(0).integers(0, 256, (height, width)),
        "grey stripes": 100 + 10 * (x // 3 % 2),
        "checkers": 255 * ((x + y) % 2),
    }[surface]
    frame = np.repeat(plane[..., None].astype(np.uint8), 3, axis=2)
    if surface == "noise":
        frame[..., 1] = frame[::-1, :, 0]
    return frame


@settings(max_examples=150)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(SURFACES),
    st.integers(16, 300),
    st.integers(16, 300),
    st.integers(0, 2**32),
)
@example("blur", "flat", 16, 16, 0)
@example("scratch", "white", 16, 300, 1)
@example("cut-paste", "checkers", 300, 16, 2)
def test_a_defect_is_visible_inside_of_its_mask_and_nowhere_else(
    kind: str, surface: str, height: int, width: int, seed: int
) -> None:
    good = frame_of(surface, height, width)
    kept = good.copy()
    frame, mask = synthetic_defect(good, kind, np.random.default_rng(seed))
    assert np.array_equal(good, kept)
    assert (frame.shape, frame.dtype.name) == (good.shape, "uint8")
    assert (mask.shape, mask.dtype.name) == ((height, width), "bool")
    assert not np.shares_memory(frame, good)
    assert np.array_equal(frame[~mask], good[~mask])
    change = np.abs(frame.astype(int) - good).max(axis=2)[mask]
    assert change.mean() >= VISIBLE
    side = min(height, width)
    assert max(4, AREA[0] * side**2) <= mask.sum() <= AREA[1] * side**2
    if surface != "noise":
        assert np.array_equal(frame, np.repeat(frame[..., :1], 3, axis=2)), "a grey camera sees no colour"


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_every_byte(kind: str) -> None:
    good = frame_of("noise", 90, 70)
    ones = [next(synthetic_defects(good, seed, [kind])) for seed in (3, 3, 4)]
    digests = [hashlib.sha256(one.frame.tobytes() + one.mask.tobytes()).hexdigest() for one in ones]
    assert digests[0] == digests[1] != digests[2]


def test_a_kind_does_not_depend_on_which_others_are_made() -> None:
    good = frame_of("noise", 48, 64)
    every = list(synthetic_defects(good, 5))
    assert len(every) == len(DEFECTS)
    (alone,) = synthetic_defects(good, 5, ["blur"])
    assert np.array_equal(alone.frame, every[list(DEFECTS).index("blur")].frame)
    places = {tuple(np.argwhere(one.mask).mean(axis=0).round()) for one in every}
    assert len(places) == len(DEFECTS), "the kinds must not share their random numbers"


def test_places_reach_every_part_of_the_frame() -> None:
    good = frame_of("noise", 64, 64)
    for kind in DEFECTS:
        covered = sum(next(synthetic_defects(good, seed, [kind])).mask.astype(int) for seed in range(300))
        quarters = np.asarray(covered).reshape(2, 32, 2, 32).sum(axis=(1, 3))
        assert quarters.min() > 0.5 * quarters.mean(), kind


def test_a_blur_takes_texture_away_and_a_colour_keeps_it() -> None:
    good = frame_of("noise", 200, 200)
    for seed in range(20):
        blur, colour = synthetic_defects(good, seed, ["blur", "colour"])
        assert blur.frame[blur.mask].std() < 0.8 * good[blur.mask].std()
        for channel in range(3):
            kept = np.corrcoef(colour.frame[colour.mask][:, channel], good[colour.mask][:, channel])[0, 1]
            assert kept > 0.8


def test_cut_paste_puts_a_part_of_the_frame_elsewhere() -> None:
    y, x = np.mgrid[:60, :80]
    good = np.stack([y * 3 + 20, x * 2 + 20, np.full_like(x, 100)], axis=2).astype(
        np.uint8
    )  # says where it is from
    moved = 0
    for seed in range(20):
        frame, mask = next(synthetic_defects(good, seed, ["cut-paste"]))
        gain = frame[mask][:, 2].mean() / 100
        from_rows = (frame[mask][:, 0] / gain - 20) / 3
        from_columns = (frame[mask][:, 1] / gain - 20) / 2
        down, right = np.argwhere(mask).T - np.stack([from_rows, from_columns])
        moved += np.ptp(down) < 2 and np.ptp(right) < 2 and abs(down.mean()) + abs(right.mean()) > 2
    assert moved >= 17  # now and then the two places are too much alike to be seen


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (np.zeros((15, 40, 3), np.uint8), "15x40 is too small"),
        (np.zeros((40, 40), np.uint8), r"\(40, 40\) uint8"),
        (np.zeros((40, 40, 3), np.float32), "float32"),
    ],
)
def test_a_frame_that_cannot_take_a_defect_is_refused(frame: NDArray[np.uint8], found: str) -> None:
    with pytest.raises(ImageError, match=found):
        synthetic_defect(frame, "blob", np.random.default_rng(0))


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"'rust'; choose one of cut-paste, scratch, blob, blur, colour, texture"
    ):
        synthetic_defect(frame_of("flat", 32, 32), "rust", np.random.default_rng(0))
