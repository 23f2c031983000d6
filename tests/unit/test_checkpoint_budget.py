"""A checkpoint that asks for too much is refused before anything is allocated or walked.

Each file is read in a child process that may take one gigabyte of address space more than it has after the imports, and
twenty seconds.
"""

from __future__ import annotations

import multiprocessing
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import budget, read_checkpoint
from flowedge.export.checkpoints.budget import MAX_PIXELS, check_image_size
from flowedge.export.checkpoints.safe_load import load_untrusted
from support.checkpoint_files import save
from support.limited_reading import read_within_limits
from unit.test_checkpoints_anomalib import CFLOW_HYPER, RESIZE, cflow_state, described, version_2_7

# A process without threads imports PyTorch once and forks every child. A fork of this process would hold the locks of
# threads that other tests left behind, and may wait for them for ever.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["flowedge.export.checkpoints"])
NO_OTHER_LIMITS: Mapping[str, int] = {}


def text(value: str) -> bytes:
    """Return the opcode that pushes a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def entry(key: str, value: bytes) -> bytes:
    """Return the opcodes that push a dict of one entry."""
    return b"}" + text(key) + value + b"s"


def archive(path: Path, data: bytes, arrays: int = 0) -> Path:
    """Write the archive of a pickle, with arrays of one float each."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + data + b".")
        file.writestr("archive/version", b"3\n")
        for key in range(arrays):
            file.writestr(f"archive/data/{key}", bytes(4))
    return path


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"K\x01tQK\x00%b%b\x89NtR"
)


def tensor(shape: bytes, strides: bytes) -> bytes:
    """Return the opcodes of a tensor over one stored float."""
    return TENSOR.replace(b"%b", shape, 1).replace(b"%b", strides, 1)


def message_of(path: Path, limits: Mapping[str, int] = NO_OTHER_LIMITS) -> str:
    """Read a file in a child process, and return the message of the error that it ends in."""
    results: multiprocessing.Queue[str] = SERVER.Queue()
    child = SERVER.Process(target=read_within_limits, args=(str(path), dict(limits), results), daemon=True)
    child.start()
    try:
        message = results.get(timeout=20)
    finally:
        child.kill()
        child.join()
    return message


def nested(opener: bytes, closer: bytes, depth: int) -> bytes:
    """Return the opcodes of containers inside one another."""
    return opener * depth + closer * (depth - 1)


LIST = b"cbuiltins\nlist\n"
PICKLES: dict[str, tuple[bytes, str]] = {
    "a tensor of strides of zero": (
        entry("w", tensor(b"\x8a\x05\x00\xe4\x0b\x54\x02\x85", b"K\x00\x85")),
        "bytes",
    ),
    "a tensor of 10^20 elements": (
        entry("w", tensor(b"\x8a\x05\x00\xe4\x0b\x54\x02" * 2 + b"\x86", b"K\x00K\x00\x86")),
        "malformed|bytes",
    ),
    "a tensor of many dimensions": (
        entry("w", tensor(b"(" + b"K\x01" * 5000 + b"t", b"(" + b"K\x00" * 5000 + b"t")),
        "dimensions",
    ),
    "many small tensors of strides of zero": (
        b"}"
        + text("a")
        + tensor(b"J\x00\x00\x80\x00\x85", b"K\x00\x85")
        + b"s("
        + b"".join(text(f"k{n}") + tensor(b"J\x00\x00\x80\x00\x85", b"K\x00\x85") for n in range(40))
        + b"u",
        "bytes",
    ),
    "many objects": (b"(" + b"]" * 110_000 + b"l", "objects"),
    "many tensors": (
        b"c__builtin__\nlist\n0"
        + tensor(b"K\x01\x85", b"K\x01\x85")[:-1].replace(b"ctorch._utils", b"ctorch._utils")
        + b"q\x05(ctorch._utils\n_rebuild_tensor_v2\nq\x06"
        + b"h\x06h\x05R" * 110_000
        + b"l",
        "tensors",
    ),
    "copies of a long list": (
        b"](" + b"K\x01" * 50_000 + b"eq\x00" + LIST + b"q\x01(" + b"h\x01h\x00\x85R" * 1000 + b"l",
        "objects",
    ),
    "copies of a long string": (
        text("a" * 4_000_000)
        + b"q\x00c_codecs\nencode\nq\x01("
        + (b"h\x01h\x00" + text("latin1") + b"\x86R") * 3000
        + b"l",
        "bytes made by calls",
    ),
    "one state of many objects": (
        b"}("
        + b"".join(text(f"k{n}") + b"N" for n in range(20_000))
        + b"uq\x00ctorchvision\nA\nq\x01("
        + b"h\x01)\x81h\x00b" * 20_000
        + b"l",
        "objects",
    ),
    "a long string": (b"X" + struct.pack("<I", 20_000_000) + b"a" * 20_000_000, "string"),
    "a string longer than the file": (b"X" + struct.pack("<I", 0xFFFFFFF0) + b"a", "string"),
    "an array of bytes by its length": (
        b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x04\x85R",
        "malformed",
    ),
    "an integer of millions of digits": (
        b"\x8b" + struct.pack("<i", 3_000_000) + b"\x7f" * 3_000_000,
        "digits",
    ),
    "a long name of a class": (b"ctorchvision\n" + b"a" * 600 + b"\n", "name"),
    "a long key": (entry("state_dict", entry("k" * 5000, b"N")), "name"),
    "a long key of an integer": (b"}\x8a\x40" + b"\x7f" * 64 + b"Ns", "key"),
    "a model inside models": (
        entry("model", b"ctorch.nn\nModule\n)\x81q\x00}" + text("_modules") + entry("a", b"h\x00") + b"sb"),
        "limit",
    ),
}


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_that_costs_too_much_is_refused_with_the_file_and_the_reason(
    what: str, tmp_path: Path
) -> None:
    data, reason = PICKLES[what]
    # A tenth of the budget is spent in a tenth of the time.
    limits = {"MAX_STEPS": 100_000, "MAX_TENSORS": 10_000}
    message = message_of(archive(tmp_path / "hostile.ckpt", data, arrays=1), limits)
    assert message.startswith(str(tmp_path / "hostile.ckpt")), message
    assert any(word in message for word in reason.split("|")), message
    assert len(message) < 2000


