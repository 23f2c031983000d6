"""The process that is measured: reads a job, then commands, and answers each with a line of JSON.

One engine, one precision, one process: nobody's memory or threads are in another's numbers. Until the first verdict
it imports what ``flowedge.load`` needs and little more, since that time is a result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from flowedge.errors import FlowEdgeError
from flowedge.runtime.bench.protocol import Command, Job, Problem, line_from, struct_from


def main() -> None:
    """Serve until the input ends."""
    # Libraries print what they like on the standard output; the answers keep it for themselves.
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
