"""A graph that takes frames preprocesses them as the host does, to the last grey level."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

import flowedge
from flowedge.bundle import open_bundle
from flowedge.errors import ImageError
from flowedge.export.graph.frame_graph import Preprocess
from flowedge.geometry import cv2_taps
from flowedge.manifest import Preprocessing, ResizeMethod
from flowedge.resampling import exact_parts, pil_fixed_point
from flowedge.runtime.frames.preprocess import Preprocessor
from support.antialiased import antialiased_matrix
from support.command_line import flowedge as run_flowedge
from support.preprocess_graph import write_preprocess
from support.preprocessings import frame_of, preprocessing_of
from support.tiny_bundle import IMAGE_SIZE, tiny_answer, write_tiny_bundle

METHODS: tuple[ResizeMethod, ...] = ("float_bilinear", "pil_bilinear", "pil_lanczos", "cv2_bilinear")
# Frame, resize, keep_aspect, crop.
ROADS = (
    ((100, 150), (64, 48), False, None),  # both shrink
    ((40, 60), (96, 200), False, None),  # both grow
    ((60, 300), (128, 64), False, None),  # one of each
    ((300, 60), (64, 128), False, None),  # PIL takes the rows first
    ((300, 411), (72, 72), True, (64, 64)),
    ((90, 131), (64, 64), True, (70, 99)),  # the crop sticks out: black
    ((64, 80), (64, 80), False, None),  # nothing to do
    ((64, 81), (64, 40), False, None),
    ((1, 1), (16, 16), False, None),
)


def answer_of(preprocessing: Preprocessing, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    module = Preprocess(preprocessing, (frame.shape[0], frame.shape[1]))
    with torch.inference_mode():
        answer: NDArray[np.float32] = module(torch.from_numpy(frame[None]))[0].numpy()
    return answer


def levels_of(method: ResizeMethod, frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    plain = msgspec.structs.replace(preprocessing_of(method, size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return answer_of(plain, frame).transpose(1, 2, 0) * np.float32(255)


@pytest.mark.parametrize("road", ROADS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_graph_makes_of_a_frame_what_the_host_makes_of_it(
    method: ResizeMethod,
    road: tuple[tuple[int, int], tuple[int, int], bool, tuple[int, int] | None],
) -> None:
    size, resize, keep_aspect, crop = road
    preprocessing = preprocessing_of(method, resize, keep_aspect, crop)
    frame = frame_of(size)
    answer, expected = answer_of(preprocessing, frame), Preprocessor(preprocessing)(frame)
    if method == "float_bilinear":
        np.testing.assert_allclose(answer * 0.225, expected * 0.225, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize(("size", "target"), [((173, 301), (64, 96)), ((90, 31), (100, 128))])
def test_the_graph_makes_of_a_frame_what_the_libraries_make_of_it(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    frame = frame_of(size, 1)
    picture = Image.fromarray(frame)
    for method, resampling in (
        ("pil_bilinear", Image.Resampling.BILINEAR),
        ("pil_lanczos", Image.Resampling.LANCZOS),
    ):
        pil = np.asarray(picture.resize(target[::-1], resampling))
        np.testing.assert_allclose(levels_of(method, frame, target), pil, rtol=0, atol=1e-4)  # type: ignore[arg-type]
    opencv = cv2.resize(frame, target[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(levels_of("cv2_bilinear", frame, target), opencv, rtol=0, atol=1e-4)
    tensor = torch.from_numpy(frame).permute(2, 0, 1).to(torch.float32) / 255
    torchvision = v2.Resize(list(target), antialias=True)(tensor).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(levels_of("float_bilinear", frame, target) / 255, torchvision, atol=2e-6)


@pytest.mark.parametrize("method", ["float_bilinear", "pil_lanczos", "cv2_bilinear"])
def test_the_engines_answer_as_the_host_for_a_batch(method: ResizeMethod, tmp_path: Path) -> None:
    preprocessing = preprocessing_of(method, (72, 72), True, (64, 96))
    frames = np.stack([frame_of((90, 131), seed) for seed in range(3)])
    graph = write_preprocess(preprocessing, (90, 131), tmp_path / "graph.onnx")
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"frame": frames})
    expected = np.stack([Preprocessor(preprocessing)(frame) for frame in frames])
    limit = 5e-6 if method == "float_bilinear" else 0
    np.testing.assert_allclose(answer, expected, rtol=0, atol=limit)
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    compiled = ov.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # The grey levels, of 0.017 each, are the same. OpenVINO divides by a product with the reciprocal.
    np.testing.assert_allclose(compiled(frames)[0], expected, rtol=0, atol=max(limit, 1e-6))


@pytest.mark.parametrize(("outputs", "inputs"), [(256, 1024), (64, 16384), (300, 200), (7, 16384)])
def test_the_parts_of_pils_weights_are_whole_and_their_sums_exact_in_float32(
    outputs: int, inputs: int
) -> None:
    weights = pil_fixed_point(antialiased_matrix(outputs, inputs, kernel="lanczos"))
    parts, bits = exact_parts(weights)
    together = sum(part.astype(np.int64) << (bits * number) for number, part in enumerate(parts))
    np.testing.assert_array_equal(together, weights)
    for part in parts:
        assert 255 * np.abs(part.astype(np.float64)).sum(axis=1).max() < 2**24
        worst = np.where(part > 0, 255, 0).astype(np.float32)  # of each row, the frame with the largest sum
        exact = (part.astype(np.int64) * worst.astype(np.int64)).sum(axis=1)
        np.testing.assert_array_equal(np.einsum("oi,oi->o", part, worst), exact)


def test_opencvs_weights_are_its_own_along_both_axes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        size, target = (tuple(int(side) for side in rng.integers(1, 120, 2)) for _ in range(2))
        frame = frame_of((size[0], size[1]))
        rows, columns = cv2_taps(preprocessing_of("cv2_bilinear", (target[0], target[1])), (size[0], size[1]))
        x = frame.astype(np.int64)
        t = (
            x[:, columns.first] * columns.first_weight[:, None]
            + x[:, columns.second] * columns.second_weight[:, None]
        ) >> 4
        upper = (t[rows.first] * rows.first_weight[:, None, None]) >> 16
        lower = (t[rows.second] * rows.second_weight[:, None, None]) >> 16
        expected = cv2.resize(frame, (target[1], target[0]), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal((upper + lower + 2) >> 2, expected)


def test_a_detector_of_frames_answers_as_one_of_network_inputs(tmp_path: Path) -> None:
    frames = [frame_of(IMAGE_SIZE, seed) for seed in range(3)]
    write_tiny_bundle(tmp_path / "host.flowedge")
    write_tiny_bundle(tmp_path / "frames.flowedge", takes_frames=True)
    with flowedge.load(tmp_path / "frames.flowedge") as detector:
        found = detector.detect_batch(frames)
        alone = detector(np.asfortranarray(frames[1]))
    with flowedge.load(tmp_path / "host.flowedge") as detector:
        expected = detector.detect_batch(frames)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.network_map, other.network_map, rtol=1e-5)
        assert one.score == pytest.approx(other.score, rel=1e-5)
    np.testing.assert_allclose(alone.network_map, found[1].network_map, rtol=1e-5)


def test_the_tiny_graph_of_frames_is_what_numpy_computes(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "frames.flowedge", takes_frames=True)
    frame = frame_of(IMAGE_SIZE)
    with flowedge.load(bundle.path) as detector:
        found = detector(frame)
    image = Preprocessor(bundle.manifest.preprocessing)(frame)[None].astype(np.float64)
    np.testing.assert_allclose(found.network_map, tiny_answer(image)["anomaly_map"][0, 0], rtol=1e-4)


@pytest.mark.parametrize("size", [(IMAGE_SIZE[0] + 1, IMAGE_SIZE[1]), (IMAGE_SIZE[1], IMAGE_SIZE[0])])
def test_a_frame_of_another_size_is_refused_with_both_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "frames.flowedge", takes_frames=True)
    with flowedge.load(bundle.path) as detector:
        expected = f"{size[0]}x{size[1]} pixels.*frames of {IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}"
        with pytest.raises(ImageError, match=expected):
            detector.detect_batch([frame_of(IMAGE_SIZE), frame_of(size)])
        with pytest.raises(ImageError, match="uint8 in RGB"):
            detector(np.zeros((*IMAGE_SIZE, 4), np.uint8))


@pytest.fixture(scope="module")
def exported(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with ``small.flowedge``, exported for frames of 90x120 in two precisions, and some frames."""
    folder = tmp_path_factory.mktemp("frames")
    done = run_flowedge(
        "export", small_checkpoint, "-o", folder / "small.flowedge", "--fp16", "--frame-size", "90x120"
    )
    assert done.status == 0, done.stderr
    for number in range(3):
        Image.fromarray(frame_of((90, 120), number)).save(folder / f"good_{number}.png")
    return folder


