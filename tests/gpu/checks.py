"""Check what only a device can show: CUDA's own calls, parity, threads, memory, faults. Each check is a process.

python -m gpu.checks CHECK DEVICE [BUNDLE]     prints a line of JSON
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

import flowedge
from flowedge.bundle import open_bundle
from flowedge.runtime.opening.unproven import open_unproven
from gpu.models import precisions_of

BATCHES: Final = (1, 3, 8)
THREADS: Final = 8
FRAMES_PER_THREAD: Final = 40
RELOADS: Final = 20


def cuda_calls(device: str, bundle: Path) -> dict[str, Any]:
    """Copy through buffers, capture a graph of copies, launch it, fail in a capture, and ask for too much memory."""
    from cuda.bindings import runtime  # pyright: ignore[reportAttributeAccessIssue]

    from flowedge.errors import EngineUnavailableError
    from flowedge.runtime.engines import cuda

    found = cuda.device(0)
    shape = (4, 3, 64, 64)
    there, back = (cuda.Buffer(shape, np.dtype(np.float32)) for _ in range(2))
    stream = cuda.new_stream()

    def queue() -> None:
        there.to_device(4, stream)
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        cuda.call(runtime.cudaMemcpyAsync, back.device, there.device, there.host.nbytes, kind, stream)
        back.to_host(4, stream)

    def fill(seed: int) -> None:
        there.host[...] = np.random.default_rng(seed).random(shape, np.float32)
        back.host[...] = 0

    graph = cuda.captured(stream, queue)
    launched = []
    for seed in range(3):
        fill(seed)
        cuda.launch(graph, stream)
        cuda.wait(stream)
        launched.append(bool(np.array_equal(there.host, back.host)))

    def fail() -> None:
        queue()
        raise EngineUnavailableError("planted")

    errors = []
    try:
        cuda.captured(stream, fail)
    except EngineUnavailableError as error:
        errors.append(str(error))
    fill(9)
    queue()
    cuda.wait(stream)
    plain = bool(np.array_equal(there.host, back.host))
    try:
        cuda.Buffer((1 << 42,), np.dtype(np.float32))
    except EngineUnavailableError as error:
        errors.append(str(error))
    cuda.destroy_graph(graph)
    cuda.destroy_stream(stream)
    there.free()
    back.free()
    return {"device": str(found), "graph": launched, "plain after a failed capture": plain, "errors": errors}


def parity(device: str, bundle_folder: Path) -> dict[str, Any]:
    """Compare every precision and batch size with the fp32 graph on ONNX Runtime's CPU, output by output."""
    bundle = open_bundle(bundle_folder)
    size = bundle.manifest.image_size
    expected = open_unproven("onnxruntime-cpu", bundle, "fp32")
    rows: list[dict[str, Any]] = []
    for precision in precisions_of(bundle_folder):
        try:
            opened = open_unproven(f"onnxruntime-{device}", bundle, precision)
            for batch in BATCHES:
                image = np.random.default_rng(batch).standard_normal((batch, 3, *size), dtype=np.float32)
                wanted, answers = expected.infer(image), opened.infer(image)
                shares = {
                    name: float(np.abs(answers[name] - value).max() / max(np.abs(value).max(), 1e-9))
                    for name, value in wanted.items()
                }
                # NaN counts as the worst.
                output = max(shares, key=lambda name: (np.isnan(shares[name]), shares[name]))
                rows.append(
                    {"precision": precision, "batch": batch, "worst": shares[output], "output": output}
                )
            opened.close()
        except Exception as error:
            rows.append(
                {"precision": precision, "batch": 0, "problem": f"{type(error).__name__}: {error}"[-300:]}
            )
    return {"rows": rows}


def threads(device: str, bundle: Path) -> dict[str, Any]:
    """Inspect different frames in eight threads of one detector, and compare each answer with the one alone."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (300 + 8 * number, 400, 3), dtype=np.uint8) for number in range(THREADS)]
    with flowedge.load(bundle, engine=f"onnxruntime-{device}") as detector:
        alone = [detector(frame) for frame in frames]
        wrong: list[int] = []

        def work(number: int) -> None:
            for _ in range(FRAMES_PER_THREAD):
                result, expected = detector(frames[number]), alone[number]
                scale = float(np.abs(expected.network_map).max())
                if not float(np.abs(result.network_map - expected.network_map).max()) <= 1e-4 * scale:
                    wrong.append(number)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        begun = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        together = THREADS * FRAMES_PER_THREAD / (time.perf_counter() - begun)
        begun = time.perf_counter()
        for frame in frames:
            for _ in range(FRAMES_PER_THREAD // 4):
                detector(frame)
        one = THREADS * (FRAMES_PER_THREAD // 4) / (time.perf_counter() - begun)
    return {
        "wrong": len(wrong),
        "frames/s, 8 threads": round(together, 1),
        "frames/s, 1 thread": round(one, 1),
    }


def reloads(device: str, bundle: Path) -> dict[str, Any]:
    """Load and close the bundle again and again, and watch the memory in use in MiB."""
    frame = np.zeros((256, 256, 3), np.uint8)
    used = []
    for _ in range(RELOADS):
        with flowedge.load(bundle, engine=f"onnxruntime-{device}") as detector:
            detector(frame)
        used.append(memory_in_use(device))
    return {"after the first": used[0], "after the fifth": used[4], "after the last": used[-1], "unit": "MiB"}


def memory_in_use(device: str) -> int:
    """Return the memory in use in MiB: of the whole GPU, or of this process on the CPU."""
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return int(total - free) >> 20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) >> 10


def main() -> None:
    checks = {function.__name__: function for function in (cuda_calls, parity, threads, reloads)}
    print(json.dumps(checks[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))))


if __name__ == "__main__":
    main()
