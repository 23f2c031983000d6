"""``flowedge build`` with TensorRT for RTX, which builds real engines on a machine without a GPU.

The tests in ``test_tensorrt_rtx.py`` check that every family's graph is accepted without a warning.
"""

from __future__ import annotations

import json
import re
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from flowedge.bundle import Bundle, write_bundle
from flowedge.errors import EngineUnavailableError
from flowedge.progress import SILENT
from flowedge.runtime.device.device_cache import DeviceCache, device_cache
from flowedge.runtime.opening.building import build_engine
from flowedge.runtime.opening.contract import graph_of_bundle
from flowedge.runtime.opening.engine import ENGINES
from flowedge.runtime.opening.engine_contract import Building, BuildOptions, Opening
from support.command_line import flowedge
from support.family_graphs import FAMILIES, FamilyBundle
from support.recorded_reports import RecordedReports
from support.tiny_bundle import tiny_manifest, tiny_model, write_tiny_bundle

trt: Any = pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx"
)
pytest.importorskip(
    "cuda.bindings.runtime", reason="cuda-bindings is not installed: pip install cuda-bindings"
)

from flowedge.runtime.engines import cuda  # noqa: E402
from flowedge.runtime.engines.nvidia import RTX, log_of  # noqa: E402
from flowedge.runtime.engines.nvidia_build import build, parsed, serialized, set_batches, use_dla  # noqa: E402


def complaints(plan: bytes) -> int:
    """Return the complaints of TensorRT-RTX about an engine's header, without those about the missing device."""
    runtime = trt.Runtime(log_of(trt))
    _, diagnostics = runtime.get_engine_validity(plan)
    kinds = trt.EngineInvalidityDiagnostics
    return int(diagnostics) & (int(kinds.MALFORMED_ENGINE) | int(kinds.VERSION_MISMATCH))


def test_the_header_check_can_fail() -> None:
    assert complaints(b"not an engine" * 400)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceCache:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    return device_cache()


# test_tensorrt_rtx.py builds each family: here two say that the command's own way builds them too.
BUILT = {("fastflow", "fp32"), ("csflow", "fp16")}


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        pytest.param(family, name, marks=() if (family, name) in BUILT else pytest.mark.slow)
        for family in FAMILIES
        for name in ("fp32", "fp16")
    ],
)
def test_every_familys_graph_is_built_into_the_cache_with_progress(
    family_bundle: Callable[[str], FamilyBundle], cache: DeviceCache, family: str, precision: str
) -> None:
    bundle = family_bundle(family).bundle
    options = BuildOptions(batches=(1, 2, 4), capabilities=("8.9",))
    reports = RecordedReports()
    built = build_engine(bundle, RTX, precision, options=options, reports=reports)
    assert built.was_built
    assert built.file.facts is not None
    plan = cache.find(built.file.facts).plan
    assert plan is not None
    assert not complaints(plan), "its own header check refuses it"
    assert not [line for line in log_of(trt).lines if line.startswith("error")]
    assert reports.counts[-1][0] == reports.counts[-1][1] > 1
    assert all(0 <= done <= total for done, total in reports.counts)
    assert not build_engine(bundle, RTX, precision, options=options).was_built


