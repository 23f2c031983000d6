"""``--precision auto`` takes a lower precision, another engine or more threads only where they are clearly faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowedge.bundle import Bundle, clone_bundle
from flowedge.runtime.device.cores import Cores
from flowedge.runtime.opening import auto, choice
from flowedge.runtime.opening.auto import fastest_precision, preferred
from flowedge.runtime.opening.choice import Choice, Measured
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.opening import open_engine, open_or_build
from support.tiny_bundle import write_tiny_bundle

CPU, OPENVINO = "onnxruntime-cpu", "openvino"
EIGHT = Cores(
    cpus=tuple(range(8)),
    physical=4,
    fast_cpus=tuple(range(8)),
    fast_physical=4,
    quota=None,
    whole_machine=True,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(auto, "slow_precisions", dict)
    monkeypatch.setattr(auto, "find_cores", lambda: replace(EIGHT, cpus=(0, 1, 2, 3)))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose second graph, by its name in INT8, is the first one once more."""
    folder = tmp_path_factory.mktemp("choice")
    tiny = write_tiny_bundle(folder / "tiny.flowedge")
    fp32 = tiny.manifest.graph("fp32")
    second = msgspec.structs.replace(fp32, precision="fp16", file="model.fp16.onnx")
    manifest = msgspec.structs.replace(tiny.manifest, graphs=(fp32, second))
    content = tiny.graph_path("fp32").read_bytes()
    return clone_bundle(tiny, folder / "two.flowedge", manifest=manifest, files={"model.fp16.onnx": content})


def pretend(monkeypatch: pytest.MonkeyPatch, times: Mapping[Any, float]) -> list[str]:
    """Let each engine, precision and number of threads take a known time, and list what is timed."""
    timed: list[str] = []

    def times_in_turns(bundle: Bundle, sessions: Sequence[Opened], turns: int) -> list[list[float]]:
        timed.extend(f"{one.name} {one.precision} {one.threads}" for one in sessions)
        return [[times[one.name, one.precision, one.threads]] for one in sessions]

    monkeypatch.setattr(auto, "_times_in_turns", times_in_turns)
    return timed


def measured(engine: str, precision: str, ms: float | None) -> Measured:
    return Measured(engine=engine, precision=precision, median_ms=ms, problem="")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"fp32": 20.0, "int8-cpu": 10.0}, "int8-cpu"),
        ({"fp32": 20.0, "int8-cpu": 19.5}, "fp32"),
        ({"fp32": 20.0, "int8-cpu": 40.0}, "fp32"),
        ({"int8-cpu": 19.5, "fp32": 20.0}, "fp32"),
        ({"fp32": None, "int8-cpu": 40.0}, "int8-cpu"),
        ({"fp32": 20.0, "bf16": 10.0, "int8-cpu": 9.8}, "bf16"),
    ],
)
def test_a_lower_precision_must_be_clearly_faster(times: dict[str, float | None], expected: str) -> None:
    assert preferred([measured(CPU, name, ms) for name, ms in times.items()]).precision == expected


def test_an_engine_that_comes_later_must_be_clearly_faster() -> None:
    first, other = measured(CPU, "fp32", 10.0), measured(OPENVINO, "fp32", 9.8)
    assert preferred([first, other]) == first
    assert preferred([first, msgspec.structs.replace(other, median_ms=9.0)]).engine == OPENVINO


def test_a_precision_that_is_known_to_be_slow_here_is_not_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = pretend(monkeypatch, {(CPU, "fp32", 1): 10.0})
    monkeypatch.setattr(auto, "slow_precisions", lambda: {"fp16": "float16 is slow here."})
    found = fastest_precision(bundle, CPU, threads=1)
    assert timed == [f"{CPU} fp32 1"]
    assert [one.problem for one in found.measured] == ["", "float16 is slow here."]
    assert found.reason == f"the fastest graph on it that is right: {CPU} fp32 10.0 ms. float16 is slow here"


