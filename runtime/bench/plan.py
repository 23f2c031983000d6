"""Plan a benchmark: the user's choices, and the combinations of bundle, engine and precision that they make."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import msgspec
import numpy as np

from flowedge.bundle import Bundle, open_bundle
from flowedge.errors import FlowEdgeError
from flowedge.progress import SILENT, Reports
from flowedge.runtime.bench.combination import Combination
from flowedge.runtime.bench.peer_int8 import peer_int8
from flowedge.runtime.bench.peers import ON_ONNXRUNTIME, ON_OPENVINO, has_bfloat16
from flowedge.runtime.bench.protocol import Job
from flowedge.runtime.opening.engine import ENGINES
from flowedge.runtime.opening.selftest import read_selftest, synthetic_frames
from flowedge.text import printable

DEFAULT_FRAME: Final = (1024, 1024)
_JPEG_QUALITY: Final = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The choices of a user.

    Attributes:
        engines: Names of ``ENGINES``. The default is all of them.
        precisions: The precisions of the graphs to run. The default is all that a bundle has.
        batches: The numbers of images of one inference. Shares and plots refer to the first.
        frame_size: The ``(height, width)`` of the synthetic source frames. The default is the bundle's ``frame_size``,
            or 1024x1024 where it has none.
        peers: The paths of foreign ONNX files. They run on ONNX Runtime and OpenVINO.
        peer_images: The good images on which NNCF quantises the foreign files. Without images they are not quantised.
        peer_python: The Python that has NNCF. The default is this one.
        checkpoint: The checkpoint of the first bundle, to run in PyTorch beside it. PyTorch runs only with a
            checkpoint.
        backbone_weights: The file of the backbone's weights, where the checkpoint has none.
        threads: The number of CPU threads of each process. The default is the choice of the engines.
        seconds: The seconds for which each combination is timed at each batch.
        command: The command line that the report shows.
    """

    engines: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1, 4, 8)
    frame_size: tuple[int, int] | None = None
    peers: tuple[Path, ...] = ()
    peer_images: tuple[Path, ...] = ()
    peer_python: Path | None = None
    checkpoint: Path | None = None
    backbone_weights: Path | None = None
    threads: int | None = None
    seconds: float = 3.0
    command: str = ""

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise ValueError(f"batches must be different and at least 1, got {self.batches}")
        if self.seconds < 0:
            raise ValueError(f"seconds must not be negative, got {self.seconds}")


def combinations_of(
    bundles: Sequence[Path], options: BenchOptions, folder: Path, reports: Reports = SILENT
) -> Iterator[Combination]:
    """Yield the combinations in the order of the command line, and write the frames that their workers read."""
    for number, path in enumerate(bundles):
        bundle = open_bundle(path)
        size = bundle.manifest.frame_size or options.frame_size or DEFAULT_FRAME
        frame, picture = _write_frame(bundle, size, folder / f"frame{number}")
        job = Job(kind="bundle", path=str(path), threads=options.threads, frame=frame, picture=picture)
        for precision in options.precisions or _precisions(bundle):
            for engine in options.engines or ENGINES:
                run = msgspec.structs.replace(job, engine=engine, precision=precision)
                yield Combination(job=run, label=f"{path.name} {engine} {precision}", frame_size=size)
        # The checkpoint is that of the first bundle.
        if options.checkpoint is not None and number == 0:
            weights = None if options.backbone_weights is None else str(options.backbone_weights)
            run = msgspec.structs.replace(
                job,
                kind="torch",
                engine="torch",
                precision="fp32",
                checkpoint=str(options.checkpoint),
                backbone_weights=weights,
            )
            yield Combination(job=run, label=f"{path.name} in PyTorch", frame_size=size)
    for number, peer in enumerate(options.peers):
        yield from _peers(peer, bundles[:1], options, folder / f"peer{number}", reports)


def _peers(
    peer: Path, bundles: Sequence[Path], options: BenchOptions, folder: Path, reports: Reports
) -> Iterator[Combination]:
    """Yield a foreign file on each library, and in each precision that OpenVINO computes it in.

    The named engines and precisions hold for foreign files too. The file itself always runs on one library at least.
    """
    job = Job(kind="peer", path=str(peer), threads=options.threads)
    engines = [name for name in (ON_ONNXRUNTIME, ON_OPENVINO) if name in (options.engines or ENGINES)]
    wanted = options.precisions or ("fp32", "bf16", "int8")
    for engine in engines or [ON_ONNXRUNTIME]:
        names = [""]
        if engine == ON_OPENVINO:
            names = ["fp32"]
            names += ["bf16"] if "bf16" in wanted and has_bfloat16() else []
            names += ["int8"] if "int8" in wanted and options.peer_images else []
        for precision in names:
            run = msgspec.structs.replace(job, engine=engine, precision=precision)
            label = " ".join(part for part in (peer.name, engine, precision) if part)
            found = Combination(job=run, label=label, frame_size=DEFAULT_FRAME)
            if precision == "int8":
                reports.step(f"quantising {peer.name} through NNCF")
                _quantise(found, bundles, options, folder)
            yield found


def _quantise(run: Combination, bundles: Sequence[Path], options: BenchOptions, folder: Path) -> None:
    """Quantise the file of a combination, whose maps are compared on the frames of the first bundle's self-test."""
    try:
        made = peer_int8(
            Path(run.job.path),
            options.peer_images,
            read_selftest(open_bundle(bundles[0])).frames if bundles else None,
            python=options.peer_python or Path(sys.executable),
            folder=folder,
        )
    except FlowEdgeError as error:
        run.problem = printable(str(error))
        return
    run.job = msgspec.structs.replace(run.job, graph=str(made.file))
    run.own_correlation = made.correlation
    run.notes.append(printable(made.note))


def _precisions(bundle: Bundle) -> list[str]:
    """Return the precisions of the bundle's graphs. INT8 is there once, since each device has its own form of it."""
    names = (graph.precision for graph in bundle.manifest.graphs)
    return list(dict.fromkeys("int8" if name.startswith("int8") else name for name in names))


def _write_frame(bundle: Bundle, size: tuple[int, int], target: Path) -> tuple[str, str]:
    """Write a synthetic frame as an array and as a JPEG file, and return their paths."""
    # The array times everything but the decoding, and the file times the decoding too.
    frame = np.ascontiguousarray(synthetic_frames(bundle.manifest.preprocessing, size)[0])
    array, picture = target.with_suffix(".npy"), target.with_suffix(".jpg")
    np.save(array, frame)
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )
    if not done:
        raise FlowEdgeError(
            f"OpenCV cannot write a JPEG of {size[0]}x{size[1]} pixels. Name another --frame-size."
        )
    picture.write_bytes(encoded.tobytes())
    return str(array), str(picture)
