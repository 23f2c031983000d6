"""``--precision auto`` opens the fastest graph that is right, and measures once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import numpy_helper

import flowedge
from flowedge.bundle import Bundle, write_bundle
from flowedge.calibration.precision import add_half_graphs
from flowedge.errors import EngineNotBuiltError, EngineUnavailableError
from flowedge.export.pipeline import ExportOptions, export_bundle
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.opening import auto
from flowedge.runtime.opening.auto import fastest_precision, precisions_on
from flowedge.runtime.opening.choice import CLEARLY
from flowedge.runtime.opening.engine import engine_spec
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.unproven import open_unproven
from support.engine_facts import facts

CPU = "onnxruntime-cpu"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three runs be a measurement, because these tests check the choice and not the time."""
    monkeypatch.setattr(auto, "_WARM_UP_S", 0.0)
    monkeypatch.setattr(auto, "_MEASURED_S", 0.0)


@pytest.fixture(scope="module")
def exported(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("auto") / "small.flowedge"
    return add_half_graphs(export_bundle(small_checkpoint, target, ExportOptions()).bundle, ("fp16",))


def test_the_fastest_right_graph_is_taken_and_remembered(exported: Bundle, cache: Path) -> None:
    choice = fastest_precision(exported, CPU, threads=1)
    times = {one.precision: one.median_ms for one in choice.measured}
    assert set(times) == {"fp32", "fp16"}
    assert all(time is not None for time in times.values()), choice
    fastest = min(time for time in times.values() if time is not None)
    assert CLEARLY * (times[choice.precision] or 0.0) <= fastest
    (known,) = (cache / "precision").iterdir()
    known.write_bytes(
        known.read_bytes().replace(b'"precision":"' + choice.precision.encode(), b'"precision":"fp16', 1)
    )
    assert fastest_precision(exported, CPU, threads=1).precision == "fp16", "the remembered choice"
    known.write_bytes(b"damaged")
    assert fastest_precision(exported, CPU, threads=1).measured
    with flowedge.load(exported.path, engine=CPU, precision="auto", threads=1) as detector:
        assert detector.precision in times


def test_without_a_named_engine_all_that_open_here_are_compared(exported: Bundle, cache: Path) -> None:
    pytest.importorskip("openvino")
    choice = fastest_precision(exported, threads=1)
    times = {(one.engine, one.precision): one.median_ms for one in choice.measured}
    assert set(times) == {(engine, name) for engine in (CPU, "openvino") for name in ("fp32", "fp16")}
    right = {key: time for key, time in times.items() if time is not None}
    assert CLEARLY * right[choice.engine, choice.precision] <= min(right.values())
    with flowedge.load(exported.path, precision="auto", threads=1) as detector:
        assert (detector.engine.name, detector.precision) == (choice.engine, choice.precision)
        assert "openvino fp32" in detector.engine.reason


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pretend a TensorRT engine for which some precisions are built, and count by precision how often it is opened.

    ONNX Runtime computes in its place, because TensorRT opens on no machine without an NVIDIA GPU.
    """
    opened = {"fp16": 0}

    def open_one(engine: str, bundle: Bundle, precision: str, *, threads: int | None) -> Opened:
        if engine != "tensorrt":
            return open_unproven(engine, bundle, precision, threads=threads)
        if precision not in opened:
            raise EngineNotBuiltError(f"{precision} is not built. Run flowedge build.")
        opened[precision] += 1
        session = open_unproven(CPU, bundle, precision, threads=threads)
        return replace(session, spec=engine_spec(engine))

    monkeypatch.setattr(auto, "engine_module", lambda spec: None)
    monkeypatch.setattr(auto, "library_version", lambda spec: "1")
    monkeypatch.setattr(auto, "open_unproven", open_one)
    monkeypatch.setattr(auto, "choosable_engines", lambda: [engine_spec("tensorrt"), engine_spec(CPU)])
    return opened


def test_what_is_built_later_is_measured_too(exported: Bundle, cache: Path, built: dict[str, int]) -> None:
    fastest_precision(exported, "tensorrt", threads=1)
    fastest_precision(exported, "tensorrt", threads=1)
    assert built == {"fp16": 1}, "the second time it is remembered"
    device_cache().find_or_build(facts(), lambda: b"an engine")
    built["fp32"] = 0
    choice = fastest_precision(exported, "tensorrt", threads=1)
    # Precisions that are near each other are measured a second time in turns.
    assert built in ({"fp16": 2, "fp32": 1}, {"fp16": 3, "fp32": 2})
    assert all(one.median_ms for one in choice.measured)


def test_an_engine_with_one_graph_built_is_compared_by_it(
    exported: Bundle, cache: Path, built: dict[str, int]
) -> None:
    choice = fastest_precision(exported, threads=1)
    problems = {(one.engine, one.precision): one.problem for one in choice.measured}
    assert set(problems) == {(engine, name) for engine in ("tensorrt", CPU) for name in ("fp32", "fp16")}
    assert "fp32 is not built" in problems["tensorrt", "fp32"]
    assert not problems["tensorrt", "fp16"]
    assert not choice.not_built


def test_an_engine_with_nothing_built_is_said_to_need_it(
    exported: Bundle, cache: Path, built: dict[str, int]
) -> None:
    built.clear()
    choice = fastest_precision(exported, threads=1)
    assert {one.engine for one in choice.measured} == {CPU}
    assert choice.not_built == ("fp32 is not built. Run flowedge build.",)


def test_a_graph_that_is_wrong_here_is_not_taken(exported: Bundle, tmp_path: Path, cache: Path) -> None:
    model = onnx.load(str(exported.graph_path("fp16")))
    tensor = next(one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT16)
    tensor.CopyFrom(numpy_helper.from_array(-3 * numpy_helper.to_array(tensor), tensor.name))
    files: dict[str, Path | bytes] = {
        stored.path: exported.path / stored.path for stored in exported.manifest.files
    }
    files[exported.manifest.graph("fp16").file] = model.SerializeToString()
    bundle = write_bundle(tmp_path / "wrong.flowedge", exported.manifest, files)
    choice = fastest_precision(bundle, CPU, threads=1)
    assert choice.precision == "fp32"
    (fp16,) = (one for one in choice.measured if one.precision == "fp16")
    assert fp16.median_ms is None
    assert "wrongly" in fp16.problem
    assert "level 0 against the expected answers" in fp16.problem


def test_an_engine_that_is_not_there_is_said(exported: Bundle, cache: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="there is no engine"):
        fastest_precision(exported, "abacus")


def test_of_the_two_forms_of_int8_one_is_for_the_device(exported: Bundle) -> None:
    fp32 = exported.manifest.graph("fp32")
    graphs = tuple(msgspec.structs.replace(fp32, precision=name) for name in ("fp32", "int8-cpu", "int8-gpu"))
    bundle = Bundle(exported.path, msgspec.structs.replace(exported.manifest, graphs=graphs))
    assert precisions_on(bundle, CPU) == ("fp32", "int8-cpu")
    assert precisions_on(bundle, "tensorrt") == ("fp32", "int8-gpu")
