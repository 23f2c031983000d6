"""One line instead of a traceback when an optional package is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flowedge.errors import EngineUnavailableError


@contextlib.contextmanager
def explain_missing(extra: str) -> Iterator[None]:
    """Around an import that needs an extra of FlowEdge.

    Raises:
        EngineUnavailableError: A package is not installed; the message says what to type.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "flowedge":
            raise
        raise EngineUnavailableError(
            f"this command needs the package {error.name}, which is not installed. "
            f"Install it with: pip install 'flowedge[{extra}]'"
        ) from error