HYPER: dict[str, tuple[bytes, str]] = {
    "lists that double": (b"]" + text("layer") + b"aq\x00" + b"0]h\x00ah\x00aq\x00" * 60, "layers"),
    "a list that holds itself": (b"]q\x00h\x00a", "layers"),
    "deep lists": (nested(b"]", b"a", 50_000), "containers"),
    "deep dicts": (b"}" + (text("k") + b"}") * 20_000 + b"s" * 20_000, "containers"),
    "a name of a megabyte": (b"]" + text("a" * 1_000_000) + b"a", "layers"),
    "a hundred thousand names": (b"](" + text("a") * 100_000 + b"e", "layers"),
}


@pytest.fixture(scope="module")
def cflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of anomalib 2.7."""
    state = cflow_state(np.random.default_rng(0))
    path = tmp_path_factory.mktemp("cflow") / "model.ckpt"
    return save(path, version_2_7(state, dict(CFLOW_HYPER), described(RESIZE)))


def with_layers(source: Path, target: Path, value: bytes) -> Path:
    """Copy a checkpoint with other layers in its hyper-parameters, given as opcodes."""
    hyper = b"}" + text("backbone") + text("resnet18") + b"s" + text("layers") + value + b"s"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("data.pkl"):
                data = data[:-1] + text("hyper_parameters") + hyper + b"s."
            new.writestr(info.filename, data)
    return target


@pytest.mark.parametrize("what", HYPER)
def test_hyper_parameters_that_have_no_end_are_refused(what: str, cflow: Path, tmp_path: Path) -> None:
    value, reason = HYPER[what]
    message = message_of(with_layers(cflow, tmp_path / "hostile.ckpt", value))
    assert message.startswith(str(tmp_path / "hostile.ckpt")), message
    assert reason in message
    assert len(message) < 2000


def _zip_cases() -> dict[str, Callable[[bytes], bytes]]:
    def patched(offset: int, value: bytes) -> Callable[[bytes], bytes]:
        return lambda data: data[:offset] + value + data[offset + len(value) :] if offset >= 0 else data

    def in_directory(field: int, value: bytes) -> Callable[[bytes], bytes]:
        """Change a field of the directory's last entry, which is the stored array."""

        def change(data: bytes) -> bytes:
            return patched(data.rindex(b"PK\x01\x02") + field, value)(data)

        return change

    def one_place(data: bytes) -> bytes:
        first, last = data.index(b"PK\x01\x02"), data.rindex(b"PK\x01\x02")
        return patched(last + 42, data[first + 42 : first + 46])(data)

    def one_name(data: bytes) -> bytes:
        return data.replace(b"archive/data/1", b"archive/data/0")

    def end(field: int, value: bytes) -> Callable[[bytes], bytes]:
        return lambda data: patched(len(data) - 22 + field, value)(data)

    return {
        "bytes behind the archive": lambda data: data + b"x",
        "bytes before the archive": lambda data: data[:4] + b"x" * 60 + data,
        "another size in the directory": in_directory(20, struct.pack("<LL", 4000, 4000)),
        "a smaller size in the directory": in_directory(20, struct.pack("<LL", 1, 1)),
        "a size of zip64 that is missing": in_directory(20, b"\xff" * 8),
        "a compressed entry": in_directory(10, b"\x08"),
        "an encrypted entry": in_directory(8, b"\x01"),
        "another name than the entry's own": in_directory(46, b"archivf"),
        "an entry behind the end": in_directory(42, b"\xf0\xff\xff\x7f"),
        "two entries in one place": one_place,
        "two entries of one name": one_name,
        "more entries than the budget": end(8, b"\xff\xff\xff\xff"),
        "a directory of another size": end(12, b"\x00\x00\x00\x01"),
        "a comment": lambda data: data[:-2] + b"\x03\x00abc",
        "a zip64 directory elsewhere": lambda data: data[:-22] + b"PK\x06\x07" + bytes(16) + data[-22:],
    }


