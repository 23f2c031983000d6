"""An archive of arrays is read without trust in the sizes, types and compression that it declares."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from numpy.typing import NDArray

from flowedge.runtime.device.npz import arrays_from_npz, npz_from_arrays

LARGEST = 1 << 20
FORM = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}\n"


def entry(dtype: str, shape: str, content: bytes = b"", form: str = FORM) -> bytes:
    """Return the content of an archive's entry: a header as NumPy writes it, and bytes."""
    header = form.format(dtype, shape).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def archive(*entries: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as packed:
        for number, content in enumerate(entries):
            packed.writestr(f"array_{number}.npy", content)
    return buffer.getvalue()


@given(
    st.dictionaries(
        st.text("abc_0", min_size=1),
        nps.arrays(
            st.sampled_from(["u1", "<f4", "<f8", "<i8", "<U3", "?"]), nps.array_shapes(min_dims=0, min_side=0)
        ),
        max_size=3,
    )
)
@settings(max_examples=60)
def test_arrays_come_back_as_they_were_packed(arrays: dict[str, NDArray[np.generic]]) -> None:
    found = arrays_from_npz(npz_from_arrays(arrays), largest=LARGEST)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_what_numpy_itself_packs_is_read() -> None:
    buffer = io.BytesIO()
    turned = np.arange(6.0).reshape(2, 3).T
    np.savez_compressed(buffer, turned=turned)
    np.testing.assert_array_equal(arrays_from_npz(buffer.getvalue(), largest=LARGEST)["turned"], turned)


HOSTILE = {
    "empty": b"",
    "no archive": b"x" * 99,
    "a single array": entry("|u1", "(1,)", b"x"),
    "other methods": archive(entry("|u1", "(1,)", b"x"), method=zipfile.ZIP_LZMA),
    "no array": archive(b"hello"),
    "an object": archive(entry("|O", "(1,)", b"x" * 8)),
    "a structure": archive(entry("|V1", "(1,)", b"x")),
    "no such type": archive(entry("<f9", "(1,)", b"x" * 9)),
    "text of no length": archive(entry("<U0", "(9999999999,)")),
    "terabytes declared": archive(entry("|u1", "(1000000, 1000000, 3)", b"x")),
    "beyond 64 bits": archive(entry("|u1", "(9999999999, 9999999999, 3)", b"x")),
    "too many axes": archive(entry("|u1", f"({'1, ' * 80})", b"x")),
    "a negative side": archive(entry("|u1", "(-1, 3)", b"xxx")),
    "too few bytes": archive(entry("<f4", "(2,)", b"x" * 7)),
    "too many bytes": archive(entry("<f4", "(2,)", b"x" * 9)),
    "a nested header": archive(entry("", "", form="[" * 9000)),
    "a header that is code": archive(entry("|u1", "(1,)", b"x", form="__import__('os').abort()\n")),
    "a bomb": archive(entry("|u1", f"({1 << 27},)", bytes(1 << 27))),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_and_costs_nothing(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):  # noqa: PT011  # each has its own words
            arrays_from_npz(data, largest=LARGEST)
        assert tracemalloc.get_traced_memory()[1] < 8 * LARGEST
    finally:
        tracemalloc.stop()


def test_an_encrypted_entry_is_refused() -> None:
    data = bytearray(npz_from_arrays({"a": np.zeros(3)}))
    data[6] |= 1
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ValueError, match="not read"):
        arrays_from_npz(bytes(data), largest=LARGEST)


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_archive_is_refused_or_unharmed(data: st.DataObject) -> None:
    array = np.arange(200, dtype=np.float32)
    whole = npz_from_arrays({"a": array})
    place, change = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    damaged = bytearray(whole)
    damaged[place] ^= change
    for bad in (bytes(damaged), whole[:place]):
        try:
            found = arrays_from_npz(bad, largest=LARGEST)
        except ValueError:
            continue
        assert all((one == array).all() for one in found.values())
