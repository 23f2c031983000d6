"""An engine replays the self-test first, so that a graph that is wrong on this machine cannot inspect."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import flowedge
from flowedge.bundle import Bundle, open_bundle, write_bundle
from flowedge.errors import BundleError, EngineWrongError
from flowedge.runtime import verify
from flowedge.runtime.opening import proof
from flowedge.runtime.opening.engine import ENGINES
from flowedge.runtime.opening.opening import open_engine
from flowedge.runtime.opening.proof import prove
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.verify import infer_in_batches, replay_selftest
from support.command_line import flowedge as run_flowedge
from support.tiny_bundle import (
    IMAGE_SIZE,
    tiny_manifest,
    tiny_model,
    tiny_selftest,
    tiny_weight,
    write_tiny_bundle,
)

CPU = "onnxruntime-cpu"
ON_THE_CPU = [name for name, spec in ENGINES.items() if spec.device == "cpu"]
FRAME = np.full((*IMAGE_SIZE, 3), 90, np.uint8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a cache for one test."""
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def replays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the engines that replay a self-test, in order."""
    seen: list[str] = []

    def replay(bundle: Bundle, session: Any) -> Any:
        seen.append(session.name)
        return replay_selftest(bundle, session)

    monkeypatch.setattr(verify, "replay_selftest", replay)
    return seen


RUN = {"onnxruntime-cpu": "run_session", "openvino": "_run"}
"""The function of an engine's module that runs a graph."""


def perturb(name: str, monkeypatch: pytest.MonkeyPatch, change: Callable[[NDArray[Any]], None]) -> None:
    """Let an engine compute one level wrongly."""
    module = importlib.import_module(ENGINES[name].module)
    run = getattr(module, RUN[name])

    def wrong(*arguments: Any) -> Any:
        answers = run(*arguments)
        level = next(one for one in answers if one.ndim == 4 and one.shape[2] == IMAGE_SIZE[0] // 4)
        change(level)
        return answers

    monkeypatch.setattr(module, RUN[name], wrong)


def add_a_hundredth(level: NDArray[Any]) -> None:
    level += 0.01 * level.max()


def be_nowhere(level: NDArray[Any]) -> None:
    level[0, 0, 0, 0] = np.nan


@pytest.mark.parametrize("name", ON_THE_CPU)
@pytest.mark.parametrize("change", [add_a_hundredth, be_nowhere])
def test_an_engine_that_computes_one_level_wrongly_is_refused_with_the_numbers(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[NDArray[Any]], None],
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    perturb(name, monkeypatch, change)
    for _ in range(2):  # a failure is not remembered as anything else
        with pytest.raises(EngineWrongError) as caught:
            flowedge.load(bundle.path, engine=name)
        assert re.search(r"level 1 against the expected answers: \S+, limit \S+", str(caught.value))
        assert f"flowedge verify {bundle.path} --engine {name} --precision fp32" in str(caught.value)
    open_unproven(name, bundle, "fp32").close()


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_an_engine_that_mixes_the_answers_of_a_batch_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    module = importlib.import_module(ENGINES[name].module)
    run = getattr(module, RUN[name])
    monkeypatch.setattr(module, RUN[name], lambda *given: [answer[::-1].copy() for answer in run(*given)])
    with pytest.raises(EngineWrongError, match="in a batch against alone"):
        flowedge.load(bundle.path, engine=name)


def altered(folder: Path) -> Path:
    """Change the weights of a tiny bundle and make every hash of the manifest fit."""
    model = tiny_model()
    (weight,) = (one for one in model.graph.initializer if one.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(1.01 * tiny_weight(), "weight"))
    onnx.checker.check_model(model)
    manifest = tiny_manifest()
    files = {"model.onnx": model.SerializeToString(), **tiny_selftest(manifest)}
    return write_bundle(folder / "altered.flowedge", manifest, files).path


@pytest.mark.parametrize("engine", [None, *ON_THE_CPU])
def test_a_bundle_whose_graph_was_altered_and_hashed_again_is_refused(
    cache: Path, tmp_path: Path, engine: str | None
) -> None:
    with pytest.raises(EngineWrongError, match=r"level 0 against the expected answers.*flowedge verify"):
        flowedge.load(altered(tmp_path), engine=engine)


def test_no_command_judges_with_a_graph_that_is_wrong_here(cache: Path, tmp_path: Path) -> None:
    bundle, good = altered(tmp_path), tmp_path / "test" / "good"
    for folder in (good, good.with_name("hole")):
        folder.mkdir(parents=True)
        for number in range(3):
            assert cv2.imwrite(str(folder / f"{number}.png"), FRAME + number)
    for command in (("run", bundle, good), ("calibrate", bundle, "--data", good), ("eval", bundle, tmp_path)):
        done = run_flowedge(*command, "--engine", CPU)
        assert done.status == 2, done.stdout
        assert "wrongly on this machine" in " ".join(done.stderr.split()), command
    done = run_flowedge("verify", bundle, "--engine", CPU)
    assert done.status == 1, "verify itself reports"
    assert "FAILED" in done.stdout


def test_a_wrong_engine_that_nobody_named_is_passed_over_and_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    perturb(CPU, monkeypatch, add_a_hundredth)
    with flowedge.load(bundle.path) as detect:
        assert detect.engine.name == "openvino"
        assert f"{CPU} " in detect.engine.reason
        assert "wrongly on this machine" in detect.engine.reason


def test_a_bundle_without_a_self_test_cannot_judge(cache: Path, tmp_path: Path) -> None:
    files = {"model.onnx": tiny_model().SerializeToString()}
    bundle = write_bundle(tmp_path / "tiny.flowedge", tiny_manifest(), files)
    with pytest.raises(BundleError, match="selftest"):
        flowedge.load(bundle.path, engine=CPU)


# --- what is remembered


def test_a_proof_is_remembered_for_the_same_circumstances_alone(
    replays: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", precisions=("fp32", "fp16"))

    def again(precision: str = "fp32", threads: int | None = 1, engine: str = CPU) -> int:
        before = len(replays)
        open_engine(engine, bundle, precision, threads=threads).close()
        return len(replays) - before

    assert (again(), again()) == (1, 0)
    assert (again(precision="fp16"), again(precision="fp16")) == (1, 0)
    assert (again(threads=2), again(engine="openvino")) == (1, 1)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert (again(), again()) == (1, 0)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "\udc80 not of UTF-8")
    assert again() == 1
    monkeypatch.setattr(proof, "cpu_name", lambda: "another processor")
    assert again() == 1
    monkeypatch.setattr(proof, "cpu_flags", lambda: ("avx2",))
    assert again() == 1
    monkeypatch.setattr(proof, "library_version", lambda spec: "another version")
    assert again() == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.write_bytes(b""),
        lambda record: record.write_bytes(record.read_bytes()[:-1]),
        lambda record: record.write_bytes(record.read_bytes().replace(b"passed", b"failed")),
        lambda record: record.write_bytes(b'{"passed": true}'),
        lambda record: (record.unlink(), record.mkdir()),
    ],
)
def test_a_record_that_says_anything_else_is_measured_again(
    replays: list[str], cache: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    open_engine(CPU, bundle, "fp32").close()
    (record,) = (cache / "proofs").iterdir()
    json.loads(record.read_bytes())
    spoil(record)
    open_engine(CPU, bundle, "fp32").close()
    assert replays == [CPU, CPU]


def test_a_record_of_another_graph_under_this_ones_name_is_not_believed(
    replays: list[str], cache: Path, tmp_path: Path
) -> None:
    open_engine(CPU, write_tiny_bundle(tmp_path / "tiny.flowedge"), "fp32").close()
    (good,) = (cache / "proofs").iterdir()
    record = good.read_bytes()
    wrong = altered(tmp_path)
    with pytest.raises(EngineWrongError):
        flowedge.load(wrong, engine=CPU)
    assert [path.read_bytes() for path in (cache / "proofs").iterdir()] == [record], (
        "no failure is written down"
    )
    facts = proof._facts(open_bundle(wrong), "fp32", ENGINES[CPU], None)
    (cache / "proofs" / f"{hashlib.sha256(facts).hexdigest()[:32]}.json").write_bytes(record)
    with pytest.raises(EngineWrongError):
        flowedge.load(wrong, engine=CPU)


@pytest.mark.parametrize("where", ["a file", "a cache of no bytes", "not a size"])
def test_where_nothing_can_be_remembered_the_proof_runs_each_time(
    replays: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    if where == "a file":
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "file"))
    else:
        monkeypatch.setenv("FLOWEDGE_CACHE_SIZE", "0" if where == "a cache of no bytes" else "much")
    for _ in range(2):
        with flowedge.load(bundle.path, engine=CPU) as detect:
            assert detect(FRAME).verdict == "unknown"
    assert len(replays) == 2 or where == "a cache of no bytes"


