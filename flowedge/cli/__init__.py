"""Start the command line.

Signals are handled before anything large is imported, so the commands are in `flowedge.cli.app`.
"""

from __future__ import annotations

import sys

from flowedge.children import import_folders
from flowedge.cli import signals
from flowedge.drafts import remove_own_drafts


def main() -> None:
    """Run the command line and end with its exit status."""
    signals.raise_on_signals()
    try:
        sys.path[:] = import_folders()  # before any library is imported
        from flowedge.cli.app import run

        status = run()
    except signals.EndedBySignal as end:
        status = 128 + end.number
    finally:
        signals.begin_to_tidy()
        remove_own_drafts()
        signals.end_at_once_on_signals()
    sys.exit(status)


__all__ = ["main"]
