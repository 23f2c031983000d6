"""Run a module of FlowEdge in a process of its own, and exchange lines with it by pipes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType, TracebackType

from flowedge.children import clean_environment, python_command
from flowedge.errors import EngineUnavailableError
from flowedge.text import printable


class AskedProcess:
    """A process that answers what it reads from its standard input by a line on its standard output.

    The process keeps nothing that it would have to tidy up, so it is killed and not asked to end.
    """

    def __init__(self, module: str, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start the process.

        Args:
            module: The name of the module, whose function ``main`` answers.
            environment: Variables that differ from those of this process.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            python_command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**clean_environment(), **environment},
        )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def exchange(self, *said: bytes | memoryview) -> bytes:
        """Write to the process, and wait for the line that it answers.

        Raises:
            EngineUnavailableError: The process ended before its answer. The message has the last line that it wrote to
                its standard error, which names the error of a traceback.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            for part in said:
                stdin.write(part)
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):  # it ended before its answer, or in the middle of it
            raise EngineUnavailableError(self._how_it_ended())
        return line

    def send(self, said: bytes) -> None:
        """Write to the process without waiting for an answer. A process that has ended answers the next exchange."""
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(BrokenPipeError):
            stdin.write(said)
            stdin.flush()

    def kill(self) -> None:
        """End the process at once. Any thread may call this."""
        self._process.kill()

    def close(self) -> None:
        """End the process, and close its pipes."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> AskedProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _how_it_ended(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        return f"its process ended with status {status}: {printable(last)}"
