"""Pack what a machine with a GPU and no network lacks, and unpack it there.

    python -m gpu.kit pack FOLDER       here, with a network
    python -m gpu.kit unpack FOLDER SITE    there, and then: . SITE/env.sh

The machine is taken to have Python with the modules of ``NEEDED``, and PyTorch's CUDA and cuDNN wheels with CUDA's
Python bindings. ONNX Runtime's GPU build is 350 MB. Of the machine code for GPUs in its library the kit has that of one
compute capability, in a file of its own, since both files may have to travel one after the other. The kit has 56 MiB,
and the source tree travels beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import lzma
import os
import shlex
import shutil
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
WHEELS: Final = ("msgspec", "simplejpeg")
SOURCES: Final = ("FrEIA",)  # Python alone, which the package index has as source code
NEEDED: Final = (
    *("torch", "torchvision", "timm", "safetensors", "numpy", "cv2", "PIL", "onnx", "onnxscript"),
    *("rich", "typer", "flatbuffers", "google", "packaging"),
)
"""The modules that the machine must have, since the kit does not bring them."""
LEFT_OUT: Final = (
    "capi/libonnxruntime_providers_tensorrt.so",
    "capi/libonnxruntime.so.*",  # the library of the C interface, which Python does not load
    *("datasets", "quantization", "tools", "transformers"),  # programs beside the runtime
)
PLATFORMS: Final = ("manylinux2014_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")
ARCHIVE: Final = "onnxruntime.tar.xz"
ENVIRONMENT: Final = "env.sh"
CODE: Final = "code-{}.xz"  # by the architecture
# Code of the processor compresses better behind its filter, and code of the GPU only without it. Kernels of one GPU are
# alike, so a match is looked for in all of them.
_BEST: Final = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}
XZ: Final = ({"id": lzma.FILTER_X86}, _BEST)
XZ_OF_CODE: Final = (_BEST | {"dict_size": 128 << 20},)


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


def parted(library: bytes, keep: int) -> tuple[bytes, bytes]:
    """Return a library with zeros in the place of all machine code for GPUs, and the code of one architecture.

    Args:
        library: The shared library.
        keep: The architecture of the code, such as 90 for the compute capability 9.0.

    Raises:
        ValueError: The library has no code of this architecture.
    """
    rest, code = bytearray(library), bytearray()
    for kind, architecture, start, length in entries(library):
        if (kind, architecture) == (ELF, keep):
            code += library[start : start + length]
        rest[start : start + length] = bytes(length)
    if not code:
        raise ValueError(f"the library has no machine code of the architecture {keep}")
    return bytes(rest), bytes(code)


def joined(rest: bytes, code: bytes, keep: int) -> bytes:
    """Return the library with its code for one architecture, as `parted` gave both."""
    library, at = bytearray(rest), 0
    for kind, architecture, start, length in entries(rest):
        if (kind, architecture) == (ELF, keep):
            library[start : start + length] = code[at : at + length]
            at += length
    return bytes(library)


def pack(folder: Path, *, keep: int, python: str, version: str) -> None:
    """Download the wheels, write the kit into a folder and print the sizes of its files.

    Compressing takes minutes and 2 GB of memory.

    Args:
        folder: The folder of the kit, which must not be there.
        keep: The architecture of the GPU, such as 90.
        python: The version of Python on the machine.
        version: The version of ONNX Runtime's GPU build.

    Raises:
        CalledProcessError: The package index has no such wheel.
        FileExistsError: The folder is there.
        ValueError: The build has no machine code of this architecture.
    """
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        downloads, site = Path(temporary), Path(temporary, "site")
        pip = [sys.executable, "-m", "pip"]
        subprocess.run([*pip, "wheel", "-qq", "--no-deps", "--wheel-dir", str(wheels), *SOURCES], check=True)
        pip += ["download", "-qq", "--no-deps", "--only-binary", ":all:", "--python-version", python]
        for platform in PLATFORMS:
            pip += ["--platform", platform]
        subprocess.run([*pip, "--dest", str(wheels), *WHEELS], check=True)
        subprocess.run([*pip, "--dest", str(downloads), f"onnxruntime-gpu=={version}"], check=True)
        (wheel,) = downloads.glob("onnxruntime_gpu-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        code = reduce(site / "onnxruntime", keep)
        with lzma.open(folder / CODE.format(keep), "wb", filters=XZ_OF_CODE) as packed:
            packed.write(code)
        with (
            lzma.open(folder / ARCHIVE, "wb", filters=XZ) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            tar.add(site, arcname=".")
    sizes = {file: file.stat().st_size / (1 << 20) for file in sorted(folder.rglob("*")) if file.is_file()}
    for file, size in sizes.items():
        print(f"{size:6.1f} MiB  {file.relative_to(folder)}")
    print(f"{sum(sizes.values()):6.1f} MiB  in all")


def reduce(package: Path, keep: int) -> bytes:
    """Remove what no campaign needs from the unpacked package of ONNX Runtime, and return the code for the GPU.

    Args:
        package: The folder ``onnxruntime``.
        keep: The architecture of the GPU, such as 90.

    Raises:
        ValueError: The build has no machine code of this architecture.
    """
    library = package / "capi" / CUDA_LIBRARY
    rest, code = parted(library.read_bytes(), keep)
    library.write_bytes(rest)
    for pattern in LEFT_OUT:
        for place in package.glob(pattern):
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink()
    return code


def unpack(folder: Path, site: Path) -> None:
    """Unpack the kit and write ``env.sh``, which puts the kit and this source tree on Python's path.

    Args:
        folder: The folder of the kit.
        site: The folder to unpack into. One of an earlier kit is replaced.

    Raises:
        SystemExit: This Python lacks a package that the kit does not bring, the folder has other files, or the kit is
            for another version of Python.
    """
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        sys.exit(f"{sys.executable} lacks {', '.join(lacking)}, which the kit does not bring.")
    environment = site / ENVIRONMENT
    if site.exists() and not environment.exists() and any(site.iterdir()):
        sys.exit(f"{site} is not empty and is not of a kit. Name another folder.")
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    with tarfile.open(folder / ARCHIVE) as tar:
        tar.extraction_filter = getattr(
            tarfile, "data_filter", None
        )  # which Python 3.10 and 3.11 have since late
        tar.extractall(site)
    own = f"cpython-{sys.version_info.major}{sys.version_info.minor}-"
    found = [file.name for file in (site / "onnxruntime/capi").glob("onnxruntime_pybind11_state.*")]
    if not any(own in name for name in found):
        shutil.rmtree(site)
        sys.exit(f"The kit is for another Python than {sys.version.split()[0]}: it has {', '.join(found)}.")
    (packed,) = folder.glob(CODE.format("*"))
    library = site / "onnxruntime/capi" / CUDA_LIBRARY
    with lzma.open(packed) as file:
        library.write_bytes(joined(library.read_bytes(), file.read(), int(packed.stem.rpartition("-")[2])))
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
    environment.write_text(environment_of(site.resolve(), cuda_libraries()), encoding="utf-8")
    print(f". {environment}")


def cuda_libraries() -> list[Path]:
    """Return the folders of the libraries of NVIDIA's wheels. There are none where no such wheel is installed."""
    spec = importlib.util.find_spec("nvidia")
    homes = [] if spec is None else [Path(home) for home in spec.submodule_search_locations or ()]
    return sorted({path for home in homes for pattern in ("*/lib", "*/*/lib") for path in home.glob(pattern)})


def environment_of(site: Path, libraries: list[Path]) -> str:
    """Return the shell's lines that let Python find the kit, this source tree and CUDA's libraries."""
    repository = Path(__file__).resolve().parents[2]
    python = os.pathsep.join(map(str, (site, repository, repository / "tests")))
    lines = [f"export PYTHONPATH={shlex.quote(python)}"]
    if libraries:
        names = shlex.quote(os.pathsep.join(map(str, libraries)))
        lines.append(f'export LD_LIBRARY_PATH={names}"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"')
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("what", choices=("pack", "unpack"), help="pack here, or unpack on the other machine")
    parser.add_argument("folder", type=Path, help="the folder of the kit")
    parser.add_argument(
        "site", type=Path, nargs="?", help="with unpack: the folder of the modules; none is a temporary one"
    )
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
