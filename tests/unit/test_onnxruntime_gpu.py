"""ONNX Runtime's GPU providers use the device that was asked for and our cache folder, tried without a GPU."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from flowedge.bundle import Bundle
from flowedge.errors import EngineNotBuiltError, EngineUnavailableError
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.machine import NvidiaDriver
from flowedge.runtime.engines import onnxrt, onnxrt_session, onnxrt_tensorrt
from flowedge.runtime.opening.building import build_engine
from flowedge.runtime.opening.engine_contract import BuildOptions
from flowedge.runtime.opening.unproven import open_unproven
from support.tiny_bundle import IMAGE_SIZE, tiny_answer, write_tiny_bundle

# The runs on buffers that stay on the GPU are tried in test_onnxruntime_bound.py.
BOUND = "flowedge.runtime.engines.onnxrt_bound"
CUDA, TENSORRT = "onnxruntime-cuda", "onnxruntime-tensorrt"
PROVIDERS = {CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setitem(sys.modules, BOUND, None)
    return write_tiny_bundle(tmp_path / "tiny.flowedge", precisions=("fp32", "fp16"))


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_build_without_the_provider_says_which_has_it(bundle: Bundle, name: str) -> None:
    if PROVIDERS[name] in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    reason = rf"without {PROVIDERS[name]}.*pip uninstall onnxruntime, then pip install 'onnxruntime-gpu"
    with pytest.raises(EngineUnavailableError, match=reason):
        open_unproven(name, bundle, "fp32")


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where CUDA's libraries are missing, the provider is listed and the session has only the CPU.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(EngineUnavailableError, match="would compute with CPUExecutionProvider"),
    ):
        open_unproven(CUDA, bundle, "fp32")


class Sessions:
    """Opens sessions on the CPU, and leaves a file where TensorRT's provider would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[onnxrt_tensorrt.Providers] = []
        self.engines = 1
        real = onnxrt_session.open_session

        def session(
            model: Any, providers: onnxrt_tensorrt.Providers, **others: Any
        ) -> onnxruntime.InferenceSession:
            self.asked.append(providers)
            name, options = providers[0]
            if name == PROVIDERS[TENSORRT]:
                for number in range(self.engines):
                    Path(options["trt_engine_cache_path"], f"{number}_sm87.engine").write_bytes(b"plan")
            return real(model, [("CPUExecutionProvider", {})], **others)

        monkeypatch.setattr(onnxrt, "open_session", session)
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: [*PROVIDERS.values(), "CPUExecutionProvider"]
        )


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    return Sessions(monkeypatch)


def images(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(count, 3, *IMAGE_SIZE)).astype(np.float32)


def test_cuda_computes_float32_in_full(bundle: Bundle, sessions: Sessions) -> None:
    engine = open_unproven(CUDA, bundle, "fp16")
    (((provider, options), *others),) = sessions.asked
    assert (provider, others) == ("CUDAExecutionProvider", [("CPUExecutionProvider", {})])
    assert (options["use_tf32"], options["device_id"]) == ("0", "0")
    assert engine.name == CUDA
    np.testing.assert_allclose(engine.infer(images(2))["score"], tiny_answer(images(2))["score"], rtol=1e-5)


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_number_of_a_gpu_reaches_every_provider_of_it(
    bundle: Bundle, sessions: Sessions, name: str
) -> None:
    if name == TENSORRT:
        build_engine(bundle, f"{name}:1")
    engine = open_unproven(f"{name}:1", bundle, "fp32")
    assert engine.name == f"{name}:1"
    on_gpus = [options for provider, options in sessions.asked[-1] if provider in PROVIDERS.values()]
    assert len(on_gpus) == list(PROVIDERS).index(name) + 1
    assert {options["device_id"] for options in on_gpus} == {"1"}