@pytest.mark.parametrize("what", _zip_cases())
def test_an_archive_that_two_readers_could_understand_in_two_ways_is_refused(
    what: str, tmp_path: Path
) -> None:
    whole = archive(tmp_path / "whole.ckpt", entry("w", tensor(b"K\x01\x85", b"K\x01\x85")), arrays=2)
    assert isinstance(load_untrusted(whole), dict)
    changed = _zip_cases()[what](whole.read_bytes())
    (tmp_path / "changed.ckpt").write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"changed\.ckpt"):
        load_untrusted(tmp_path / "changed.ckpt")


def test_an_old_file_is_within_the_same_budget(tmp_path: Path) -> None:
    torch.save(
        {"w": torch.zeros(1).expand(100_000, 100_000)},
        tmp_path / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    assert "bytes" in message_of(tmp_path / "old.pt")


@pytest.mark.parametrize("position", [-1, -4, -9, -30, -80])
def test_an_old_file_that_is_cut_off_is_refused(position: int, tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "old.pt").read_bytes()[:position])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        load_untrusted(tmp_path / "cut.pt")


def test_an_old_file_whose_counts_lie_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pt").read_bytes()
    for count in (-1, 4, 1 << 40, 1 << 62):
        (tmp_path / "lie.pt").write_bytes(data[:-20] + struct.pack("<q", count) + data[-12:])
        with pytest.raises(CheckpointError, match=r"lie\.pt"):
            load_untrusted(tmp_path / "lie.pt")


def test_types_younger_than_torchs_classes_of_arrays_are_read(tmp_path: Path) -> None:
    tensors = {
        "eight": torch.tensor([1.0, -0.5, 2.0]).to(torch.float8_e4m3fn),
        "words": torch.tensor([1, 65535], dtype=torch.uint16),
        "bytes": bytearray(b"abc"),
    }
    value = load_untrusted(save(tmp_path / "model.pt", tensors))
    assert isinstance(value, dict)
    assert value["eight"].to(torch.float32).tolist() == [1.0, -0.5, 2.0]
    assert value["words"].to(torch.int64).tolist() == [1, 65535]
    assert value["bytes"] == b"abc"


def test_more_couplings_than_any_detector_has_are_refused(tmp_path: Path) -> None:
    state = cflow_state(np.random.default_rng(0))
    first = {name: value for name, value in state.items() if name.startswith("decoders.0.module_list.0.")}
    for k in range(300):
        for name, value in first.items():
            state[name.replace("module_list.0.", f"module_list.{k}.", 1)] = value
    path = save(tmp_path / "model.ckpt", version_2_7(state, dict(CFLOW_HYPER), described(RESIZE)))
    with pytest.raises(CheckpointError, match=r"model\.ckpt.*coupling blocks.*256"):
        read_checkpoint(path)


def test_a_size_of_input_above_the_budget_needs_the_users_word() -> None:
    check_image_size((1024, 1024), given=False)
    with pytest.raises(CheckpointError, match=rf"4096x4096.*{MAX_PIXELS}.*--image-size 4096 4096"):
        check_image_size((4096, 4096), given=False)
    with pytest.raises(CheckpointError, match="are available on this machine"):
        check_image_size((16384 * 64, 16384), given=True)


def test_shared_and_expanded_tensors_of_a_real_size_are_read(tmp_path: Path) -> None:
    weight = torch.arange(64.0)
    tensors = {"weight": weight, "again": weight, "tail": weight[32:], "rows": weight[:8].expand(16, 8)}
    value = load_untrusted(save(tmp_path / "model.pt", tensors))
    assert isinstance(value, dict)
    for name, expected in tensors.items():
        assert torch.equal(value[name], expected), name


def test_a_plain_pickle_of_the_same_kind_is_read(tmp_path: Path) -> None:
    loop: list[object] = []
    loop.append(loop)
    data = pickle.dumps({"loop": loop, "numbers": list(range(1000))}, 2)[2:-1]
    value = load_untrusted(archive(tmp_path / "model.ckpt", data))
    assert isinstance(value, dict)
    assert value["loop"][0] is value["loop"]


def test_a_key_of_too_many_members_is_refused_with_their_number_and_the_limit(tmp_path: Path) -> None:
    file = save(tmp_path / "keys.pt", {tuple(range(budget.MAX_DIMENSIONS + 1)): 1})
    with pytest.raises(CheckpointError) as refusal:
        load_untrusted(file)
    assert "key" in str(refusal.value)
    assert f"has {budget.MAX_DIMENSIONS + 1}, the limit is {budget.MAX_DIMENSIONS}" in str(refusal.value)
