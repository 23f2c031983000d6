"""Checkpoints of other tools and people are read, which trials found refused or slow."""

from __future__ import annotations

import http
import inspect
import io
import json
import operator
import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torchvision.transforms import v2

from flowedge.errors import CheckpointError
from flowedge.export.backbones.convolutional import stage_names
from flowedge.export.checkpoints import Checkpoint, read_backbone_weights, read_checkpoint
from flowedge.export.checkpoints.network_names import current_name
from flowedge.export.checkpoints.settings import network_name
from flowedge.export.pipeline import ExportOptions, read_model
from flowedge.text import shown
from support.checkpoint_files import State, cflow_state, prefixed, save
from support.command_line import flowedge as run_flowedge
from support.tiny_bundle import write_tiny_bundle

HYPER = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "clamp_alpha": 1.7}
SIZE = {"input_size": "64"}


def read(path: Path, value: object, **settings: str) -> Checkpoint:
    return read_checkpoint(save(path, value), settings={**SIZE, **settings})


def assert_tensors(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    expected = read(
        tmp_path / "plain.ckpt", {"state_dict": prefixed("model.", state), "hyper_parameters": HYPER}
    )
    assert checkpoint.tensors.keys() == expected.tensors.keys()
    for name, array in expected.tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], array)


def test_deepspeeds_file_is_read(tmp_path: Path) -> None:
    state = cflow_state()
    file = {
        "module": prefixed("_forward_module.model.", state),
        "buffer_names": [],
        "ds_config": {},
        "hyper_parameters": HYPER,
    }
    assert_tensors(read(tmp_path / "mp_rank_00_model_states.pt", file), state, tmp_path)


@pytest.mark.parametrize("start", ["", "ema."])
def test_the_file_of_ema_pytorch_holds_both_kinds_of_weights(start: str, tmp_path: Path) -> None:
    trained, averaged = cflow_state(0), cflow_state(1)
    state = {
        **prefixed(f"{start}online_model.", trained),
        **prefixed(f"{start}ema_model.", averaged),
        f"{start}initted": torch.tensor(True),
        f"{start}step": torch.tensor(3),
    }
    file = {"state_dict": state, "hyper_parameters": HYPER}
    assert_tensors(read(tmp_path / "a.ckpt", file), trained, tmp_path)
    assert_tensors(read(tmp_path / "a.ckpt", file, weights="ema"), averaged, tmp_path)