def test_float32_in_tensorrt_needs_the_environment_that_keeps_it(
    bundle: Bundle, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    with pytest.raises(EngineUnavailableError, match="Start the process with NVIDIA_TF32_OVERRIDE=0"):
        build_engine(bundle, TENSORRT)
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    assert open_unproven(CUDA, bundle, "fp32").name == CUDA


def test_what_onnxruntime_prints_while_it_looks_for_libraries_goes_to_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def preload_dlls(cuda: bool = True, *, directory: str | None = None) -> None:
        print("Failed to load libcudnn.so", cuda, directory)

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    with caplog.at_level(logging.INFO, logger="flowedge"):
        onnxrt._preload_cuda.__wrapped__()
    assert capsys.readouterr().out == ""
    assert [record.message for record in caplog.records] == [
        "ONNX Runtime: Failed to load libcudnn.so True None"
    ]


def test_tensorrts_engines_are_built_on_request_and_kept_in_our_cache(
    bundle: Bundle, sessions: Sessions, tmp_path: Path
) -> None:
    with pytest.raises(EngineNotBuiltError, match=f"flowedge build {bundle.path} --engine {TENSORRT}"):
        open_unproven(TENSORRT, bundle, "fp32")
    assert sessions.asked == []
    options = BuildOptions(batches=(1, 2, 3))
    built = build_engine(bundle, TENSORRT, options=options)
    assert built.was_built
    assert not build_engine(bundle, TENSORRT, options=options).was_built
    ((_, asked), *fallbacks) = sessions.asked[0]
    assert [name for name, _ in fallbacks] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    height, width = IMAGE_SIZE
    assert asked["trt_profile_max_shapes"] == f"image:3x3x{height}x{width}"
    for folder in ("trt_engine_cache_path", "trt_timing_cache_path"):
        assert Path(asked[folder]).is_relative_to(tmp_path / "cache")
    engine = open_unproven(TENSORRT, bundle, "fp32")
    assert sessions.asked[1] == sessions.asked[0]
    assert len(engine.infer(images(3))["score"]) == 3
    with pytest.raises(EngineUnavailableError, match=r"at most 3 images at a time, got 4.*--batch 1,1,4"):
        engine.infer(images(4))


def test_engines_whose_files_are_gone_are_built_again(bundle: Bundle, sessions: Sessions) -> None:
    build_engine(bundle, TENSORRT)
    for entry in device_cache().files():
        if entry.facts is None:
            entry.path.unlink()
    with pytest.raises(EngineNotBuiltError, match="files were deleted"):
        open_unproven(TENSORRT, bundle, "fp32")
    assert build_engine(bundle, TENSORRT).was_built
    assert open_unproven(TENSORRT, bundle, "fp32").name == TENSORRT


def test_another_driver_is_another_engine(
    bundle: Bundle, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engine(bundle, TENSORRT)
    monkeypatch.setattr(
        onnxrt_tensorrt, "find_nvidia_driver", lambda: NvidiaDriver(version="580.1", names=("A2000",))
    )
    with pytest.raises(
        EngineNotBuiltError, match=r"device none instead of A2000, driver none instead of 580\.1"
    ):
        open_unproven(TENSORRT, bundle, "fp32")


def test_a_graph_of_which_tensorrt_takes_nothing_is_refused(bundle: Bundle, sessions: Sessions) -> None:
    sessions.engines = 0
    with pytest.raises(EngineUnavailableError, match="built no engine"):
        build_engine(bundle, TENSORRT)
    assert all(entry.facts is None for entry in device_cache().files())


@pytest.mark.parametrize(
    ("precision", "options"), [("fp16", BuildOptions()), ("fp32", BuildOptions(dla=True))]
)
def test_it_builds_nothing_whose_precision_tensorrt_would_choose(
    bundle: Bundle, sessions: Sessions, precision: str, options: BuildOptions
) -> None:
    with pytest.raises(EngineUnavailableError, match="is built for the precision fp32"):
        build_engine(bundle, TENSORRT, precision, options=options)
