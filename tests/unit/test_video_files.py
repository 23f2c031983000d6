"""A video file gives every frame, and a damaged or missing one is a frame with a problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowedge.errors import SourceError
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources import SourceSettings, open_source
from support.videos import damage, picture, write_video

pytest.importorskip("av", reason="the package av is not installed")


def frames_of(path: Path) -> list[Frame]:
    return list(open_source(str(path)).frames())


def problems(frames: list[Frame]) -> dict[int, str]:
    return {
        n: frame.problem.removeprefix(frame.id + " ") for n, frame in enumerate(frames, 1) if frame.problem
    }


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mjpeg"), ("a.ts", "libx264")]
)
def test_every_frame_of_a_whole_video_comes_in_order(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, codec=codec)
    frames = frames_of(path)
    assert [frame.id for frame in frames] == [f"{path}#{number}" for number in range(1, 41)]
    assert not problems(frames)
    for number, frame in enumerate(frames):
        # The codec changes levels a little. The moving line tells the number.
        assert np.abs(frame.pixels.mean() - picture(number).mean()) < 3
        assert frame.pixels.mean(axis=(1, 2)).argmax() == number
        assert (frame.part, frame.dropped_before, frame.version) == (None, 0, frames[0].version)


def test_a_frame_that_builds_on_a_damaged_one_is_not_trusted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    whole = [frame.pixels for frame in frames_of(path)]
    damage(path, 0.5, 200)
    frames = frames_of(path)
    assert len(frames) == 40
    assert 1 < len(problems(frames)) < 20
    first = min(problems(frames)) - 1
    for number, frame in enumerate(frames):
        if not frame.problem:
            assert np.array_equal(frame.pixels, whole[number])
    # All is well again after the next frame that builds on no other one.
    following = [frame.problem for frame in frames[first:]]
    assert following.index("") <= 10
    assert "" not in following[: following.index("")]


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "f.mp4"])
def test_a_cut_video_says_what_is_missing_at_its_end(tmp_path: Path, name: str) -> None:
    codec = "mjpeg" if name == "a.avi" else "libx264"
    path = write_video(tmp_path / name, codec=codec, faststart=name == "f.mp4")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.7)])
    frames = frames_of(path)
    found = problems(frames)
    assert 2 < len(frames) < 40
    assert sorted(found) == [len(frames) - 1, len(frames)]
    assert found[len(frames)].startswith("is missing, since the file ")


def test_a_deep_video_needs_a_window_and_keeps_its_levels(tmp_path: Path) -> None:
    import av

    levels = np.random.default_rng(0).integers(0, 1 << 16, (16, 24), np.uint16)
    with av.open(str(tmp_path / "deep.mkv"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "gray16le"
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(levels, "gray16le")), *stream.encode()):
            container.mux(packet)
    (refused,) = frames_of(tmp_path / "deep.mkv")
    assert "has uint16 pixels, and nobody declares which levels become 0 and 255" in refused.problem
    (frame,) = open_source(SourceSettings(address=str(tmp_path / "deep.mkv"), window=(1000, 50000))).frames()
    expected = np.rint((levels.clip(1000, 50000) - 1000.0) * 255 / 49000)
    assert np.array_equal(frame.pixels, np.repeat(expected[..., None], 3, axis=2))


def test_a_damaged_picture_of_motion_jpeg_is_found_by_the_reader_of_files(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", codec="mjpeg")
    damage(path, 0.5, 200)
    found = problems(frames_of(path))
    assert found
    assert all(problem.startswith("is damaged") for problem in found.values())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.mp4", b""),
        ("text.mkv", b"no video at all"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n"),
        ("concat.avi", b"ffconcat version 1.0\nfile /etc/passwd\n"),
    ],
)
def test_a_file_that_is_no_video_opens_nothing(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name} is no video that can be read"):
        open_source(str(tmp_path / name))


def test_a_video_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        open_source(str(tmp_path / "none.mp4"))


def test_frames_that_have_their_record_are_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=5)
    judged = {(frame.id, frame.version) for frame in frames_of(path)[:3]}
    left = open_source(str(path), seen=lambda *key: key in judged).frames()
    assert [frame.id for frame in left] == [f"{path}#4", f"{path}#5"]
    path.touch()  # another version of the file
    assert len(list(open_source(str(path), seen=lambda *key: key in judged).frames())) == 5


def test_closing_ends_a_video(tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "a.mp4")))
    frames = source.frames()
    next(frames)
    source.close()
    assert list(frames) == []