def test_engines_that_facts_do_not_name_whole_prove_themselves_each_time(
    replays: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge")
    session = open_unproven(CPU, bundle, "fp32")
    monkeypatch.setattr(proof, "_can_be_remembered", lambda spec: False)
    prove(bundle, session, threads=None)
    prove(bundle, session, threads=None)
    assert len(replays) == 2
    monkeypatch.undo()
    remembered = [name for name, spec in ENGINES.items() if proof._can_be_remembered(spec)]
    assert remembered == [
        CPU,
        "openvino",
        "onnxruntime-cuda",
        "onnxruntime-cuda-nhwc",
        "onnxruntime-cuda-tf32",
    ]


# --- engines of other sizes of batch


class FixedBatches:
    """Takes batches of some sizes only, and answers each image with its mean."""

    name, reason, precision = "fixed", "named", "fp32"
    output_names: tuple[str, ...] = ("score",)

    def __init__(self, smallest: int, largest: int) -> None:
        self.batches: tuple[int, int] | None = (smallest, largest)
        self.sizes: list[int] = []

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        (image,) = inputs
        assert self.batches is not None
        assert self.batches[0] <= len(image) <= self.batches[1]
        assert image.flags.c_contiguous
        self.sizes.append(len(image))
        return {"score": image.mean(axis=(1, 2, 3))}

    def close(self) -> None:
        """Do nothing, because nothing is held."""


@pytest.mark.parametrize(
    ("batches", "sizes"), [((1, 1), [1, 1, 1]), ((2, 2), [2, 2]), ((4, 8), [4]), ((1, 8), [3])]
)
def test_images_are_inferred_in_the_batches_that_an_engine_takes(
    batches: tuple[int, int], sizes: list[int]
) -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    engine = FixedBatches(*batches)
    answers = infer_in_batches(engine, images[::-1])
    np.testing.assert_allclose(answers["score"], images[::-1].mean(axis=(1, 2, 3)))
    assert engine.sizes == sizes


# --- the structure