def test_a_file_with_the_detector_under_an_unknown_name_says_what_to_save(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pt.*net\.decoders.*state_dict\(\)"):
        read(tmp_path / "a.pt", {"state_dict": prefixed("net.decoders.", cflow_state())})


@pytest.mark.parametrize(
    "value",
    [
        torch.relu,
        operator.itemgetter("score"),
        print,
        KeyboardInterrupt(),
        torch.cuda.OutOfMemoryError("x"),
        io.BytesIO(b"a"),
        platform.uname(),
        signal.SIGTERM,
        http.HTTPStatus.OK,
        inspect.signature(lambda a, b=1: None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_pythons_and_torchs_own_block_no_file(value: object, tmp_path: Path) -> None:
    file = {"state_dict": prefixed("model.", cflow_state()), "hyper_parameters": {**HYPER, "value": value}}
    assert read(tmp_path / "a.ckpt", file).hyperparameters["clamp"] == 1.7


def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", [quantised, jagged])
def test_an_odd_tensor_is_refused_by_its_name_only_where_it_is_a_weight(
    odd: Callable[[], torch.Tensor], tmp_path: Path
) -> None:
    state = prefixed("model.", cflow_state())
    name = "model.decoders.0.module_list.0.global_scale"
    read(tmp_path / "a.ckpt", {"state_dict": state, "hyper_parameters": {**HYPER, "x": odd()}})
    with pytest.raises(CheckpointError, match=rf"{name}.*ordinary tensors"):
        read(tmp_path / "a.ckpt", {"state_dict": {**state, name: odd()}, "hyper_parameters": HYPER})


def test_a_large_nested_value_is_shown_in_one_short_line() -> None:
    wide: object = "layer\n"
    for _ in range(12):
        wide = [wide] * 6
    assert len(shown(wide)) < 500
    assert shown({"a": torch.empty(3, 4, device="meta")}) == "{'a': <a tensor of shape (3, 4)>}"
    assert "\n" not in shown({"x" * 10**6: 10**3000})


@pytest.mark.parametrize(
    "written",
    [
        *("timm:resnet18", "timm.resnet18", "timm.models.resnet18", "timm.models.resnet.resnet18.a1_in1k"),
        *(
            "models.resnet18",
            "models.resnet.resnet18",
            "resnet18_weights.imagenet1k_v1",
            "timm.models/resnet18",
        ),
    ],
)
def test_a_networks_name_may_stand_behind_its_modules(written: str) -> None:
    assert current_name(network_name(written)).partition(".")[0] == "resnet18"


def lightning(state: State, **hyper: object) -> dict[str, object]:
    return {"state_dict": prefixed("model.", state), "hyper_parameters": {**HYPER, **hyper}}


@pytest.mark.parametrize("network", ["vit_7b_patch16_dinov3", "swinv2_cr_giant_384"])
def test_a_huge_network_that_a_small_file_names_is_not_built(network: str, tmp_path: Path) -> None:
    if not timm.is_model(network):
        pytest.skip("another version of timm")
    stages = stage_names(network)
    path = save(tmp_path / "a.ckpt", lightning(cflow_state(), backbone=network, layers=stages[1:3]))
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*parameters.*--set backbone="):
        read_model(path, ExportOptions(settings=SIZE))


@pytest.mark.parametrize(
    "hyper", [{"layers": ["layer1", "layer9"]}, {"backbone": "mcait"}, {"layers": ["layer1", "layer1"]}]
)
def test_what_is_wrong_with_an_extractor_is_said_with_the_checkpoints_name(
    hyper: dict[str, object], tmp_path: Path
) -> None:
    path = save(tmp_path / "a.ckpt", lightning(cflow_state(), **hyper))
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        read_model(path, ExportOptions(settings=SIZE))


def test_weights_of_an_extractor_with_nan_are_refused_by_their_files_name(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", {"conv1.weight": torch.full((2,), torch.nan)})
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_backbone_weights(path)


def test_a_window_of_pixels_that_is_none_is_refused_before_a_bundle_is_made(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pixel_range=5,1"):
        read(tmp_path / "a.ckpt", lightning(cflow_state()), pixel_range="5,1")


def test_a_clamp_that_is_none_is_replaced_by_the_users(tmp_path: Path) -> None:
    file = lightning(cflow_state(), clamp_alpha=torch.tensor(1.5))
    with pytest.raises(CheckpointError, match=r"tensor of shape \(\).*--set clamp="):
        read(tmp_path / "a.ckpt", file)
    checkpoint = read(tmp_path / "a.ckpt", file, clamp="1.5")
    assert checkpoint.hyperparameters["clamp"] == 1.5
    (why,) = [one.why for one in checkpoint.assumed if one.name == "clamp"]
    assert "a tensor of shape ()" in why


@pytest.mark.parametrize("option", ["--against", "--backbone-weights"])
def test_verify_looks_at_its_files_before_it_opens_an_engine(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b.flowedge").path
    pipe = tmp_path / "pipe.ckpt"
    os.mkfifo(pipe)
    good = save(tmp_path / "good.ckpt", {})
    monkeypatch.setattr(
        "flowedge.runtime.verify.verify_bundle", lambda *_, **__: pytest.fail("an engine was opened")
    )
    against: list[str | Path] = [] if option == "--against" else ["--against", good]
    done = run_flowedge("verify", bundle, *against, option, pipe)
    assert (done.status, "pipe.ckpt" in done.stderr) == (2, True), done.stderr


def test_a_safetensors_file_with_a_tensor_of_many_axes_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    header = json.dumps({"deep": {"dtype": "F32", "shape": [1] * 3000, "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"a\.safetensors.*deep.*3000"):
        read_checkpoint(path)


def test_the_index_of_a_model_in_several_files_is_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match=r"index\.json.*one file"):
        read_checkpoint(path)


def test_pickles_of_protocol_1_are_read_in_both_formats(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.ckpt"
        torch.save(lightning(cflow_state()), path, pickle_protocol=1, _use_new_zipfile_serialization=zipped)
        assert read_checkpoint(path, settings=SIZE).family == "cflow"


def test_info_refuses_a_name_that_no_file_can_have_and_options_that_a_bundle_does_not_take(
    tmp_path: Path,
) -> None:
    done = run_flowedge("info", tmp_path / ("a" * 300))
    assert (done.status, "aaaa" in done.stderr) == (2, True)
    bundle = write_tiny_bundle(tmp_path / "b.flowedge").path
    done = run_flowedge("info", bundle, "--set", "clamp=3")
    assert (done.status, "b.flowedge" in done.stderr, "--set" in done.stderr) == (2, True, True)


def normalize(mean: Any, std: Any) -> v2.Normalize:
    """Make torchvision's Normalize with its numbers in the type that a user gives."""
    return v2.Normalize(mean, std)


@pytest.mark.parametrize(
    "transform",
    [
        v2.Compose([v2.Compose([v2.Resize((64, 64))]), v2.Compose([v2.Normalize([0.5] * 3, [0.25] * 3)])]),
        torch.nn.Sequential(v2.Resize((64, 64)), v2.Normalize([0.5] * 3, [0.25] * 3)),
        v2.Compose([v2.Resize((64, 64)), normalize(np.full(3, 0.5), np.full(3, 0.25))]),
        v2.Compose([v2.Resize((64, 64)), normalize(torch.full((3,), 0.5), torch.full((3,), 0.25))]),
    ],
    ids=["composed of composed ones", "a Sequential", "arrays", "tensors"],
)
def test_a_transform_is_read_however_its_steps_and_numbers_are_held(
    transform: object, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.ckpt", {**lightning(cflow_state()), "transform": transform})
    preprocessing = read_checkpoint(path).preprocessing
    assert (preprocessing.resize, preprocessing.mean) == ((64, 64), (0.5, 0.5, 0.5))
    assert preprocessing.std == (0.25, 0.25, 0.25)


def test_a_transform_that_holds_itself_is_refused(tmp_path: Path) -> None:
    endless: Any = v2.Compose([v2.ToImage()])
    endless.transforms += [endless, endless]
    path = save(tmp_path / "a.ckpt", {**lightning(cflow_state()), "transform": endless})
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*steps of the transform"):
        read_checkpoint(path, settings={"input_size": "64"})
