"""Write pages as files, so that a reader sees all of a page or nothing."""

from __future__ import annotations

from pathlib import Path

from flowedge.errors import FlowEdgeError
from flowedge.files import write_whole_file


def write_page(file: Path, page: str) -> None:
    """Write a page.

    Raises:
        FlowEdgeError: The file cannot be written.
    """
    try:
        write_whole_file(file, page.encode())
    except OSError as error:
        raise FlowEdgeError(f"{file} cannot be written: {error.strerror}. Name another file.") from error
