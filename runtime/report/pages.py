"""Write pages as files, so that a reader sees all of a page or nothing."""

from __future__ import annotations

import os
from pathlib import Path

from flowedge.errors import FlowEdgeError
from flowedge.files import write_whole_file


def check_writable(file: Path) -> None:
    """Refuse a page that could not be written, before anything is computed for it.

    Raises:
        FlowEdgeError: The folder does not exist or is not writable, or the file is a folder.
    """
    if file.is_dir():
        raise FlowEdgeError(f"{file} is a folder. Name a file for the page, such as {file / 'report.html'}.")
    if not file.parent.is_dir():
        raise FlowEdgeError(
            f"{file} cannot be written: its folder does not exist. Make the folder, or name another file."
        )
    if not os.access(file.parent, os.W_OK):
        raise FlowEdgeError(f"{file} cannot be written: its folder is not writable. Name another file.")


def write_page(file: Path, page: str) -> None:
    """Write a page so that a reader sees all of it or nothing.

    Raises:
        FlowEdgeError: The file cannot be written.
    """
    try:
        write_whole_file(file, page.encode())
    except OSError as error:
        raise FlowEdgeError(f"{file} cannot be written: {error.strerror}. Name another file.") from error
