"""Pack what a machine with a GPU and no network lacks, and unpack it there.

    python -m gpu.kit pack FOLDER       here, with a network
    python -m gpu.kit unpack FOLDER SITE    there, and then: . SITE/env.sh

The machine is taken to have Python, PyTorch, timm, OpenCV, onnx and NVIDIA's CUDA and cuDNN wheels. ONNX Runtime's GPU
build is 300 MB. The machine code of all other GPUs in its library is overwritten with zeros, which compress to
nothing, so that the kit for one compute capability stays below 64 MiB.
"""

from __future__ import annotations

import argparse
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CUDA_LIBRARY: Final = "libonnxruntime_providers_cuda.so"
ELF, FAT_MAGIC = 2, 0xBA55ED50
WHEELS: Final = ("msgspec", "FrEIA", "simplejpeg", "cuda-bindings", "cuda-pathfinder")
LEFT_OUT: Final = ("libonnxruntime_providers_tensorrt.so",)


def fat_binary(library: bytes) -> tuple[int, int]:
    """Return the start and the length of the section with the machine code for GPUs.

    Raises:
        ValueError: The ELF file has no such section.
    """
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", library, 0x3A)
    rows = [struct.unpack_from("<IIQQQQIIQQ", library, table + number * size) for number in range(count)]
    for row in rows:
        start = rows[names_at][4] + row[0]
        if library[start : library.index(b"\0", start)] == b".nv_fatbin":
            return row[4], row[5]
    raise ValueError("the library has no section .nv_fatbin")


def entries(library: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Give kind, architecture, start and length of each piece of machine code in a fat binary."""
    at, length = fat_binary(library)
    end = at + length
    while at < end:
        magic, _, header, size = struct.unpack_from("<IHHQ", library, at)
        if magic != FAT_MAGIC:
            at += 8
            continue
        entry, at = at + header, at + header + size
        while entry < at:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", library, entry)
            (architecture,) = struct.unpack_from("<I", library, entry + 28)
            yield kind, architecture, entry + entry_header, entry_size
            entry += entry_header + entry_size


def without_other_gpus(library: bytes, keep: int) -> bytes:
    """Overwrite the machine code of all architectures but one with zeros.

    Args:
        library: The shared library.
        keep: The architecture to keep, such as 90 for the compute capability 9.0.

    Raises:
        ValueError: The library has no code of this architecture.
    """
    changed, kept = bytearray(library), 0
    for kind, architecture, start, length in list(entries(library)):
        if kind == ELF and architecture == keep:
            kept += length
        else:
            changed[start : start + length] = bytes(length)
    if not kept:
        raise ValueError(f"the library has no machine code of the architecture {keep}")
    return bytes(changed)


def pack(folder: Path, *, keep: int, python: str, version: str) -> None:
    """Download the wheels and write the kit into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        downloads = Path(temporary)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(downloads)]
        binary = ["--only-binary", ":all:", "--python-version", python, "--platform", "manylinux_2_28_x86_64"]
        subprocess.run([*pip, *binary, f"onnxruntime-gpu=={version}"], check=True)
        (wheel,) = downloads.glob("onnxruntime_gpu-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(downloads / "site")
        wheel.unlink()
        library = downloads / "site" / "onnxruntime" / "capi" / CUDA_LIBRARY
        library.write_bytes(without_other_gpus(library.read_bytes(), keep))
        for name in LEFT_OUT:
            (library.parent / name).unlink(missing_ok=True)
        with (
            lzma.open(folder / "onnxruntime.tar.xz", "wb", preset=9 | lzma.PRESET_EXTREME) as file,
            tarfile.open(fileobj=file, mode="w") as tar,
        ):
            tar.add(downloads / "site", arcname=".")
        wheels = folder / "wheels"
        wheels.mkdir(exist_ok=True)
        pip[-1] = str(wheels)
        subprocess.run([*pip, "--python-version", python, "--only-binary", ":all:", *WHEELS], check=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder} has {size / (1 << 20):.1f} MiB")


def unpack(folder: Path, site: Path) -> None:
    """Unpack the kit and write ``env.sh``, which puts the kit and this source tree on Python's path."""
    site.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "onnxruntime.tar.xz") as tar:
        tar.extractall(site, filter="data")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, *map(str, (folder / "wheels").glob("*.whl"))], check=True)
    import nvidia  # the folder of NVIDIA's wheels

    home = Path(next(iter(nvidia.__path__)))
    libraries = sorted({str(path) for pattern in ("*/lib", "*/*/lib") for path in home.glob(pattern)})
    repository = Path(__file__).resolve().parents[2]
    (site / "env.sh").write_text(
        f"export PYTHONPATH={site}:{repository}:{repository / 'tests'}\n"
        f"export LD_LIBRARY_PATH={':'.join(libraries)}:$LD_LIBRARY_PATH\n",
        encoding="utf-8",
    )
    print(f". {site / 'env.sh'}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("site", type=Path, nargs="?")
    parser.add_argument(
        "--keep", type=int, default=90, help="the architecture of the GPU, such as 90 for 9.0"
    )
    parser.add_argument("--python", default="3.12", help="the version of Python there")
    parser.add_argument("--onnxruntime", default="1.31.1", help="the version of onnxruntime-gpu")
    options = parser.parse_args()
    if options.what == "pack":
        pack(options.folder, keep=options.keep, python=options.python, version=options.onnxruntime)
    else:
        unpack(options.folder, options.site or Path(os.environ.get("TMPDIR", "/tmp"), "flowedge-site"))


if __name__ == "__main__":
    main()
