"""Write the records of inspections as CSV (RFC 4180), line by line, so that an interrupted run leaves whole lines."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from flowedge.errors import FlowEdgeError
from flowedge.runtime.protocols import Frame
from flowedge.runtime.record import Inspection
from flowedge.runtime.result import Result

COLUMNS: Final = (
    "image",
    "verdict",
    "score",
    "threshold",
    "log_nfa",
    "log_nfa_limit",
    "anomalous_share",
    "regions",
    "latency_ms",
    "precision",
    "engine",
    "engine_reason",
    "overlay",
    "mask",
    "problem",
)
"""The columns, which are fields of `flowedge.runtime.record.Inspection`. ``regions`` is the number of regions."""

HEADER: Final = ",".join(COLUMNS) + "\r\n"

# A spreadsheet takes a text that begins so for a formula, and would compute it.
_FORMULA_SIGNS: Final = tuple("=+-@＝＋－＠")  # noqa: RUF001, wide forms count too


def csv_line(record: Inspection) -> str:
    """Return a record as one line of CSV, with its end.

    Texts are quoted, numbers and empty values are not. A text that a spreadsheet would take for a formula gets ``./``
    in front. Such a text begins with the name of a file in the current folder, and the longer name is the same file's.
    """
    values = {column: getattr(record, column) for column in COLUMNS}
    values["regions"] = None if record.score is None else len(record.regions)
    return ",".join(map(_cell, values.values())) + "\r\n"


class CsvFile:
    """A sink that writes a line for each record at once. A reader of the file sees whole lines at any time."""

    def __init__(self, file: Path) -> None:
        """Write the line of heads. A file that is there is replaced.

        Args:
            file: The file.

        Raises:
            FlowEdgeError: The file cannot be written.
        """
        self._file = file
        try:
            self._descriptor = os.open(
                file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY, 0o666
            )
        except OSError as error:
            raise FlowEdgeError(f"{file} cannot be written: {error.strerror}. Name another file.") from error
        self._length = 0
        self._write(HEADER)

    def put(self, frame: Frame, record: Inspection, result: Result | None) -> Inspection:
        """Write the line of one record, and return the record unchanged.

        Raises:
            FlowEdgeError: The line cannot be written, for instance because the disk is full. The file then ends with
                the last whole line.
        """
        self._write(csv_line(record))
        return record

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write(self, line: str) -> None:
        content = line.encode()
        try:
            # One call writes a whole line. Only a full disk or a pipe takes less.
            rest = content
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a pipe cannot be shortened
                os.ftruncate(self._descriptor, self._length)
            raise FlowEdgeError(
                f"{self._file} cannot be written: {error.strerror}. It ends with the last whole line."
            ) from error
        self._length += len(content)


def _cell(value: object) -> str:
    """Return a value as a field of a line. A float keeps all its digits."""
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        return repr(value)
    text = f"./{value}" if value.startswith(_FORMULA_SIGNS) else value
    return '"' + text.replace('"', '""') + '"'
