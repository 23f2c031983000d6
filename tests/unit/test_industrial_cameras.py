"""Industrial cameras and pipelines: the GenTL simulator, Aravis's fake GigE Vision camera, GStreamer's test source."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flowedge.errors import ImageError, MissingPackageError, SourceError
from flowedge.runtime.sources import SourceSettings, open_source
from flowedge.runtime.sources.frame_numbers import FrameNumbers
from flowedge.runtime.sources.pipelines import array_of_caps, pipeline_of
from flowedge.runtime.sources.pixel_formats import array_of
from flowedge.runtime.sources.settings import SoftwareTrigger
from flowedge.runtime.sources.triggers import Triggered
from support.source_reader import SourceReader

pytestmark = pytest.mark.filterwarnings("ignore:DynamicImporter:ImportWarning")  # of the system's bindings

SYSTEM = "/usr/lib/python3/dist-packages"
"""The folder of Debian's bindings, which an environment of the same Python version can import."""


def read(address: str, **more: object) -> SourceReader:
    settings = {"timeout_s": 1.0, "reconnect_s": 0.05, "reconnect_max_s": 0.2, **more}
    made = SourceSettings(address=address, **settings)  # type: ignore[arg-type]
    return SourceReader(lambda tell: open_source(made, tell=tell))


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        ([5, 6, 7], [0, 0, 0]),
        ([5, 8, 9], [0, 2, 0]),
        ([65534, 65535, 1, 2], [0, 0, 0, 0]),
        ([65534, 65535, 0, 1], [0, 0, 0, 0]),
        ([65533, 3], [0, 4]),
        ([65535, 65536, 65538], [0, 0, 1]),  # more than 16 bits
        ([900, 1, 2], [0, 0, 0]),  # the camera has started again
        ([2, 65535], [0, 0]),
        ([7, 7], [0, 0]),
    ],
)
def test_gaps_between_the_numbers_of_a_camera_are_lost_frames(numbers: list[int], lost: list[int]) -> None:
    counted = FrameNumbers()
    assert [counted.lost_before(number) for number in numbers] == lost


def test_a_frame_that_is_not_whole_is_not_lost_as_well() -> None:
    counted = FrameNumbers()
    counted.lost_before(65534)
    counted.skip()
    counted.skip()
    assert counted.lost_before(4) == 2  # 65535 and 1 came broken, 2 and 3 not at all


@pytest.mark.parametrize(
    ("name", "samples", "channels", "first"),
    [
        ("Mono8", np.arange(6, dtype=np.uint8), "gray", 0),
        ("Mono12", np.arange(6, dtype=np.uint16) + 4000, "gray", 4000),
        ("BayerRG8", np.arange(6, dtype=np.uint8), "bayer_rggb", 0),
        ("BayerGB10", np.arange(6, dtype=np.uint16), "bayer_gbrg", 0),
        ("BGR8", np.arange(18, dtype=np.uint8), "bgr", 0),
        ("RGBa8", np.arange(24, dtype=np.uint8), "rgb", 0),
    ],
)
def test_a_pixel_format_declares_the_channels(
    name: str, samples: NDArray[np.generic], channels: str, first: int
) -> None:
    array, own = array_of(samples, name, 2, 3)
    assert own == channels
    assert array.shape[:2] == (2, 3)
    assert array.flat[0] == first
    # The bytes that a producer gives for the same picture are read alike.
    assert np.array_equal(array, array_of(samples.view(np.uint8), name, 2, 3)[0])
    with pytest.raises(ImageError, match="is not whole"):
        array_of(samples, name, 3, 3)


def test_a_pixel_format_that_is_packed_or_unknown_is_no_guess() -> None:
    for name in ("Mono12p", "Mono10Packed", "YUV422_8", "Coord3D_ABC32f_Planar"):
        with pytest.raises(ImageError, match=f"pixel format {name}, which is not read"):
            array_of(np.zeros(100, np.uint8), name, 2, 3)


