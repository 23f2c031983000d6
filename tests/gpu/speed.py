"""Time one model on a device: FlowEdge's engine, its graph with bound buffers, PyTorch and anomalib's ONNX.

    python -m gpu.speed DEVICE FOLDER NAME [--peer FILE] [--compile]

prints a line of JSON. All variants of a batch size take turns, so that a change of the clock slows all alike. The time
is the median of one run, from the input on the host to the answers on the host where the variant says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from bench.full_size import BACKBONE, MODEL
from bench.table_engines import ROWS
from flowedge.bundle import open_bundle
from flowedge.export.checkpoint_parity import model_of_bundle
from flowedge.runtime.engines.onnxrt import _CUDA_OPTIONS
from flowedge.runtime.opening.timing import window_of
from flowedge.runtime.opening.unproven import open_unproven
from gpu.models import bundle_of, precisions_of

BATCHES: Final = (1, 8)
ROUNDS: Final = 3
SECONDS: Final = 0.25
WARM: Final = 5
Run = Callable[[], object]


def variants(
    device: str, folder: Path, name: str, batch: int, peer: Path | None
) -> dict[str, Callable[[], Run]]:
    """Return the functions that prepare each variant, by what it is called in the table."""
    bundle_folder = bundle_of(folder, name)
    bundle = open_bundle(bundle_folder)
    image = np.random.default_rng(0).standard_normal(
        (batch, 3, *bundle.manifest.image_size), dtype=np.float32
    )
    found: dict[str, Callable[[], Run]] = {}
    for precision in precisions_of(bundle_folder):
        graph = bundle.graph_path(precision)

        def engine(precision: str = precision) -> Run:
            opened = open_unproven(f"onnxruntime-{device}", bundle, precision)
            return lambda: opened.infer(image)

        found[f"FlowEdge, {precision}"] = engine
        found[f"the same graph, buffers on the device, {precision}"] = partial(bound, graph, image, device)
        if device == "cuda":
            found[f"the same graph, as a CUDA graph, {precision}"] = partial(
                bound, graph, image, device, enable_cuda_graph="1"
            )
            found[f"the same graph, channels last, {precision}"] = partial(
                bound, graph, image, device, prefer_nhwc="1"
            )
    if device == "cuda":
        fp32 = bundle.graph_path("fp32")
        found["the same graph, TF32"] = lambda: bound(fp32, image, device, use_tf32="1")
        found["the same graph, heuristic search, fp32"] = lambda: bound(
            fp32, image, device, cudnn_conv_algo_search="HEURISTIC"
        )
    network = torch_network(folder, name, device)
    tensor = torch.from_numpy(image).to(device)
    found["PyTorch eager, fp32"] = lambda: eager(network, tensor, device)
    if device == "cuda":
        found["PyTorch eager, TF32"] = lambda: eager(network, tensor, device, tf32=True)
    half = torch.float16 if device == "cuda" else torch.bfloat16
    found[f"PyTorch autocast, {str(half).removeprefix('torch.')}"] = lambda: eager(
        network, tensor, device, half=half
    )
    if peer is not None:
        found["anomalib's ONNX, fp32"] = lambda: bound(peer, image, device)
    return found


def session_of(graph: Path, device: str, **options: str) -> ort.InferenceSession:
    """Open a graph with FlowEdge's options of the provider, some of them changed.

    Raises:
        RuntimeError: ONNX Runtime fell back to the CPU.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.set_denormal_as_zero", "1")
    on_gpu = [("CUDAExecutionProvider", _CUDA_OPTIONS | options)] if device == "cuda" else []
    session = ort.InferenceSession(
        str(graph), settings, providers=[*on_gpu, ("CPUExecutionProvider", {})], enable_fallback=0
    )
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError(f"ONNX Runtime would compute with {session.get_providers()}")
    return session


def bound(graph: Path, image: NDArray[np.float32], device: str, **options: str) -> Run:
    """Run a graph on buffers that stay on the device. Neither the image nor an answer is copied."""
    plain = session_of(graph, device)
    taken = plain.get_inputs()[0].name
    answers = dict(
        zip((one.name for one in plain.get_outputs()), plain.run(None, {taken: image}), strict=True)
    )
    session = session_of(graph, device, **options) if options else plain
    binding = session.io_binding()
    values = [ort.OrtValue.ortvalue_from_numpy(image, device, 0)]
    binding.bind_ortvalue_input(taken, values[0])
    for output, answer in answers.items():
        values.append(ort.OrtValue.ortvalue_from_shape_and_type(answer.shape, answer.dtype, device, 0))
        binding.bind_ortvalue_output(output, values[-1])

    def run() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return values

    return run


def torch_network(folder: Path, name: str, device: str) -> Any:
    """Return the reference network of the checkpoint, from the input to the levels, on the device."""
    place, model = folder / name, ROWS[name]
    weights = place / BACKBONE if model.has_backbone_file else None
    read = model_of_bundle(open_bundle(place / "bundle.flowedge"), place / MODEL, backbone_weights=weights)
    return read.reference_network().to(device).eval()


def eager(
    network: Any, image: torch.Tensor, device: str, *, tf32: bool = False, half: torch.dtype | None = None
) -> Run:
    """Run PyTorch as it is, and wait for the device."""

    def run() -> object:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        with torch.inference_mode(), torch.autocast(device, half, enabled=half is not None):
            answers = network(image)
        if device == "cuda":
            torch.cuda.synchronize()
        return answers

    return run


def compiled(network: Any, image: torch.Tensor, device: str) -> Run:
    """Compile the network with PyTorch's own compiler, which captures CUDA graphs in this mode."""
    return eager(torch.compile(network, mode="reduce-overhead"), image, device)


def timed(prepared: dict[str, Callable[[], Run]], batch: int) -> list[dict[str, Any]]:
    """Prepare all variants, time them in turns, and return a row for each."""
    runs: dict[str, Run] = {}
    rows: list[dict[str, Any]] = []
    for what, prepare in prepared.items():
        try:
            run = prepare()
            for _ in range(WARM if torch.cuda.is_available() else 1):
                run()
            runs[what] = run
        except Exception as error:
            rows.append({"what": what, "batch": batch, "problem": f"{type(error).__name__}: {error}"[-300:]})
    taken: dict[str, list[float]] = {what: [] for what in runs}
    for _ in range(ROUNDS):
        for what, run in runs.items():
            taken[what] += window_of(run, SECONDS / ROUNDS)
    return rows + [
        {"what": what, "batch": batch, "ms": statistics.median(times)} for what, times in taken.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("device", choices=("cuda", "cpu"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", choices=ROWS)
    parser.add_argument("--peer", type=Path, help="anomalib's ONNX of the same model")
    parser.add_argument(
        "--compile", action="store_true", help="also PyTorch's compiler, which takes a minute"
    )
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        rows += timed(variants(options.device, options.folder, options.name, batch, options.peer), batch)
    if options.compile:
        network = torch_network(options.folder, options.name, options.device)
        image = torch.randn(1, 3, *open_bundle(bundle_of(options.folder, options.name)).manifest.image_size)
        prepare = {
            "PyTorch compiled, fp32": lambda: compiled(network, image.to(options.device), options.device)
        }
        rows += timed(prepare, 1)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