def test_a_checkpoint_exported_for_frames_goes_the_whole_road(
    exported: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = exported / "small.flowedge"
    assert open_bundle(bundle).manifest.frame_size == (90, 120)
    assert "90x120, preprocessed in the graph" in run_flowedge("info", bundle).stdout
    commands: tuple[list[str | Path], ...] = (
        ["verify", bundle, "--precision", "fp16"],
        ["verify", bundle, "--against", small_checkpoint, "--data", exported],
        ["calibrate", bundle, "--data", exported],
        ["verify", bundle],
    )
    for arguments in commands:
        done = run_flowedge(*arguments)
        assert done.status == 0, done.stdout + done.stderr
    Image.fromarray(frame_of((91, 120))).save(tmp_path / "other.png")
    Image.fromarray(frame_of((90, 120))).save(tmp_path / "same.png")
    done = run_flowedge("run", bundle, tmp_path, "--json")
    lines = {Path(line["image"]).name: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.status == 1
    assert lines["same.png"]["verdict"] in ("ok", "anomalous")
    assert lines["other.png"]["verdict"] == "not_inspected"
    assert "91x120" in lines["other.png"]["problem"]
    assert "90x120" in lines["other.png"]["problem"]


def test_the_preprocessing_stays_in_float32_in_a_half_precision_graph(exported: Path) -> None:
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(str(exported / "small.flowedge" / "model.fp16.onnx")))
    types = {value.name: value.type.tensor_type.elem_type for value in graph.graph.value_info}
    of_preprocess = [
        types[node.output[0]]
        for node in graph.graph.node
        if node.name.startswith("preprocess/") and node.output[0] in types
    ]
    assert onnx.TensorProto.FLOAT in of_preprocess
    assert onnx.TensorProto.FLOAT16 not in of_preprocess
    assert onnx.TensorProto.FLOAT16 in types.values()


@pytest.mark.parametrize("size", ["90", "90x", "0x90", "90x99999", "90 x 120", "-1x5"])
def test_a_frame_size_that_is_none_is_refused_in_one_line(size: str, tmp_path: Path) -> None:
    done = run_flowedge("export", tmp_path / "any.ckpt", "--frame-size", size)
    assert done.status == 2
    assert "--frame-size takes HEIGHTxWIDTH" in done.stderr