@pytest.fixture
def producer() -> str:
    pytest.importorskip("harvesters", reason="the package harvesters is not installed")
    genicam = pytest.importorskip("genicam", reason="the package genicam is not installed")
    file = Path(str(genicam.__file__)).with_name("viky.cti")
    if not file.exists():
        pytest.skip("this package genicam has no simulator")
    return str(file)


def test_frames_of_the_simulator_of_genicam_come_through_its_producer(producer: str) -> None:
    with read(f"genicam://{producer}?device=2", name="cam", options={"AcquisitionFrameRate": 50.0}) as source:
        frames = [source.next() for _ in range(3)]
    assert [frame.id for frame in frames] == ["cam#1", "cam#2", "cam#3"]
    assert {(frame.problem, frame.pixels.shape) for frame in frames} == {("", (400, 400, 3))}
    assert frames[0].pixels.std() > 0
    with read(f"genicam://{producer}", name="cam", options={"PixelFormat": "Mono8"}) as source:
        grey = source.next().pixels
    assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize(
    ("query", "options", "problem"),
    [
        ("?device=9", {}, "cam is lost: there is no camera 9. There are: 0, 1, 2"),
        ("", {"Nope": 1}, "cam is lost: the camera does not take Nope = 1: "),
    ],
)
def test_a_camera_or_a_feature_that_is_not_there_is_told(
    producer: str, query: str, options: dict[str, int], problem: str
) -> None:
    with read(f"genicam://{producer}{query}", name="cam", options=options) as source:
        assert source.event().text.startswith(problem)


def test_a_producer_that_is_not_there_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("harvesters", reason="the package harvesters is not installed")
    monkeypatch.delenv("GENICAM_GENTL64_PATH", raising=False)
    for address, problem in {
        "genicam:///none.cti": "/none.cti is no file, so it is no producer",
        "genicam://": "no producer of GenICam is named",
    }.items():
        with pytest.raises(SourceError, match=problem):
            open_source(address)


def test_the_address_of_a_jetsons_sensor_becomes_its_pipeline() -> None:
    assert pipeline_of("csi://1?width=1280&height=720&rate=60&flip=2") == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=60/1,format=NV12 ! "
        "nvvidconv flip-method=2 ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=RGB ! "
        "appsink name=flowedge max-buffers=4 drop=true sync=false"
    )
    own = "videotestsrc ! video/x-raw,format=GRAY16_LE ! appsink name=mine"
    assert pipeline_of(f"gstreamer:{own}") == own
    for address in ("csi://", "csi://x", "csi://0?width=1 ! fakesink", "csi://0?size=3", "csi://0?width="):
        with pytest.raises(SourceError, match="is no address of a sensor"):
            pipeline_of(address)


def test_a_buffer_of_gstreamer_is_read_by_its_caps_and_rows_end_at_four_bytes() -> None:
    rows = np.arange(2 * 16, dtype=np.uint8).reshape(2, 16)
    array, channels = array_of_caps(rows.reshape(-1), "BGR", 2, 5)
    assert (channels, array.shape) == ("bgr", (2, 5, 3))
    assert array[1, 4].tolist() == [28, 29, 30]
    deep, _ = array_of_caps(rows.reshape(-1)[:8], "GRAY16_LE", 2, 2)
    assert deep.tolist() == [[0x0100, 0x0302], [0x0504, 0x0706]]
    with pytest.raises(ImageError, match="which is not read"):
        array_of_caps(rows.reshape(-1), "I420", 2, 5)
    with pytest.raises(ImageError, match="is not whole"):
        array_of_caps(rows.reshape(-1)[:20], "BGR", 2, 5)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, SYSTEM])
    pytest.importorskip(
        "gi", reason="the Python bindings of GStreamer are not installed, or of another Python"
    )


def test_a_library_of_the_system_that_is_not_there_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gi", None)
    for address, package in {
        "gstreamer:videotestsrc": "gst-plugins-base",
        "aravis://": "gir1.2-aravis",
    }.items():
        with pytest.raises(MissingPackageError, match=f"apt-get install python3-gi .*{package}"):
            open_source(address)


