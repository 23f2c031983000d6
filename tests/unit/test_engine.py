"""Engines are opened by name, check the graph against its contract, and say what they lack."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flowedge
import flowedge.runtime.opening.engine as engine_file
import flowedge.runtime.opening.engine_status as engine_status
from flowedge.bundle import Bundle, write_bundle
from flowedge.errors import BundleError, EngineUnavailableError, EngineWrongError
from flowedge.manifest import NfaOutputs
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.engines import onnxrt_session
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.opening.contract import graph_of_bundle
from flowedge.runtime.opening.engine import ENGINES, choosable_engines
from flowedge.runtime.opening.engine_contract import EngineSpec, Opening
from flowedge.runtime.opening.engine_status import PROBE_GRAPH, EngineStatus, available_engines
from flowedge.runtime.opening.unproven import open_unproven
from support.tiny_bundle import (
    IMAGE_SIZE,
    tiny_answer,
    tiny_manifest,
    tiny_model,
    tiny_weight,
    write_tiny_bundle,
)

ORT = "onnxruntime-cpu"
OPENVINO = "openvino"
ON_THE_CPU = [name for name, spec in ENGINES.items() if spec.device == "cpu"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write the tiny bundle: images of 16 x 24, two levels."""
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


def images(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(count, 3, *IMAGE_SIZE)).astype(np.float32)


