"""Start a worker process, send it commands, and end it."""

from __future__ import annotations

import time
from typing import Final, TypeVar

import msgspec

from flowedge.errors import EngineUnavailableError
from flowedge.runtime.asked_process import AskedProcess
from flowedge.runtime.bench.protocol import Command, Job, Problem, Started, line_from, struct_from

_MODULE: Final = "flowedge.runtime.bench.worker"
_Answer = TypeVar("_Answer", bound=msgspec.Struct)


class Worker(AskedProcess):
    """One worker process. A problem that it reports is raised as an `EngineUnavailableError`."""

    def __init__(self, job: Job) -> None:
        """Start the process and wait for its first verdict.

        Raises:
            EngineUnavailableError: The process cannot load or run what the job names, or it ended.
        """
        # Some libraries take their number of threads from the environment alone.
        names = () if job.threads is None else ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        # The clock starts before the process does, so that a cold start holds the start of Python and all imports.
        start = time.perf_counter()
        super().__init__(_MODULE, dict.fromkeys(names, str(job.threads)))
        try:
            self.started = self.ask(job, Started)
            self.cold_start_ms = 1000 * (time.perf_counter() - start)
        # A process whose start was interrupted would live on, because no `with` block closes it yet.
        except BaseException:
            self.close()
            raise

    def ask(self, command: Job | Command, answer: type[_Answer]) -> _Answer:
        """Send a command and wait for its answer.

        Raises:
            EngineUnavailableError: The worker answers with a problem, or ended.
        """
        line = self.exchange(line_from(command))
        try:
            return struct_from(line, answer)
        except msgspec.ValidationError:
            # The line is of another type than the answer, so it holds the reason why there is no answer.
            raise EngineUnavailableError(struct_from(line, Problem).problem) from None

    def __enter__(self) -> Worker:
        return self
