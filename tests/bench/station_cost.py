"""Measure what a station costs beside the bare engine, beside a simple loop, and beside anomalib's inferencer.

    make station-cost    or: PYTHONPATH=tests python tests/bench/station_cost.py --peer .venv-peer/bin/python

The model is a CFLOW on resnet18 at 256x256 with random weights, calibrated on good pictures, in fp32 and INT8. All
sides take the same JPEG files, of 256 and of 1024 pixels, in turns within one run:

* bare: the engine alone, called with one prepared image again and again, with all cores for each inference.
* bare at once: the same with an inference of one thread on each core.
* one by one: a detector that reads, prepares, infers and decides one file after the other.
* files at once: the same with a file on each core, as ``flowedge run`` does.
* station: ``flowedge station run`` over a folder, with its journal, until each verdict is delivered as a line of JSON.
  A second run gets a file at half of that speed, and gives the time from the file to the delivered line.
* anomalib: ``OpenVINOInferencer`` on anomalib's own export of the checkpoint, in an environment of its own, once in the
  precision that OpenVINO chooses and once in float32.

A time per frame is the median over the turns. A ratio is the median of the turns' ratios. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from bench.full_size import MODELS, write_checkpoint
from bench.turns import processor

HERE: Final = Path(__file__).resolve().parent
MODEL: Final = MODELS["cflow-anomalib-resnet18"]
SIDES: Final = (256, 1024)
PRECISIONS: Final = ("int8", "fp32")
PICTURES: Final = 40
ANY: Final = ("map_correlation=0", "map_error=1e9", "rank_agreement=0", "flips=1")
_SETTLED: Final = 20  # frames at the start of a station that are not counted
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass
class Times:
    """The times of one side, for one precision and one size of picture.

    Attributes:
        per_frame: The milliseconds of a frame in each turn: the time of the turn over its frames.
        latencies: The milliseconds of single frames, from the file to the answer, in all turns.
        cpu: The milliseconds of processor time of a frame in each turn.
    """

    per_frame: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, answer: Mapping[str, Any]) -> None:
        """Add the answer of a worker to one task."""
        taken = answer["ms"]
        self.per_frame.append(answer["wall_ms"] / len(taken))
        self.latencies += taken
        self.cpu.append(answer["cpu_ms"] / len(taken))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. Times are in ms.

    Attributes:
        over_bare: The time per frame over that of the bare engine, as the median of the turns' ratios.
        over_at_once: The time per frame over that of the bare engine on each core, as the median of the turns' ratios.
    """

    precision: str
    side: int
    who: str
    frames_per_second: float
    ms_per_frame: float
    over_bare: float
    over_at_once: float
    p50: float
    p99: float
    cpu_ms: float


