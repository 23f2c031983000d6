"""The programs in ``examples/`` run as their first lines say."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import flowedge
from flowedge.bundle import open_bundle
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.opening.unproven import open_unproven
from support.small_dataset import write_dataset
from support.tiny_bundle import write_tiny_bundle

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(program: str, *arguments: Path | str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / program), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_a_folder_is_inspected_and_a_broken_picture_is_no_good_part(
    small_bundle: Path, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "data")
    photos = tmp_path / "data" / "test" / "good"
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("inspect_folder.py", small_bundle, photos, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["000.png", "001.png", "broken.png"]
    assert [line[1] for line in lines] == ["unknown", "unknown", "not_inspected"]


def test_a_video_is_inspected_frame_by_frame(small_bundle: Path, tmp_path: Path) -> None:
    video = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for _ in range(3):
        writer.write(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    writer.release()
    done = run("camera_loop.py", small_bundle, video, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [
        [str(n), "unknown"] for n in range(3)
    ]


def test_the_findings_of_an_anomalous_frame_of_a_video_are_stored(tmp_path: Path) -> None:
    low = Thresholds(image=Threshold(value=-1e30, method="manual"))
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", thresholds=low).path
    video = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    # A frame of blue alone tells whether the colours were turned.
    writer.write(np.full((64, 64, 3), (250, 0, 0), np.uint8))
    writer.release()
    done = run("camera_loop.py", bundle, video, "found", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (stored,) = (tmp_path / "found").iterdir()
    _, blue = cv2.VideoCapture(str(video)).read()
    with Detector(
        open_bundle(bundle), open_unproven("onnxruntime-cpu", open_bundle(bundle), "fp32")
    ) as detector:
        result = detector(cv2.cvtColor(blue, cv2.COLOR_BGR2RGB))
    np.testing.assert_array_equal(read_image(stored), result.plot())


@pytest.mark.parametrize("program", ["inspect_folder.py", "camera_loop.py", "serve.py"])
def test_a_program_without_its_arguments_prints_how_it_is_called(program: str, tmp_path: Path) -> None:
    done = run(program, cwd=tmp_path)
    assert done.returncode == 1
    assert f"python examples/{program} BUNDLE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_camera_that_is_not_there_is_named(small_bundle: Path, tmp_path: Path) -> None:
    done = run("camera_loop.py", small_bundle, "missing.avi", cwd=tmp_path)
    assert done.returncode == 1
    assert "missing.avi" in done.stderr


@pytest.fixture(scope="module")
def port(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the web service for the tests of this module, and return its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "serve.py"), str(small_bundle), str(number)],
            stdout=out,
            stderr=out,
        )
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", number)) == 0:
                        break
                time.sleep(0.1)
            yield number
        finally:
            server.terminate()
            server.wait(30)


def test_clients_at_once_get_the_answers_to_their_own_pictures(port: int, small_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40 + 3 * number, 60, 3), dtype=np.uint8) for number in range(8)]
    with flowedge.load(small_bundle) as detector:
        expected = [detector(picture).score for picture in pictures]
    bodies = [cv2.imencode(".png", picture[..., ::-1])[1].tobytes() for picture in pictures]
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(lambda body: posted(port, body), bodies))
    assert [status for status, _ in answers] == [200] * len(bodies)
    assert [answer["score"] for _, answer in answers] == expected


def posted(port: int, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/inspect", body, headers, encode_chunked="Transfer-Encoding" in headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_the_service_answers_as_the_detector_does(port: int, small_bundle: Path, tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    encoded, data = cv2.imencode(".png", frame)
    assert encoded
    status, answer = posted(port, data.tobytes())
    assert status == 200
    with flowedge.load(small_bundle) as detector:
        expected = detector(frame[..., ::-1]).to_dict()
    assert {**answer, "latency_ms": None} == {**expected, "latency_ms": None}


def test_the_service_names_the_fault_of_a_damaged_picture_and_no_file_of_its_own(port: int) -> None:
    status, answer = posted(port, b"\x89PNG\r\n\x1a\n")
    assert status == 422
    assert answer["detail"].startswith("the picture is damaged")
    status, answer = posted(port, b"")
    assert (status, answer["detail"].split(".")[0]) == (422, "the picture is empty")


@pytest.mark.parametrize("declares", [True, False])
def test_the_service_refuses_a_body_that_is_too_large(port: int, declares: bool) -> None:
    pieces = (b"\0" * 1_000_000 for _ in range(21))
    body, headers = (b"".join(pieces), {}) if declares else (pieces, {"Transfer-Encoding": "chunked"})
    try:
        status, answer = posted(port, body, **headers)
    except (BrokenPipeError, ConnectionResetError):
        return  # The service closed the connection while the rest was on its way.
    assert status == 413
    assert "20000000 bytes" in answer["detail"]


def test_the_notebook_runs_and_is_stored_without_outputs(small_bundle: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "explore.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all((cell.outputs, cell.execution_count) == ([], None) for cell in code)
    (tmp_path / "bottle.flowedge").symlink_to(small_bundle)
    write_dataset(tmp_path / "data")
    shutil.copytree(tmp_path / "data" / "test" / "good", tmp_path / "photos")
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output.get("data", {}).keys() for cell in code for output in cell.outputs]
    assert sum("image/png" in kinds for kinds in shown) == 2
    printed = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "000.png" in printed
    assert "unknown" in printed


HEADERS = (
    Path(os.environ.get("ONNXRUNTIME_INCLUDE", "")),
    EXAMPLES.parent / ".ort-headers",
    Path("/usr/include/onnxruntime"),
)


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the program of examples/cpp, linked to the library in the Python package of ONNX Runtime."""
    ort = pytest.importorskip("onnxruntime")
    headers = next((p for p in HEADERS if (p / "onnxruntime_cxx_api.h").is_file()), None)
    if headers is None:
        pytest.skip(
            "there is no onnxruntime_cxx_api.h: .ci/onnxruntime-headers fetches it, or set ONNXRUNTIME_INCLUDE"
        )
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("there is no cmake or no C++ compiler")
    folder = tmp_path_factory.mktemp("cpp")
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    settings = {
        "ONNXRUNTIME_INCLUDE": headers,
        "ONNXRUNTIME_LIBRARY": folder / "libonnxruntime.so.1",
        "CMAKE_CXX_FLAGS": "-Werror",
    }
    build = str(folder / "build")
    for command in (
        ["cmake", "-S", str(EXAMPLES / "cpp"), "-B", build, *(f"-D{k}={v}" for k, v in settings.items())],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "score"


def scored(score: Path, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [score, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_score_in_c_is_that_in_python(score: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", takes_frames=True)
    size = bundle.manifest.frame_size
    assert size is not None
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = tmp_path / "frame.ppm"
    assert cv2.imwrite(str(picture), frame[..., ::-1])
    with Detector(bundle, open_unproven("onnxruntime-cpu", bundle, "fp32")) as detector:
        expected = detector(frame).score
    graph = bundle.path / "model.onnx"
    for threshold, verdict, status in ((expected - 1e-3, "anomalous", 1), (expected, "ok", 0)):
        done = scored(score, graph, repr(threshold), picture)
        assert (done.returncode, done.stderr) == (status, "")
        word, number = done.stdout.split()
        assert word == verdict
        assert float(number) == pytest.approx(expected, rel=1e-6)


def test_the_program_in_c_names_what_is_wrong(score: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", takes_frames=True)
    graph = bundle.path / "model.onnx"
    other = write_tiny_bundle(tmp_path / "other.flowedge").path / "model.onnx"
    picture = tmp_path / "frame.ppm"
    assert cv2.imwrite(str(picture), np.zeros((5, 7, 3), np.uint8))
    cut = tmp_path / "cut.ppm"
    cut.write_bytes(picture.read_bytes()[:-1])
    for arguments, reason in (
        ((graph, "1", picture), "is 5x7, and the graph takes"),
        ((other, "1", picture), "Export the bundle with --frame-size"),
        ((graph, "1", cut), "ends before its last pixel"),
        ((graph, "1", graph), "is no binary PPM"),
        ((graph, "high", picture), ""),
        ((graph, "1"), "usage"),
    ):
        done = scored(score, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert reason in done.stderr
