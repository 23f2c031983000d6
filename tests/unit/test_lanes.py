"""Frames that lie ready are inspected several at a time, and their answers keep the order of the frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowedge.runtime import lanes as lanes_module
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.lanes import (
    MOST_LANES,
    in_order,
    inferences_at_once,
    lanes_beside,
    lanes_of,
    threads_for_many,
)
from flowedge.runtime.opening.engine import ENGINES, NULL
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.unproven import open_unproven
from support.tiny_bundle import IMAGE_SIZE, write_tiny_bundle


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_the_answers_come_in_the_order_of_the_items(lanes: int) -> None:
    first_may_go = threading.Event()

    def square(number: int) -> int:
        # The first item is done last where others may overtake it.
        if number == 0 and lanes > 1:
            assert first_may_go.wait(20)
        if number == 1:
            first_may_go.set()
        return number * number

    assert list(in_order(square, range(20), lanes=lanes)) == [number * number for number in range(20)]


def test_as_many_items_are_worked_on_at_once_as_there_are_lanes() -> None:
    together = threading.Barrier(3, timeout=20)
    assert list(in_order(lambda _: together.wait() >= 0, range(6), lanes=3)) == [True] * 6


def test_few_items_are_taken_before_their_answers_are_used() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    answers = in_order(abs, items(), lanes=2)
    assert next(answers) == 0
    assert len(taken) <= 4
    answers.close()
    assert len(taken) <= 4


def test_large_items_are_worked_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "_MOST_BYTES", 10)
    lock, at_work, most = threading.Lock(), set[int](), dict[int, int]()

    def work(size: int) -> int:
        with lock:
            at_work.add(size)
            most[size] = sum(at_work)
        threading.Event().wait(0.01)
        with lock:
            at_work.remove(size)
        return size

    sizes = [3, 4, 30, 31, 5, 2]
    assert list(in_order(work, sizes, lanes=3, size=int)) == sizes
    assert all(total <= max(size, 10) for size, total in most.items())


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_error_is_raised_after_the_answers_before_it(lanes: int) -> None:
    def inverse(number: int) -> float:
        return 1 / number

    seen: list[float] = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(in_order(inverse, [1, 2, 0, 4], lanes=lanes))
    assert seen == [1.0, 0.5]


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_error_of_the_items_is_raised_after_the_answers_before_it(lanes: int) -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("the folder is gone")

    seen: list[int] = []
    with pytest.raises(OSError, match="the folder is gone"):
        seen.extend(in_order(abs, items(), lanes=lanes))
    assert seen == [1, 2, 3]


def test_nothing_is_at_work_when_the_caller_has_left() -> None:
    running, release = threading.Event(), threading.Event()
    ended = []

    def slow(number: int) -> int:
        if number == 1:
            running.set()
            assert release.wait(20)
            ended.append(number)
        return number

    answers = in_order(slow, range(9), lanes=2)
    assert next(answers) == 0
    assert running.wait(20)
    threading.Timer(0.05, release.set).start()
    answers.close()
    assert ended == [1]


def test_nothing_is_at_work_after_an_interrupted_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    release, ended = threading.Event(), []

    def slow(number: int) -> None:
        assert release.wait(20)
        ended.append(number)

    def interrupted(self: Future[None]) -> None:
        threading.Timer(0.05, release.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(in_order(slow, [0], lanes=2))
    assert ended in ([0], []), "the work has ended, or has not begun"
    count = len(ended)
    release.set()
    time.sleep(0.1)
    assert len(ended) == count


@pytest.mark.parametrize(
    ("cores", "threads", "lanes"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (4, 3, 1), (16, 1, 8), (16, 2, 8)]
)
def test_inferences_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, lanes: int
) -> None:
    monkeypatch.setattr(lanes_module, "fast_cores", lambda: cores)
    assert lanes_beside(threads) == lanes


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 1), (9, 2), (16, 2), (64, 8)])
def test_many_frames_use_all_cores_with_few_threads_each(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr(lanes_module, "fast_cores", lambda: cores)
    assert threads_for_many() == threads
    assert threads_for_many(3) == 3
    assert lanes_beside(threads) <= MOST_LANES


def test_an_engine_that_fills_all_cores_gets_one_frame_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    opened = Opened(engine=NullEngine(bundle.manifest), spec=NULL, precision="fp32", reason="named")
    assert lanes_of(opened) == 1
    assert lanes_of(replace(opened, threads=1)) == lanes_beside(1)
    on_gpu = replace(opened, spec=replace(NULL, device="nvidia"), threads=1)
    for cores, lanes in {1: 2, 4: 4, 64: MOST_LANES}.items():
        monkeypatch.setattr(lanes_module, "fast_cores", lambda cores=cores: cores)
        assert (inferences_at_once(on_gpu), lanes_of(on_gpu)) == (1, lanes)


@pytest.mark.parametrize("name", [name for name, spec in ENGINES.items() if spec.device == "cpu"])
def test_inferences_at_once_give_the_answers_of_one_after_the_other(tmp_path: Path, name: str) -> None:
    engine = open_unproven(name, write_tiny_bundle(tmp_path / "tiny.flowedge"), "fp32", threads=1)
    images = np.random.default_rng(0).normal(size=(12, 1, 3, *IMAGE_SIZE)).astype(np.float32)
    alone = [engine.infer(image) for image in images]
    for answers, expected in zip(in_order(engine.infer, images, lanes=2), alone, strict=True):
        for output, value in expected.items():
            np.testing.assert_array_equal(answers[output], value)
    engine.close()
