"""The kit for a machine with a GPU keeps the machine code of that GPU alone, and the campaign reports what it finds."""

from __future__ import annotations

import io
import json
import lzma
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpu import kit
from gpu.kit import (
    ARCHIVE,
    CUDA_LIBRARY,
    ELF,
    FAT_MAGIC,
    entries,
    environment_of,
    joined,
    parted,
    reduce,
    unpack,
)
from gpu.kit import CODE as CODE_FILE
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


def test_only_the_code_of_one_gpu_comes_back(library: bytes) -> None:
    rest, code = parted(library, 90)
    assert code == CODE[ELF, 90]
    assert not any(rest[start : start + size].strip(b"\0") for _, _, start, size in entries(rest))
    changed = joined(rest, code, 90)
    left = {(kind, arch): changed[start : start + size] for kind, arch, start, size in entries(changed)}
    assert left == {key: code if key == (ELF, 90) else bytes(len(code)) for key, code in CODE.items()}
    assert len(changed) == len(library)


def test_a_library_without_code_for_the_gpu_is_refused(library: bytes) -> None:
    with pytest.raises(ValueError, match="no machine code of the architecture 87"):
        parted(library, 87)


def test_what_no_campaign_needs_is_left_out(library: bytes, tmp_path: Path) -> None:
    kept = ("__init__.py", "capi/__init__.py", "capi/onnxruntime_pybind11_state.so")
    for name in (*kept, "capi/libonnxruntime.so.1.31.1", "tools/a.py", "transformers/models/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "capi" / CUDA_LIBRARY).write_bytes(library)
    assert reduce(tmp_path, 90) == CODE[ELF, 90]
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {*kept, f"capi/{CUDA_LIBRARY}"}
    assert (tmp_path / "capi" / CUDA_LIBRARY).read_bytes() == parted(library, 90)[0]


def kit_of(folder: Path, python: str, library: bytes) -> Path:
    """Write a kit whose ONNX Runtime is a library for a GPU and an empty one for a version of Python."""
    (folder / "wheels").mkdir(parents=True)
    rest, code = parted(library, 90)
    (folder / CODE_FILE.format(90)).write_bytes(lzma.compress(code, preset=0))
    info = "onething-1.0.dist-info"
    with zipfile.ZipFile(folder / "wheels/onething-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("onething.py", "VALUE = 1\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: onething\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(
            f"{info}/RECORD", f"onething.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    with tarfile.open(folder / ARCHIVE, "w:xz", preset=0) as tar:
        name = f"./onnxruntime/capi/onnxruntime_pybind11_state.cpython-{python}-x86_64-linux-gnu.so"
        tar.addfile(tarfile.TarInfo(name))
        member = tarfile.TarInfo(f"./onnxruntime/capi/{CUDA_LIBRARY}")
        member.size = len(rest)
        tar.addfile(member, io.BytesIO(rest))
    return folder


def test_the_kit_is_unpacked_and_found_by_python(library: bytes, tmp_path: Path) -> None:
    site = tmp_path / "a site"
    made = kit_of(tmp_path / "kit", f"{sys.version_info.major}{sys.version_info.minor}", library)
    unpack(made, site)
    unpack(made, site)  # a kit replaces an earlier one
    command = f'. "{site}/env.sh"; "{sys.executable}" -c "import onething, gpu.kit; print(onething.__file__)"'
    done = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(site / "onething.py")
    found = (site / "onnxruntime/capi" / CUDA_LIBRARY).read_bytes()
    assert CODE[ELF, 90] in found
    assert CODE[ELF, 80] not in found


def test_a_kit_for_another_python_is_refused(library: bytes, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"The kit is for another Python than 3\..*cpython-29-x86_64"):
        unpack(kit_of(tmp_path / "kit", "29", library), tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_what_the_machine_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "NEEDED", ("json", "nosuchmodule"))
    with pytest.raises(SystemExit, match=" lacks nosuchmodule, which the kit does not bring"):
        unpack(tmp_path, tmp_path / "site")


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/notes.txt").touch()
    with pytest.raises(SystemExit, match="is not empty and is not of a kit"):
        unpack(tmp_path, tmp_path / "site")
    assert (tmp_path / "site/notes.txt").exists()


def test_the_libraries_of_cuda_come_before_those_that_were_there(tmp_path: Path) -> None:
    text = environment_of(tmp_path / "site", [tmp_path / "a b" / "lib", tmp_path / "c" / "lib"])
    for before, after in (({}, ""), ({"LD_LIBRARY_PATH": "/old"}, ":/old")):
        done = subprocess.run(
            ["sh", "-c", text + 'printf %s "$LD_LIBRARY_PATH"'],
            check=True,
            capture_output=True,
            text=True,
            env=before,
        )
        assert done.stdout == f"{tmp_path}/a b/lib:{tmp_path}/c/lib{after}"


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


def test_an_answer_that_is_not_a_number_counts_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    from gpu import fast

    good = {"score": np.ones(1, np.float32), "anomaly_map": np.ones((1, 4), np.float32)}
    for name in good:
        bad = {**good, name: np.full_like(good[name], np.nan)}
        answers = iter([*[good] * 8, *[bad] * fast._runs("cpu") * 3])
        opened = SimpleNamespace(infer=lambda image, answers=answers: next(answers), close=lambda: None)
        monkeypatch.setattr(fast, "open_unproven", lambda *_, opened=opened: opened)
        monkeypatch.setattr(fast, "_image", lambda *_: None)
        bundle: Any = None
        assert fast.in_flight("cpu", bundle)["wrong"] == fast._runs("cpu") * 3
