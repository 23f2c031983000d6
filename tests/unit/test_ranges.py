"""Ranges fit the observed values, in any order and number of passes, and a damaged store is not used."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from flowedge.calibration.precision import ranges as ranges_module
from flowedge.calibration.precision.ranges import (
    Observer,
    TensorRange,
    bytes_from_ranges,
    ranges_from_bytes,
    ranges_key,
)
from flowedge.runtime.device.npz import npz_from_arrays
from support.block_graph import SIZE, block_model, random_layers
from support.observed import observe

Values = NDArray[np.float32]
FLOATS = st.floats(width=32)
ARRAYS = arrays(np.float32, st.integers(0, 60), elements=FLOATS)
SMALLEST_NORMAL = 2.0**-126


def range_of(*parts: NDArray[Any]) -> TensorRange:
    found = TensorRange()
    for part in parts:
        found.add(part)
    return found


def same(one: TensorRange, other: TensorRange) -> bool:
    limits = [(r.smallest, r.largest, r.infinite) for r in (one, other)]
    return limits[0] == limits[1] and np.array_equal(one.counts, other.counts)


@given(ARRAYS)
@settings(max_examples=150)
def test_limits_are_exact_and_every_value_is_in_its_bin(values: Values) -> None:
    found = range_of(values)
    finite = np.sort(values[np.isfinite(values)])
    assert found.infinite == values.size - finite.size
    assert found.counts.sum() == finite.size
    assert found.largest_magnitude == (np.abs(finite).max() if finite.size else 0)
    if finite.size:
        assert (found.smallest, found.largest) == (finite[0], finite[-1])
    middles, counts = found.histogram()
    assert (np.diff(middles) >= 0).all()
    seen = np.repeat(middles, counts)
    error = np.abs(seen - finite)
    assert (error <= np.maximum(np.abs(finite) * 2.0**-7, SMALLEST_NORMAL)).all()


@given(st.lists(ARRAYS, max_size=5))
@settings(max_examples=60)
def test_many_parts_are_as_one_pass(parts: list[Values]) -> None:
    together = np.concatenate([*parts, np.zeros(0, np.float32)])
    assert same(range_of(*parts), range_of(together))


def test_half_precision_is_counted_as_the_same_numbers() -> None:
    values = np.random.default_rng(0).normal(size=500).astype(np.float16)
    assert same(range_of(values), range_of(values.astype(np.float32)))


@pytest.mark.parametrize("size", [(1 << 17) - 1, 1 << 17, 300_000])
def test_large_tensors_are_counted_like_small_ones(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    values[::3] = 0
    together = range_of(values)
    assert same(together, range_of(*np.array_split(values, 50)))
    assert together.counts.dtype == np.int64
    assert together.counts[0] == len(values[::3])


def test_what_is_kept_does_not_grow_with_the_values() -> None:
    rng = np.random.default_rng(0)
    found = range_of(rng.normal(size=1000))
    tracemalloc.start()
    for scale in np.geomspace(1e-30, 1e30, 200):
        found.add(scale * rng.normal(size=1000))
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert found.counts.sum() == 201_000
    assert grown < 20_000


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(block_model(random_layers(0)), str(path))
    return path


def images_of(count: int) -> list[Values]:
    return list(np.random.default_rng(1).normal(size=(count, 1, 3, *SIZE)).astype(np.float32))


def test_a_graphs_tensors_hold_what_numpy_computes(graph: Path) -> None:
    first, second = random_layers(0)[:2]
    images = images_of(3)
    patches = np.concatenate(images).reshape(3, 3, SIZE[0] // 2, 2, SIZE[1] // 2, 2)
    expected = np.einsum("nciajb,ocab->noij", patches, first.weight) + first.bias[:, None, None]
    behind = np.einsum("ncij,oc->noij", np.maximum(expected, 0), second.weight[:, :, 0, 0])
    behind += second.bias[:, None, None]
    found = observe(graph, ["image", "l0.out", "l1.out"], images, threads=1)
    assert list(found) == ["image", "l0.out", "l1.out"]
    for name, values in {"image": np.concatenate(images), "l0.out": expected, "l1.out": behind}.items():
        assert found[name].counts.sum() == values.size
        assert found[name].smallest == pytest.approx(values.min(), rel=1e-5)
        assert found[name].largest == pytest.approx(values.max(), rel=1e-5)


def test_several_runs_per_image_see_the_same(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, images = ["l0.relu", "l1.out", "l2.relu"], images_of(2)
    together = observe(graph, names, images, threads=1)
    made: list[list[str]] = []

    class Counted(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append([output.name for output in self.get_outputs()])

    monkeypatch.setattr(onnxruntime, "InferenceSession", Counted)
    monkeypatch.setattr(ranges_module, "_OUTPUT_BYTES", 1)
    apart = observe(graph, names, images, threads=1)
    assert made == [[name] for name in names]
    assert all(same(together[name], apart[name]) for name in names)


def test_weights_beside_the_graph_are_found(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    beside = tmp_path / "other" / "model.onnx"
    model = block_model(random_layers(0, (64, 64, 4)))
    onnx.save(model, str(graph))
    onnx.save(model, str(beside), save_as_external_data=True, location="model.onnx.data")
    assert beside.with_name("model.onnx.data").stat().st_size > 10_000
    one, other = (observe(path, ["l2.out"], images_of(1), threads=1) for path in (graph, beside))
    assert same(one["l2.out"], other["l2.out"])


def test_outputs_beside_the_tensors_are_the_graphs_own(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(2)
    session = onnxruntime.InferenceSession(str(graph))
    names = [output.name for output in session.get_outputs()]
    alone = observe(graph, ["l0.out", "l1.out"], images, threads=1)
    monkeypatch.setattr(ranges_module, "_OUTPUT_BYTES", 1)  # a run of its own for each tensor
    observer = Observer(graph, ["l0.out", "l1.out"], outputs=names, threads=1)
    for image in images:
        expected = session.run(names, {session.get_inputs()[0].name: image})
        for one, other in zip(observer(image), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert all(same(alone[name], observer.ranges[name]) for name in alone)


def test_values_that_are_not_finite_are_counted_apart(graph: Path) -> None:
    image = images_of(1)[0]
    image[0, 0, 0, 0] = np.inf
    found = observe(graph, ["l0.out"], [image], threads=1)["l0.out"]
    assert found.infinite == 4, "the patch that holds it, in every channel"
    assert np.isfinite([found.smallest, found.largest]).all()


def test_the_callers_denormals_stay_as_they_were(graph: Path) -> None:
    observe(graph, ["l0.out"], images_of(1))
    assert np.float32(1e-39) * np.ones(1, np.float32)[0] > 0


@given(st.dictionaries(st.text(max_size=20), ARRAYS, max_size=4))
@settings(max_examples=40)
def test_the_store_gives_back_what_was_put_in(values: dict[str, Values]) -> None:
    before = {name: range_of(part) for name, part in values.items() if not name.endswith("\0")}
    after = ranges_from_bytes(bytes_from_ranges(before))
    assert list(after) == list(before)
    assert all(same(after[name], before[name]) for name in before)


STORED = bytes_from_ranges({"a": range_of(np.arange(50.0)), "b": range_of(-np.arange(9.0))})


@given(st.integers(0, len(STORED) - 1), st.integers(1, 255))
@settings(max_examples=150)
def test_a_damaged_store_is_refused_or_unharmed(place: int, change: int) -> None:
    with pytest.raises(ValueError, match="not stored ranges"):
        ranges_from_bytes(STORED[:place])
    damaged = bytearray(STORED)
    damaged[place] ^= change
    try:
        found = ranges_from_bytes(bytes(damaged))
    except ValueError:
        return
    whole = ranges_from_bytes(STORED)
    assert found.keys() == whole.keys()
    assert all(same(found[name], whole[name]) for name in whole)


def test_a_pickle_in_the_store_is_not_opened() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="not stored ranges"):
        ranges_from_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("count", "limits"),
    [(-1, (0.0, 1.0, 0.0)), (1, (np.nan, 1.0, 0.0)), (1, (0.0, np.nan, 0.0)), (1, (0.0, 1.0, np.nan))],
)
def test_ranges_that_no_values_can_have_are_not_taken_from_the_cache(
    count: int, limits: tuple[float, ...]
) -> None:
    forged = npz_from_arrays(
        {
            "names": np.array(["a"]),
            "bins_0": np.array([3]),
            "counts_0": np.array([count]),
            "limits_0": np.array(limits),
        }
    )
    with pytest.raises(ValueError, match="not stored ranges"):
        ranges_from_bytes(forged)


def test_a_bomb_in_the_cache_is_not_unpacked() -> None:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("names.npy", "w") as file,
    ):
        file.write(b"\0" * (1 << 20))
    lying = bytearray(packed.getvalue())
    declared = lying.rfind(b"PK\x01\x02") + 24
    lying[declared : declared + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    with pytest.raises(ValueError, match="unpacks to"):
        ranges_from_bytes(bytes(lying))


def test_the_key_is_that_of_graph_inputs_and_tensors() -> None:
    keys = {
        ranges_key("g", "i", ["a", "b"]),
        ranges_key("G", "i", ["a", "b"]),
        ranges_key("g", "I", ["a", "b"]),
        ranges_key("g", "i", ["a"]),
        ranges_key("g", "i", ["ab"]),
    }
    assert len(keys) == 5
    assert ranges_key("g", "i", ["b", "a"]) in keys


def test_where_only_extremes_are_wanted_nothing_is_counted() -> None:
    values = np.array([1.5, -3.0, np.inf, np.nan, 2.0], np.float32)
    counted, extremes = TensorRange(), TensorRange()
    counted.add(values)
    extremes.add(values, counted=False)
    for one in (counted, extremes):
        assert (one.smallest, one.largest, one.infinite) == (-3.0, 2.0, 2)
        assert one.largest_magnitude == 3.0
    assert (counted.counts.sum(), extremes.counts.sum()) == (3, 0)
    again = ranges_from_bytes(bytes_from_ranges({"x": extremes}))["x"]
    assert (again.smallest, again.largest, again.infinite, again.counts.sum()) == (-3.0, 2.0, 2, 0)


def test_counted_tensors_are_part_of_what_stored_ranges_belong_to() -> None:
    keys = {ranges_key("g", "i", ("a", "b"), counted) for counted in ((), ("a",), ("b",), ("a", "b"))}
    assert len(keys) == 4
    assert ranges_key("g", "i", ("b", "a"), ("b", "a")) in keys
