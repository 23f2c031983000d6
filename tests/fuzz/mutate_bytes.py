"""Damage a file without knowing its format: flipped bits, cuts, holes, copies and noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

Mutator = Callable[[np.random.Generator, bytes], bytes]

INTERESTING_NUMBERS: Final = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)


def mutate_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage the bytes in one to three ways that are drawn at random."""
    for _ in range(int(rng.integers(1, 4))):
        data = BYTE_MUTATORS[int(rng.integers(len(BYTE_MUTATORS)))](rng, data)
    return data


def cut_end(rng: np.random.Generator, data: bytes) -> bytes:
    """Keep the beginning alone, as a copy that broke off does."""
    return data[: _position(rng, data)]


def _flip_bit(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[_position(rng, data)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _set_number(rng: np.random.Generator, data: bytes) -> bytes:
    """Overwrite one, two or four bytes with a number at the edge of its type."""
    number = INTERESTING_NUMBERS[int(rng.integers(len(INTERESTING_NUMBERS)))]
    size = int(rng.choice([1, 2, 4]))
    order = "little" if rng.random() < 0.5 else "big"
    value = (number & (1 << 8 * size) - 1).to_bytes(size, order)  # type: ignore[arg-type]
    start = _position(rng, data)
    return data[:start] + value + data[start + size :]


def _zero_hole(rng: np.random.Generator, data: bytes) -> bytes:
    """Overwrite a stretch with zeros, as a disk that lost a block does."""
    start = _position(rng, data)
    length = min(len(data) - start, int(rng.integers(1, 1 + max(1, len(data) // 4))))
    return data[:start] + bytes(length) + data[start + length :]


def _remove(rng: np.random.Generator, data: bytes) -> bytes:
    start = _position(rng, data)
    return data[:start] + data[start + int(rng.integers(1, 65)) :]


def _repeat(rng: np.random.Generator, data: bytes) -> bytes:
    start = _position(rng, data)
    end = start + int(rng.integers(1, 257))
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def _insert_noise(rng: np.random.Generator, data: bytes) -> bytes:
    start = _position(rng, data)
    return data[:start] + rng.bytes(int(rng.integers(1, 65))) + data[start:]


def _append_noise(rng: np.random.Generator, data: bytes) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 257)))


def _position(rng: np.random.Generator, data: bytes) -> int:
    """Draw a place in the file, half of the time among its first 256 bytes, where headers are."""
    end = max(1, min(len(data), 256) if rng.random() < 0.5 else len(data))
    return int(rng.integers(end))


BYTE_MUTATORS: Final[tuple[Mutator, ...]] = (
    _flip_bit,
    _set_number,
    cut_end,
    _zero_hole,
    _remove,
    _repeat,
    _insert_noise,
    _append_noise,
)
