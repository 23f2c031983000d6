"""Bayer, grey, deep and BGR frames become RGB by what is declared, and addresses hide their passwords."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowedge.errors import DataError, ImageError, SourceError
from flowedge.runtime.sources import SourceSettings, open_source
from flowedge.runtime.sources.channels import rgb_of
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import Channels
from flowedge.source_addresses import kind_of, without_password

COLOUR = (200, 90, 30)


def mosaic(pattern: str, colour: tuple[int, int, int] = COLOUR, size: int = 12) -> NDArray[np.uint8]:
    """Return what a sensor with a colour filter sees of one colour."""
    tile = np.array([colour["rgb".index(letter)] for letter in pattern], np.uint8).reshape(2, 2)
    return np.tile(tile, (size // 2, size // 2))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "grbg", "gbrg"])
def test_a_bayer_frame_gets_the_colours_that_its_sensor_saw(pattern: str) -> None:
    channels: Channels = f"bayer_{pattern}"  # type: ignore[assignment]
    assert (rgb_of(mosaic(pattern), channels) == COLOUR).all()
    # A camera that calls its mosaic grey is corrected by the declaration.
    assert (rgb_of(mosaic(pattern), "gray", channels) == COLOUR).all()
    deep = mosaic(pattern).astype(np.uint16) * 16
    assert (rgb_of(deep, channels, window=(0, 255 * 16)) == COLOUR).all()


def test_bgr_grey_and_deep_frames_become_rgb() -> None:
    pixels = np.full((2, 2, 3), COLOUR, np.uint8)
    assert (rgb_of(pixels[..., ::-1], "bgr") == COLOUR).all()
    assert (rgb_of(pixels, "rgb", "bgr") == COLOUR[::-1]).all()
    assert (rgb_of(pixels[..., 0], "gray") == 200).all()
    assert (rgb_of(pixels.astype(np.uint16)[..., ::-1], "bgr", window=(0, 255)) == COLOUR).all()
    grey = np.array([[0, 1000, 2000, 4095]], np.uint16)
    assert rgb_of(grey, "gray", window=(1000, 3000))[0, :, 1].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize(
    ("array", "own", "problem"),
    [
        (np.zeros((4, 4), np.uint16), "gray", "nobody declares which levels become 0 and 255"),
        (np.zeros((4, 4), np.uint8), "", "channels that nobody declares"),
        (np.zeros((4, 4), np.uint8), "rgb", "which is not rgb"),
        (np.full((4, 4, 3), COLOUR, np.uint8), "gray", "has colours, so it is not gray"),
        (np.zeros((4, 4), np.float32), "bayer_rggb", "must have uint8 or uint16"),
        (np.zeros((0, 4), np.uint8), "gray", "has the shape"),
        (np.zeros((4, 40000), np.uint8), "gray", "the longest side may be"),
    ],
)
def test_a_frame_that_is_not_what_is_declared_has_a_reason(
    array: NDArray[np.generic], own: Channels, problem: str
) -> None:
    with pytest.raises(ImageError, match=problem):
        rgb_of(array, own)


def test_a_declared_mosaic_in_a_file_becomes_colours(tmp_path: Path) -> None:
    Image.fromarray(mosaic("grbg")).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), COLOUR).save(tmp_path / "b.png")
    settings = SourceSettings(address=str(tmp_path), color="bayer_grbg", name="line 1")
    first, second = open_source(settings).frames()
    assert (first.pixels == COLOUR).all()
    assert first.source == "line 1"
    assert (
        second.problem
        == f"{tmp_path / 'b.png'} has colours, so it is not bayer_grbg. Check the setting color."
    )


def test_a_deep_file_needs_a_window_of_the_settings_or_of_the_bundle(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 2048, np.uint16)).save(tmp_path / "a.png")
    (refused,) = open_source(str(tmp_path)).frames()
    assert "uint16" in refused.problem
    (by_bundle,) = open_source(str(tmp_path), pixel_range=(0, 4096)).frames()
    settings = SourceSettings(address=str(tmp_path), window=(2048, 4096))
    (by_settings,) = open_source(settings, pixel_range=(0, 4096)).frames()
    assert (by_bundle.pixels == 128).all()
    assert (by_settings.pixels == 0).all()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.7:554/live", "rtsp://10.0.0.7:554/live"),
        ("rtsp://admin:s@cr/et@10.0.0.7/live", "rtsp://10.0.0.7/live"),
        ("http://cam/video?user=a&password=secret&size=1", "http://cam/video?user=a&password=***&size=1"),
        ("rtsp://cam/user=a_password=secret_channel=1", "rtsp://cam/user=a_password=***"),
        ("rtsp://cam/live?Token=secret", "rtsp://cam/live?Token=***"),
        (
            "gstreamer:rtspsrc location=rtsp://a:secret@cam/x user-id=a user-pw=secret ! decodebin",
            "gstreamer:rtspsrc location=rtsp://cam/x user-id=a user-pw=*** ! decodebin",
        ),
        (
            'gstreamer:souphttpsrc user-pw="sec ret" ! decodebin',
            "gstreamer:souphttpsrc user-pw=*** ! decodebin",
        ),
        ("photos/pass=1.png", "photos/pass=***"),
        ("v4l2:///dev/video0", "v4l2:///dev/video0"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert without_password(address) == shown


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("photos", "images"),
        ("photos/*.png", "images"),
        ("a.MP4", "video"),
        ("RTSP://cam/x", "stream"),
        ("https://cam/x", "stream"),
        ("v4l2:///dev/video0", "device"),
        ("gstreamer:videotestsrc", "gstreamer"),
        ("ftp://x/y", "ftp"),
        ("c:/photos", "images"),
    ],
)
def test_the_address_tells_the_kind(address: str, kind: str) -> None:
    assert kind_of(address) == kind


def test_an_address_of_no_known_kind_is_an_error_without_its_password() -> None:
    with pytest.raises(SourceError, match=r"^ftp://host/x is of no known kind") as caught:
        open_source("ftp://user:secret@host/x")
    assert "secret" not in str(caught.value)


def test_names_that_stand_for_nothing_are_errors_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_source(str(tmp_path / "none"))
    with pytest.raises(SourceError, match="watch = true is for folders"):
        open_source(SourceSettings(address="rtsp://cam/x", watch=True))
    assert (
        open_source(SourceSettings(address=".", recursive=False), folder=_one_picture(tmp_path)) is not None
    )


def _one_picture(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


def test_a_frame_on_which_a_library_fails_unexpectedly_has_a_problem_and_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> NDArray[np.uint8]:
        raise MemoryError

    opening = Opening(settings=SourceSettings(address="cam"), name="cam")
    frame = opening.frame("cam#1", broken, monotonic_ns=1)  # type: ignore[arg-type]
    assert (frame.problem, frame.pixels.size) == ("cam#1 cannot be read: MemoryError", 0)

    for number in range(2):
        Image.new("RGB", (4, 4), COLOUR).save(tmp_path / f"{number}.png")
    monkeypatch.setattr("flowedge.runtime.sources.picture_files.read_image", broken)
    problems = [frame.problem for frame in open_source(str(tmp_path)).frames()]
    assert problems == [f"{tmp_path / f'{number}.png'} cannot be read: MemoryError" for number in range(2)]
