"""Transforms of torchvision and anomalib are reproduced on the host, in the graph and back in the frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms import v2

from flowedge.calibration.masks import mask_on_map
from flowedge.errors import CheckpointError, ImageError
from flowedge.export.checkpoints import Checkpoint, read_checkpoint
from flowedge.export.graph.frame_graph import Preprocess
from flowedge.geometry import map_to_frame, placement
from flowedge.manifest import FrameStep, Preprocessing
from flowedge.runtime.frames.preprocess import Preprocessor
from support.checkpoint_files import (
    State,
    cflow_state,
    fake_class,
    module_tree,
    prefixed,
    save,
    sequence,
)
from support.command_line import flowedge as run_flowedge
from support.preprocess_graph import write_preprocess

NORMALIZE = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
BICUBIC = v2.InterpolationMode.BICUBIC
PLAIN = Preprocessing(resize=(32, 32), method="float_bilinear", mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transforms")


def read(folder: Path, transform: object, **settings: str) -> Checkpoint:
    hyper = {"backbone": "resnet18", "layers": ["layer1", "layer2"]}
    file = {
        "state_dict": prefixed("model.", cflow_state()),
        "hyper_parameters": hyper,
        "transform": transform,
    }
    return read_checkpoint(save(folder / "model.ckpt", file), settings=settings)


def frame_of(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torch_from_frame(frame: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(frame.transpose(2, 0, 1).astype(np.float32) / 255).contiguous()


def assert_reproduced(folder: Path, transform: Any, frame: NDArray[np.uint8], *, apply: Any = None) -> None:
    """Check that the host and the graph give the same pixels as the transform."""
    preprocessing = read(folder, transform).preprocessing
    expected = (apply or transform)(torch_from_frame(frame)).numpy()
    found = Preprocessor(preprocessing)(frame)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)
    in_graph = Preprocess(preprocessing, (frame.shape[0], frame.shape[1]))(torch.from_numpy(frame)[None])
    np.testing.assert_allclose(in_graph.expand(-1, 3, -1, -1)[0].numpy(), expected, rtol=0, atol=3e-5)
    stored = msgspec.json.decode(msgspec.json.encode(preprocessing), type=Preprocessing)
    assert stored == preprocessing


TRANSFORMS = {
    "grey of three channels": [v2.Grayscale(3), v2.Resize((32, 40)), NORMALIZE],
    "grey of one channel, made three by the means": [v2.Resize((32, 40)), v2.Grayscale(1), NORMALIZE],
    "grey of one channel, made three": [v2.Resize((32, 40)), v2.Grayscale(1), v2.RGB()],
    "grey behind the crop": [v2.Resize(40), v2.CenterCrop(32), v2.Grayscale(3), NORMALIZE],
    "bicubic": [v2.Resize((32, 40), BICUBIC), NORMALIZE],
    "bicubic of the shorter side": [v2.Resize(40, BICUBIC), v2.CenterCrop((32, 36)), NORMALIZE],
    "a crop first": [v2.CenterCrop((50, 70)), v2.Resize((32, 40)), NORMALIZE],
    "a crop first, larger than the frame": [v2.CenterCrop((150, 101)), v2.Resize((32, 40)), NORMALIZE],
    "a crop first and last": [v2.CenterCrop(60), v2.Resize(40), v2.CenterCrop(32)],
    "a crop alone": [v2.CenterCrop((48, 64)), NORMALIZE],
    "padding": [v2.Pad(7), v2.Resize((32, 40)), NORMALIZE],
    "padding of two sides": [v2.Pad([3, 9]), v2.Resize((32, 40)), NORMALIZE],
    "padding of four sides": [v2.Pad([1, 2, 3, 4]), v2.Resize((32, 40)), NORMALIZE],
    "white padding": [v2.Pad(7, fill=1), v2.Resize((32, 40)), NORMALIZE],
    "coloured padding": [v2.Pad(7, fill=(1.0, 0.2, 0)), v2.Resize((32, 40)), v2.Grayscale(3), NORMALIZE],
    "the edge's padding": [v2.Pad([1, 2, 13, 4], padding_mode="edge"), v2.Resize((32, 40)), NORMALIZE],
    "mirrored padding": [v2.Pad([1, 2, 13, 4], padding_mode="reflect"), v2.Resize((32, 40)), NORMALIZE],
    "mirrored padding with the edge": [v2.Pad([1, 2, 9, 4], padding_mode="symmetric"), v2.Resize((32, 40))],
    "padding of padding": [
        v2.Pad(3, fill=1),
        v2.Pad([5, 0], padding_mode="edge"),
        v2.Pad(2),
        v2.Resize((32, 40)),
    ],
    "padding, then a crop": [v2.Pad(30, fill=1), v2.CenterCrop((100, 120)), v2.Resize((32, 40), BICUBIC)],
    "padding behind the resize": [v2.Resize((32, 40)), v2.Pad(3), NORMALIZE],
    "padding behind the resize, more at the end": [v2.Resize((32, 40)), v2.Pad([3, 2, 4, 3]), NORMALIZE],
    "casts": [
        v2.ToDtype(torch.float32, scale=True),
        v2.Resize((32, 40)),
        v2.ToDtype(torch.float32),
        NORMALIZE,
    ],
}


@pytest.mark.parametrize("what", TRANSFORMS)
@pytest.mark.parametrize("size", [(61, 83), (90, 64)])
def test_a_transform_is_reproduced(what: str, size: tuple[int, int], folder: Path) -> None:
    assert_reproduced(folder, v2.Compose(TRANSFORMS[what]), frame_of(*size))


@settings(max_examples=25)
@given(
    data=st.data(),
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    # PyTorch 2.14 itself is wrong for a width of one pixel, where it takes the layout of the memory for another.
    target=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    interpolation=st.sampled_from([v2.InterpolationMode.BILINEAR, BICUBIC]),
)
def test_any_order_of_borders_before_the_resize_is_reproduced(
    data: st.DataObject, size: tuple[int, int], target: tuple[int, int], interpolation: Any, folder: Path
) -> None:
    crops = st.builds(v2.CenterCrop, st.tuples(st.integers(20, 120), st.integers(20, 120)))
    pads = st.builds(
        v2.Pad,
        st.lists(st.integers(0, 19), min_size=4, max_size=4),
        padding_mode=st.sampled_from(["constant", "edge", "reflect", "symmetric"]),
    )
    before = data.draw(st.lists(st.one_of(crops, pads), max_size=3))
    grey = data.draw(st.sampled_from([[], [v2.Grayscale(3)]]))
    at = data.draw(st.integers(0, len(before)))
    steps = [*before[:at], *grey, *before[at:], v2.Resize(list(target), interpolation), NORMALIZE]
    assert_reproduced(folder, v2.Compose(steps), frame_of(*size))


@pytest.mark.parametrize("size", [(61, 83), (90, 64), (50, 50)])
def test_anomalibs_square_padding_is_reproduced(
    size: tuple[int, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    square = fake_class(monkeypatch, "anomalib.data.transforms.square_pad", "SquarePad")()
    resize = v2.Resize((32, 32))
    compose = v2.Compose([resize, NORMALIZE])
    compose.transforms.insert(0, square)

    def apply(image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        y, x = max(width - height, 0), max(height - width, 0)
        padding = (x // 2, x - x // 2, y // 2, y - y // 2)
        result: torch.Tensor = NORMALIZE(resize(F.pad(image[None], padding, mode="replicate")[0]))
        return result

    assert_reproduced(folder, compose, frame_of(*size), apply=apply)


@pytest.mark.parametrize(
    "steps",
    [
        [v2.Grayscale(1), v2.Resize((32, 40))],
        [v2.Pad(3, fill=0.5003), v2.Resize((32, 40))],
        [v2.Grayscale(3), v2.Pad(3, fill=1), v2.Resize((32, 40))],
        [v2.Resize((32, 40)), v2.Pad(3, padding_mode="edge")],
        [v2.Resize((32, 40)), v2.Pad([3, 0, 0, 0])],
        [v2.Resize(32), v2.Pad(3)],
        [NORMALIZE, v2.Pad(3), v2.Resize((32, 40))],
        [NORMALIZE, v2.Grayscale(3), v2.Resize((32, 40))],
        [NORMALIZE, v2.CenterCrop(30), v2.Resize((32, 40))],
        [v2.ToDtype(torch.uint8, scale=True), v2.Resize((32, 40))],
        [v2.GaussianBlur(3), v2.Resize((32, 40))],
        [v2.Resize((32, 40)), v2.RandomHorizontalFlip()],
        [v2.Resize((32, 40)), v2.Resize((20, 20))],
    ],
    ids=lambda steps: " ".join(type(step).__name__ for step in steps),
)
def test_what_cannot_be_reproduced_is_refused_by_its_name(steps: list[Any], folder: Path) -> None:
    with pytest.raises(CheckpointError, match="|".join(type(step).__name__ for step in steps)):
        read(folder, v2.Compose(steps))


@pytest.mark.parametrize("mode", [v2.InterpolationMode.NEAREST, v2.InterpolationMode.BILINEAR])
def test_another_resize_needs_the_users_word(mode: Any, folder: Path) -> None:
    transform = v2.Compose([v2.Grayscale(3), v2.Resize((32, 40), mode, antialias=False), NORMALIZE])
    with pytest.raises(CheckpointError, match="--set resize_method=VALUE"):
        read(folder, transform)
    preprocessing = read(folder, transform, resize_method="cv2_bilinear").preprocessing
    assert preprocessing.grayscale
    assert preprocessing.method == "cv2_bilinear"


@pytest.mark.parametrize(
    "steps",
    [
        (FrameStep(kind="center_crop", size=(40, 50)),),
        (FrameStep(kind="pad", border=(3, 5, 11, 2), mode="reflect"),),
        (FrameStep(kind="square_pad", mode="edge"),),
        (FrameStep(kind="center_crop", size=(40, 200)), FrameStep(kind="pad", border=(9, 0, 0, 4))),
    ],
)
@pytest.mark.parametrize("crop", [None, (24, 28)])
def test_a_map_lies_over_the_pixels_that_it_was_made_from(
    steps: tuple[FrameStep, ...], crop: tuple[int, int] | None
) -> None:
    preprocessing = msgspec.structs.replace(PLAIN, frame_steps=steps, crop=crop)
    frame = np.zeros((61, 83, 3), np.uint8)
    # A linear ramp survives every resize, so the map must give it back where it was seen.
    rows, columns = np.mgrid[0:61, 0:83]
    for ramp in (rows, columns):
        frame[...] = ramp[:, :, None]
        network_input = Preprocessor(preprocessing)(frame)[0] * np.float32(255)
        over_frame = map_to_frame(network_input, preprocessing, (61, 83))
        seen = ~np.isnan(over_frame)
        inner = seen & (rows > 4) & (rows < 56) & (columns > 4) & (columns < 78)
        near_border = np.abs(np.nan_to_num(over_frame) - ramp) > 3
        assert (inner & near_border).sum() <= 0.2 * inner.sum()
        assert np.nanmedian(np.abs(over_frame - ramp)[inner]) < 0.7


def test_what_a_crop_before_the_resize_leaves_out_was_not_inspected() -> None:
    steps = (FrameStep(kind="center_crop", size=(40, 50)),)
    preprocessing = msgspec.structs.replace(PLAIN, frame_steps=steps)
    over_frame = map_to_frame(np.ones((8, 8), np.float32), preprocessing, (60, 80))
    expected = np.zeros((60, 80), bool)
    expected[10:50, 15:65] = True
    np.testing.assert_array_equal(~np.isnan(over_frame), expected)
    place = placement(preprocessing, (60, 80))
    assert (place.framed, place.shift) == ((40, 50), (-10, -15))


def test_a_frame_too_small_for_its_mirrored_padding_is_refused() -> None:
    step = FrameStep(kind="pad", border=(0, 9, 0, 0), mode="reflect")
    preprocessing = msgspec.structs.replace(PLAIN, frame_steps=(step,))
    with pytest.raises(ImageError, match="9 pixels along one side"):
        Preprocessor(preprocessing)(np.zeros((9, 30, 3), np.uint8))
    with pytest.raises(ImageError, match="The longest side may be"):
        Preprocessor(preprocessing)(np.zeros((16384, 17, 3), np.uint8))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a model.pt as anomalib's torch export does, with its transform in the pre-processor."""

    def write(transform: object, state: State | None = None) -> Path:
        kind = fake_class(monkeypatch, "anomalib.models.image.cflow.lightning_model", "Cflow")
        processor = fake_class(monkeypatch, "anomalib.pre_processing.pre_processor", "PreProcessor")()
        processor.__dict__.update(transform=transform, export_transform=None, _modules={})
        module = module_tree(kind, prefixed("model.", cflow_state()) if state is None else state)
        module.__dict__["_modules"]["pre_processor"] = processor
        return save(tmp_path / "model.pt", {"model": module})

    return write


