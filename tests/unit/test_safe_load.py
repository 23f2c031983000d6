"""No code in a checkpoint runs, and a checkpoint that cannot be read is refused with the reason."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowedge.errors import CheckpointError, UnsafeCheckpointError
from flowedge.export.checkpoints import safe_load
from flowedge.export.checkpoints.budget import Budget
from flowedge.export.checkpoints.inert_pickle import unpickle_inert
from flowedge.export.checkpoints.names import Name
from flowedge.export.checkpoints.safe_load import file_sha256, load_untrusted
from flowedge.export.checkpoints.stand_ins import StandIn, Storage
from support.checkpoint_files import fake_class, save


def unpickle(data: bytes, storage: Callable[[torch.dtype, str, int], Storage]) -> tuple[object, int]:
    """Read the pickle at the start of a file, and return its object and the offset of its end."""
    file = io.BytesIO(data)
    return unpickle_inert(file, storage, Budget(len(data))), file.tell()


def no_storage(_dtype: torch.dtype, key: str, _count: int) -> Storage:
    raise KeyError(key)


def archive(path: Path, data: bytes, *, extra: dict[str, bytes] | None = None, compression: int = 0) -> Path:
    """Put a pickle into a zip archive as torch.save lays it out."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", b"3\n")
        for name, content in (extra or {}).items():
            file.writestr(f"archive/{name}", content)
    return path