def test_near_times_are_measured_again_in_turns(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = pretend(monkeypatch, {(CPU, "fp32", 1): 10.0, (CPU, "fp16", 1): 8.0})
    assert fastest_precision(bundle, CPU, threads=1).precision == "fp16"
    assert timed == [f"{CPU} fp32 1", f"{CPU} fp16 1"] * 2
    pretend(monkeypatch, {(CPU, "fp32", 2): 20.0, (CPU, "fp16", 2): 8.0})
    assert fastest_precision(bundle, CPU, threads=2).precision == "fp16"


@pytest.mark.parametrize(("ms", "threads"), [(6.0, 8), (9.8, None), (14.0, None)])
def test_the_number_of_threads_is_chosen_and_stored_with_its_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, cache: Path, ms: float, threads: int | None
) -> None:
    monkeypatch.setattr(auto, "find_cores", lambda: EIGHT)
    times = {(CPU, "fp32", None): 10.0, (CPU, "fp16", None): 30.0, (CPU, "fp32", 8): ms}
    pretend(monkeypatch, times)
    found = fastest_precision(bundle, CPU)
    assert found.threads == threads
    assert [(one.threads, one.median_ms) for one in found.other_threads] == [(None, 10.0), (8, ms)]
    assert f"by the number of threads: its own number 10.0 ms, 8 {ms} ms" in found.reason
    (file,) = (cache / "precision").iterdir()
    assert msgspec.json.decode(file.read_bytes(), type=Choice) == found
    timed = pretend(monkeypatch, {})
    opened = open_or_build(CPU, bundle, "auto")
    assert timed == [], "the stored choice was taken"
    assert (opened.threads, opened.reason) == (threads, found.reason)
    opened.close()


def test_a_named_number_of_threads_is_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "find_cores", lambda: EIGHT)
    timed = pretend(monkeypatch, {(CPU, "fp32", 2): 10.0, (CPU, "fp16", 2): 30.0})
    found = fastest_precision(bundle, CPU, threads=2)
    assert (found.threads, found.other_threads) == (2, ())
    assert timed == [f"{CPU} fp32 2", f"{CPU} fp16 2"]


def test_other_cores_have_a_choice_of_their_own(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {(CPU, "fp32", 1): 10.0, (CPU, "fp16", 1): 5.0})
    assert fastest_precision(bundle, CPU, threads=1).precision == "fp16"
    pretend(monkeypatch, {(CPU, "fp32", 1): 10.0, (CPU, "fp16", 1): 15.0})
    assert fastest_precision(bundle, CPU, threads=1).precision == "fp16", "the stored one"
    monkeypatch.setattr(auto, "find_cores", lambda: replace(EIGHT, quota=2.0))
    assert fastest_precision(bundle, CPU, threads=1).precision == "fp32"


@pytest.mark.parametrize(
    "change", [{"threads": 0}, {"threads": 1_000_000}, {"reason": "\x1b[31m"}, {"precision": "bf16"}]
)
def test_a_stored_choice_that_cannot_be_is_measured_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, cache: Path, change: dict[str, Any]
) -> None:
    pretend(monkeypatch, {(CPU, "fp32", 1): 10.0, (CPU, "fp16", 1): 15.0})
    found = fastest_precision(bundle, CPU, threads=1)
    (file,) = (cache / "precision").iterdir()
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, **change)))
    assert fastest_precision(bundle, CPU, threads=1) == found


def test_without_a_name_the_engine_that_was_measured_faster_comes_first(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    pytest.importorskip("openvino")

    def first_engine() -> tuple[str, str]:
        opened = open_engine(None, bundle, "fp32", threads=1)
        opened.close()
        return opened.name, opened.reason

    assert first_engine()[0] == CPU
    times = {(CPU, "fp32", 1): 10.0, (OPENVINO, "fp32", 1): 8.0}
    pretend(monkeypatch, times | {(CPU, "fp16", 1): 5.0, (OPENVINO, "fp16", 1): 15.0})
    assert fastest_precision(bundle, threads=1).precision == "fp16"
    name, reason = first_engine()
    assert name == OPENVINO
    assert f"measured as the fastest here in fp32: {OPENVINO} 8.0 ms, {CPU} 10.0 ms" in reason
    with monkeypatch.context() as patch:
        patch.setattr(choice, "installed_version", lambda package: "another version")
        assert first_engine()[0] == CPU
    (file,) = (cache / "precision").glob("speeds-*")
    file.write_bytes(b"damaged")
    assert first_engine()[0] == CPU
