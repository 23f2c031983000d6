"""ONNX Runtime on a GPU answers from bound buffers, tried on ONNX Runtime's CPU with a pretended CUDA.

The memory of the pretended GPU is memory of the host, so ONNX Runtime computes on it as it computes on a GPU.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import flowedge
from flowedge.bundle import Bundle
from flowedge.errors import EngineUnavailableError
from flowedge.runtime.engines import onnxrt
from flowedge.runtime.frames.device_input import input_graph
from flowedge.runtime.lanes import inferences_at_once, lanes_of
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.verify import PARITY_LIMITS, replay_selftest
from support.pretend_gpu import PretendCuda, onnxruntime_on_pretended_cuda
from support.tiny_bundle import IMAGE_SIZE, tiny_answer, tiny_manifest, write_tiny_bundle

pytest.importorskip(
    "cuda.bindings.runtime", reason="cuda-bindings is not installed: pip install cuda-bindings"
)
from flowedge.runtime.engines import cuda, onnxrt_bound, onnxrt_frames


class Sessions:
    """Opens sessions on the CPU in place of CUDA, and notes their runs.

    Attributes:
        refuses: True where a session with CUDA graphs cannot be opened, as with nodes on the CPU.
        breaks: True where every run that would capture a CUDA graph fails.
        graphs: The number of the CUDA graph of each bound run, and the thread of the run.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.graphs: list[tuple[str, int]] = []
        self.refuses = self.breaks = self.captures = False
        self.at_work = threading.Semaphore(1)

    def __call__(self, opened: Callable[[], Any], options: dict[str, str]) -> Any:
        if not options:  # a session for the CPU
            return opened()
        self.asked.append(options)
        if self.refuses and options["enable_cuda_graph"] == "1":
            raise EngineUnavailableError("nodes are on the CPU")
        return Session(self, opened())


class Session:
    def __init__(self, notes: Sessions, real: onnxruntime.InferenceSession) -> None:
        self._notes, self._real = notes, real

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        graph = options.get_run_config_entry("gpu_graph_id")
        assert self._notes.at_work.acquire(blocking=False), "two runs at once share one arena"
        try:
            # The first run of a CUDA graph captures it.
            self._notes.captures = graph not in ("-1", *(one for one, _ in self._notes.graphs))
            self._notes.graphs.append((graph, threading.get_ident()))
            if self._notes.breaks and graph != "-1":
                raise Fail("operation not permitted when stream is capturing")
            self._real.run_with_iobinding(binding, options)
            if self._notes.captures:
                time.sleep(0.002)
        finally:
            self._notes.captures = False
            self._notes.at_work.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def pretended(sessions: Sessions) -> Iterator[PretendCuda]:
    with onnxruntime_on_pretended_cuda(cuda, onnxrt, sessions) as made:
        yield made
    assert (len(made.held), made.streams) == (0, 0), "memory or streams are still held"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretended: PretendCuda) -> Bundle:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


@pytest.fixture
def engine(bundle: Bundle, sessions: Sessions) -> Iterator[Opened]:
    opened = open_unproven("onnxruntime-cuda", bundle, "fp32")
    yield opened
    opened.close()


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, *IMAGE_SIZE)).astype(np.float32)


def check(engine: Opened, image: NDArray[np.float32]) -> None:
    found, wanted = engine.infer(image), tiny_answer(image)
    assert found.keys() == wanted.keys() == set(engine.output_names)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_each_size_of_batch_has_a_cuda_graph_in_each_set_of_buffers(
    engine: Opened, sessions: Sessions
) -> None:
    for count in (1, 4, 1, 2, 4):
        check(engine, images(count, seed=count))
    assert sessions.asked[0]["enable_cuda_graph"] == "1"
    assert {graph for graph, _ in sessions.graphs} == {"-1", *map(str, range(6))}
    assert len({thread for _, thread in sessions.graphs}) == 1
    assert threading.get_ident() != sessions.graphs[0][1]
    # A caller that is alone always uses the first set.
    assert [graph for graph, _ in sessions.graphs[-2:]] == ["4", "2"]


def test_an_answer_is_not_changed_by_the_next_run(engine: Opened) -> None:
    first = engine.infer(images(1))
    before = first["anomaly_map"].copy()
    engine.infer(images(1, seed=9))
    np.testing.assert_array_equal(first["anomaly_map"], before)


