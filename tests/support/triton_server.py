"""Start a real Triton Inference Server, the one in the wheel of nvidia-pytriton, in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Final

from support.mqtt_broker import free_port

ENVIRONMENT: Final = Path(__file__).resolve().parents[2] / ".venv-triton"
"""The environment of ``make triton``, which has nvidia-pytriton, FlowEdge with ONNX Runtime, and NumPy below 2."""

_START_S: Final = 120.0


class TritonServer:
    """A server over a model repository. It loads and unloads models on request."""

    def __init__(self, environment: Path, repository: Path, work: Path, *models: str) -> None:
        """Start the server and wait until its models are loaded.

        Args:
            environment: The virtual environment.
            repository: The model repository.
            work: A folder for the server's log and its backend.
            models: The names of the models that are loaded at the start.

        Raises:
            RuntimeError: The server did not become ready. The message has the end of its log.
        """
        (packages,) = environment.glob("lib/python3.*/site-packages")
        triton = packages / "pytriton" / "tritonserver"
        backend = work / "backends" / "python"
        backend.mkdir(parents=True)
        # The wheel keeps the stub of each Python elsewhere than Triton looks for it.
        version = packages.parent.name.removeprefix("python")
        stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
        for file in (*(triton / "backends" / "python").iterdir(), stub):
            if file.is_file():
                shutil.copy2(file, backend)
        self.port, grpc, metrics = free_port(), free_port(), free_port()
        self.log = work / "triton.log"
        command = [triton / "bin" / "tritonserver", "--backend-directory", backend.parent]
        command += ["--model-repository", repository, "--model-control-mode", "explicit"]
        for name, port in (("http", self.port), ("grpc", grpc), ("metrics", metrics)):
            command += [f"--{name}-address", "127.0.0.1", f"--{name}-port", str(port)]
        command += ["--allow-gpu-metrics", "false", "--exit-timeout-secs", "3"]
        for model in models:
            command += ["--load-model", model]
        libraries = f"{packages / 'nvidia_pytriton.libs'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(one) for one in command],
                env={**os.environ, "LD_LIBRARY_PATH": libraries},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until = time.monotonic() + _START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"Triton is not ready. Its log ends with:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    @property
    def address(self) -> str:
        """The address and the port, as tritonclient takes them."""
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop the server, and free the shared memory that a crash of its models may have left."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for file in Path("/dev/shm").glob("triton_python_backend_shm_region_*"):
            file.unlink(missing_ok=True)

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/v2/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False