def test_the_network_is_strongly_typed_and_computes_float32_in_full(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    builder, network = parsed(trt, bundle.graph_path("fp32"), RTX)
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    config = builder.create_builder_config()
    set_batches(builder, network, config, (1, 2, 4))
    assert config.get_flag(trt.BuilderFlag.TF32), "it is on unless it is switched off"
    serialized(trt, builder, network, config)
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_the_parsers_errors_are_shown_in_full(tmp_path: Path, cache: DeviceCache) -> None:
    model = tiny_model()
    model.graph.node[1].op_type = "NoSuchOperator"
    bundle = write_bundle(tmp_path / "b", tiny_manifest(), {"model.onnx": model.SerializeToString()})
    done = flowedge("build", bundle.path, "--engine", RTX)
    assert done.status == 2
    for part in (
        "cannot parse",
        "model.onnx",
        "NoSuchOperator",
        "INVALID_NODE",
        "checkFallbackPluginImporter",
    ):
        assert part in done.stderr
    assert cache.files() == []


def test_weights_outside_of_the_bundle_are_refused(tmp_path: Path, cache: DeviceCache) -> None:
    model = tiny_model()
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "weight")
    (tmp_path / "model.data").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../model.data")
    bundle = write_bundle(tmp_path / "b", tiny_manifest(), {"model.onnx": model.SerializeToString()})
    with pytest.raises(EngineUnavailableError, match="parent"):
        build_engine(bundle, RTX)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--capability", "6.1"], "does not build for the compute capability '6.1'. Choose of: 7.5"),
        (["--dla"], "no deep learning accelerator"),
        (["--batch", "4,2,8"], "do not fall, such as 1,1,8, got '4,2,8'"),
        (["--batch", "8"], "three numbers such as 1,1,8, got '8'"),
        (["--precision", "int8"], "no int8-gpu graph"),
    ],
)
def test_what_cannot_be_built_is_one_message(
    tmp_path: Path, cache: DeviceCache, options: list[str], reason: str
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    done = flowedge("build", bundle.path, "--engine", RTX, *options)
    assert done.status == 2
    assert reason in done.stderr
    assert cache.files() == []


def test_the_command_builds_once_and_prints_only_json(tmp_path: Path, cache: DeviceCache) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    arguments = (
        "build",
        bundle.path,
        "--engine",
        RTX,
        "--capability",
        "8.9",
        "--capability",
        "12.0",
        "--json",
    )
    first, second = (json.loads(flowedge(*arguments).stdout) for _ in range(2))
    assert (first["was_built"], second["was_built"]) == (True, False)
    assert first["file"]["facts"]["capability"] == "8.9,12.0"
    assert first["file"]["path"] == second["file"]["path"]


def test_int8_is_the_form_for_gpus(tmp_path: Path, cache: DeviceCache) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", precisions=("fp32", "int8-gpu", "int8-cpu"))
    built = build_engine(bundle, RTX, "int8")
    assert built.file.facts is not None
    assert built.file.facts.precision == "int8-gpu"


def test_a_damaged_engine_is_built_again_with_the_reason(tmp_path: Path, cache: DeviceCache) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    path = build_engine(bundle, RTX).file.path
    path.write_bytes(path.read_bytes()[:-1000])
    reports = RecordedReports()
    assert build_engine(bundle, RTX, reports=reports).was_built
    assert re.fullmatch(r"building: .* is damaged: it has \d+ bytes of \d+", reports.notes[0])


def test_an_interrupt_while_building_ends_it_and_leaves_nothing(tmp_path: Path, cache: DeviceCache) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")

    class Interrupt(RecordedReports):
        def step(self, name: str, total: int | None = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, RTX, reports=Interrupt())
    assert cache.files() == []


def test_an_engine_without_a_build_says_that_none_is_needed(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    with pytest.raises(EngineUnavailableError, match="openvino runs the bundle's graph as it is"):
        build_engine(bundle, "openvino")


def test_a_tensorrt_without_strong_typing_builds_float32_only(tmp_path: Path, cache: DeviceCache) -> None:
    old = types.SimpleNamespace(__version__="8.6.2", NetworkDefinitionCreationFlag=types.SimpleNamespace())
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", precisions=("fp32", "fp16"))
    building = building_of(bundle, cache, BuildOptions(), "fp16")
    with pytest.raises(
        EngineUnavailableError, match=r"8\.6\.2 has no strongly typed.*onnxruntime-cuda for fp16"
    ):
        build(old, building)


def building_of(bundle: Bundle, cache: DeviceCache, options: BuildOptions, precision: str) -> Building:
    opening = Opening(spec=ENGINES["tensorrt"], source=graph_of_bundle(bundle, precision), threads=None)
    return Building(opening=opening, options=options, cache=cache, reports=SILENT)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> cuda.Device:
    """Pretend a GPU, because builders need its facts and these bindings need none."""
    made = cuda.Device(name="Orin", capability="8.7", driver="12.6", free=4 << 30, total=8 << 30)
    monkeypatch.setattr(cuda, "device", lambda index=0: made)
    return made


def test_a_gpu_that_the_library_does_not_support_is_refused_before_a_build(
    tmp_path: Path, cache: DeviceCache, device: cuda.Device
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    with pytest.raises(
        EngineUnavailableError, match=r"does not support Orin, .*8\.7\. It supports 7\.5, 8\.0, .*12\.0"
    ):
        build_engine(bundle, RTX)
    assert cache.files() == []
    # A machine may build for the GPUs of other machines.
    assert build_engine(bundle, RTX, options=BuildOptions(capabilities=("8.9",))).was_built


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_tensorrts_own_part_of_building_runs_on_these_bindings(
    tmp_path: Path, cache: DeviceCache, device: cuda.Device
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    built = build(trt, building_of(bundle, cache, BuildOptions(), "fp32"))
    assert built.was_built
    assert built.file.facts is not None
    assert (built.file.facts.device, built.file.facts.driver) == (device.name, device.driver)
    (timing,) = (entry.path for entry in cache.files() if entry.facts is None)
    assert timing.relative_to(cache.folder) == Path(f"timing/{trt.__version__}-Orin-8.7.cache")
    timing.write_bytes(b"damaged")
    other = build(trt, building_of(bundle, cache, BuildOptions(batches=(1, 1, 2)), "fp32"))
    assert other.was_built
    assert timing.read_bytes() != b"damaged"


def test_the_accelerator_gets_what_it_can_of_the_backbone_and_the_rest_is_reported(
    family_bundle: Callable[[str], FamilyBundle],
    cache: DeviceCache,
) -> None:
    _, network = parsed(trt, family_bundle("fastflow").bundle.graph_path("fp16"), RTX)
    backbone = [
        layer
        for layer in (network.get_layer(number) for number in range(network.num_layers))
        if layer.name.startswith("backbone/")
    ]
    kinds = Counter(layer.type for layer in backbone)
    convolutions = kinds.pop(trt.LayerType.CONVOLUTION)
    assert kinds
    placed: list[str] = []

    class Config:
        """Stands for ``IBuilderConfig`` on a machine whose accelerator takes convolutions only."""

        DLA_core = -1

        def set_flag(self, flag: Any) -> None:
            assert flag == trt.BuilderFlag.GPU_FALLBACK

        def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802
            return bool(layer.type == trt.LayerType.CONVOLUTION)

        def set_device_type(self, layer: Any, device_type: Any) -> None:
            assert device_type == trt.DeviceType.DLA
            placed.append(layer.name)

    with_cores = types.SimpleNamespace(num_DLA_cores=2)
    options = BuildOptions(batches=(1, 1, 1), dla=True)
    building = building_of(family_bundle("fastflow").bundle, cache, options, "fp16")
    (note,) = use_dla(trt, with_cores, network, Config(), building)
    assert len(placed) == convolutions
    assert note.startswith(f"{convolutions} of the backbone's {len(backbone)} layers run on the accelerator")
    assert all(f"{count} {kind.name}" in note for kind, count in kinds.items())
    for wrong in (BuildOptions(dla=True), BuildOptions(batches=(1, 1, 1), dla=True)):
        precision = "fp16" if wrong.batches != (1, 1, 1) else "fp32"
        refused = building_of(family_bundle("fastflow").bundle, cache, wrong, precision)
        with pytest.raises(EngineUnavailableError, match="float16 or int8, in one batch size"):
            use_dla(trt, with_cores, network, Config(), refused)