@pytest.fixture
def gstreamer(bindings: None) -> None:
    try:
        open_source("gstreamer:videotestsrc").close()
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("gstreamer")
def test_a_real_pipeline_gives_frames_by_the_format_of_its_end() -> None:
    red = "gstreamer:videotestsrc is-live=true pattern=red ! video/x-raw,width=101,height=40,framerate=50/1"
    for end in ("", ",format=BGR ! appsink"):
        with read(f"{red}{end}", name="cam") as source:
            frame = source.next()
        assert (frame.id, frame.problem, frame.pixels.shape) == ("cam#1", "", (40, 101, 3))
        assert (frame.pixels[20, 50] == (255, 0, 0)).all()


@pytest.mark.usefixtures("gstreamer")
def test_a_pipeline_that_ends_or_fails_is_told_and_started_again() -> None:
    with read("gstreamer:videotestsrc num-buffers=3", name="cam") as source:
        assert source.event().text == "cam is lost: the camera ended the stream"
        assert source.event().text == "cam is back"
    with read("gstreamer:filesrc location=/none ! decodebin", name="cam") as source:
        assert source.event().text == "cam is lost: Resource not found."
    with read("gstreamer:rtspsrc location=rtsp://a:secret@cam ! nothing", name="cam") as source:
        assert "secret" not in source.event().text


class GigeCamera:
    """Aravis's fake GigE Vision camera, in a process of its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        program = ["arv-fake-gv-camera-0.8", "-i", "127.0.0.1", "-s", "GV02", *options]
        self._process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def gige(bindings: None) -> Iterator[GigeCamera]:
    if shutil.which("arv-fake-gv-camera-0.8") is None:
        pytest.skip("Aravis's fake camera is not installed: apt-get install aravis-tools gir1.2-aravis-0.8")
    # The camera takes one port of the machine, so that the processes of the tests take turns.
    with open(Path(tempfile.gettempdir()) / "flowedge-tests-gige.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        camera = GigeCamera()
        yield camera
        camera.kill()


FEATURES = {"Width": 64, "Height": 32, "AcquisitionFrameRate": 200.0, "PixelFormat": "Mono8"}


def test_a_gige_camera_whose_numbers_wrap_loses_nothing_and_comes_back(gige: GigeCamera) -> None:
    gige.start()
    with read("aravis://127.0.0.1", name="cam", timeout_s=0.5, options=FEATURES) as source:
        frames = [source.next() for _ in range(150)]  # the numbers begin at 65401 and wrap after 65535
        assert {(frame.problem, frame.pixels.shape) for frame in frames} == {("", (32, 64, 3))}
        assert frames[-1].id == "cam#150"
        # A busy machine may lose a few frames. A wrap that is read as a gap would be 65534.
        assert sum(frame.dropped_before for frame in frames) < 1000
        gige.kill()
        assert source.event().text.startswith("cam is lost: ")
        gige.start()
        assert source.event().text == "cam is back"


def test_a_gige_frame_with_missing_packets_is_not_ok(gige: GigeCamera) -> None:
    gige.start("-r", "50")  # of a thousand packets
    with read(
        "aravis://127.0.0.1", name="cam", timeout_s=3, options={**FEATURES, "Width": 512, "Height": 512}
    ) as source:
        problems = {source.next().problem for _ in range(10)}
    assert any("is not whole" in problem for problem in problems)


def test_a_message_fires_the_software_trigger_of_a_gige_camera(gige: GigeCamera) -> None:
    gige.start()
    features = {**FEATURES, "TriggerMode": "On", "TriggerSource": "Software"}
    trigger = SoftwareTrigger(fires=True, wait_s=0.3)
    with read("aravis://127.0.0.1", name="cam", timeout_s=0, options=features, trigger=trigger) as source:
        assert isinstance(source.source, Triggered)
        assert source.is_quiet(0.2)
        frame = None
        while frame is None or frame.problem:  # the camera may not be connected yet
            assert source.source.trigger("A") == ""
            frame = source.next()
        assert (frame.part, frame.pixels.shape) == ("A", (32, 64, 3))