class Worker:
    """A process that answers a line for each line that it gets."""

    def __init__(self, *command: object) -> None:
        self._name = str(command[1])
        self._process = subprocess.Popen(
            [str(one) for one in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.started = self._answer()

    def ask(self, task: str, folder: Path, count: int) -> dict[str, Any]:
        """Let the process do a task on the files of a folder."""
        assert self._process.stdin is not None
        print(task, folder, count, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"{self._name} ended without an answer")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", type=Path, help="a Python with anomalib 2.7 and OpenVINO")
    parser.add_argument("--out", type=Path, default=Path("bench-out/station"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=100, help="the frames of one turn")
    parser.add_argument(
        "--threads", type=int, help="the threads of one inference, by default the engine's choice"
    )
    options = parser.parse_args()
    out = options.out.resolve()
    bundle, peer_model = prepared(out, options.peer)
    times: dict[tuple[str, int, str], Times] = {}
    threads = [] if options.threads is None else [options.threads]
    workers = {
        precision: Worker(sys.executable, HERE / "cost_worker.py", bundle, precision, *threads)
        for precision in PRECISIONS
    }
    peers = {}
    if peer_model is not None:
        program = options.peer, HERE / "peer_inferencer.py", peer_model, 256
        peers = {"anomalib": Worker(*program), "anomalib f32": Worker(*program, "f32")}
    loads = []
    try:
        for number in range(options.rounds):
            for precision in PRECISIONS:
                for side in SIDES:
                    loads.append(os.getloadavg()[0])
                    measure(
                        times,
                        bundle,
                        precision,
                        side,
                        workers[precision],
                        peers,
                        out / f"jpeg-{side}",
                        options,
                    )
            print(f"round {number + 1} of {options.rounds}, load {loads[-1]:.1f}", flush=True)
    finally:
        for worker in (*workers.values(), *peers.values()):
            worker.close()
    engines = {precision: f"{precision}, {worker.started['engine']}" for precision, worker in workers.items()}
    engines |= {who: peer.started["engine"] for who, peer in peers.items()}
    write_results(out, rows_of(times), engines, loads, options)


def measure(
    times: dict[tuple[str, int, str], Times],
    bundle: Path,
    precision: str,
    side: int,
    worker: Worker,
    peers: Mapping[str, Worker],
    pictures: Path,
    options: argparse.Namespace,
) -> None:
    """Let each side have its turn on one precision and one size."""

    def of(who: str) -> Times:
        return times.setdefault((precision, side, who), Times())

    of("bare").add(bare := worker.ask("bare", pictures, options.frames))
    of("bare at once").add(worker.ask("bare-at-once", pictures, options.frames))
    of("one by one").add(worker.ask("one", pictures, options.frames))
    of("files at once").add(worker.ask("files-at-once", pictures, options.frames))
    for who, peer in peers.items():
        of(who).add(peer.ask("predict", pictures, options.frames))
    at_full_speed(of("station"), bundle, precision, pictures, options)
    pause_s = 2 * statistics.fmean(bare["ms"]) / 1000
    at_a_pace(of("station"), bundle, precision, pictures, pause_s, options)


def at_full_speed(
    times: Times, bundle: Path, precision: str, pictures: Path, options: argparse.Namespace
) -> None:
    """Run a station over a folder of files, and note the time and the processor time of a frame."""
    with tempfile.TemporaryDirectory(prefix="flowedge-cost-") as name:
        folder = Path(name)
        link_files(pictures, folder / "line", options.frames + _SETTLED)
        file = write_station(folder, bundle, precision, folder / "line", options.threads, watch=False)
        command = [flowedge_program(), "station", "run", str(file), "--until-end"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            arrived: list[float] = []
            cpu: list[float] = []
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(b"{"):
                    arrived.append(time.monotonic())
                    if len(arrived) in (_SETTLED, options.frames + _SETTLED):
                        cpu.append(cpu_seconds(process.pid))
        if process.returncode or len(arrived) != options.frames + _SETTLED:
            raise RuntimeError(f"the station ended with {process.returncode} after {len(arrived)} verdicts")
        times.per_frame.append(1000 * (arrived[-1] - arrived[_SETTLED - 1]) / options.frames)
        times.cpu.append(1000 * (cpu[1] - cpu[0]) / options.frames)


def at_a_pace(
    times: Times, bundle: Path, precision: str, pictures: Path, pause_s: float, options: argparse.Namespace
) -> None:
    """Let files come into a watched folder one by one, and note the time from each to its delivered verdict."""
    files = sorted(pictures.glob("*.jpg"))
    with tempfile.TemporaryDirectory(prefix="flowedge-cost-") as name:
        folder = Path(name)
        (folder / "line").mkdir()
        file = write_station(folder, bundle, precision, folder / "line", options.threads, watch=True)
        command = [flowedge_program(), "station", "run", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            arrived: dict[str, float] = {}
            reader = threading.Thread(target=read_arrivals, args=(process.stdout, arrived), daemon=True)
            reader.start()
            came: dict[str, float] = {}
            for number in range(-_SETTLED, options.frames // 2):
                target = folder / "line" / f"{number}.jpg"
                shutil.copyfile(files[number % len(files)], target)
                came[str(target)] = time.monotonic()
                wait_for(arrived, target) if number < 0 else time.sleep(pause_s)
            wait_for(arrived, target)
            process.send_signal(signal.SIGTERM)
            reader.join(30)
    measured = list(came)[_SETTLED:]
    times.latencies += [1000 * (arrived[one] - came[one]) for one in measured if one in arrived]


def read_arrivals(stream: Any, arrived: dict[str, float]) -> None:
    """Note the moment at which each verdict is delivered, until the station ends."""
    for line in stream:
        if line.startswith(b"{"):
            arrived.setdefault(json.loads(line).get("source_id", ""), time.monotonic())


def wait_for(arrived: Mapping[str, float], file: Path) -> None:
    """Wait until the verdict of a file is there.

    Raises:
        RuntimeError: It does not come within a minute.
    """
    until = time.monotonic() + 60
    while str(file) not in arrived:
        if time.monotonic() > until:
            raise RuntimeError(f"there is no verdict of {file}")
        time.sleep(0.001)


def write_station(
    folder: Path, bundle: Path, precision: str, source: Path, threads: int | None, *, watch: bool
) -> Path:
    """Write the settings of a station that prints its verdicts."""
    file = folder / "station.toml"
    file.write_text(
        f"""
[station]
name = "cost"
state = "{folder / "state"}"

[inspect]
bundle = "{bundle}"
precision = "{precision}"
{"" if threads is None else f"threads = {threads}"}

[source]
address = "{source}"
watch = {str(watch).lower()}

[page]
port = 0

[[sinks]]
kind = "jsonl"
path = "-"
begin = "oldest"
""",
        encoding="utf-8",
    )
    return file


def link_files(pictures: Path, folder: Path, count: int) -> None:
    """Fill a folder with links to files, so that each has a name of its own."""
    folder.mkdir()
    files = sorted(pictures.glob("*.jpg"))
    for number in range(count):
        shutil.copyfile(files[number % len(files)], folder / f"{number:05}.jpg")


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def flowedge_program() -> str:
    return str(Path(sys.executable).with_name("flowedge"))


def prepared(out: Path, peer: Path | None) -> tuple[Path, Path | None]:
    """Make bundle, pictures and the peer's model, where the output folder lacks them."""
    out.mkdir(parents=True, exist_ok=True)
    for side in SIDES:
        if not (out / f"jpeg-{side}").exists():
            write_pictures(out / f"jpeg-{side}", side)
    bundle = out / "bundle.flowedge"
    checkpoint = write_checkpoint(MODEL, out)
    if not bundle.exists():
        run("export", checkpoint, "-o", out / "made.flowedge", *MODEL.export_options(out), "--force")
        gates = [f"--gate={limit}" for limit in ANY]
        run("calibrate", out / "made.flowedge", "--data", out / "jpeg-256", "--int8", *gates)
        (out / "made.flowedge").rename(bundle)
    if peer is None:
        return bundle, None
    if not (out / "peer" / "model.onnx").exists():
        command = [peer, HERE / "peer_onnx.py", MODEL.family, MODEL.size, checkpoint, out / "peer"]
        subprocess.run([str(one) for one in command], check=True, stdout=subprocess.DEVNULL)
    return bundle, out / "peer" / "model.onnx"


def write_pictures(folder: Path, side: int) -> None:
    """Write crops of a photograph of bricks as JPEG, in grey that is stored as colour."""
    bricks: NDArray[np.uint8] = data.brick()  # type: ignore[no-untyped-call]
    whole = Image.fromarray(bricks).convert("RGB").resize((1024, 1024), Image.Resampling.BICUBIC)
    folder.mkdir()
    for number in range(PICTURES):
        top, left = np.random.default_rng(number).integers(0, 1024 - 768, 2)
        crop = whole.crop((left, top, left + 768, top + 768)).resize((side, side), Image.Resampling.BICUBIC)
        crop.save(folder / f"{number:03}.jpg", quality=90)


def run(*arguments: object) -> None:
    """Run ``flowedge``."""
    subprocess.run([flowedge_program(), *map(str, arguments)], check=True)


def rows_of(times: Mapping[tuple[str, int, str], Times]) -> list[Row]:
    """Make the lines of the table."""
    rows = []
    for (precision, side, who), one in times.items():
        beside = [
            statistics.median(
                mine / other
                for mine, other in zip(one.per_frame, times[precision, side, whose].per_frame, strict=True)
            )
            for whose in ("bare", "bare at once")
        ]
        per_frame = statistics.median(one.per_frame)
        p50, p99 = np.percentile(one.latencies, (50, 99))
        rows.append(
            Row(
                precision=precision,
                side=side,
                who=who,
                frames_per_second=1000 / per_frame,
                ms_per_frame=per_frame,
                over_bare=beside[0],
                over_at_once=beside[1],
                p50=float(p50),
                p99=float(p99),
                cpu_ms=statistics.median(one.cpu),
            )
        )
    return rows


def write_results(
    out: Path, rows: list[Row], engines: Mapping[str, str], loads: list[float], options: argparse.Namespace
) -> None:
    """Write the table as Markdown and as JSON."""
    title = (
        f"CFLOW on resnet18, 256x256, {processor()} with {os.cpu_count()} cores, "
        f"{options.rounds} turns of {options.frames} frames, load {min(loads):.1f} to {max(loads):.1f}."
    )
    lines = [
        title,
        "",
        "| precision | JPEG | | frames/s | ms/frame | beside bare | beside bare at once | p50 ms | p99 ms "
        "| CPU ms/frame |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        engine = engines.get(row.who, engines[row.precision])
        lines.append(
            f"| {engine} | {row.side} | {row.who} | {row.frames_per_second:.1f} | {row.ms_per_frame:.1f} "
            f"| {row.over_bare:.2f} | {row.over_at_once:.2f} | {row.p50:.1f} | {row.p99:.1f} | {row.cpu_ms:.1f} |"
        )
    (out / "station.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts = {"processor": processor(), "loads": loads, "rows": [asdict(row) for row in rows]}
    (out / "station.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
