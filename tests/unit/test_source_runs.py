"""``flowedge run`` and ``detector.stream`` inspect videos and cameras as they do images."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowedge
from flowedge.errors import FlowEdgeError, SettingsError, SourceError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.pictures import frame_name
from flowedge.runtime.protocols import Source
from flowedge.runtime.sources import SourceSettings, open_source
from support.command_line import Finished
from support.command_line import flowedge as run_flowedge
from support.picture_files import photograph
from support.tiny_bundle import write_tiny_bundle
from support.videos import write_video

pytestmark = pytest.mark.usefixtures("without_proof")
pytest.importorskip("av", reason="the package av is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threshold = Threshold(value=-0.3, method="manual")
    folder = tmp_path_factory.mktemp("tiny") / "tiny.flowedge"
    return write_tiny_bundle(folder, thresholds=Thresholds(image=threshold, pixel=threshold)).path


def run(*words: str | Path) -> Finished:
    return run_flowedge("run", *words)


def test_a_video_is_inspected_frame_by_frame_and_its_pictures_have_the_frames_numbers(
    bundle: Path, tmp_path: Path
) -> None:
    video = write_video(tmp_path / "line 1.mp4", frames=5)
    finished = run(
        bundle, video, "--limit", "3", "--json", "--out", tmp_path / "out", "--html", tmp_path / "run.html"
    )
    assert finished.status == 0, finished.stderr
    records = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [record["image"] for record in records] == [f"{video}#{number}" for number in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"line_1.mp4-00000{number}.{kind}.png" for number in (1, 2, 3) for kind in ("mask", "overlay")
    ]
    assert "not complete" not in (tmp_path / "run.html").read_text()
    assert run(bundle, video, "--csv", "-").stdout.count("\n") == 6


def test_the_missing_end_of_a_video_is_not_inspected(bundle: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "cut.mkv")
    content = video.read_bytes()
    video.write_bytes(content[: int(len(content) * 0.7)])
    finished = run(bundle, video, "--json")
    verdicts = [json.loads(line)["verdict"] for line in finished.stdout.splitlines()]
    assert finished.status == 1
    assert verdicts[-2:] == ["not_inspected", "not_inspected"]
    assert "not_inspected" not in verdicts[:-2]


def test_the_first_images_of_a_folder_are_inspected(bundle: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        photograph().save(tmp_path / name)
    finished = run(bundle, tmp_path, "--limit", "2", "--json")
    assert [Path(json.loads(line)["image"]).name for line in finished.stdout.splitlines()] == [
        "a.png",
        "b.png",
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["rtsp://user:secret@cam/x", "photos"], "rtsp://cam/x is a camera, and a camera is inspected alone"),
        (["ftp://user:secret@cam/x"], "ftp://cam/x is of no known kind of source"),
        (["none.mp4"], "none.mp4 does not exist"),
        ([__file__, os.path.relpath(__file__)], "A video is named alone"),
    ],
)
def test_a_source_that_cannot_be_inspected_is_an_error_without_its_password(
    bundle: Path, words: list[str], problem: str
) -> None:
    finished = run(bundle, *words)
    assert finished.status == 2
    assert problem in " ".join(finished.stderr.split())
    assert "secret" not in finished.stderr + finished.stdout


def test_a_stream_gives_each_frame_with_its_result_and_closes_its_source(
    bundle: Path, tmp_path: Path
) -> None:
    photograph().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"damaged")
    with flowedge.load(bundle) as detector:
        (first, result), (second, nothing) = detector.stream(tmp_path)
        expected = detector(tmp_path / "a.png")
        assert result is not None
        assert (first.id, result.score) == (str(tmp_path / "a.png"), expected.score)
        assert nothing is None
        assert "b.png" in second.problem
        settings = SourceSettings(address=str(tmp_path), color="bgr")
        (_, swapped), _ = detector.stream(settings)
        assert swapped is not None
        assert np.array_equal(swapped.frame, expected.frame[..., ::-1])
        source = open_source(str(write_video(tmp_path / "a.mp4", frames=4)))
        for frame, _ in detector.stream(source):
            assert frame.id.endswith("#1")
            break
        # Leaving the loop has closed the source, so no further frame comes.
        assert not list(source.frames())


def test_a_video_beside_images_is_named_as_left_out(bundle: Path, tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.png")
    video = write_video(tmp_path / "a.mp4", frames=1)
    finished = run(bundle, tmp_path / "a.png", video)
    assert finished.status == 0
    assert finished.stderr.splitlines()[0] == "left out, since a video is inspected alone: a.mp4"


def test_a_stream_of_what_is_no_source_is_an_error(bundle: Path, tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.png")
    wrong: list[tuple[Any, type[FlowEdgeError], str]] = [
        ("", SettingsError, r"\[address\]: expected str of length >= 1"),
        (
            SourceSettings(address=str(tmp_path), timeout_s=-1),
            SettingsError,
            r"\[timeout_s\]: expected float >= 0",
        ),
        (3, SourceError, "a int is no source of frames"),
        (None, SourceError, "a NoneType is no source of frames"),
        (np.zeros((8, 8, 3), np.uint8), SourceError, "call the detector with the frame"),
    ]
    with flowedge.load(bundle) as detector:
        for source, kind, problem in wrong:
            with pytest.raises(kind, match=problem):
                next(detector.stream(source))


def test_a_stream_tells_that_it_waits_for_a_camera(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Source] = []
    told: list[tuple[str, str]] = []

    def opens(settings: SourceSettings, **options: Any) -> Source:
        opened.append(open_source(settings, **options))
        return opened[0]

    class Ends(logging.Handler):
        """A log that ends the wait at the first warning."""

        def emit(self, record: logging.LogRecord) -> None:
            told.append((record.levelname, record.getMessage()))
            opened[0].close()

    monkeypatch.setattr("flowedge.runtime.sources.open_source", opens)
    log, handler = logging.getLogger("flowedge.runtime.streaming"), Ends()
    log.addHandler(handler)
    try:
        with flowedge.load(bundle) as detector:
            assert not list(detector.stream(SourceSettings(address="http://user:secret@127.0.0.1:9/")))
    finally:
        log.removeHandler(handler)
    assert told == [("WARNING", "http://127.0.0.1:9/ is lost: Connection refused")]


def test_the_names_of_pictures_lead_to_no_other_folder() -> None:
    names = {
        "rtsp://cam:554/live/../..#7": "frame-000007",
        "../../etc/passwd#1": "passwd-000001",
        "a\0b/\n#3": "_-000003",
        "v4l2:///dev/video0#1234567": "video0-1234567",
        "no number": "no_number",
        "#": "frame",
    }
    assert {name: frame_name(name) for name in names} == names