def bundle_with(folder: Path, model: bytes, **files: bytes) -> Bundle:
    contents: dict[str, Path | bytes] = {"model.onnx": model, **files}
    return write_bundle(folder / "made.flowedge", tiny_manifest(), contents)


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_an_engine_computes_what_the_graph_says(bundle: Bundle, name: str) -> None:
    image = images(3)
    engine = open_unproven(name, bundle, "fp32")
    found, wanted = engine.infer(image), tiny_answer(image)
    assert engine.name == name
    assert set(engine.output_names) == set(found) == set(wanted)
    for output, value in wanted.items():
        assert found[output].dtype == np.float32
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_an_image_has_the_same_answer_alone_and_in_a_batch(bundle: Bundle, name: str) -> None:
    image = images(4)
    engine = open_unproven(name, bundle, "fp32")
    together = engine.infer(image)
    for index in range(len(image)):
        alone = engine.infer(image[index : index + 1])
        for output in engine.output_names:
            np.testing.assert_array_equal(together[output][index], alone[output][0])


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_an_answer_is_the_callers_and_the_image_is_left_alone(bundle: Bundle, name: str) -> None:
    engine = open_unproven(name, bundle, "fp32")
    image = images(2)
    image.setflags(write=False)
    first = engine.infer(image)
    kept = {output: value.copy() for output, value in first.items()}
    engine.infer(images(2, seed=1))
    for output, value in first.items():
        np.testing.assert_array_equal(value, kept[output])
        assert value.flags.writeable
    np.testing.assert_array_equal(image, images(2))


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_a_closed_engine_says_so(bundle: Bundle, name: str) -> None:
    engine = open_unproven(name, bundle, "fp32")
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.infer(images(1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_denormal_numbers_are_flushed_to_zero_in_the_engine_only(
    bundle: Bundle, name: str, threads: int
) -> None:
    image = np.full((1, 3, *IMAGE_SIZE), 1e-20, np.float32)
    engine = open_unproven(name, bundle, "fp32", threads=threads)
    found = engine.infer(image)
    assert not found["level_0"].any()
    # The caller's own arithmetic keeps them.
    assert 0 < tiny_answer(image)["level_0"].max() < np.finfo(np.float32).tiny


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_the_callers_arithmetic_is_as_before_when_a_graph_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError):
        open_unproven(name, bundle_with(tmp_path, b"not a graph"), "fp32")
    assert np.float32(1e-30) * np.float32(1e-10) > 0


def test_the_engine_starts_as_many_threads_as_asked(bundle: Bundle) -> None:
    def threads_of_this_process() -> int:
        return len(os.listdir("/proc/self/task"))

    if not Path("/proc/self/task").is_dir():
        pytest.skip("this system does not list threads in /proc")
    before = threads_of_this_process()
    alone = open_unproven(ORT, bundle, "fp32", threads=1)
    assert threads_of_this_process() == before
    three = open_unproven(ORT, bundle, "fp32", threads=3)
    assert threads_of_this_process() == before + 2
    alone.close()
    three.close()


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_than_one_thread_is_a_wrong_argument(bundle: Bundle, threads: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {threads}"):
        open_unproven(None, bundle, "fp32", threads=threads)


def test_a_precision_that_the_bundle_lacks_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no fp16 graph"):
        open_unproven(ORT, bundle, "fp16")


@pytest.mark.parametrize(
    ("energies", "missing"), [(True, "energy_0 float32 [N, 1, 8, 12]"), (False, "count_1")]
)
def test_a_graph_without_the_outputs_that_its_manifest_promises_is_refused(
    tmp_path: Path, energies: bool, missing: str
) -> None:
    nfa = NfaOutputs(energies=energies, window=5, probability=0.9)
    manifest = msgspec.structs.replace(tiny_manifest(), nfa=nfa)
    bundle = write_bundle(tmp_path / "x.flowedge", manifest, {"model.onnx": tiny_model().SerializeToString()})
    with pytest.raises(BundleError, match=rf"should take .*{re.escape(missing)}.*it takes"):
        open_unproven(ORT, bundle, "fp32")


# Which engines there are


def spec(name: str, needs: str, order: int | None) -> EngineSpec:
    return EngineSpec(
        name=name,
        module="flowedge.runtime.engines.onnxrt",
        needs=needs,
        extra="ort",
        device="cpu",
        order=order,
    )


def test_no_name_takes_the_first_engine_that_can_be_imported(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {ORT: spec(ORT, "onnxruntime", 2), "first": spec("first", "no_such_package_x", 1)}
    monkeypatch.setattr(engine_file, "ENGINES", table)
    engine = open_unproven(None, bundle, "fp32")
    assert engine.name == ORT
    assert engine.reason == "the first that opens here; first did not (name one as the engine to see why)"


def test_int8_is_looked_for_on_the_next_device_where_a_bundle_has_one_form_only(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", precisions=("fp32", "int8-cpu"))
    engine = open_unproven(None, bundle, "int8")
    assert (ENGINES[engine.name].device, engine.precision) == ("cpu", "int8-cpu")
    with pytest.raises(BundleError, match="no int8-gpu graph"):
        open_unproven("onnxruntime-cuda", bundle, "int8")
    only_float = write_tiny_bundle(tmp_path / "float.flowedge")
    with pytest.raises(BundleError, match=r"no int8 graph\. It has fp32"):
        open_unproven(None, only_float, "int8")


def test_an_engine_without_an_order_must_be_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {ORT: spec(ORT, "onnxruntime", None), "first": spec("first", "no_such_package_x", 1)}
    monkeypatch.setattr(engine_file, "ENGINES", table)
    with pytest.raises(EngineUnavailableError, match="no_such_package_x"):
        open_unproven(None, bundle, "fp32")
    assert open_unproven(ORT, bundle, "fp32").reason == "named"


def test_no_engine_at_all_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_file, "ENGINES", {"x": spec("x", "no_such_package_x", 0)})
    with pytest.raises(EngineUnavailableError, match=r"no_such_package_x.*pip install 'onnxruntime"):
        open_unproven(None, bundle, "fp32")


def test_an_unknown_engine_is_an_error_that_lists_the_known_ones(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailableError, match=r"no engine 'abacus'.*onnxruntime-cpu"):
        open_unproven("abacus", bundle, "fp32")


def test_a_package_that_is_not_installed_is_one_line_with_the_command(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineUnavailableError) as caught:
        open_unproven(ORT, bundle, "fp32")
    assert str(caught.value) == (
        "the engine onnxruntime-cpu needs the package onnxruntime, which is not installed. "
        "Install it with: pip install 'onnxruntime>=1.18'"
    )
    status = status_of(ORT)
    assert (status.installed, status.version, status.works) == (False, None, False)
    assert status.problem == str(caught.value)


def status_of(name: str) -> EngineStatus:
    (status,) = (status for status in available_engines() if status.spec.name == name)
    return status


def break_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package before the real one that fails on import as a missing native library does."""
    (folder / "onnxruntime").mkdir()
    (folder / "onnxruntime/__init__.py").write_text("raise OSError('libcudart.so.12: cannot open')\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)


def test_a_package_that_is_installed_but_broken_gives_the_real_reason(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_the_package(tmp_path, monkeypatch)
    reason = r"installed but cannot be imported: OSError: libcudart\.so\.12: cannot open"
    with pytest.raises(EngineUnavailableError, match=reason):
        open_unproven(ORT, bundle, "fp32")
    status = status_of(ORT)
    assert (status.installed, status.version, status.works) == (True, None, False)
    assert "libcudart.so.12" in status.problem


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_an_engine_works_when_it_adds_up(name: str) -> None:
    status = status_of(name)
    assert (status.spec, status.installed, status.works, status.problem) == (ENGINES[name], True, True, "")
    assert status.version == importlib.import_module(ENGINES[name].needs).__version__


def test_an_engine_that_adds_wrongly_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(ENGINES[ORT].module)
    monkeypatch.setattr(module, "probe", lambda spec, graph, x: x)
    status = status_of(ORT)
    assert not status.works
    assert "computed" in status.problem


def test_an_engine_that_cannot_run_the_probe_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_status, "PROBE_GRAPH", b"\x08\x08")
    status = status_of(ORT)
    assert not status.works
    assert "ONNX Runtime" in status.problem


def test_the_hand_written_probe_graph_is_the_one_the_onnx_package_writes() -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert onnx.load_from_string(PROBE_GRAPH).graph == model.graph
    onnx.checker.check_model(PROBE_GRAPH, full_check=True)


@pytest.mark.parametrize("name", ENGINES)
def test_the_table_names_files_that_hold_an_engine(name: str) -> None:
    if importlib.util.find_spec(ENGINES[name].needs) is None:
        pytest.skip(f"{ENGINES[name].needs} is not installed")
    module = importlib.import_module(ENGINES[name].module)
    assert callable(module.load)
    assert callable(module.probe)
    assert not ENGINES[name].compiled or callable(module.build)


# Graphs that cannot be used


def renamed_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "points"


def missing_level(model: onnx.ModelProto) -> None:
    del model.graph.output[3]


def one_output_too_many(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))


def other_image_size(model: onnx.ModelProto) -> None:
    model.CopyFrom(tiny_model(image_size=(32, 24)))


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def open_image_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"


def renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"


def half_precision_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "score32"
    model.graph.node.append(helper.make_node("Cast", ["score32"], ["score"], to=TensorProto.FLOAT16))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def score_of_another_rank(model: onnx.ModelProto) -> None:
    model.graph.node[-1].attribute[0].i = 1  # keepdims
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1, 1, 1]))


@pytest.mark.parametrize("name", ON_THE_CPU)
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (renamed_output, r"gives points float32 \[N\]"),
        (missing_level, r"gives .*level_0 float32 \[N, 1, 8, 12\]\."),
        (one_output_too_many, r"z float32"),
        (other_image_size, r"takes image float32 \[N, 3, 32, 24\]"),
        (fixed_batch, r"takes image float32 \[1, 3, 16, 24\]"),
        (open_image_size, r"takes image float32 \[N, 3, N, 24\]"),
        (renamed_input, r"takes picture float32"),
        (half_precision_output, r"gives score float16 \[N\]"),
        (score_of_another_rank, r"gives score float32 \[N, 1, 1, 1\]"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused_with_what_it_has(
    tmp_path: Path, name: str, change: Callable[[onnx.ModelProto], None], found: str
) -> None:
    model = tiny_model()
    change(model)
    bundle = bundle_with(tmp_path, model.SerializeToString())
    with pytest.raises(BundleError, match=r"should take image float32 \[N, 3, 16, 24\].*" + found):
        open_unproven(name, bundle, "fp32")


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_outputs_may_leave_their_sizes_open(tmp_path: Path, name: str) -> None:
    model = tiny_model()
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim:
            dim.Clear()
    engine = open_unproven(name, bundle_with(tmp_path, model.SerializeToString()), "fp32")
    assert engine.infer(images(2))["level_1"].shape == (2, 1, 4, 6)


def test_msflow_must_give_the_map_its_score_is_taken_from(tmp_path: Path) -> None:
    model = tiny_model()
    bundle = write_bundle(
        tmp_path / "a", tiny_manifest(family="msflow"), {"model.onnx": model.SerializeToString()}
    )
    with pytest.raises(BundleError, match="anomaly_map_mul"):
        open_unproven(ORT, bundle, "fp32")
    model.graph.node.append(helper.make_node("Neg", ["anomaly_map"], ["anomaly_map_mul"]))
    model.graph.output.append(
        helper.make_tensor_value_info("anomaly_map_mul", TensorProto.FLOAT, ["N", 1, *IMAGE_SIZE])
    )
    bundle = write_bundle(
        tmp_path / "b", tiny_manifest(family="msflow"), {"model.onnx": model.SerializeToString()}
    )
    assert "anomaly_map_mul" in open_unproven(ORT, bundle, "fp32").output_names


@pytest.mark.parametrize(("name", "library"), [(ORT, "ONNX Runtime"), (OPENVINO, "OpenVINO")])
def test_a_file_that_is_not_onnx_is_a_bundle_error(tmp_path: Path, name: str, library: str) -> None:
    for index, content in enumerate((b"", b"not a graph", tiny_model().SerializeToString()[:-40])):
        (tmp_path / str(index)).mkdir()
        with pytest.raises(
            BundleError, match=rf"{library} [\d.]+ cannot read .*model\.onnx|model\.onnx is not the graph"
        ):
            open_unproven(name, bundle_with(tmp_path / str(index), content), "fp32")


def test_an_opset_that_the_engine_does_not_know_is_a_bundle_error_that_says_so(tmp_path: Path) -> None:
    model = tiny_model()
    model.opset_import[0].version = 999
    with pytest.raises(BundleError, match=r"999.*lower --opset"):
        open_unproven(ORT, bundle_with(tmp_path, model.SerializeToString()), "fp32")


def test_an_operator_that_the_engine_lacks_makes_it_unavailable(tmp_path: Path) -> None:
    # Valid ONNX since opset 22, but ONNX Runtime has no CPU kernel for a bfloat16 convolution.
    model = tiny_model()
    model.opset_import[0].version = 22
    model.graph.node[0].input[0] = "image16"
    model.graph.node[0].input[1] = "weight16"
    model.graph.node[0].output[0] = "z16"
    for source, target in (("weight", "weight16"), ("image", "image16")):
        model.graph.node.insert(0, helper.make_node("Cast", [source], [target], to=TensorProto.BFLOAT16))
    model.graph.node.insert(3, helper.make_node("Cast", ["z16"], ["z"], to=TensorProto.FLOAT))
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(EngineUnavailableError, match=r"cannot run .*newer onnxruntime"):
        open_unproven(ORT, bundle_with(tmp_path, model.SerializeToString()), "fp32")


def test_a_graph_that_stops_while_running_is_an_engine_error(tmp_path: Path) -> None:
    model = tiny_model()
    # Sized for exactly two images, which no declared shape tells.
    model.graph.node[0].input[0] = "pair"
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3, *IMAGE_SIZE], np.int64), "two"))
    model.graph.node.insert(0, helper.make_node("Reshape", ["image", "two"], ["pair"]))
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].Clear()
    engine = open_unproven(ORT, bundle_with(tmp_path, model.SerializeToString()), "fp32")
    assert engine.infer(images(2))["score"].shape == (2,)
    with pytest.raises(EngineUnavailableError, match=r"stopped on an input of \(1, 3, 16, 24\)"):
        engine.infer(images(1))


# Weights beside the graph


def with_external_weight(location: str) -> bytes:
    model = tiny_model()
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    content: bytes = model.SerializeToString()
    return content


WEIGHT = tiny_weight().tobytes()


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_weights_in_a_file_of_the_bundle_are_used(tmp_path: Path, name: str) -> None:
    files: dict[str, Path | bytes] = {"model.onnx": with_external_weight("model.data"), "model.data": WEIGHT}
    bundle = write_bundle(tmp_path / "b", tiny_manifest(), files)
    found = open_unproven(name, bundle, "fp32").infer(images(1))
    np.testing.assert_allclose(found["score"], tiny_answer(images(1))["score"], rtol=1e-5)


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_weights_outside_of_the_bundle_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.data").write_bytes(WEIGHT)
    bundle = bundle_with(tmp_path, with_external_weight("../model.data"))
    with pytest.raises(BundleError, match="cannot read"):
        open_unproven(name, bundle, "fp32")


# OpenVINO's own settings


def test_openvino_computes_in_float32_with_as_many_threads_as_asked(bundle: Bundle) -> None:
    graph = bundle.graph_path("fp32")
    module = importlib.import_module(ENGINES[OPENVINO].module)
    compiled = module._compiled(module._model(graph), "CPU", module._options("CPU", 2))
    options = {name: compiled.get_property(name) for name in compiled.get_property("SUPPORTED_PROPERTIES")}
    assert options["INFERENCE_PRECISION_HINT"].get_type_name() == "f32"
    assert options["INFERENCE_NUM_THREADS"] == 2
    assert options["CPU_DENORMALS_OPTIMIZATION"] is True
    assert options["NUM_STREAMS"] == 1


@pytest.mark.parametrize(("cores", "is_bound"), [(2, True), (4, False)])
def test_openvino_binds_no_graph_to_cores_where_graphs_of_other_lanes_run_beside_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: int, is_bound: bool
) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("flowedge.runtime.lanes.fast_cores", lambda: cores)
    for _ in ("compiled", "stored"):
        with contextlib.closing(open_unproven(OPENVINO, bundle, "fp32", threads=2)) as session:
            graph = session.engine._sizes[1]._compiled  # type: ignore[attr-defined]
            assert graph.get_property("ENABLE_CPU_PINNING") is is_bound


@pytest.mark.parametrize("device", ["GPU", "NPU"])
def test_a_device_that_is_not_here_is_an_error_that_names_it(tmp_path: Path, device: str) -> None:
    openvino = pytest.importorskip("openvino")
    if device in openvino.Core().available_devices:
        pytest.skip(f"this machine has OpenVINO's device {device}")
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", precisions=("fp32", "fp16"))
    with pytest.raises(EngineUnavailableError, match=f"cannot compile .* device {device}: "):
        open_unproven(f"openvino:{device}", bundle, "fp16")
    status = status_of(f"openvino:{device}")
    assert (status.installed, status.works) == (True, False)
    assert device in status.problem


def test_an_npu_is_not_given_a_float32_graph(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailableError, match=r"float16, got the precision fp32\. Take --precision"):
        open_unproven("openvino:NPU", bundle, "fp32")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """List the devices and batch sizes that OpenVINO is asked to compile for, and compile each for the CPU.

    The device cache is empty at first.
    """
    module = importlib.import_module(ENGINES[OPENVINO].module)
    compile_it, seen = module._compiled, []

    def compiled_for_the_cpu(model: Any, device: str, options: dict[str, Any]) -> Any:
        seen.append((device, model.input(0).shape[0]))
        return compile_it(model, "CPU", options if device == "CPU" else module._options("CPU", None))

    monkeypatch.setattr(module, "_compiled", compiled_for_the_cpu)
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    return seen


def test_a_device_that_takes_one_image_at_a_time_gives_a_batch_in_order(
    bundle: Bundle, compilations: list[tuple[str, int]]
) -> None:
    module = importlib.import_module(ENGINES[OPENVINO].module)
    opening = Opening(
        spec=ENGINES["openvino:NPU"],
        source=replace(graph_of_bundle(bundle, "fp32"), precision="fp16"),
        threads=None,
    )
    engine = module.load(opening)
    found, wanted = engine.infer(images(3)), tiny_answer(images(3))
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-6)
    assert compilations == [("NPU", 1)]


def test_a_second_start_compiles_nothing_and_answers_bit_for_bit(
    bundle: Bundle, compilations: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_unproven(OPENVINO, bundle, "fp32", threads=2)
    compiled = [first.infer(images(size)) for size in (1, 3)]
    compilations.clear()
    monkeypatch.setattr(f"{ENGINES[OPENVINO].module}._model", lambda graph: pytest.fail("the graph was read"))
    second = open_unproven(OPENVINO, bundle, "fp32", threads=2)
    assert second.engine._sizes[1]._compiled.get_property("INFERENCE_NUM_THREADS") == 2  # type: ignore[attr-defined]
    assert second.engine._sizes[1]._compiled.get_property("CPU_DENORMALS_OPTIMIZATION") is True  # type: ignore[attr-defined]
    for size, wanted in zip((1, 3), compiled, strict=True):
        for name, value in second.infer(images(size)).items():
            np.testing.assert_array_equal(value, wanted[name])
    assert compilations == []
    assert second.output_names == first.output_names


@pytest.mark.parametrize("change", ["threads", "settings", "damage"])
def test_a_start_under_other_circumstances_compiles_again(
    bundle: Bundle, compilations: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    open_unproven(OPENVINO, bundle, "fp32")
    compilations.clear()
    if change == "settings":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    if change == "damage":
        (stored,) = (entry for entry in device_cache().files() if entry.facts is not None)
        assert stored.facts is not None
        device_cache().store(stored.facts, b"a compiled graph of nobody")
    engine = open_unproven(OPENVINO, bundle, "fp32", threads=1 if change == "threads" else None)
    np.testing.assert_allclose(engine.infer(images(1))["score"], tiny_answer(images(1))["score"], rtol=1e-5)
    assert compilations == [("CPU", 1)]


def test_without_a_cache_openvino_compiles_at_every_start(
    bundle: Bundle, compilations: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "file"))
    for _ in range(2):
        open_unproven(OPENVINO, bundle, "fp32")
    assert compilations == [("CPU", 1), ("CPU", 1)]


def test_each_size_of_batch_is_compiled_when_it_comes_and_two_are_kept_beside_one_image(
    bundle: Bundle, compilations: list[tuple[str, int]]
) -> None:
    engine = open_unproven(OPENVINO, bundle, "fp32")
    for size in (3, 1, 2, 3, 4, 1, 3, 2):
        np.testing.assert_allclose(
            engine.infer(images(size))["score"], tiny_answer(images(size))["score"], rtol=1e-5, atol=1e-6
        )
    assert compilations == [("CPU", size) for size in (1, 3, 2, 4)]  # the 2 came from the device cache again
    assert set(engine.engine._sizes) == {1, 3, 2}  # type: ignore[attr-defined]


def test_an_operator_that_openvino_does_not_know_makes_it_unavailable(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(EngineUnavailableError, match=r"OpenVINO [\d.]+ cannot run .*NoSuchOperator"):
        open_unproven(OPENVINO, bundle_with(tmp_path, model.SerializeToString()), "fp32")


def test_the_null_engine_answers_zeros_of_the_manifests_shapes_and_opens_by_name_only(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    engine = open_unproven("null", bundle, "fp32")
    answer = engine.infer(np.zeros((2, 3, 16, 24), np.float32))
    assert {name: array.shape for name, array in answer.items()} == {
        "score": (2,),
        "anomaly_map": (2, 1, 16, 24),
        "level_0": (2, 1, 8, 12),
        "level_1": (2, 1, 4, 6),
    }
    assert all(array.dtype == np.float32 and not array.any() for array in answer.values())
    assert "null" not in {status.spec.name for status in available_engines()}
    assert "null" not in {spec.name for spec in choosable_engines()}
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.infer(np.zeros((1, 3, 16, 24), np.float32))


def test_no_part_is_judged_by_the_null_engine(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    with pytest.raises(EngineWrongError):
        flowedge.load(bundle.path, engine="null")


def test_the_null_engine_refuses_an_answer_that_no_graph_of_the_bundle_gives(tmp_path: Path) -> None:
    manifest = write_tiny_bundle(tmp_path / "tiny.flowedge").manifest
    with pytest.raises(ValueError, match="anomaly_mask"):
        NullEngine(manifest, {"anomaly_mask": 1})
    with pytest.raises(ValueError, match="broadcast"):
        NullEngine(manifest, {"score": [1.0, 2.0]})


@pytest.mark.parametrize("overflows", [True, False])
def test_onnx_runtime_takes_the_slower_products_only_where_eight_bits_overflow(
    overflows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxrt_session, "overflows_in_eight_bits", lambda: overflows)
    options = onnxrt_session.session_options([("CPUExecutionProvider", {})], None)
    if overflows:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("overflows", [True, False])
def test_openvino_multiplies_in_float_only_where_eight_bits_overflow(
    overflows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(ENGINES["openvino"].module)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(module, "overflows_in_eight_bits", lambda: overflows)
    assert (module._options("CPU", None).get("LP_TRANSFORMS_MODE") == "NO") == overflows
