"""Cache, memory, batches and CUDA graphs of a run on an NVIDIA GPU are right, tried on a pretended GPU."""

from __future__ import annotations

import gc
import logging
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import flowedge
from flowedge.bundle import Bundle
from flowedge.errors import EngineNotBuiltError, EngineUnavailableError
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.engine_file import EngineFacts
from flowedge.runtime.opening.contract import graph_of_bundle
from flowedge.runtime.opening.engine import engine_spec
from flowedge.runtime.opening.engine_contract import Opening
from flowedge.runtime.opening.opening import open_engine, open_or_build
from flowedge.runtime.protocols import Engine
from support.pretend_gpu import Invalidity, PretendCuda, PretendRtx, PretendTrt
from support.tiny_bundle import IMAGE_SIZE, tiny_answer, write_tiny_bundle

pytest.importorskip(
    "cuda.bindings.runtime", reason="cuda-bindings is not installed: pip install cuda-bindings"
)
from flowedge.runtime.engines import cuda, nvidia

REAL_DEVICE = cuda.device
DEVICE = cuda.Device(name="Orin", capability="8.7", driver="12.6", free=4 << 30, total=8 << 30)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> PretendCuda:
    made = PretendCuda()
    monkeypatch.setattr(cuda, "cudart", made)
    monkeypatch.setattr(cuda, "device", lambda index=0: replace(DEVICE, index=index))
    return made


def opening_of(bundle: Bundle, name: str = "tensorrt") -> Opening:
    return Opening(spec=engine_spec(name), source=graph_of_bundle(bundle, "fp32"), threads=None)


def stored(trt: PretendTrt, bundle: Bundle, plan: bytes, name: str = "tensorrt") -> EngineFacts:
    device = None if name == nvidia.RTX else DEVICE
    facts = nvidia.facts_of(trt, opening_of(bundle, name), device, batches=(1, 1, 4))
    device_cache().store(facts, plan)
    return facts


def loaded(pretended: PretendCuda, bundle: Bundle, plan: bytes, name: str = "tensorrt") -> Engine:
    trt = PretendRtx(pretended) if name == nvidia.RTX else PretendTrt(pretended)
    stored(trt, bundle, plan, name)
    return nvidia.load(trt, opening_of(bundle, name))


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, *IMAGE_SIZE)).astype(np.float32)


def check(engine: Engine, image: NDArray[np.float32]) -> None:
    found, wanted = engine.infer(image), tiny_answer(image)
    assert found.keys() == wanted.keys() == set(engine.output_names)
    for name, value in wanted.items():
        assert found[name].dtype == np.float32
        assert found[name].flags.owndata
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_batches_of_all_sizes_are_answered_and_everything_is_given_back(
    pretended: PretendCuda, bundle: Bundle
) -> None:
    engine = loaded(pretended, bundle, b"1 4")
    for count in (1, 4, 2, 3, 1):
        check(engine, images(count, seed=count))
    assert (pretended.launches, len(pretended.held), pretended.streams) == (0, 10, 1)
    engine.close()
    engine.close()
    assert (len(pretended.held), pretended.streams) == (0, 0)
    with pytest.raises(ValueError, match="closed"):
        engine.infer(images(1))


def test_an_answer_is_not_changed_by_the_next_run(pretended: PretendCuda, bundle: Bundle) -> None:
    engine = loaded(pretended, bundle, b"1 4")
    first = engine.infer(images(1))
    before = first["anomaly_map"].copy()
    engine.infer(images(1, seed=9))
    np.testing.assert_array_equal(first["anomaly_map"], before)


def test_a_fixed_batch_is_replayed_as_a_graph_with_the_new_image(
    pretended: PretendCuda, bundle: Bundle
) -> None:
    engine = loaded(pretended, bundle, b"2 2")
    for seed in range(4):
        check(engine, images(2, seed=seed))
    assert (pretended.launches, pretended.graphs) == (3, 1)
    engine.close()
    assert (pretended.graphs, len(pretended.held)) == (0, 0)


