"""The measured process: it reads a job and then commands, and answers each with a line of JSON.

Each process runs one engine in one precision, so that no combination adds to the memory or the threads of another.
Until the first verdict the process imports little more than `flowedge.load` needs, since that time is measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from flowedge.errors import FlowEdgeError
from flowedge.runtime.bench.protocol import Command, Job, Problem, line_from, struct_from


def main() -> None:
    """Answer commands until the input ends."""
    # Libraries may print to the standard output. They get the standard error instead, so that only answers go there.
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        lines = sys.stdin.buffer

        def answer(work: Callable[[], Any]) -> None:
            try:
                result = work()
            except FlowEdgeError as error:
                result = Problem(problem=str(error))
            answers.write(line_from(result))

        job = struct_from(lines.readline(), Job)
        served: list[Any] = []

        def start() -> Any:
            from flowedge.runtime.bench.subjects import subject_of

            served.append(subject_of(job))
            return served[0].started

        answer(start)
        for line in lines:
            command = struct_from(line, Command)
            answer(lambda command=command: served[0].answer(command))  # type: ignore[misc]


if __name__ == "__main__":
    main()
