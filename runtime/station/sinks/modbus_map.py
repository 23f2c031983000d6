"""Define the registers and bits that a PLC sees. ``docs/station.md`` has the same map as a table.

Numbers of 32 bits have the high word first, and each register has the high byte first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from flowedge.runtime.station.sinks.controllers import Shown
from flowedge.text import printable

LAYOUT: Final = 1
READ_COUNT: Final = 40
"""The count of registers that a PLC reads, from address 0."""

ACKNOWLEDGE: Final = 100
TRIGGER: Final = 101
TRIGGER_PART: Final = 102
WRITE_COUNT: Final = 18
"""The count of holding registers that a PLC writes, from address ``ACKNOWLEDGE``."""

PART_BYTES: Final = 32
BITS: Final = ("ok", "nok", "valid", "ready", "stale", "waiting", "not_inspected", "part_cut")
"""The names of the coils from address 0, which are also the bits of register 1 from the lowest."""

VERDICTS: Final = {"unknown": 0, "ok": 1, "anomalous": 2, "not_inspected": 3}


def bits_of(shown: Shown | None, *, is_ready: bool, is_waiting: bool) -> list[bool]:
    """Return the coils, in the order of ``BITS``.

    Args:
        shown: The record that is shown. The value is None before the first one.
        is_ready: True while no stage of the station hangs.
        is_waiting: True while the next verdict waits for the PLC's acknowledgement.
    """
    if shown is None:
        return [name == "ready" and is_ready for name in BITS]
    is_ok = shown.is_ok and is_ready
    return [
        is_ok,
        not is_ok,
        True,
        is_ready,
        shown.is_stale,
        is_waiting,
        shown.record.verdict == "not_inspected",
        len((shown.record.part or "").encode()) > PART_BYTES,
    ]


def registers_of(shown: Shown | None, bits: Sequence[bool], heartbeat: int) -> list[int]:
    """Return the ``READ_COUNT`` registers.

    Args:
        shown: The record that is shown.
        bits: The coils.
        heartbeat: The count of signs of life, modulo 65536.
    """
    status = sum(bit << place for place, bit in enumerate(bits))
    if shown is None:
        return [heartbeat, status, *[0] * 12, LAYOUT, *[0] * (READ_COUNT - 15)]
    record = shown.record
    return [
        heartbeat,
        status,
        shown.sequence,
        VERDICTS[record.verdict],
        *_words(struct.pack(">I", record.number % (1 << 32))),
        *_float(record.score),
        *_float(record.threshold),
        *_float(record.log_nfa),
        min(len(record.regions) + record.regions_left_out, 65535),
        min(record.dropped_before, 65535),
        LAYOUT,
        int(min(shown.age_ms, 65535)),
        *_words(_part_bytes(record.part or "")),
        *[0] * (READ_COUNT - 32),
    ]


def part_from(registers: Sequence[int]) -> str | None:
    """Return the part id that a PLC has written, or None where it has written none."""
    written = struct.pack(f">{len(registers)}H", *registers).split(b"\0")[0]
    return printable(written.decode(errors="replace")).strip() or None


def _part_bytes(part: str) -> bytes:
    """Return the part id in ``PART_BYTES`` bytes of UTF-8, cut between two characters."""
    return part.encode()[:PART_BYTES].decode(errors="ignore").encode().ljust(PART_BYTES, b"\0")


def _float(value: float | None) -> tuple[int, ...]:
    number = float("nan") if value is None else value
    try:
        return _words(struct.pack(">f", number))
    except OverflowError:
        return _words(struct.pack(">f", float("inf") if number > 0 else float("-inf")))


def _words(content: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(content) // 2}H", content)