def test_an_engine_that_nobody_closes_gives_back_what_it_holds(
    pretended: PretendCuda, bundle: Bundle
) -> None:
    engine = loaded(pretended, bundle, b"1 4")
    check(engine, images(1))
    del engine
    gc.collect()
    assert len(pretended.held) == 0


@pytest.mark.parametrize("count", [1, 5])
def test_a_batch_outside_of_the_profile_says_how_to_build_for_it(
    pretended: PretendCuda, bundle: Bundle, count: int
) -> None:
    engine = loaded(pretended, bundle, b"2 4")
    with pytest.raises(EngineUnavailableError, match=rf"2 to 4 images .*got {count}.*--batch 1,1,{count}"):
        engine.infer(images(count))


@pytest.mark.parametrize("room", range(10))
def test_memory_that_runs_out_half_way_is_given_back(
    pretended: PretendCuda, bundle: Bundle, room: int
) -> None:
    pretended.room = room
    with pytest.raises(EngineUnavailableError, match=r"CUDA's \w+ failed: .*cudaErrorMemoryAllocation"):
        loaded(pretended, bundle, b"1 4")
    assert (len(pretended.held), pretended.streams) == (0, 0)


def test_without_an_engine_the_command_that_builds_it_is_named(
    pretended: PretendCuda, bundle: Bundle
) -> None:
    command = rf"flowedge build {bundle.path} --engine tensorrt --precision fp32"
    with pytest.raises(EngineNotBuiltError, match=f"has no tensorrt engine of this graph.*{command}"):
        nvidia.load(PretendTrt(pretended), opening_of(bundle))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "10.7.0"}, "version 10.7.0 instead of 10.3.0"),
        (
            {"device": "Thor", "capability": "11.0"},
            "device Thor instead of Orin, capability 11.0 instead of 8.7",
        ),
        ({"driver": "13.0"}, "driver 13.0 instead of 12.6"),
    ],
)
def test_an_engine_of_another_machine_is_explained(
    pretended: PretendCuda, bundle: Bundle, change: dict[str, str], reason: str
) -> None:
    trt = PretendTrt(pretended)
    facts = nvidia.facts_of(trt, opening_of(bundle), DEVICE)
    device_cache().store(msgspec.structs.replace(facts, **change), b"1 4")
    with pytest.raises(EngineNotBuiltError, match=reason):
        nvidia.load(trt, opening_of(bundle))


