"""The kit for a machine with a GPU keeps the machine code of that GPU alone, and the campaign reports what it finds."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from gpu.kit import ELF, FAT_MAGIC, entries, without_other_gpus
from gpu.report import Report, is_bad

PTX = 1
CODE = {(ELF, 80): b"a" * 40, (ELF, 90): b"b" * 24, (PTX, 90): b"p" * 16}


def fat_entry(kind: int, architecture: int, code: bytes) -> bytes:
    header = struct.pack("<HHIQ", kind, 0, 64, len(code)).ljust(28, b"\0") + struct.pack("<I", architecture)
    return header.ljust(64, b"\0") + code


@pytest.fixture
def library() -> bytes:
    """Make an ELF file with two sections: the names, and a fat binary of three pieces after some padding."""
    pieces = b"".join(fat_entry(*key, code) for key, code in CODE.items())
    fat = bytes(8) + struct.pack("<IHHQ", FAT_MAGIC, 1, 16, len(pieces)) + pieces
    names = b"\0.shstrtab\0.nv_fatbin\0"
    header = bytearray(64)
    names_at, fat_at = 64, 64 + 24
    table = fat_at + len(fat)
    struct.pack_into("<Q", header, 0x28, table)
    struct.pack_into("<HHH", header, 0x3A, 64, 2, 0)
    rows = [(1, names_at, len(names)), (names.index(b".nv_fatbin"), fat_at, len(fat))]
    sections = b"".join(
        struct.pack("<IIQQQQIIQQ", name, 0, 0, 0, at, size, 0, 0, 0, 0) for name, at, size in rows
    )
    return bytes(header) + names.ljust(24, b"\0") + fat + sections


def test_every_piece_of_machine_code_is_found(library: bytes) -> None:
    found = {(kind, arch): library[start : start + size] for kind, arch, start, size in entries(library)}
    assert found == CODE


def test_only_the_code_of_one_gpu_is_left(library: bytes) -> None:
    changed = without_other_gpus(library, 90)
    left = {(kind, arch): changed[start : start + size] for kind, arch, start, size in entries(changed)}
    assert left == {key: code if key == (ELF, 90) else bytes(len(code)) for key, code in CODE.items()}
    assert len(changed) == len(library)


def test_a_library_without_code_for_the_gpu_is_refused(library: bytes) -> None:
    with pytest.raises(ValueError, match="no machine code of the architecture 87"):
        without_other_gpus(library, 87)


def test_a_stage_that_fails_is_in_the_report_and_the_next_one_runs(tmp_path: Path) -> None:
    report = Report(tmp_path, 1000)
    report.stage(
        "speed cflow",
        lambda: {
            "rows": [
                {"what": "PyTorch eager, fp32", "batch": 1, "ms": 20.0},
                {"what": "FlowEdge, fp16", "batch": 1, "ms": 4.0},
            ]
        },
    )
    report.stage("broken", lambda: 1 / 0)
    report.stage("long", lambda: 0, needs_s=2000)
    report.write_tables("a card")
    kept = json.loads((tmp_path / "gpu-report.json").read_text())
    assert kept["broken"] == {"failed": "ZeroDivisionError: division by zero"}
    assert "2000 s that it needs" in kept["long"]["skipped"]
    assert "| cflow | FlowEdge, fp16 | 1 | 4.000 | 250 | 5.00x |" in (tmp_path / "gpu-report.md").read_text()
    assert is_bad(kept["broken"])
    assert not is_bad(kept["speed cflow"])
    assert is_bad({"threads": {"wrong": 2}})
