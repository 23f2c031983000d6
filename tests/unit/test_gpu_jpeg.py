"""JPEG files are decoded on a GPU only where that is asked for, and each record then says so."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowedge.errors import EngineUnavailableError
from flowedge.runtime.frames.decoders import DamagedError, jpeg
from flowedge.runtime.frames.decoders.gpu_jpeg import GpuJpegs
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.image_files import ImageFiles
from support.command_line import flowedge
from support.tiny_bundle import write_tiny_bundle


class PretendNvimgcodec(ModuleType):
    """Stands for ``nvidia.nvimgcodec``, whose names and arguments were taken from the package 0.9.0.

    Attributes:
        away: The grey levels by which its pixels differ from libjpeg-turbo's.
        gives_none: True where it decodes nothing, as the library tells by None.
        fails: The text of an error at the start.
        stops: True where a file ends with an error.
    """

    __version__ = "0.9.0"
    ColorSpec = SimpleNamespace(SRGB=1)

    def __init__(self) -> None:
        super().__init__("nvidia.nvimgcodec")
        self.away, self.gives_none, self.fails, self.stops = 1, False, "", False
        self.asked: list[Any] = []

    def DecodeParams(self, apply_exif_orientation: bool = True, color_spec: Any = 1) -> Any:  # noqa: N802
        assert not apply_exif_orientation
        return color_spec

    def Decoder(self, device_id: int = -1, options: str = "") -> Any:  # noqa: N802
        if self.fails:
            raise RuntimeError(self.fails)
        self.asked.append((device_id, options))
        return SimpleNamespace(decode=self._decode)

    def _decode(self, data: bytes, *, params: Any) -> Any:
        if self.stops:
            raise RuntimeError("CUDA Runtime failure: '#2'\n out of memory")
        if self.gives_none:
            return None
        pixels = np.clip(jpeg.decode(data).astype(np.int16) + self.away, 0, 255).astype(np.uint8)
        return SimpleNamespace(cpu=lambda: pixels)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> PretendNvimgcodec:
    made = PretendNvimgcodec()
    monkeypatch.setitem(sys.modules, "nvidia", SimpleNamespace(nvimgcodec=made))
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", made)
    return made


def picture(channels: int = 3) -> NDArray[np.uint8]:
    noise = np.random.default_rng(3).integers(20, 230, (48, 64, channels), np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0))


def file_of(folder: Path, name: str = "a.jpg") -> Path:
    cv2.imwrite(str(folder / name), picture())
    return folder / name


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(EngineUnavailableError, match=r"nvidia\.nvimgcodec.*pip install.*nvimgcodec"):
        GpuJpegs()


def test_a_library_that_finds_no_gpu_is_an_error_in_words(library: PretendNvimgcodec) -> None:
    library.fails = "CUDA Runtime failure: '#35' at\n device_utils.h:32"
    with pytest.raises(
        EngineUnavailableError, match="cannot start: CUDA Runtime failure: '#35' at device_utils"
    ):
        GpuJpegs()


@pytest.mark.parametrize(("away", "is_none", "reason"), [(0, True, "does not decode"), (9, False, "9 away")])
def test_a_decoder_that_is_wrong_about_a_test_picture_is_refused(
    library: PretendNvimgcodec, away: int, is_none: bool, reason: str
) -> None:
    library.away, library.gives_none = away, is_none
    with pytest.raises(EngineUnavailableError, match=reason):
        GpuJpegs()


def test_the_gpu_decodes_what_is_whole_and_the_host_what_the_gpu_leaves(
    library: PretendNvimgcodec, tmp_path: Path
) -> None:
    gpu, file = GpuJpegs(1), file_of(tmp_path)
    assert library.asked == [(1, ":fancy_upsampling=1")]
    assert "nvImageCodec 0.9.0, whose grey levels differ from those of libjpeg-turbo by up to 1" in gpu.words
    expected = read_image(file)
    assert int((read_image(file, decode_jpeg=gpu) - expected).max()) == 1
    frames = list(ImageFiles([file] * 5, readers=3, decode_jpeg=gpu.noted).frames())
    assert all(np.array_equal(frame.pixels, expected + 1) for frame in frames)
    with pytest.raises(DamagedError):
        gpu(file.read_bytes()[:-40])
    library.gives_none = True
    np.testing.assert_array_equal(read_image(file, decode_jpeg=gpu), expected)
    cv2.imwrite(str(tmp_path / "b.png"), picture())
    np.testing.assert_array_equal(
        read_image(tmp_path / "b.png", decode_jpeg=gpu), read_image(tmp_path / "b.png")
    )


def test_a_gpu_that_stops_on_a_file_leaves_it_to_the_host(
    library: PretendNvimgcodec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu, file = GpuJpegs(), file_of(tmp_path)
    library.stops = True
    np.testing.assert_array_equal(read_image(file, decode_jpeg=gpu), read_image(file))
    assert "leaves a JPEG file to the host: CUDA Runtime failure: '#2' out of memory" in caplog.text


@pytest.mark.parametrize(
    ("mode", "options", "colours"),
    [
        ("L", {}, "grey"),
        ("RGB", {}, "YCbCr"),
        ("RGB", {"keep_rgb": True}, "RGB"),
        ("CMYK", {}, "CMYK"),
    ],
)
def test_the_gpu_is_given_grey_and_ycbcr_alone(
    library: PretendNvimgcodec, mode: str, options: dict[str, Any], colours: str
) -> None:
    stored = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(stored, "jpeg", **options)
    data = stored.getvalue()
    assert jpeg.colours_of(data) == colours
    is_of_the_gpu = not np.array_equal(GpuJpegs()(data), jpeg.decode(data))
    assert is_of_the_gpu == (colours in ("grey", "YCbCr"))


def test_files_that_are_read_ahead_keep_their_order_and_their_problems(tmp_path: Path) -> None:
    files = [file_of(tmp_path, f"{number}.jpg") for number in range(9)]
    files[4].write_bytes(b"no picture")
    alone, ahead = (list(ImageFiles(files, readers=count).frames()) for count in (1, 4))
    assert [(one.id, one.problem) for one in ahead] == [(one.id, one.problem) for one in alone]
    assert [bool(one.problem) for one in ahead] == [number == 4 for number in range(9)]


def test_the_records_of_the_files_that_the_gpu_decoded_say_so_and_no_others(
    library: PretendNvimgcodec, tmp_path: Path
) -> None:
    bundle, file = write_tiny_bundle(tmp_path / "tiny.flowedge"), file_of(tmp_path)
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "inks.jpg")
    cv2.imwrite(str(tmp_path / "b.png"), picture())
    files = [str(file), str(tmp_path / "inks.jpg"), str(tmp_path / "b.png")]
    options = ("--engine", "onnxruntime-cpu", "--json", "--jpeg-decoder", "gpu", "--html", "run.html")
    done = flowedge("run", str(bundle.path), *files, *options, cwd=tmp_path)
    by_gpu, *by_host = [json.loads(line)["engine_reason"] for line in done.stdout.splitlines()]
    assert by_gpu.startswith("named. The JPEG file was decoded by nvImageCodec 0.9.0")
    assert by_host == ["named", "named"]
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "1 of 3 images" in page
    assert "decoded by nvImageCodec 0.9.0" in page
    done = flowedge("run", str(bundle.path), "rtsp://nowhere/x", "--jpeg-decoder", "gpu", cwd=tmp_path)
    assert done.status == 2
    assert "is for image files" in done.stderr
