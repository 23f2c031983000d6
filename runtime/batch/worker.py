"""The process that makes parts: it reads a job and then chunks, and answers each with a line of JSON."""

from __future__ import annotations

import os
import sys

import msgspec

from flowedge.errors import FlowEdgeError
from flowedge.runtime.batch.chunks import Chunk
from flowedge.runtime.batch.part_maker import PartDone, PartMaker


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a chunk.

    Attributes:
        done: The outcome. The value is None where the part could not be made.
        failed: The message of the error. The message is empty where there is none.
    """

    done: PartDone | None = None
    failed: str = ""


def main() -> None:
    """Answer chunks until the input ends."""
    # Libraries may print to the standard output. They get the standard error instead, so that only answers go there.
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        lines = sys.stdin.buffer
        job = lines.readline()
        maker = PartMaker(job)
        for line in lines:
            try:
                answer = Answer(done=maker.make(msgspec.json.decode(line, type=Chunk)))
            except FlowEdgeError as error:
                answer = Answer(failed=str(error))
            answers.write(msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    main()
