"""Measure a server under load beside the bare engine and beside anomalib's inferencer in a FastAPI handler.

    make serve-bench     or: PYTHONPATH=tests python tests/bench/table_serve.py --peer .venv-peer/bin/python

The model is that of the station's cost: a CFLOW on resnet18 at 256x256 with random weights. All servers run on this
computer, one at a time is loaded, and they take turns:

* engine: the bare engine on a prepared image, as many inferences at once as the server has threads.
* picture: ``POST /v1/inspect`` of ``flowedge serve`` with a JPEG.
* tensor: the Open Inference Protocol with a binary tensor, which asks for score and verdict.
* anomalib: ``OpenVINOInferencer`` in a plain function of FastAPI, which takes the JPEG as an uploaded file.
* anomalib, locked: the same with a lock around the inferencer, which two threads cannot use at once.

Then each server gets twice as many requests a second as it answered, with a deadline where it knows deadlines. There a
latency counts from the moment at which a request was planned. Processor time is that of the server's process. Nothing
here passes or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import numpy as np

import flowedge
from bench.full_size import write_checkpoint
from bench.load_generator import Load, Request, closed_loop, open_loop
from bench.station_cost import HERE, MODEL, cpu_seconds, flowedge_program, run, write_pictures
from bench.turns import processor
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.lanes import lanes_of, threads_for_many

SIDE: Final = 256
CONCURRENCIES: Final = (1, 4, 16, 64)
WORTH: Final = 5  # at twice the capacity, an answer is worth so many times the time of a single client
_START_S: Final = 180.0
_MOST_AT_ONCE: Final = 400


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. Times are in ms."""

    who: str
    clients: int
    per_second: float
    p50: float
    p99: float
    cpu_ms: float
    failed: int


@dataclass(frozen=True, kw_only=True)
class Overload:
    """One server at twice its capacity. Times are in ms.

    Refused are the requests with the status 429, and with 503 where there were too many connections.
    """

    who: str
    planned_per_second: float
    deadline_ms: int
    sent: int
    answered: int
    refused: int
    late: int
    lost: int
    p50: float
    p99: float
    refusal_p99: float


