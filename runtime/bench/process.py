"""Start a worker process, send it commands, and end it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from types import TracebackType
from typing import Final, TypeVar

import msgspec

from flowedge.children import clean_environment, python_command
from flowedge.errors import EngineUnavailableError
from flowedge.runtime.bench.protocol import Command, Job, Problem, Started, line_from, struct_from

_MODULE: Final = "flowedge.runtime.bench.worker"
_Answer = TypeVar("_Answer", bound=msgspec.Struct)


class Worker:
    """One worker process. A problem that it reports is raised as an `EngineUnavailableError`."""

    def __init__(self, job: Job) -> None:
        """Start the process and wait for its first verdict.

        Raises:
            EngineUnavailableError: The process cannot load or run what the job names, or it ended.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        environment = clean_environment()
        # Some libraries take their number of threads from the environment alone.
        if job.threads is not None:
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job.threads))
        # The clock starts before the process does, so that a cold start holds the start of Python and all imports.
        start = time.perf_counter()
        self._process = subprocess.Popen(
            python_command(_MODULE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        try:
            self.started = self._exchange(job, Started)
            self.cold_start_ms = 1000 * (time.perf_counter() - start)
        # A process whose start was interrupted would live on, because no `with` block closes it yet.
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ask(self, command: Command, answer: type[_Answer]) -> _Answer:
        """Send a command and wait for its answer.

        Raises:
            EngineUnavailableError: The worker answers with a problem, or ended.
        """
        return self._exchange(command, answer)

    def close(self) -> None:
        """End the process."""
        # The worker keeps nothing that it would have to tidy up, so it is killed and not asked to end.
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, said: msgspec.Struct, answer: type[_Answer]) -> _Answer:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(line_from(said))
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):  # it ended before its answer, or in the middle of it
            raise EngineUnavailableError(self._how_it_ended())
        try:
            return struct_from(line, answer)
        except msgspec.ValidationError:
            # The line is of another type than the answer, so it holds the reason why there is no answer.
            raise EngineUnavailableError(struct_from(line, Problem).problem) from None

    def _how_it_ended(self) -> str:
        status = self._process.wait()
        # The last line of a traceback names the error.
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        return f"its process ended with status {status}: {last}"