def text(value: str) -> bytes:
    """Return the opcode that pushes a string."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def name(module: str, qualname: str) -> bytes:
    """Return the opcodes that push ``module.qualname``, as protocol 4 writes them (dots allowed)."""
    return text(module) + text(qualname) + b"\x93"


class Calls:
    """Pickles itself as a call of a function."""

    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.args


SHELL = (b"\x80\x02", b".")


def hostile_pickles(marker: str) -> dict[str, bytes]:
    """Return pickles that try to run something, by the name of the attempt. Success would leave the marker."""
    command = text(f"touch {marker}") + b"\x85"
    write = text(f"open({marker!r}, 'w')") + b"\x85"
    system = name("posix", "system")
    bodies = {
        "os.system": name("os", "system") + command + b"R",
        "posix.system": system + command + b"R",
        "nt.system": name("nt", "system") + command + b"R",
        "builtins.eval": name("builtins", "eval") + write + b"R",
        "builtins.exec": b"c__builtin__\nexec\n" + write + b"R",
        "subprocess.Popen": name("subprocess", "Popen") + text(marker) + b"\x85R",
        "importlib.import_module": name("importlib", "import_module") + text("os") + b"\x85R",
        "torch.hub.load": name("torch.hub", "load") + text("a/b") + text("c") + b"\x86R",
        "torch.serialization.load": name("torch.serialization", "load") + text(marker) + b"\x85R",
        "torch.load": name("torch", "load") + text(marker) + b"\x85R",
        "pip.main": name("pip", "main") + text("install") + b"\x85R",
        "cloudpickle": name("cloudpickle.cloudpickle", "_make_function") + text("x") + b"\x85R",
        "numpy's runstring": name("numpy.testing._private.utils", "runstring") + text("x") + b"\x85R",
        "pickle.loads": name("_pickle", "loads") + text("x") + b"\x85R",
        "Python 2's commands": name("commands", "getoutput") + command + b"R",
        "functools.reduce": name("functools", "reduce") + text("x") + b"\x85R",
        "types.CodeType": name("types", "CodeType") + b")R",
        "torch.storage._load_from_bytes": name("torch.storage", "_load_from_bytes") + text("x") + b"\x85R",
        "torch.jit": name("torch.jit.unsupported_tensor_ops", "execWrapper") + text("x") + b"\x85R",
        "__main__.os.system": name("__main__", "os.system") + command + b"R",
        "mine.Model.__init__": name("mine", "Model.__init__") + b")R",
        "mine/os": name("mine/os", "system") + command + b"R",
        "operator.attrgetter": name("operator", "attrgetter") + text("system") + b"\x85R",
        # names that a real unpickler would walk by their dots
        "torchvision.os.system": name("torchvision", "os.system") + command + b"R",
        "anomalib.x.__globals__": name("anomalib", "x.__globals__"),
        "torch.nn.modules.module.Module.__init__": name("torch.nn.modules.module", "Module.__init__"),
        "torchvision/os.system": name("torchvision/os", "system") + command + b"R",
        # attribute chains, from the one look-up that is allowed
        "builtins.getattr": name("builtins", "getattr")
        + name("freia_funcs", "OutputNode")
        + text("__init__")
        + b"\x86R",
        "getattr dummy.__class__": name("builtins", "getattr")
        + (name("builtins", "getattr") + name("freia_funcs", "OutputNode") + text("dummy") + b"\x86R")
        + text("__class__")
        + b"\x86R",
        "getattr of a module": name("builtins", "getattr")
        + name("torchvision", "io")
        + text("system")
        + b"\x86R",
        # calls of what is no name, and changes of what is one
        "call of a stand-in": name("functools", "partial") + system[:-1] + b"\x93\x85R" + b")R",
        "call of an instance": name("torchvision", "Compose") + b")\x81" + b")R",
        "call of the user's own instance": name("mine", "Model") + b")\x81" + b")R",
        "state of the user's own class": name("mine", "Model") + b"}" + text("x") + b"Nsb",
        "getattr of the user's own module": name("builtins", "getattr")
        + name("mine", "helpers")
        + text("system")
        + b"\x86R",
        "getattr of the user's own class": name("builtins", "getattr")
        + name("mine", "Model")
        + text("__subclasses__")
        + b"\x86R",
        "call of text": text("print") + b")R",
        "state of a function": name("torch._utils", "_rebuild_tensor_v2") + b"}" + text("__code__") + b"Nsb",
        "state of a class": name("torchvision", "Compose") + b"}" + text("x") + b"Nsb",
        "INST": b"(" + text(f"touch {marker}") + b"ios\nsystem\n",
        "OBJ": b"(" + name("os", "system") + text(f"touch {marker}") + b"o",
        "NEWOBJ": name("os", "system") + command + b"\x81",
        "EXT1": b"\x82\x01",
        "PERSID": b"P1\n",
    }
    return {what: b"\x80\x04" + body + b"." for what, body in bodies.items()}


@pytest.mark.parametrize("what", hostile_pickles("x"))
def test_a_hostile_pickle_is_refused_and_runs_nothing(what: str, tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    code_before = torch._utils._rebuild_tensor_v2.__code__
    path = archive(tmp_path / "model.pt", hostile_pickles(str(marker))[what])
    with pytest.raises(UnsafeCheckpointError):
        load_untrusted(path)
    assert not marker.exists()
    assert torch._utils._rebuild_tensor_v2.__code__ is code_before


def test_the_hostile_pickles_would_run_in_pythons_own_unpickler(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    pickle.loads(hostile_pickles(str(marker))["os.system"])
    assert marker.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "the format before PyTorch 1.6"])
def test_a_checkpoint_with_a_call_hidden_among_its_weights_is_refused_by_name(
    tmp_path: Path, zipped: bool
) -> None:
    marker = tmp_path / "it_ran"
    value = {"state_dict": {"weight": torch.ones(2)}, "hyper_parameters": Calls(os.system, f"touch {marker}")}
    torch.save(value, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        load_untrusted(tmp_path / "model.ckpt")
    assert not marker.exists()


def test_a_bare_hostile_pickle_is_refused_by_name(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Calls(os.system, f"touch {marker}")))
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        load_untrusted(tmp_path / "model.pt")
    assert not marker.exists()


def test_a_function_with_an_allowed_looking_name_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    module = types.ModuleType("utils")
    module.payload = lambda *args: ran.append("called")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "utils", module)
    path = archive(tmp_path / "model.pt", b"\x80\x04" + name("utils", "payload") + text("x") + b"\x85R.")
    value = load_untrusted(path)
    assert isinstance(value, StandIn)
    assert (value.kind, value.args, ran) == (Name("utils", "payload"), ("x",), [])


def test_a_class_with_an_allowed_looking_name_is_not_built_nor_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    hostile = fake_class(monkeypatch, "config", "Hostile")
    for method in ("__new__", "__init__", "__setstate__", "__setattr__", "__init_subclass__", "__del__"):
        monkeypatch.setattr(hostile, method, lambda *args, m=method: ran.append(m), raising=False)
    made = name("config", "Hostile") + b")\x81"
    data = b"\x80\x04" + made + b"}" + text("a") + b"K\x01sb."
    value = load_untrusted(archive(tmp_path / "model.pt", data))
    assert isinstance(value, StandIn)
    assert dict(value.attributes) == {"a": 1}
    assert ran == []


def test_a_setstate_planted_in_a_stand_in_is_only_data(tmp_path: Path) -> None:
    # Python's C unpickler looks __setstate__ up on the instance, so planting one there makes BUILD a call.
    planted = name("torchvision", "A") + b")\x81}" + text("__setstate__") + name("utils", "payload") + b"sb"
    value = load_untrusted(archive(tmp_path / "model.pt", b"\x80\x04" + planted + text("argument") + b"b."))
    assert isinstance(value, StandIn)
    assert value.state == "argument"


def test_a_stand_in_keeps_arguments_attributes_and_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = fake_class(monkeypatch, "omegaconf.dictconfig", "DictConfig")()
    instance.__dict__.update(_content={"lr": 0.1, "layers": ["a", "b"]}, weight=torch.arange(3.0))
    value = load_untrusted(save(tmp_path / "model.ckpt", {"hyper_parameters": instance}))
    assert isinstance(value, dict)
    stand_in = value["hyper_parameters"]
    assert isinstance(stand_in, StandIn)
    assert stand_in.kind == Name("omegaconf.dictconfig", "DictConfig")
    assert stand_in.attributes["_content"] == {"lr": 0.1, "layers": ["a", "b"]}
    assert torch.equal(stand_in.attributes["weight"], torch.arange(3.0))  # type: ignore[arg-type]


def test_tensors_read_past_the_allow_list_equal_those_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {
        "plain": base,
        "transposed": base.permute(2, 0, 1),
        "slice": base[1, :, ::2],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([1.5, -2.0, 0.0], dtype=torch.bfloat16),
        "whole": torch.tensor([1, -5], dtype=torch.int64),
        "flags": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    odd = fake_class(monkeypatch, "freia_funcs", "Node")()
    value = load_untrusted(save(tmp_path / "model.pt", OrderedDict(tensors, odd=odd)))
    assert isinstance(value, dict)
    assert isinstance(value["odd"], StandIn)
    for key, expected in tensors.items():
        assert value[key].dtype == expected.dtype
        assert torch.equal(value[key], expected), key


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(1, (4,), (1,)), (0, (5,), (1,)), (0, (2,), (4,)), (-1, (1,), (1,)), (3, (2,), (-1,)), (0, (-1,), (1,))],
)
def test_a_tensor_that_reaches_outside_its_array_is_refused(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    class WithArrays(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if value == "array" else None

    buffer = io.BytesIO()
    call = Calls(torch._utils._rebuild_tensor_v2, "array", offset, size, stride, False, OrderedDict())
    WithArrays(buffer, protocol=2).dump(call)
    with pytest.raises(CheckpointError, match="malformed"):
        unpickle(buffer.getvalue(), lambda dtype, _key, _count: (dtype, torch.zeros(16, dtype=torch.uint8)))


def test_an_array_shorter_than_the_file_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = fake_class(monkeypatch, "freia_funcs", "Node")()
    whole = save(tmp_path / "whole.pt", {"odd": odd, "weight": torch.arange(100.0)})
    with zipfile.ZipFile(whole) as file:
        parts = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(tmp_path / "short.pt", "w") as file:
        for entry, content in parts.items():
            file.writestr(entry, content[:40] if entry.endswith("data/0") else content)
    with pytest.raises(CheckpointError, match=r"malformed.*400 bytes and has 40"):
        load_untrusted(tmp_path / "short.pt")


KEYS = st.integers(-(2**63), 2**63)  # larger ones are no keys
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | KEYS, inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(st.text(max_size=3), max_size=3)
    ),
    max_leaves=12,
)


@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_data_reads_as_pythons_own_unpickler_reads_it(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    read, end = unpickle(data + b"trailing bytes", no_storage)
    assert read == pickle.loads(data)
    assert end == len(data)


def test_shared_and_cyclic_objects_stay_one_object() -> None:
    loop: list[object] = []
    loop.append(loop)
    twice = {"a": loop, "b": loop}
    read, _ = unpickle(pickle.dumps(twice, 2), no_storage)
    assert isinstance(read, dict)
    assert read["a"] is read["b"]
    assert read["a"][0] is read["a"]


SEED = pickle.dumps({"state": OrderedDict(a=[1, 2.5, "x"]), "shape": torch.Size([2, 3])}, 2)


@given(cuts=st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=6))
def test_a_damaged_pickle_is_read_or_refused_but_never_crashes(cuts: list[tuple[int, int]]) -> None:
    data = bytearray(SEED)
    for position, byte in cuts:
        data[position] = byte
    try:
        unpickle(bytes(data), no_storage)
    except CheckpointError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right


@given(data=st.binary(max_size=60))
def test_random_bytes_are_read_or_refused_but_never_crash(data: bytes) -> None:
    try:
        unpickle(b"\x80\x04" + data, no_storage)
    except CheckpointError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right


def test_every_opcode_of_pickle_is_executed_or_refused() -> None:
    refused = {"EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
    source = Path(sys.modules["flowedge.export.checkpoints.inert_pickle"].__file__ or "").read_text()
    known = {opcode.name for opcode in pickletools.opcodes if f'"{opcode.name}"' in source}
    assert {opcode.name for opcode in pickletools.opcodes} - known == refused


@pytest.mark.parametrize("kept", [0.999, 0.6, 0.1])
def test_a_truncated_file_is_refused_with_the_reason(tmp_path: Path, kept: float) -> None:
    data = save(tmp_path / "whole.pt", {"weight": torch.zeros(2000)}).read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(
        CheckpointError, match=r"cut\.pt: it is cut off or damaged.*Copy the checkpoint again"
    ):
        load_untrusted(tmp_path / "cut.pt")


def test_unreadable_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("not a checkpoint\n" * 20)
    (tmp_path / "hello.pt").write_text("hello there")  # opcodes of pickle, as it happens
    (tmp_path / "binary.pt").write_bytes(b"\x80\x02hello there")
    archive(tmp_path / "packed.pt", pickle.dumps({"weight": 1}), compression=zipfile.ZIP_DEFLATED)
    archive(tmp_path / "script.pt", pickle.dumps({}, 2), extra={"constants.pkl": b""})
    archive(tmp_path / "big.pt", pickle.dumps({}, 2), extra={"byteorder": b"big"})
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    for file_name, reason in {
        "missing.pt": "does not exist",
        ".": "is a folder",
        "empty.pt": "is empty",
        "text.pt": "not a file of torch.save: it begins with b'not '",
        "hello.pt": "not a file of torch.save: it begins with b'hell'. Name the checkpoint",
        "binary.pt": r"binary\.pt: the file's pickle is malformed \(KeyError: 101\)",
        "packed.pt": "compressed",
        "script.pt": "TorchScript",
        "big.pt": "big-endian",
        "other.zip": "not one of torch.save",
    }.items():
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_untrusted(tmp_path / file_name)
        assert not isinstance(caught.value, UnsafeCheckpointError)


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(safe_load, "open_regular_file", refuse)
    with pytest.raises(CheckpointError, match="may not be read by this user"):
        load_untrusted(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="may not be read by this user"):
        file_sha256(tmp_path / "model.pt")


def test_an_old_file_of_plain_tensors_is_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(4.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    value = load_untrusted(tmp_path / "old.pt")
    assert isinstance(value, dict)
    assert torch.equal(value["weight"], torch.arange(4.0))


def test_an_old_file_of_whole_objects_is_read_as_stand_ins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = fake_class(monkeypatch, "freia_funcs", "ReversibleGraphNet")()
    odd.__dict__["weight"] = torch.arange(4.0)[1:]
    torch.save({"model": odd}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    value = load_untrusted(tmp_path / "old.pt")
    assert isinstance(value, dict)
    assert isinstance(value["model"], StandIn)
    assert torch.equal(value["model"].attributes["weight"], torch.arange(1.0, 4.0))  # type: ignore[arg-type]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
