"""Show the log of FlowEdge's modules on standard error, for ``-v`` and ``-vv``."""

from __future__ import annotations

import logging
import sys
from typing import Final

from flowedge.cli.verbosity import DEBUG
from flowedge.text import printable

_FORM: Final = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"


class _OnStandardError(logging.Handler):
    """Writes each record as one line to the stream that is standard error at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. Control characters of names are escaped."""
        sys.stderr.write(printable(self.format(record)) + "\n")


_HANDLER: Final = _OnStandardError()
_HANDLER.setFormatter(logging.Formatter(_FORM, datefmt="%H:%M:%S"))


def show_log(level: int) -> None:
    """Write FlowEdge's log to standard error from now on.

    Args:
        level: ``INFO`` or ``DEBUG`` of `flowedge.cli.verbosity`.
    """
    logger = logging.getLogger("flowedge")
    logger.setLevel(logging.DEBUG if level >= DEBUG else logging.INFO)
    logger.addHandler(_HANDLER)


def hide_log() -> None:
    """Write no more log to standard error."""
    logger = logging.getLogger("flowedge")
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(_HANDLER)
