"""Constants of an ONNX file are read and replaced as the onnx package would do it."""

from __future__ import annotations

import resource
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from flowedge.errors import BundleError
from flowedge.onnx_constants import write_constants
from support.oracles.stored_constants import read_constants

DTYPES = [
    np.dtype(name) for name in ("float32", "bool", "int64", "float16", "float64", "int8", "uint8", "int32")
]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: st_numpy.arrays(
        dtype, st_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)
    )
)


def model_with(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    """Make a model that passes its input through, with initializers of many kinds beside it."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    node = helper.make_node("Identity", ["x"], ["y"], name="a node", doc_string="a node's words")
    graph = helper.make_graph([node], "g", [value], [result], list(tensors), doc_string="words")
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="test"
    )


def saved(folder: Path, *tensors: onnx.TensorProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model_with(*tensors).SerializeToString())
    return path


def constants_of(path: Path) -> dict[str, NDArray[Any]]:
    """Return all initializers as the onnx package reads them."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@given(st.lists(ARRAYS, min_size=1, max_size=4))
@settings(max_examples=60)
def test_values_are_read_as_the_onnx_package_wrote_them(arrays: list[NDArray[Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tensors = [numpy_helper.from_array(array, f"c{index}") for index, array in enumerate(arrays)]
        found = read_constants(saved(Path(folder), *tensors), [tensor.name for tensor in tensors])
    assert list(found) == [tensor.name for tensor in tensors]
    assert all(map(equal, found.values(), arrays))


@given(st.data(), st.lists(ARRAYS, min_size=1, max_size=4))
@settings(max_examples=60)
def test_the_onnx_package_reads_the_new_values_and_the_old_neighbours(
    data: st.DataObject, arrays: list[NDArray[Any]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tensors = [numpy_helper.from_array(array, f"c{index}") for index, array in enumerate(arrays)]
        source = saved(Path(folder), *tensors)
        target = Path(folder) / "new.onnx"
        chosen = data.draw(st.integers(0, len(arrays) - 1))
        new = data.draw(st_numpy.arrays(arrays[chosen].dtype, arrays[chosen].shape))
        write_constants(source, target, {f"c{chosen}": new})
        found = constants_of(target)
        expected = onnx.load(source)
        expected.graph.initializer[chosen].CopyFrom(numpy_helper.from_array(new, f"c{chosen}"))
        assert target.read_bytes() == expected.SerializeToString()
    for index, array in enumerate(arrays):
        assert equal(found[f"c{index}"], new if index == chosen else array)


def test_a_new_value_may_have_another_shape_of_the_same_size(tmp_path: Path) -> None:
    source = saved(tmp_path, numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "c"))
    write_constants(source, tmp_path / "new.onnx", {"c": np.array(7, np.float32)})
    assert equal(constants_of(tmp_path / "new.onnx")["c"], np.full((1, 1, 1), 7, np.float32))


def test_a_transposed_value_is_written_in_its_logical_order(tmp_path: Path) -> None:
    source = saved(tmp_path, numpy_helper.from_array(np.zeros((3, 2), np.float32), "c"))
    value = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_constants(source, tmp_path / "new.onnx", {"c": value})
    np.testing.assert_array_equal(constants_of(tmp_path / "new.onnx")["c"], value)


def test_constants_beside_external_data_are_read_and_replaced(tmp_path: Path) -> None:
    big = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model = model_with(
        numpy_helper.from_array(big, "big"), numpy_helper.from_array(np.array([1, 2], np.float32), "small")
    )
    source = tmp_path / "model.onnx"
    onnx.save(model, source, save_as_external_data=True, location="model.data", size_threshold=1024)
    write_constants(source, tmp_path / "new.onnx", {"small": np.array([3, 4], np.float32)})
    found = constants_of(tmp_path / "new.onnx")
    assert equal(found["small"], np.array([3, 4], np.float32))
    assert equal(found["big"], big)
    with pytest.raises(BundleError, match="'big' are not stored as raw data in the file"):
        read_constants(source, ["big"])


def test_a_value_behind_gigabytes_is_read_without_loading_them(tmp_path: Path) -> None:
    # The large field is a hole in a sparse file: an unknown field 100 of the model, before the graph.
    size = 1_500_000_000
    graph = model_with(numpy_helper.from_array(np.array([1], np.float32), "c")).SerializeToString()
    with (tmp_path / "model.onnx").open("wb") as file:
        file.write(b"\xa2\x06" + varint(size))
        file.seek(size, 1)
        file.write(graph)
    tracemalloc.start()
    found = read_constants(tmp_path / "model.onnx", ["c"])["c"]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, np.array([1], np.float32))
    assert peak_bytes < 1_000_000


def varint(value: int) -> bytes:
    """Encode a number as protobuf writes it."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, *, dims: bytes = b"\x08\x01", raw: bytes = b"\0\0\0\0", data_type: int = 1) -> bytes:
    """Encode a TensorProto by hand, of one float32 by default."""
    return dims + b"\x10" + varint(data_type) + field(8, name.encode()) + field(9, raw)


def in_model(*tensors: bytes) -> bytes:
    return field(7, b"".join(field(5, one) for one in tensors))


def test_dimensions_one_by_one_and_packed_are_both_read(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.float32)
    for dims in (b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03", b"\x08\x02\x0a\x01\x03"):
        (tmp_path / "model.onnx").write_bytes(in_model(tensor("c", dims=dims, raw=data.tobytes())))
        found = read_constants(tmp_path / "model.onnx", ["c"])["c"]
        np.testing.assert_array_equal(found, data.reshape(2, 3))


def test_a_graph_in_two_parts_is_one_graph(tmp_path: Path) -> None:
    # Protobuf: parts of the same message are merged.
    (tmp_path / "model.onnx").write_bytes(in_model(tensor("a")) + in_model(tensor("b")))
    assert list(read_constants(tmp_path / "model.onnx", ["b", "a"])) == ["b", "a"]


HUGE = b"\x08" + varint(2**62)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no constants named 'c'"),
        (in_model(tensor("other")), "no constants named 'c'"),
        (in_model(tensor("c"), tensor("c")), "two constants named 'c'"),
        (in_model(tensor("c", raw=b"\0\0\0")), r"'c' has 3 bytes for float32 \(1,\)"),
        (in_model(tensor("c", dims=b"\x08\x02")), r"'c' has 4 bytes for float32 \(2,\)"),
        (in_model(tensor("c", dims=HUGE)), "has the dimensions"),
        (in_model(tensor("c", dims=b"\x08\x00" + HUGE, raw=b"")), "has the dimensions"),
        (in_model(tensor("c", dims=b"\x08" + varint(2**64 - 1))), "has the dimensions"),
        (in_model(tensor("c", dims=b"\x08\x01" * 1000)), "more than 32 dimensions"),
        (in_model(tensor("c", dims=field(1, b"\x01" * 1000))), "more than 32 dimensions"),
        (in_model(tensor("c", data_type=8)), "data type 8"),
        (in_model(tensor("c", data_type=16)), "data type 16"),
        (in_model(field(8, b"c")), "data type 0"),
        (in_model(b"\x10\x01" + field(8, b"c")), "not stored as raw data"),
        (in_model(b"\x10\x01\x48\x00" + field(8, b"c")), "'c' has 0 bytes for float32"),
        (b"\x3b", "wire type 3"),
        (b"\x3f", "wire type 7"),
        (b"\x02\x00", "field 0"),
        (b"\x3a" + b"\xff" * 11, "longer than 64 bits"),
        (b"\x3a" + varint(2**64 - 1), "does not end where its message does"),
        (b"\x3a\x7f\x2a", "does not end where its message does"),
        (b"\x3a\x03\x2a\x05\x00", "does not end where its message does"),
        (b"\x3a\x01\x2a\x00", "ends within a number"),
    ],
)
def test_a_malformed_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=reason) as caught:
        read_constants(path, ["c"])
    assert str(path) in str(caught.value)


def test_elements_outside_of_raw_data_are_refused(tmp_path: Path) -> None:
    listed = helper.make_tensor("c", TensorProto.FLOAT, [2], [1.0, 2.0])
    assert listed.float_data
    with pytest.raises(BundleError, match="'c' are not stored as raw data"):
        read_constants(saved(tmp_path, listed), ["c"])


WHOLE = model_with(
    numpy_helper.from_array(np.array([[1, 2, 3]], np.float32), "c"),
    numpy_helper.from_array(np.array(True), "flag"),
).SerializeToString()


def test_a_file_cut_anywhere_is_refused_or_still_holds_the_value(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    refused = 0
    for size in range(len(WHOLE)):
        path.write_bytes(WHOLE[:size])
        try:
            found = read_constants(path, ["c"])
        except BundleError:
            refused += 1
        else:
            np.testing.assert_array_equal(found["c"], np.array([[1, 2, 3]], np.float32))
    assert refused > len(WHOLE) - 20


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=5))
@example([])
@settings(max_examples=300)
def test_a_damaged_file_gives_an_array_or_a_bundle_error(changes: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for position, byte in changes:
        content[position] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        try:
            found = read_constants(path, ["c", "flag"])
        except BundleError:
            return
    assert sorted(found) == ["c", "flag"]


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_noise_is_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        with pytest.raises(BundleError):
            read_constants(path, ["c"])


@pytest.mark.parametrize(
    "value",
    [np.zeros(2, np.float32), np.zeros((1, 3), np.float64), np.zeros((1, 3), ">f4"), np.zeros(0, "f4")],
)
def test_a_value_of_another_type_or_size_is_a_wrong_argument(tmp_path: Path, value: NDArray[Any]) -> None:
    (tmp_path / "model.onnx").write_bytes(WHOLE)
    with pytest.raises(ValueError, match=r"'c' is float32 \(1, 3\), got"):
        write_constants(tmp_path / "model.onnx", tmp_path / "new.onnx", {"c": value})
    assert not (tmp_path / "new.onnx").exists()


def test_an_existing_file_is_never_written_into(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(WHOLE)
    with pytest.raises(BundleError, match="File exists"):
        write_constants(path, path, {"c": np.zeros((1, 3), np.float32)})
    assert path.read_bytes() == WHOLE


def test_a_missing_file_or_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        read_constants(tmp_path / "model.onnx", ["c"])
    (tmp_path / "model.onnx").write_bytes(WHOLE)
    with pytest.raises(BundleError, match="cannot be written: No such file"):
        write_constants(
            tmp_path / "model.onnx", tmp_path / "no" / "new.onnx", {"c": np.zeros((1, 3), np.float32)}
        )


def test_a_copy_that_cannot_be_finished_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # Python would keep compiled modules that the limit cut
    path = tmp_path / "model.onnx"
    path.write_bytes(WHOLE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(WHOLE) // 2, hard))
    try:
        with pytest.raises(BundleError, match="cannot be written: File too large"):
            write_constants(path, tmp_path / "new.onnx", {"c": np.zeros((1, 3), np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "new.onnx").exists()