def checkpoint_of(folder: Path, **entries: object) -> Path:
    hyper = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "pre_processor": True}
    return save(
        folder / "run.ckpt",
        {"state_dict": prefixed("model.", cflow_state()), "hyper_parameters": hyper, **entries},
    )


def test_the_transform_of_the_runs_export_is_read_and_not_assumed(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    transform = v2.Compose([v2.Grayscale(3), v2.Resize((48, 56), BICUBIC), NORMALIZE])
    path = checkpoint_of(tmp_path)
    alone = read_checkpoint(path)
    assert {a.name for a in alone.assumed} >= {"input_size", "mean", "std"}
    checkpoint = read_checkpoint(path, transform_from=run(transform))
    assert not {a.name for a in checkpoint.assumed} & {"input_size", "resize_method", "mean", "std"}
    expected = read(tmp_path, transform).preprocessing
    assert checkpoint.preprocessing == expected
    assert checkpoint.transform_file is not None
    assert checkpoint.transform_file[0] == "model.pt"
    done = run_flowedge("info", path, "--transform-from", tmp_path / "model.pt")
    assert done.status == 0, done.stderr
    assert "model.pt" in done.stdout


def test_a_file_of_another_training_is_refused_by_its_name(run: Callable[..., Path], tmp_path: Path) -> None:
    transform = v2.Resize((48, 56))
    path = checkpoint_of(tmp_path)
    rng = np.random.default_rng(0)
    smaller = prefixed("model.decoders.0.", sequence(rng, 64, condition=4))
    fastflow = prefixed("model.fast_flow_blocks.0.", sequence(rng, 6, kernel=3))
    for state, reason in ((smaller, "another model"), (fastflow, "fastflow")):
        with pytest.raises(CheckpointError, match=rf"model\.pt.*{reason}"):
            read_checkpoint(path, transform_from=run(transform, state))
    with pytest.raises(CheckpointError, match=r"model\.pt holds no transform"):
        read_checkpoint(path, transform_from=run(None))
    with pytest.raises(CheckpointError, match=r"nothing\.pt"):
        read_checkpoint(path, transform_from=tmp_path / "nothing.pt")
    own = checkpoint_of(tmp_path, transform=v2.Resize((64, 64)))
    with pytest.raises(CheckpointError, match="its own transform"):
        read_checkpoint(own, transform_from=run(transform))
    assert read_checkpoint(own, transform_from=run(v2.Resize((64, 64)))).preprocessing.resize == (64, 64)


def test_a_graph_of_frames_with_changed_borders_gives_the_hosts_input(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    steps = (
        FrameStep(kind="center_crop", size=(50, 90)),
        FrameStep(kind="pad", border=(3, 5, 11, 2), fill=(255, 0, 9)),
    )
    preprocessing = msgspec.structs.replace(
        PLAIN, frame_steps=steps, method="float_bicubic", grayscale=True, crop=(30, 28)
    )
    graph = write_preprocess(preprocessing, (61, 83), tmp_path / "preprocess.onnx")
    frame = frame_of(61, 83)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found = session.run(None, {"frame": frame[None]})[0][0]
    np.testing.assert_allclose(found, Preprocessor(preprocessing)(frame), rtol=0, atol=3e-6)


def test_the_evaluation_lays_masks_where_their_images_went() -> None:
    steps = (FrameStep(kind="center_crop", size=(40, 90)), FrameStep(kind="pad", border=(0, 4, 0, 4)))
    preprocessing = msgspec.structs.replace(PLAIN, frame_steps=steps, resize=(48, 90))
    mask = np.zeros((60, 80), bool)
    mask[20:30, 0:7] = True
    expected = np.zeros((48, 90), bool)
    expected[14:24, 5:12] = True  # 10 rows are cut off, 4 rows and 5 columns are added
    np.testing.assert_array_equal(mask_on_map(mask, preprocessing, (48, 90)), expected)
