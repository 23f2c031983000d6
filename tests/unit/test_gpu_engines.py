"""The rows of TensorRT and of TensorRT for RTX claim no more than what was seen, tried on a pretended GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import EngineUnavailableError
from flowedge.runtime.opening.unproven import open_unproven
from gpu import compiled, run
from gpu.report import Report, is_bad
from support.pretend_gpu import PretendCuda, PretendRtx
from support.tiny_bundle import tiny_answer, write_tiny_bundle

pytest.importorskip(
    "cuda.bindings.runtime", reason="cuda-bindings is not installed: pip install cuda-bindings"
)
from flowedge.runtime.engines import cuda

RTX = "tensorrt-rtx"
ORIN = cuda.Device(name="Orin", capability="8.7", driver="12.6", free=4 << 30, total=8 << 30)
HOPPER = replace(ORIN, name="H200", capability="9.0")
BUILT = SimpleNamespace(was_built=True, seconds=1.25, file=SimpleNamespace(size=3 << 20))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "SECONDS", 0.001)
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", PretendRtx(PretendCuda()))
    monkeypatch.setattr(compiled, "build_engine", lambda *_, **__: BUILT)


class Answering:
    """Answers as the tiny graph does, with an error that is added to every score."""

    def __init__(self, error: float) -> None:
        self.error, self.closed = error, False

    def infer(self, image: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        answer = tiny_answer(image)
        return answer | {"score": answer["score"] + np.float32(self.error)}

    def close(self) -> None:
        self.closed = True


def test_without_a_gpu_an_engine_is_built_and_not_run(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx")

    def no_gpu(index: int = 0) -> cuda.Device:
        raise EngineUnavailableError("this machine has no NVIDIA driver.")

    monkeypatch.setattr(cuda, "device", no_gpu)
    found = compiled.compiled(RTX, bundle, ["fp32"])
    (row,) = found["rows"]
    assert row["state"] == "not run: no GPU"
    assert row["MiB"] >= 0
    assert not {"worst", "ms", "failed"} & row.keys()
    assert found["gpu"] == "none: this machine has no NVIDIA driver."
    report = Report(tmp_path / "out", 1000)
    report.keep(f"built {RTX} cflow", found)
    report.write_tables("no card")
    assert f"| cflow | {RTX} {found['library']} | fp32 | " in (tmp_path / "out/gpu-report.md").read_text()
    assert compiled.row("tensorrt", bundle, "fp32", None)["state"] == "not built: no GPU"


@pytest.mark.usefixtures("pretended")
def test_a_gpu_that_the_library_does_not_support_is_told_by_its_list(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "build_engine", lambda *_, **__: pytest.fail("it was built all the same"))
    row = compiled.row(RTX, bundle, "fp16", HOPPER)
    assert row["state"].startswith("not built: tensorrt-rtx 10.3.0 does not support H200")
    assert "It supports 8.6, 8.7, 12.0." in row["state"]
    assert not is_bad(row)


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    ("error", "found"),
    [(0.0, lambda worst: worst < 1e-5), (4.0, lambda worst: worst > 0.01), (np.nan, np.isnan)],
)
def test_answers_on_a_supported_gpu_are_compared_with_the_cpus(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: float, found: Callable[[float], bool]
) -> None:
    answering = Answering(error)

    def open_it(engine: str, *arguments: Any) -> Any:
        return answering if engine == RTX else open_unproven(engine, *arguments)

    def replayed(_: Bundle, opened: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(passed=opened is answering and error == 0.0)]

    monkeypatch.setattr(compiled, "open_unproven", open_it)
    monkeypatch.setattr(compiled, "replay_selftest", replayed)
    row = compiled.row(RTX, bundle, "fp32", ORIN)
    assert is_bad(row) == (error != 0.0)
    assert (row["state"], row["build s"], row["MiB"]) == ("ran", 1.2, 3.0)
    assert row["ms"] > 0
    assert found(row["worst"])
    assert answering.closed


def test_a_command_that_ends_with_another_status_fails_the_campaign(tmp_path: Path) -> None:
    missing = tmp_path / "missing.flowedge"
    assert is_bad(run.command("info", missing))
    assert not is_bad(run.command("info", missing, ends_with=(2,)))


@pytest.mark.usefixtures("pretended")
def test_an_engine_that_cannot_be_built_fails_the_campaign(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise EngineUnavailableError("the builder failed")

    monkeypatch.setattr(compiled, "build_engine", fails)
    row = compiled.row(RTX, bundle, "fp32", ORIN)
    assert "the builder failed" in row["failed"]
    assert is_bad({"rows": [row]})


def test_a_library_that_is_not_installed_has_no_rows(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(spec: object) -> None:
        raise EngineUnavailableError("the engine tensorrt needs the package tensorrt")

    monkeypatch.setattr(compiled, "engine_module", absent)
    found = compiled.compiled("tensorrt", bundle, ["fp32"])
    assert found == {"not installed": "the engine tensorrt needs the package tensorrt"}
    assert not is_bad(found)
