"""Threads that share a detector each get the answer to their own frame, and no frame is lost."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import flowedge
from flowedge.bundle import Bundle
from flowedge.errors import ProcessError
from flowedge.manifest import NfaThreshold, Threshold, Thresholds
from flowedge.runtime.bench.subjects import shared_speed
from flowedge.runtime.detector import Detector
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.frames.pixels import Color, Given
from flowedge.runtime.opening.contract import graph_of_bundle
from flowedge.runtime.opening.engine import ENGINES
from flowedge.runtime.opening.engine_contract import Opening
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.protocols import Engine
from support.pretend_gpu import PretendCuda, PretendTrt
from support.tiny_bundle import IMAGE_SIZE, write_tiny_bundle

ON_THE_CPU = [name for name, spec in ENGINES.items() if spec.device == "cpu"]
THREADS, CALLS = 6, 25


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write the tiny bundle."""
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


def all_at_once(work: Callable[[int], None], threads: int = THREADS) -> None:
    """Let all threads begin at one moment, and raise the failure of any thread."""
    gate = threading.Barrier(threads)

    def begin(number: int) -> None:
        gate.wait(timeout=30)
        work(number)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(begin, number) for number in range(threads)]:
            done.result()


def check_that_each_gets_its_own_answer(engine: Engine, shape: tuple[int, ...] = (3, *IMAGE_SIZE)) -> None:
    """Mix batches of one to three images from several threads, and compare each answer with that to the image alone."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(1 + number % 3, *shape)).astype(np.float32) for number in range(2 * THREADS)]
    alone = [engine.infer(image) for image in images]

    def infer_all(number: int) -> None:
        for call in range(CALLS):
            which = (number + call * (number + 1)) % len(images)
            answers = engine.infer(images[which])
            for name, value in alone[which].items():
                np.testing.assert_array_equal(answers[name], value)

    all_at_once(infer_all)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_each_thread_gets_the_answers_to_its_own_images(bundle: Bundle, name: str, threads: int) -> None:
    engine = open_unproven(name, bundle, "fp32", threads=threads)
    check_that_each_gets_its_own_answer(engine)
    engine.close()


@pytest.mark.parametrize("plan", [b"1 4", b"2 2"])
def test_each_thread_gets_its_own_answers_of_an_nvidia_engine(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: bytes
) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    from flowedge.runtime.engines import cuda, nvidia

    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    device = cuda.Device(name="Orin", capability="8.7", driver="12.6", free=4 << 30, total=8 << 30)
    monkeypatch.setattr(cuda, "device", lambda index=0: device)
    monkeypatch.setattr(cuda, "cudart", made := PretendCuda())
    opening = Opening(spec=ENGINES["tensorrt"], source=graph_of_bundle(bundle, "fp32"), threads=None)
    device_cache().store(nvidia.facts_of(PretendTrt(made), opening, device), plan)
    engine = nvidia.load(PretendTrt(made), opening)
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(2, 3, *IMAGE_SIZE)).astype(np.float32) for _ in range(THREADS)]
    alone = [engine.infer(image)["anomaly_map"] for image in images]

    def infer_all(number: int) -> None:
        for _ in range(CALLS):
            np.testing.assert_array_equal(engine.infer(images[number])["anomaly_map"], alone[number])

    with contextlib.closing(engine):
        all_at_once(infer_all)


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_a_detector_that_threads_share_loses_no_frame_and_mixes_none(tmp_path: Path, name: str) -> None:
    by_nfa = Thresholds(nfa=NfaThreshold(form="tree"))
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", thresholds=by_nfa)
    rng = np.random.default_rng(1)
    sizes = [(40 + 3 * number, 60 + 5 * number) for number in range(THREADS)]
    frames = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    with flowedge.load(bundle.path, engine=name, threads=1) as detect:
        alone = [detect(frame) for frame in frames]

        def inspect_all(number: int) -> None:
            for _ in range(5):
                (result, _) = detect.detect_batch([frames[number], frames[number - 1]])
                assert result.score == alone[number].score
                assert result.verdict == alone[number].verdict
                np.testing.assert_array_equal(result.anomaly_map, alone[number].anomaly_map)
                assert result.mask is not None
                np.testing.assert_array_equal(result.mask, alone[number].mask)
                assert result.regions == alone[number].regions

        all_at_once(inspect_all)


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_each_thread_gets_the_result_of_its_own_frame(tmp_path: Path, name: str) -> None:
    """Frames of several sizes, colours and kinds go through one detector at the same time."""
    limits = Thresholds(pixel=Threshold(value=-0.002, method="manual"))
    path = write_tiny_bundle(tmp_path / "limits.flowedge", thresholds=limits).path
    rng = np.random.default_rng(0)
    frames: list[tuple[Given, Color]] = []
    for number in range(12):
        size = (16 + 3 * (number % 4), 24 + 5 * (number % 3))
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        kinds: list[tuple[Given, Color]] = [
            (pixels, "rgb"),
            (pixels, "bgr"),
            (pixels[..., 0], "gray"),
            (Image.fromarray(pixels), "rgb"),
        ]
        frames.append(kinds[number % len(kinds)])
    with flowedge.load(path, engine=name, threads=1) as detect:
        alone = [detect(frame, color=color) for frame, color in frames]
        assert len({result.score for result in alone}) == len(frames)

        def inspect_all(number: int) -> None:
            for call in range(CALLS):
                which = (number + call * (number + 1)) % len(frames)
                frame, color = frames[which]
                result = detect(frame, color=color)
                assert result.score == alone[which].score
                assert result.regions == alone[which].regions
                np.testing.assert_array_equal(result.anomaly_map, alone[which].anomaly_map)
                np.testing.assert_array_equal(result.frame, alone[which].frame)

        all_at_once(inspect_all, threads=8)


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_closing_while_others_infer_ends_each_call_with_an_answer_or_says_so(
    bundle: Bundle, name: str
) -> None:
    frame = np.full((*IMAGE_SIZE, 3), 90, np.uint8)
    detect = flowedge.load(bundle.path, engine=name, threads=1)
    wanted = detect(frame).score

    def inspect_for_ever() -> None:
        while True:
            assert detect(frame).score == wanted

    def inspect_until_closed(number: int) -> None:
        if number == 0:
            detect.close()
            return
        with pytest.raises(ValueError, match=r"was closed\. Load the bundle again"):
            inspect_for_ever()

    all_at_once(inspect_until_closed)


def test_more_threads_than_requests_wait_for_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowedge.runtime.engines import openvino

    monkeypatch.setattr(openvino, "_MOST_REQUESTS", 2)
    engine = open_unproven("openvino", bundle, "fp32", threads=1).engine
    check_that_each_gets_its_own_answer(engine)
    assert isinstance(engine, openvino._OpenVino)
    assert all(1 <= sized._made <= 2 for sized in engine._sizes.values())


def test_the_speed_of_threads_counts_every_frame_of_each() -> None:
    seen: list[int] = []

    def inspect(frame: NDArray[np.uint8]) -> None:
        seen.append(threading.get_ident())

    speed = shared_speed(inspect, np.zeros((1, 1, 3), np.uint8), 4, seconds=0)
    assert (speed.threads, len(seen)) == (4, 4)
    assert speed.frames_per_s > 0


# --- processes


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_a_detector_that_is_pickled_or_copied_says_what_to_do(
    bundle: Bundle, name: str, take: Callable[[Detector], object]
) -> None:
    with (
        flowedge.load(bundle.path, engine=name, threads=1) as detect,
        pytest.raises(ProcessError, match=r"Load the bundle again in each process: flowedge\.load\('.*tiny"),
    ):
        take(detect)
    assert issubclass(ProcessError, TypeError), "what pickle's callers expect"


def test_a_result_can_be_pickled(bundle: Bundle) -> None:
    with flowedge.load(bundle.path, threads=1) as detect:
        result = detect(np.full((30, 40, 3), 90, np.uint8))
    again = pickle.loads(pickle.dumps(result))
    assert again.score == result.score
    np.testing.assert_array_equal(again.anomaly_map, result.anomaly_map)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_after_a_fork_a_detector_says_what_to_do_and_can_be_closed_and_forgotten(
    bundle: Bundle, name: str
) -> None:
    frame = np.full((*IMAGE_SIZE, 3), 90, np.uint8)
    held = [flowedge.load(bundle.path, engine=name, threads=2)]
    wanted = held[0](frame).score
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        status = 1
        try:
            signal.alarm(30)  # a hang ends so
            try:
                held[0](frame)
            except ProcessError as error:
                status = 0 if "in each process" in str(error) else 2
            held[0].close()
            held.clear()
            gc.collect()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert held[0](frame).score == wanted, "the process that loaded it goes on"
    held[0].close()
