"""Detectors in the format safetensors are read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import read_backbone_weights, read_checkpoint
from flowedge.export.checkpoints.safe_load import load_untrusted
from support.checkpoint_files import cflow_state, prefixed, save
from support.command_line import flowedge as run_flowedge

SETTINGS = {"input_size": "64", "layers": "layer1,layer2"}


def file_of(header: object, values: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values


def entry(start: int, stop: int, shape: list[int] | None = None) -> dict[str, object]:
    return {
        "dtype": "F32",
        "shape": [(stop - start) // 4] if shape is None else shape,
        "data_offsets": [start, stop],
    }


HOSTILE = {
    "empty.safetensors": b"",
    "short.safetensors": b"\x10\0\0",
    "length beyond the file.safetensors": file_of({"a": entry(0, 4)}, bytes(4), length=1 << 40),
    "length of all bits.safetensors": file_of({"a": entry(0, 4)}, bytes(4), length=(1 << 64) - 1),
    "no json.safetensors": file_of(b"{nothing}"),
    "a list.safetensors": file_of([1, 2]),
    "overlap.safetensors": file_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "gap.safetensors": file_of({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "beyond.safetensors": file_of({"a": entry(0, 400)}, bytes(4)),
    "rest.safetensors": file_of({"a": entry(0, 4)}, bytes(400)),
    "shape.safetensors": file_of({"a": entry(0, 4, [10**6, 10**6])}, bytes(4)),
    "overflow.safetensors": file_of({"a": entry(0, 4, [2**40, 2**40])}, bytes(4)),
    "negative.safetensors": file_of({"a": entry(0, 4, [-1])}, bytes(4)),
    "type.safetensors": file_of({"a": {**entry(0, 4), "dtype": "X9"}}, bytes(4)),
    "deep.safetensors": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "long name.safetensors": file_of({"a" * 10_000: entry(0, 4)}, bytes(4)),
    "nothing.safetensors": file_of({}),
}


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "backbone": "resnet50"}])
@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model"])
def test_a_detector_in_safetensors_reads_as_its_state_dict_alone(
    name: str, metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    state = prefixed("model.", cflow_state())
    safetensors.torch.save_file(state, tmp_path / name, metadata=metadata)
    checkpoint = read_checkpoint(tmp_path / name, settings=SETTINGS)
    expected = read_checkpoint(save(tmp_path / "bare.pt", state), settings=SETTINGS)
    assert checkpoint.hyperparameters == expected.hyperparameters
    assert checkpoint.assumed == expected.assumed
    assert checkpoint.tensors.keys() == expected.tensors.keys()
    for key, array in expected.tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[key], array)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in prefixed("model.", cflow_state()).items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path / "model.safetensors", settings=SETTINGS)
    expected = read_checkpoint(save(tmp_path / "bare.pt", state), settings=SETTINGS)
    assert all(np.array_equal(checkpoint.tensors[n], array) for n, array in expected.tensors.items())


def test_a_length_that_begins_as_a_pickle_does_is_no_pickle(tmp_path: Path) -> None:
    state = {"a": torch.zeros(3)}
    data = safetensors.torch.save(state)
    length = struct.unpack("<Q", data[:8])[0]
    wanted = length + (0x80 - length) % 256
    padded = struct.pack("<Q", wanted) + data[8 : 8 + length] + b" " * (wanted - length) + data[8 + length :]
    (tmp_path / "model").write_bytes(padded)
    value = load_untrusted(tmp_path / "model")
    assert isinstance(value, dict)
    assert torch.equal(value["a"], state["a"])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert name in str(caught.value)


def test_a_cut_file_is_refused_with_its_name_as_a_detector_and_as_an_extractor(tmp_path: Path) -> None:
    data = safetensors.torch.save(prefixed("model.", cflow_state()))
    path = tmp_path / "cut.safetensors"
    for kept in (9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:kept])
        for read in (read_checkpoint, read_backbone_weights):
            with pytest.raises(CheckpointError, match=r"cut\.safetensors.*safetensors"):
                read(path)


def test_a_header_above_the_budget_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90 << 20) + b"{")
        file.truncate((90 << 20) + 100)
    with pytest.raises(CheckpointError, match=r"large\.safetensors.*bytes of the header"):
        load_untrusted(path)


def test_info_opens_it(tmp_path: Path) -> None:
    safetensors.torch.save_file(prefixed("model.", cflow_state()), tmp_path / "model.safetensors")
    done = run_flowedge("info", tmp_path / "model.safetensors", "--set", "input_size=64", "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["family"] == "cflow"
