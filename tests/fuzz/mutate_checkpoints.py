"""Damage a checkpoint by its structure: pickle opcodes, archive entries and headers."""

from __future__ import annotations

import io
import itertools
import pickletools
import struct
import warnings
import zipfile
from typing import Final

import numpy as np

from fuzz.mutate_bytes import mutate_bytes

CANARY: Final = "canary"
"""A file that a pickle creates in the current folder if it ever runs something."""

_DANGEROUS: Final = (
    b"cposix\nsystem\n(Vtouch canary\ntR",
    b"cos\nsystem\n(Vtouch canary\ntR",
    b"cbuiltins\nexec\n(Vopen('canary','w')\ntR",
    b"c__builtin__\neval\n(Vopen('canary','w')\ntR",
    b"cbuiltins\nopen\n(Vcanary\nVw\ntR",
    b"cpathlib\nPath.touch\n(Vcanary\ntR",
    b"ctorch\nsave\n(K\x01Vcanary\ntR",
    b"cnumpy\nsavetxt\n(Vcanary\n]K\x01atR",
    b"csubprocess\nPopen\n(]Vtouch\naVcanary\natR",
)
# Values that no checkpoint needs: a list in itself, 2^60 items by shared parts, deep nesting, long numbers and text.
_COSTLY: Final = (
    b"]\x94h\x00a",
    b"]q\xc8h\xc8ah\xc8a",
    b"]" + b"".join(b"q%c](h%ch%ce" % (n, n, n) for n in range(200, 255)),
    b"(" * 3000 + b"l" * 3000,
    b"]" * 5000 + b"a" * 4999,
    b"\x8b" + struct.pack("<i", 400) + b"\x77" * 400,
    b"I" + b"9" * 5000 + b"\n",
    b"X" + struct.pack("<I", 200_000) + b"A" * 200_000,
    b"G" + struct.pack(">d", float("nan")),
    b"G" + struct.pack(">d", 1e308),
    b"J\xff\xff\xff\x7f",
    b"J\x00\x00\x00\x80",
    b"K\x00",
    b"N",
    b"\x88",
    b"}",
    b")",
    b"X\x00\x00\x00\x00",
    b"X\x06\x00\x00\x00\x1b[31m\n",
)


def mutate_checkpoint(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage a checkpoint in a way that fits its format, or its bytes blindly."""
    draw = rng.random()
    if data[:2] == b"PK" and draw < 0.55:
        return _change_entry(rng, data, "data.pkl", mutate_pickle)
    if data[:2] == b"PK" and draw < 0.75:
        return _change_archive(rng, data)
    if data[:1] == b"\x80" and draw < 0.6:
        return _change_old_format(rng, data)
    if data[8:9] == b"{" and draw < 0.7:
        return _change_safetensors(rng, data)
    return mutate_bytes(rng, data)


def _change_safetensors(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage the JSON header of a safetensors file, and let its length fit or not."""
    length = int.from_bytes(data[:8], "little")
    header = mutate_bytes(rng, data[8 : 8 + length])
    stated = len(header) if rng.random() < 0.7 else int(rng.choice([0, 1, length, 1 << 40, (1 << 63) - 1]))
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def mutate_pickle(rng: np.random.Generator, data: bytes) -> bytes:
    """Remove, repeat, exchange or replace opcodes of a pickle, or insert one of a hostile value."""
    parts, rest = _opcodes(data)
    if len(parts) < 3:
        return mutate_bytes(rng, data)
    for _ in range(int(rng.integers(1, 4))):
        if len(parts) < 3:
            break
        at = int(rng.integers(1, len(parts) - 1))
        match int(rng.integers(6)):
            case 0:
                del parts[at]
            case 1:
                parts.insert(at, parts[at])
            case 2:
                other = int(rng.integers(1, len(parts) - 1))
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts[at] = _COSTLY[int(rng.integers(len(_COSTLY)))]
            case 4:
                parts.insert(at, _COSTLY[int(rng.integers(len(_COSTLY)))])
            case _:
                parts.insert(at, _DANGEROUS[int(rng.integers(len(_DANGEROUS)))])
    return b"".join(parts) + rest


def _change_old_format(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage one of the pickles of PyTorch before 1.6: a magic number, a version, the system, and the object."""
    before, rest = b"", data
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.1, 0.1, 0.1, 0.7]))):
        parts, rest = _opcodes(rest)
        before += b"".join(parts)
    return before + mutate_pickle(rng, rest)


def _opcodes(data: bytes) -> tuple[list[bytes], bytes]:
    """Cut a pickle at its opcodes, and give what lies behind its end."""
    starts: list[int] = []
    end = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns of odd escapes in damaged text
            for _, _, position in pickletools.genops(data):
                starts.append(int(position or 0))
    except ValueError:
        return [], data
    end = starts[-1] + 1
    edges = [*starts, end]
    return [data[one:other] for one, other in itertools.pairwise(edges)], data[end:]


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def _archive(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # two entries of one name are one of the cases
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def _change_entry(rng: np.random.Generator, data: bytes, ending: str, change: object) -> bytes:
    assert callable(change)
    return _archive(
        [
            (name, change(rng, content) if name.endswith(ending) else content)
            for name, content in _entries(data)
        ]
    )


def _change_archive(rng: np.random.Generator, data: bytes) -> bytes:
    """Drop, double, rename, resize or compress entries, or damage the archive's own directory."""
    entries = _entries(data)
    at = int(rng.integers(len(entries)))
    name, content = entries[at]
    match int(rng.integers(8)):
        case 0:
            del entries[at]
        case 1:
            entries.append((name, mutate_bytes(rng, content)))
        case 2:
            entries[at] = (f"../{name}", content)
        case 3:
            entries[at] = (name, content[: len(content) // 2])
        case 4:
            entries[at] = (name, b"")
        case 5:
            return _archive(entries, zipfile.ZIP_DEFLATED)
        case 6:
            entries += [(f"archive/data/{n}", b"") for n in range(3000)]
        case _:
            # The central directory is at the end: sizes and offsets there lie about the entries.
            start = data.rfind(b"PK\x01\x02")
            return data[:start] + mutate_bytes(rng, data[start:])
    return _archive(entries)
