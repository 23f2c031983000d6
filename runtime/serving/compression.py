"""Compress and decompress bodies by gzip and deflate, within a limit."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from flowedge.runtime.serving.refusal import RequestError
from flowedge.text import shown

_WINDOW: Final = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LEVEL: Final = 1
_LEAST_BYTES: Final = 1024


def decompressed(body: bytes, coding: str, most_bytes: int) -> bytes:
    """Decompress a body.

    Args:
        body: The body as it was sent.
        coding: The value of the header ``Content-Encoding``.
        most_bytes: The most bytes that may come out.

    Raises:
        RequestError: The coding is not known, or the body is damaged, not whole or too large.
    """
    name = coding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WINDOW:
        raise RequestError(
            f"the Content-Encoding {shown(coding)} is not known. Send the body as gzip, deflate or unchanged.",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    machine = zlib.decompressobj(_WINDOW[name])
    try:
        # One byte more than allowed shows that there is more.
        opened = machine.decompress(body, most_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"the body is no whole {name}: {error}.") from error
    if len(opened) > most_bytes:
        raise RequestError(
            f"the body has more than {most_bytes} bytes after decompression, and no more are allowed.",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            reason="too_large",
        )
    if not machine.eof:
        raise RequestError(f"the body is no whole {name}: it ends too early.")
    if machine.unused_data:
        raise RequestError(f"the body has {len(machine.unused_data)} bytes behind its {name}.")
    return opened


def chosen_coding(accepted: str, size: int) -> str:
    """Choose the coding of an answer, or return an empty text for none.

    A client that accepts several codings sends what its library always sends. Compressing a map of floating-point
    numbers takes longer than sending it within a factory. So only a client that names gzip or deflate alone gets it.

    Args:
        accepted: The value of the header ``Accept-Encoding``.
        size: The number of bytes of the answer.
    """
    name = accepted.strip().lower()
    return name if name in ("gzip", "deflate") and size >= _LEAST_BYTES else ""


def compressed(parts: Iterable[bytes | memoryview], coding: str) -> bytes:
    """Compress a body that lies in pieces."""
    machine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*(machine.compress(part) for part in parts), machine.flush()])