class Server:
    """A process that serves, with a request for it."""

    def __init__(
        self, who: str, request: Request, pid: int, urgent: Callable[[Request, int], Request] | None = None
    ) -> None:
        """Describe the server.

        Args:
            who: Its name in the table.
            request: The request.
            pid: The number of its process.
            urgent: Gives a request a deadline in ms, where the server knows deadlines.
        """
        self.who, self.request, self.pid, self._urgent = who, request, pid, urgent

    def urgent(self, deadline_ms: int) -> Request:
        """Return the request with a deadline, where the server knows deadlines."""
        return self.request if self._urgent is None else self._urgent(self.request, deadline_ms)

    def turn(self, clients: int, count: int) -> tuple[Load, float]:
        """Load the server, and return what came back and the processor time of a request in ms."""
        before = cpu_seconds(self.pid)
        load = closed_loop(self.request, clients, count)
        return load, 1000 * (cpu_seconds(self.pid) - before) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", type=Path, help="a Python with anomalib 2.7, OpenVINO and FastAPI")
    parser.add_argument("--out", type=Path, default=Path("bench-out/serve"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96, help="the requests of one turn")
    parser.add_argument("--seconds", type=float, default=20.0, help="the time at twice the capacity")
    parser.add_argument("--clients", type=int, nargs="+", default=CONCURRENCIES)
    parser.add_argument("--precision", default="fp32")
    options = parser.parse_args()
    out = options.out.resolve()
    bundle, peer_model = prepared(out, options.peer)
    jpeg = sorted((out / f"jpeg-{SIDE}").glob("*.jpg"))[0]
    turns: dict[tuple[str, int], list[tuple[Load, float]]] = {}
    engine: list[tuple[float, float]] = []
    overloads: list[Overload] = []
    loads: list[float] = []
    with contextlib.ExitStack() as stack:
        servers = list(stack.enter_context(ours(bundle, jpeg, options.precision)))
        if peer_model is not None:
            servers += [
                stack.enter_context(home_made(options.peer, peer_model, jpeg, *words))
                for words in ((), ("locked",))
            ]
        for server in servers:
            server.turn(4, 16)  # not counted
        for number in range(options.rounds):
            engine.append(engine_speed(bundle, jpeg, options.precision, options.requests))
            for clients in options.clients:
                for server in servers:
                    loads.append(os.getloadavg()[0])
                    turn = server.turn(clients, max(options.requests, clients))
                    turns.setdefault((server.who, clients), []).append(turn)
            print(f"round {number + 1} of {options.rounds}, load {loads[-1]:.1f}", flush=True)
        for server in servers:
            capacity = max(
                statistics.median(one.statuses[200] / one.seconds for one, _ in turns[server.who, clients])
                for clients in options.clients
            )
            alone = [one for load, _ in turns[server.who, min(options.clients)] for one in load.latencies]
            deadline_ms = round(WORTH * percentile(alone, 50))
            overloads.append(overloaded(server, 2 * capacity, options.seconds, deadline_ms))
    rows = [row_of(who, clients, found) for (who, clients), found in turns.items()]
    write_results(rows, overloads, engine, loads, options, out)


def prepared(out: Path, peer: Path | None) -> tuple[Path, Path | None]:
    """Make the bundle, the pictures and the peer's model, where the output folder lacks them."""
    out.mkdir(parents=True, exist_ok=True)
    pictures, bundle, peer_model = out / f"jpeg-{SIDE}", out / "bundle.flowedge", out / "peer" / "model.onnx"
    if not pictures.exists():
        write_pictures(pictures, SIDE)
    checkpoint = write_checkpoint(MODEL, out)
    if not bundle.exists():
        run("export", checkpoint, "-o", out / "made.flowedge", *MODEL.export_options(out), "--force")
        run("calibrate", out / "made.flowedge", "--data", pictures)
        (out / "made.flowedge").rename(bundle)
    if peer is not None and not peer_model.exists():
        command = [peer, HERE / "peer_onnx.py", MODEL.family, MODEL.size, checkpoint, peer_model.parent]
        subprocess.run([str(one) for one in command], check=True, stdout=subprocess.DEVNULL)
    return bundle, None if peer is None else peer_model


def engine_speed(bundle: Path, jpeg: Path, precision: str, count: int) -> tuple[float, float]:
    """Return the images a second of the bare engine, and its processor time of an image in ms.

    As many inferences run at once as in the server.
    """
    with flowedge.load(bundle, precision=precision, threads=threads_for_many()) as detector:
        _, image = detector.prepare([read_image(jpeg)])
        lanes = lanes_of(detector.engine)

        def work() -> None:
            for _ in range(count // lanes):
                detector.engine.infer(image)

        detector.engine.infer(image)
        threads = [threading.Thread(target=work) for _ in range(lanes)]
        begun, cpu = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done = lanes * (count // lanes)
        return done / (time.perf_counter() - begun), 1000 * (time.process_time() - cpu) / done


@contextlib.contextmanager
def ours(bundle: Path, jpeg: Path, precision: str) -> Iterator[tuple[Server, Server]]:
    """Run ``flowedge serve``, and give it with a picture and with a tensor."""
    command = [flowedge_program(), "serve", str(bundle), "--port", "0", "--json", "--precision", precision]
    command += ["--deadline-ms", "600000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        port, name = int(told["url"].rstrip("/").rpartition(":")[2]), told["models"][0]
        path = f"/v1/inspect?model={name}"
        try:
            yield (
                Server(
                    "picture",
                    Request(port=port, path=path, body=jpeg.read_bytes()),
                    process.pid,
                    lambda one, ms: replace(one, path=f"{path}&deadline_ms={ms}"),
                ),
                Server(
                    "tensor",
                    tensor_request(port, name, jpeg, None),
                    process.pid,
                    lambda one, ms: tensor_request(one.port, name, jpeg, ms),
                ),
            )
        finally:
            process.terminate()


def tensor_request(port: int, name: str, jpeg: Path, deadline_ms: int | None) -> Request:
    """Make a request with a binary tensor, which may have a deadline."""
    frame = read_image(jpeg)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": [1, *frame.shape],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": frame.size},
                }
            ],
            "outputs": [{"name": "score"}, {"name": "verdict"}],
            "parameters": {} if deadline_ms is None else {"timeout": deadline_ms * 1000},
        }
    ).encode()
    return Request(
        port=port,
        path=f"/v2/models/{name}/infer",
        body=head + frame.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


@contextlib.contextmanager
def home_made(peer: Path, model: Path, jpeg: Path, *words: str) -> Iterator[Server]:
    """Run anomalib's inferencer in a handler of FastAPI."""
    port = free_port()
    command = [str(peer), str(HERE / "peer_fastapi.py"), str(model), str(SIDE), str(port), *words]
    boundary = "flowedge-bench"
    body = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="part.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode()
        + jpeg.read_bytes()
        + f"\r\n--{boundary}--\r\n".encode()
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/readyz", process)
            yield Server(
                ", ".join(("anomalib", *words)),
                Request(port=port, path="/v1/inspect", body=body, headers=headers),
                process.pid,
            )
        finally:
            process.terminate()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    """Wait until a server answers.

    Raises:
        RuntimeError: It ended, or does not answer in time.
    """
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer")


def overloaded(server: Server, per_second: float, seconds: float, deadline_ms: int) -> Overload:
    """Send requests at a pace that is too fast, and count what becomes of them."""
    load = open_loop(server.urgent(deadline_ms), per_second, int(per_second * seconds), _MOST_AT_ONCE)
    sent = sum(load.statuses.values())
    return Overload(
        who=server.who,
        planned_per_second=per_second,
        deadline_ms=deadline_ms,
        sent=sent,
        answered=load.statuses[200],
        refused=load.statuses[429] + load.statuses[503],
        late=load.statuses[504],
        lost=sent - sum(load.statuses[one] for one in (200, 429, 503, 504)),
        p50=percentile(load.latencies, 50),
        p99=percentile(load.latencies, 99),
        refusal_p99=percentile(load.refused, 99),
    )


def percentile(seconds: list[float], share: float) -> float:
    return float(np.percentile(seconds, share)) * 1000 if seconds else float("nan")


def row_of(who: str, clients: int, found: list[tuple[Load, float]]) -> Row:
    """Make a line of the turns: the median of the speeds, and the percentiles of all latencies."""
    latencies = [one for load, _ in found for one in load.latencies]
    return Row(
        who=who,
        clients=clients,
        per_second=statistics.median(load.statuses[200] / load.seconds for load, _ in found),
        p50=percentile(latencies, 50),
        p99=percentile(latencies, 99),
        cpu_ms=statistics.median(cpu for _, cpu in found),
        failed=sum(count for load, _ in found for status, count in load.statuses.items() if status != 200),
    )


def write_results(
    rows: list[Row],
    overloads: list[Overload],
    engine: list[tuple[float, float]],
    loads: list[float],
    options: argparse.Namespace,
    out: Path,
) -> None:
    """Print the tables, and write them as JSON."""
    print(
        f"\n{processor()}, {os.cpu_count()} cores, load {min(loads):.1f} to {max(loads):.1f}, {options.precision}"
    )
    speed, cpu_ms = (statistics.median(one) for one in zip(*engine, strict=True))
    print(f"bare engine: {speed:.1f} images/s, {cpu_ms:.1f} ms of processor time\n")
    print("| server | clients | images/s | p50, ms | p99, ms | processor, ms | failed |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda one: (one.clients, one.who)):
        print(
            f"| {row.who} | {row.clients} | {row.per_second:.1f} | {row.p50:.0f} | {row.p99:.0f} | {row.cpu_ms:.1f} | "
            f"{row.failed} |"
        )
    columns = ("deadline, ms", "sent", "answered", "refused", "late", "lost", "p50, ms", "p99, ms")
    print(f"\n| server at twice its capacity | planned/s | {' | '.join(columns)} |")
    print(f"|---|---:|{'---:|' * len(columns)}")
    for one in overloads:
        counts = (one.deadline_ms, one.sent, one.answered, one.refused, one.late, one.lost)
        print(
            f"| {one.who} | {one.planned_per_second:.0f} | {' | '.join(map(str, counts))} | {one.p50:.0f} | "
            f"{one.p99:.0f} |"
        )
    told = {
        "engine": engine,
        "rows": [asdict(row) for row in rows],
        "overloads": [asdict(one) for one in overloads],
        "loads": loads,
    }
    (out / "serve.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