def test_an_engine_that_only_has_to_be_built_is_part_of_the_reason(
    pretended: PretendCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(cuda, "device", lambda index=0: replace(DEVICE, name="RTX 4000", capability="8.9"))
    engine = open_engine(None, bundle, "fp32")
    assert engine.name not in ("tensorrt", "tensorrt-rtx")
    assert f"flowedge build {bundle.path} --engine tensorrt-rtx --precision fp32" in engine.reason


def test_an_engine_that_the_library_refuses_is_explained_once_and_then_gone(
    pretended: PretendCuda, bundle: Bundle
) -> None:
    with pytest.raises(EngineNotBuiltError, match="refused and deleted: error: Magic tag does not match"):
        loaded(pretended, bundle, b"of another build")
    assert device_cache().files() == []


@pytest.mark.parametrize("value", ["", "1", "allow"])
def test_an_engine_with_host_code_is_loaded_where_it_is_asked_for_alone(
    pretended: PretendCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FLOWEDGE_HOST_CODE", value)
    if value == "allow":
        check(loaded(pretended, bundle, b"host code 1 4"), images(2))
        return
    with pytest.raises(EngineNotBuiltError, match="host code is not allowed"):
        loaded(pretended, bundle, b"host code 1 4")


def test_the_kernels_of_an_rtx_engine_are_kept_for_the_next_start(
    pretended: PretendCuda, bundle: Bundle
) -> None:
    engine = loaded(pretended, bundle, b"2 2", nvidia.RTX)
    check(engine, images(2))
    check(engine, images(2, seed=1))
    assert pretended.launches == 0  # TensorRT for RTX captures by itself
    (kernels,) = (entry.path for entry in device_cache().files() if entry.facts is None)
    assert kernels.read_bytes() == b"compiled"  # before it is closed, as nobody may close it
    kernels.write_bytes(b"compiled before")
    again = nvidia.load(PretendRtx(pretended), opening_of(bundle, nvidia.RTX))
    again.close()
    assert kernels.read_bytes() == b"compiled before"


@pytest.mark.parametrize(
    ("driver", "devices", "reason"),
    [
        (0, 0, "no NVIDIA driver"),
        (11040, 1, r"supports CUDA 11\.4, the installed cuda-bindings is of 12\.6.*'cuda-bindings==11\.\*'"),
        (13000, 0, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_there_is_no_device_is_told_apart(
    pretended: PretendCuda, driver: int, devices: int, reason: str
) -> None:
    assert REAL_DEVICE() == DEVICE
    pretended.driver, pretended.devices = driver, devices
    with pytest.raises(EngineUnavailableError, match=reason):
        REAL_DEVICE()


def test_everything_is_freed_before_what_it_needs(pretended: PretendCuda, bundle: Bundle) -> None:
    engine = loaded(pretended, bundle, b"2 2")
    check(engine, images(2))
    engine.close()
    # A context reads its buffers and its stream until it ends.
    assert pretended.order == ["graph", "context", *["free"] * 10, "stream"]


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    pretended: PretendCuda, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    pretended.captures = False
    engine = loaded(pretended, bundle, b"2 2")
    with caplog.at_level(logging.WARNING, logger="flowedge"):
        for seed in range(3):
            check(engine, images(2, seed=seed))
    assert (pretended.launches, pretended.graphs, pretended.captured) == (0, 0, 0)
    assert ["without a CUDA graph" in record.message for record in caplog.records] == [True]
    engine.close()
    assert (len(pretended.held), pretended.streams) == (0, 0)


def test_a_run_that_fails_leaves_no_copy_in_flight(pretended: PretendCuda, bundle: Bundle) -> None:
    engine = loaded(pretended, bundle, b"1 4")
    pretended.fails = True
    with pytest.raises(EngineUnavailableError, match=r"stopped on an input of \(1, 3, "):
        engine.infer(images(1))
    assert not any(pretended.queued.values())
    pretended.fails = False
    check(engine, images(2, seed=3))


def test_a_buffer_that_the_library_refuses_is_an_error(pretended: PretendCuda, bundle: Bundle) -> None:
    pretended.refused = "level_1"
    with pytest.raises(EngineUnavailableError, match="refuses the buffer of level_1"):
        loaded(pretended, bundle, b"1 4")
    assert (len(pretended.held), pretended.streams) == (0, 0)


def test_every_thread_uses_the_gpu_that_the_name_of_the_engine_numbers(
    pretended: PretendCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "device", REAL_DEVICE)
    pretended.devices = 2
    engine = loaded(pretended, bundle, b"1 4", "tensorrt:1")
    assert engine.name == "tensorrt:1"
    other = threading.Thread(target=lambda: check(engine, images(2)))
    other.start()
    other.join()
    check(engine, images(1))
    pretended.current.clear()  # a thread begins with the first GPU
    engine.close()
    assert pretended.used == {1}
    assert set(pretended.current.values()) == {1}


def test_a_gpu_that_is_not_there_is_named(pretended: PretendCuda, bundle: Bundle) -> None:
    pretended.devices = 2
    with pytest.raises(EngineUnavailableError, match="there is no GPU 2: CUDA shows 2, numbered from 0"):
        REAL_DEVICE(2)


# TensorRT for RTX


@pytest.fixture
def rtx(bundle: Bundle) -> Opening:
    return opening_of(bundle, nvidia.RTX)


def stored_for(rtx: Opening, pretended: PretendCuda, capability: str) -> None:
    facts = nvidia.facts_of(PretendRtx(pretended), rtx, None, batches=(1, 1, 4), capability=capability)
    device_cache().store(facts, b"1 4")


@pytest.mark.parametrize("capability", ["", "8.7", "12.0,8.7"])
def test_an_engine_for_this_capability_is_taken(
    pretended: PretendCuda, rtx: Opening, capability: str
) -> None:
    stored_for(rtx, pretended, capability)
    check(nvidia.load(PretendRtx(pretended), rtx), images(2))


def test_an_engine_for_other_capabilities_alone_is_left_to_its_gpu(
    pretended: PretendCuda, rtx: Opening
) -> None:
    stored_for(rtx, pretended, "12.0,8.6")
    with pytest.raises(EngineNotBuiltError, match=r"with capability 12\.0,8\.6 instead of 8\.7"):
        nvidia.load(PretendRtx(pretended), rtx)
    assert len(device_cache().files()) == 1


def test_a_gpu_that_the_library_does_not_support_is_refused_with_the_list(
    pretended: PretendCuda, rtx: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper = replace(DEVICE, name="H100", capability="9.0")
    monkeypatch.setattr(cuda, "device", lambda index=0: hopper)
    stored_for(rtx, pretended, "")
    with pytest.raises(
        EngineUnavailableError, match=r"does not support H100.*9\.0.* supports 8\.6, 8\.7, 12\.0"
    ) as caught:
        nvidia.load(PretendRtx(pretended), rtx)
    assert not isinstance(caught.value, EngineNotBuiltError), "building it again would not help"
    assert len(device_cache().files()) == 1


@pytest.mark.parametrize(
    ("invalid", "words", "kept"),
    [
        (Invalidity.MALFORMED_ENGINE, "the engine is damaged", 0),
        (Invalidity.VERSION_MISMATCH, "of another version than 10.3.0", 0),
        (Invalidity.UNSUPPORTED_CC, "does not compute on the capability 8.7", 1),
        (Invalidity.OLD_CUDA_DRIVER, "the driver, of CUDA 12.6, is too old", 1),
        (Invalidity.INSUFFICIENT_GPU_MEMORY, "4096 MiB of free memory", 1),
        (Invalidity.VERSION_MISMATCH | Invalidity.OLD_CUDA_DRIVER, "is too old", 0),
    ],
)
def test_an_engine_is_deleted_only_where_no_gpu_could_use_it(
    pretended: PretendCuda, rtx: Opening, invalid: int, words: str, kept: int
) -> None:
    stored_for(rtx, pretended, "")
    with pytest.raises(EngineUnavailableError, match=words):
        nvidia.load(PretendRtx(pretended, int(invalid)), rtx)
    assert len(device_cache().files()) == kept


# On a machine without a GPU


def has_gpu() -> bool:
    try:
        cuda.device()
    except EngineUnavailableError:
        return False
    return True


def test_without_a_gpu_the_engine_says_so_and_another_is_chosen(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    if has_gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineUnavailableError, match=r"NVIDIA driver|CUDA"):
        open_engine("tensorrt-rtx", bundle, "fp32")
    with pytest.raises(EngineUnavailableError, match=r"NVIDIA driver|CUDA"):
        open_or_build("tensorrt-rtx", bundle, "fp32", build=True)
    detector = flowedge.load(bundle.path)
    assert detector.engine.name == "onnxruntime-cpu"
    assert "tensorrt-rtx" in detector.engine.reason
    result = detector(np.zeros((*IMAGE_SIZE, 3), np.uint8))
    assert (result.engine, result.engine_reason) == ("onnxruntime-cpu", detector.engine.reason)


def test_building_needs_the_name_of_what_to_build(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailableError, match=r"name it: one of tensorrt, tensorrt-rtx"):
        flowedge.load(bundle.path, build=True)


@pytest.mark.gpu
def test_a_real_engine_answers_on_a_real_gpu(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    if not has_gpu():
        pytest.skip("needs an NVIDIA GPU and its driver")
    engine = open_or_build("tensorrt-rtx", bundle, "fp32", build=True)
    for count in (1, 8, 3):
        found, wanted = engine.infer(images(count)), tiny_answer(images(count))
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    engine.close()