def test_eight_threads_get_their_own_answers_with_two_frames_in_flight(
    engine: Opened, pretended: PretendCuda, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[bool] = []

    def wait(stream: Any) -> None:
        waits.append(sessions.captures)
        pretended.cudaStreamSynchronize(stream)

    monkeypatch.setattr(cuda, "wait", wait)
    assert (inferences_at_once(engine), lanes_of(engine) >= 2) == (2, True)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda seed: check(engine, images(1 + seed % 5, seed=seed)), range(60)))
    assert not any(waits), "a thread waited for the GPU while another one captured"


def test_a_frame_is_copied_while_another_one_is_computed(
    engine: Opened, sessions: Sessions, pretended: PretendCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.infer(images(1))
    computing, copied = threading.Event(), threading.Event()
    real = Session.run_with_iobinding

    def slow(self: Session, binding: Any, options: Any) -> None:
        if not computing.is_set():
            computing.set()
            assert copied.wait(10), "the second frame waited for the first"
        real(self, binding, options)

    def wait(stream: Any) -> None:
        pretended.cudaStreamSynchronize(stream)
        if computing.is_set():
            copied.set()

    monkeypatch.setattr(Session, "run_with_iobinding", slow)
    monkeypatch.setattr(cuda, "wait", wait)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(check, engine, images(1, seed=1))
        assert computing.wait(10)
        threads.submit(check, engine, images(1, seed=2)).result()
        first.result()


def test_outputs_that_nobody_needs_stay_on_the_gpu(
    bundle: Bundle, sessions: Sessions, pretended: PretendCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []
    real = cuda.Buffer.to_host

    def counted(self: cuda.Buffer, images: int, stream: Any) -> None:
        copies.append(images)
        real(self, images, stream)

    monkeypatch.setattr(cuda.Buffer, "to_host", counted)
    frame = np.zeros((40, 40, 3), np.uint8)
    with flowedge.load(bundle.path, engine="onnxruntime-cuda") as detector:
        detector(frame)
        copies.clear()
        whole = detector(frame)
        assert (len(whole.levels), len(copies)) == (2, 4)
    with flowedge.load(bundle.path, engine="onnxruntime-cuda", levels=False) as detector:
        detector(frame)
        copies.clear()
        short = detector(frame)
        assert (short.levels, len(copies)) == ((), 2)
    assert short.score == whole.score
    np.testing.assert_array_equal(short.network_map, whole.network_map)


@pytest.mark.parametrize("fault", ["refuses", "breaks"])
def test_a_graph_that_cannot_be_captured_runs_without_one_and_is_noted_once(
    bundle: Bundle, sessions: Sessions, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    setattr(sessions, fault, True)
    engine = open_unproven("onnxruntime-cuda", bundle, "fp32")
    for count in (1, 2, 1, 3):
        check(engine, images(count, seed=count))
    engine.close()
    assert [options["enable_cuda_graph"] for options in sessions.asked] == ["1", "0"]
    assert sum("without CUDA graphs" in record.message for record in caplog.records) == 1
    assert sessions.graphs[-1][0] == "-1"


def test_a_capture_that_fails_later_keeps_the_sizes_that_were_there(
    engine: Opened, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    check(engine, images(1))
    sessions.breaks = True
    for count in (2, 1, 2):
        check(engine, images(count, seed=count))
    assert len(sessions.asked) == 2


def test_a_capture_that_fails_where_the_file_is_gone_goes_on_without_cuda_graphs(
    engine: Opened, bundle: Bundle, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    (bundle.path / "model.onnx").unlink()
    sessions.breaks = True
    for count in (2, 1, 2):
        check(engine, images(count, seed=count))
    assert caplog.text.count("cannot be opened again") == 1
    assert sessions.graphs[-1][0] == "-1"


def test_a_batch_that_fails_says_so_and_keeps_the_cuda_graphs(
    engine: Opened, sessions: Sessions, pretended: PretendCuda
) -> None:
    check(engine, images(1))
    held = len(pretended.held)
    pretended.room = 3
    with pytest.raises(EngineUnavailableError, match="cudaErrorMemoryAllocation"):
        engine.infer(images(3))
    assert len(pretended.held) == held
    pretended.room = 1000
    with pytest.raises(EngineUnavailableError, match=r"stopped on an input of \(2, 3, 5, 5\)"):
        engine.infer(np.zeros((2, 3, 5, 5), np.float32))
    assert len(pretended.held) == held
    check(engine, images(3))
    assert len(sessions.asked) == 1


def test_sizes_beyond_the_last_that_has_buffers_are_answered_too(
    engine: Opened, pretended: PretendCuda
) -> None:
    for count in range(1, onnxrt_bound.MOST_SIZES + 3):
        check(engine, images(count, seed=count))
    assert len(pretended.held) == onnxrt_bound.MOST_SIZES * onnxrt_bound.IN_FLIGHT * 2 * 5


def test_closing_waits_for_no_call_and_a_later_call_ends_with_an_error(
    engine: Opened, sessions: Sessions, pretended: PretendCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.infer(images(1))
    computing, closed = threading.Event(), threading.Event()
    real = Session.run_with_iobinding

    def slow(self: Session, binding: Any, options: Any) -> None:
        computing.set()
        assert closed.wait(10)
        real(self, binding, options)

    monkeypatch.setattr(Session, "run_with_iobinding", slow)
    with ThreadPoolExecutor(1) as threads:
        begun = threads.submit(check, engine, images(1, seed=4))
        assert computing.wait(10)
        engine.close()
        closed.set()
        begun.result()
    with pytest.raises(ValueError, match="closed"):
        engine.infer(images(1))
    assert len(pretended.held) == 0


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt. A shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_call_leaves_nothing_at_work_and_no_set_of_buffers_behind(
    engine: Opened, pretended: PretendCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.infer(images(1))
    computing, freed, ended = threading.Event(), threading.Event(), threading.Event()
    real = Session.run_with_iobinding

    def slow(self: Session, binding: Any, options: Any) -> None:
        if not computing.is_set():
            computing.set()
            freed.wait(10)
            real(self, binding, options)
            ended.set()
        else:
            real(self, binding, options)

    def interrupt() -> None:
        assert computing.wait(10)
        signal.pthread_kill(main, signal.SIGINT)
        threading.Event().wait(0.05)
        freed.set()

    main = threading.get_ident()
    monkeypatch.setattr(Session, "run_with_iobinding", slow)
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.infer(images(1, seed=3))
        assert ended.is_set(), "the call ended while its graph still used the buffers"
        done.result()
    for count in (1, 2):
        check(engine, images(count, seed=count))


def test_an_interrupted_wait_for_the_other_runs_keeps_the_sets_of_buffers(
    engine: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.infer(images(1))
    sets, real, calls = engine.engine._runs._sets, engine.engine._runs._sets.get, []  # type: ignore[attr-defined]

    def get() -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(timeout=10)

    monkeypatch.setattr(sets, "get", get)
    with pytest.raises(KeyboardInterrupt):
        engine.infer(images(2))
    for count in (1, 2):
        check(engine, images(count, seed=count))


def test_an_engine_that_nobody_closes_gives_back_what_it_holds(
    bundle: Bundle, sessions: Sessions, pretended: PretendCuda
) -> None:
    engine = open_unproven("onnxruntime-cuda:1", bundle, "fp32")
    check(engine, images(1))
    assert pretended.used == {1}
    del engine
    for _ in range(50):  # the thread drops its last work a moment later
        gc.collect()
        if not pretended.held:
            break
        threading.Event().wait(0.02)
    assert len(pretended.held) == 0


def test_without_cudas_binding_the_engine_runs_and_says_what_it_costs(
    bundle: Bundle, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "flowedge.runtime.engines.onnxrt_bound", None)
    engine = open_unproven("onnxruntime-cuda", bundle, "fp32")
    with caplog.at_level(logging.WARNING):
        check(engine, images(2))
    assert "enable_cuda_graph" not in sessions.asked[0]
    assert "is not installed" in caplog.text


def test_with_a_binding_that_is_too_new_for_the_driver_the_engine_runs_and_says_what_to_install(
    bundle: Bundle, sessions: Sessions, pretended: PretendCuda, caplog: pytest.LogCaptureFixture
) -> None:
    pretended.driver = 11040
    with caplog.at_level(logging.WARNING):
        engine = open_unproven("onnxruntime-cuda", bundle, "fp32")
        check(engine, images(2))
    assert "enable_cuda_graph" not in sessions.asked[0]
    (warning,) = [one.getMessage() for one in caplog.records if "onnxruntime-cuda" in one.getMessage()]
    assert "supports CUDA 11.4, the installed cuda-bindings is of 12.6" in warning
    assert "pip install 'cuda-bindings==11.*'" in warning


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("onnxruntime-cuda", {"use_tf32": "0"}),
        ("onnxruntime-cuda-nhwc:1", {"use_tf32": "0", "prefer_nhwc": "1", "device_id": "1"}),
        ("onnxruntime-cuda-tf32", {"use_tf32": "1"}),
    ],
)
def test_the_name_of_the_engine_chooses_the_options_of_the_provider(
    tmp_path: Path, pretended: PretendCuda, sessions: Sessions, name: str, options: dict[str, str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "two.flowedge", precisions=("fp32", "fp16"))
    open_unproven(name, bundle, "fp32").close()
    assert sessions.asked[0].items() >= options.items()
    assert ("prefer_nhwc" in sessions.asked[0]) == ("prefer_nhwc" in options)


def test_tensorfloat32_needs_a_bundle_that_passed_the_gate_of_float16_in_all_blocks(
    bundle: Bundle, tmp_path: Path, sessions: Sessions
) -> None:
    with pytest.raises(EngineUnavailableError, match=rf"flowedge calibrate {bundle.path} .*--fp16"):
        open_unproven("onnxruntime-cuda-tf32", bundle, "fp32")
    two = write_tiny_bundle(tmp_path / "two.flowedge", precisions=("fp32", "fp16"))
    with pytest.raises(EngineUnavailableError, match="the fp32 graph alone, got fp16"):
        open_unproven("onnxruntime-cuda-tf32", two, "fp16")
    graphs = tuple(
        msgspec.structs.replace(graph, given_back=("flow/0", "flow/1") if graph.precision == "fp16" else ())
        for graph in two.manifest.graphs
    )
    partly = replace(two, manifest=msgspec.structs.replace(two.manifest, graphs=graphs))
    with pytest.raises(EngineUnavailableError, match=r"kept 2 blocks of .* in float32: flow/0, flow/1"):
        open_unproven("onnxruntime-cuda-tf32", partly, "fp32")
    assert sessions.asked == []


def test_tensorfloat32_asks_for_no_calibration_where_there_is_no_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu(index: int) -> None:
        raise EngineUnavailableError("CUDA shows no GPU")

    # The pretended GPU ends before the other changes of a test do, so this one ends here.
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "device", no_gpu)
        with pytest.raises(EngineUnavailableError, match="CUDA shows no GPU"):
            open_unproven("onnxruntime-cuda-tf32", bundle, "fp32")
        patch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(EngineUnavailableError, match="is installed without CUDAExecutionProvider"):
            open_unproven("onnxruntime-cuda-tf32", bundle, "fp32")


def test_tensorfloat32_is_compared_with_the_limits_of_float16(tmp_path: Path, pretended: PretendCuda) -> None:
    bundle = write_tiny_bundle(tmp_path / "two.flowedge", precisions=("fp32", "fp16"))
    limits = {}
    for name in ("onnxruntime-cuda", "onnxruntime-cuda-tf32"):
        engine = open_unproven(name, bundle, "fp32")
        checks = replay_selftest(bundle, engine)
        assert all(check.passed for check in checks)
        limits[name] = [check.limit for check in checks if "level" in check.name]
        engine.close()
    assert set(limits["onnxruntime-cuda"]) == {PARITY_LIMITS["fp32"]}
    assert set(limits["onnxruntime-cuda-tf32"]) == {PARITY_LIMITS["fp16"]}


# --- frames that are preprocessed on the GPU


def frames_of(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def on_the_cpu(bundle: Bundle, frames: list[NDArray[np.uint8]]) -> list[flowedge.Result]:
    with flowedge.load(bundle.path, engine="onnxruntime-cpu") as detector:
        return [detector(frame) for frame in frames]


def assert_same(found: list[flowedge.Result], expected: list[flowedge.Result]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.network_map, other.network_map, rtol=1e-5, atol=1e-6)
        assert one.score == pytest.approx(other.score, rel=1e-5)


@pytest.mark.parametrize("method", ["float_bilinear", "pil_lanczos"])
def test_frames_go_straight_to_the_gpu_and_are_preprocessed_there(
    tmp_path: Path, pretended: PretendCuda, sessions: Sessions, method: Any
) -> None:
    preprocessing = msgspec.structs.replace(tiny_manifest().preprocessing, method=method)
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", preprocessing=preprocessing)
    frames = frames_of((40, 60), (40, 60), (40, 60))
    with flowedge.load(bundle.path, engine="onnxruntime-cuda") as detector:
        assert detector.prepare(frames[:1])[1].dtype == np.uint8
        assert_same([detector(frame) for frame in frames], on_the_cpu(bundle, frames))
        assert_same(detector.detect_batch(frames), on_the_cpu(bundle, frames))
    assert len(sessions.asked) == 2
    assert sessions.asked[1].items() >= {"use_tf32": "0", "enable_cuda_graph": "1"}.items()


def test_frames_of_many_sizes_are_preprocessed_by_the_host_in_the_end(
    bundle: Bundle, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxrt_frames, "MOST_FRAMES", 2)
    frames = frames_of((40, 60), (50, 50), (33, 44), (40, 60))
    with flowedge.load(bundle.path, engine="onnxruntime-cuda") as detector:
        assert_same([detector(frame) for frame in frames], on_the_cpu(bundle, frames))
        assert_same(detector.detect_batch(frames), on_the_cpu(bundle, frames))
        prepared = [detector.prepare([frame])[1] for frame in frames]
        assert [one.dtype.name for one in prepared] == ["uint8", "uint8", "float32", "uint8"]
        joined = detector.infer(detector.joined(prepared))["score"]
        np.testing.assert_allclose(joined, [one.score for one in on_the_cpu(bundle, frames)], rtol=1e-5)
        assert detector.joined([prepared[0], prepared[3]]).shape == (2, 40, 60, 3)
    assert len(sessions.asked) == 1 + onnxrt_frames.MOST_FRAMES


def test_a_gpu_that_preprocesses_otherwise_leaves_it_to_the_host(
    bundle: Bundle, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = input_graph
    monkeypatch.setattr(
        onnxrt_frames,
        "input_graph",
        lambda preprocessing, size: right(
            msgspec.structs.replace(preprocessing, mean=(0.5, 0.4, 0.41)), size
        ),
    )
    frames = frames_of((40, 60), (40, 60))
    with flowedge.load(bundle.path, engine="onnxruntime-cuda") as detector:
        assert_same([detector(frame) for frame in frames], on_the_cpu(bundle, frames))
    assert caplog.text.count("lets the host preprocess frames of 40x60") == 1


def test_frames_survive_a_capture_that_fails(bundle: Bundle, sessions: Sessions) -> None:
    frames = frames_of((40, 60), (40, 60), (50, 50))
    with flowedge.load(bundle.path, engine="onnxruntime-cuda") as detector:
        detector(frames[0])
        sessions.breaks = True
        assert_same(detector.detect_batch(frames[:2]), on_the_cpu(bundle, frames[:2]))
        assert_same([detector(frame) for frame in frames], on_the_cpu(bundle, frames))
    assert [options["enable_cuda_graph"] for options in sessions.asked] == ["1", "1", "0", "0", "0"]


def test_a_batch_whose_frames_the_gpu_cannot_resize_is_preprocessed_by_the_host_with_all_others_of_the_size(
    bundle: Bundle, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Session.run_with_iobinding

    def run(self: Session, binding: Any, options: Any) -> None:
        resizes = self.get_inputs()[0].name == "frames"
        if resizes and binding.get_outputs()[0].shape()[0] == 3:
            raise RuntimeError("Failed to allocate memory")
        real(self, binding, options)

    monkeypatch.setattr(Session, "run_with_iobinding", run)
    frames = frames_of((40, 60), (40, 60), (40, 60))
    expected = on_the_cpu(bundle, frames)
    with flowedge.load(bundle.path, engine="onnxruntime-cuda") as detector:
        for some in (frames[:1], frames, frames[:1], frames[:2], frames):
            assert_same(detector.detect_batch(some), expected[: len(some)])
        assert detector.prepare(frames[:1])[1].dtype == np.float32
    captured = [graph for graph, _ in sessions.graphs if graph != "-1"]
    assert len(set(captured)) == 8, (
        "the network's graphs of batches of 1, 3 and 2 and of the frames have own numbers"
    )
    assert caplog.text.count("lets the host preprocess frames of 40x60") == 1
