"""The graph that makes the network's input on a device gives what the host and the libraries give."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowedge.manifest import FrameStep, Preprocessing, ResizeMethod
from flowedge.runtime.frames.device_input import FRAMES, input_graph
from flowedge.runtime.frames.preprocess import Preprocessor
from support.preprocessings import frame_of, preprocessing_of

METHODS: tuple[ResizeMethod, ...] = ("float_bilinear", "float_bicubic", "pil_bilinear", "pil_lanczos")
# Frame, resize, keep_aspect, crop.
ROADS = (
    ((100, 150), (64, 48), False, None),  # both shrink
    ((60, 300), (128, 64), False, None),  # one of each
    ((300, 60), (64, 128), False, None),  # PIL takes the rows first
    ((90, 131), (64, 64), True, (70, 99)),  # the crop sticks out: black
    ((64, 80), (64, 80), False, None),  # nothing to do
    ((1, 1), (16, 16), False, None),
)


def answer_of(preprocessing: Preprocessing, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    graph = input_graph(preprocessing, (frames.shape[1], frames.shape[2]))
    assert graph is not None
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    answer: NDArray[np.float32] = session.run(None, {FRAMES: frames})[0]
    return answer


@pytest.mark.parametrize("road", ROADS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_device_makes_of_frames_what_the_host_makes_of_them(method: ResizeMethod, road: Any) -> None:
    size, resize, keep_aspect, crop = road
    preprocessing = preprocessing_of(method, resize, keep_aspect, crop)
    frames = np.stack([frame_of(size), frame_of(size, 1)])
    expected = np.stack([Preprocessor(preprocessing)(frame) for frame in frames])
    np.testing.assert_allclose(answer_of(preprocessing, frames), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "steps",
    [
        (
            FrameStep(kind="center_crop", size=(40, 200), fill=(9, 0, 200)),
            FrameStep(kind="pad", border=(9, 0, 0, 4)),
        ),
        (FrameStep(kind="square_pad", mode="edge"),),
    ],
    ids=str,
)
def test_borders_and_grey_are_as_on_the_host(steps: Any) -> None:
    preprocessing = msgspec.structs.replace(
        preprocessing_of("pil_bilinear", (40, 40)), frame_steps=steps, grayscale=True
    )
    frames = np.stack([frame_of((70, 90)), frame_of((70, 90), 1)])
    expected = np.stack([Preprocessor(preprocessing)(frame) for frame in frames])
    np.testing.assert_allclose(answer_of(preprocessing, frames), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "resampling"), [("pil_bilinear", 2), ("pil_lanczos", 1)])
def test_the_grey_levels_of_the_device_are_pils(method: ResizeMethod, resampling: int) -> None:
    plain = msgspec.structs.replace(
        preprocessing_of(method, (64, 96)), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    frames = frame_of((173, 301))[None]
    pil = np.asarray(Image.fromarray(frames[0]).resize((96, 64), Image.Resampling(resampling)))
    levels = answer_of(plain, frames)[0].transpose(1, 2, 0) * np.float32(255)
    np.testing.assert_allclose(levels, pil, rtol=0, atol=1e-4)


def test_the_resize_of_opencv_stays_on_the_host() -> None:
    assert input_graph(preprocessing_of("cv2_bilinear", (40, 40)), (70, 90)) is None
