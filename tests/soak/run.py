"""Run a station for minutes at full speed, break everything around it, and judge what is left.

    make soak               ten minutes
    make soak SECONDS=60    one minute, as in CI

First a video file is judged by a station that is killed again and again. Then a camera sends frames as fast as they are
taken, with journal, MQTT, JSON lines and archive on, while the broker is restarted, the camera drops out, the clock
jumps, the disk fills, and the process is killed and started again. The soak fails where a verdict was lost, came out of
order, or was repeated with another content, or where memory grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soak.camera import Camera, pictures
from soak.disk import SmallDisk
from soak.judgement import (
    Check,
    check_frames,
    check_journal,
    check_memory,
    check_receiver,
    level_between,
)
from soak.receiver import Subscriber, received, verdicts_of_file
from soak.report import write_report
from soak.service import Service
from soak.site import FRAME_SIZE, PICTURES, Site, write_video
from support.mqtt_broker import Broker
from support.wall_clock import WallClock

_DISK_MB = 2048
_FRAMES_OF_FILE = 600
_KILLS_OF_FILE = 3
_DRAIN_S = 60.0
_SHORT_SOAK_S = 300.0
_FIRST_OF_ROUND = "the disk fills"
_LAST_OF_ROUND = "the camera drops out"
_ROUNDS = (0.20, 0.60)
"""The begin of each round of faults in the life of the last process, as shares of the time with the camera."""


@dataclass
class Fault:
    """Something that breaks, and what it did.

    Attributes:
        name: The fault in words.
        at: The moment, as a share of the time with the camera.
        happen: Does it, and returns when it is over.
        skipped: The reason why it cannot happen here, or an empty text.
        seconds: The time it took, once it has happened.
        begun: The moment of the monotonic clock at which it began, once it has happened.
    """

    name: str
    at: float
    happen: Callable[[], None]
    skipped: str = ""
    seconds: float | None = None
    begun: float = 0.0


def main() -> int:
    """Run the soak and return 0 where each promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="the time with the camera")
    parser.add_argument(
        "--fps", type=float, default=0, help="the camera's frames of a second, 0 for its most"
    )
    parser.add_argument("--out", type=Path, default=Path("soak-out"))
    arguments = parser.parse_args()
    in_namespace_of_its_own()
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    out = arguments.out.resolve()
    facts: dict[str, Any] = {}
    if shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        print(
            "soak: the broker is mosquitto, which is not installed: apt-get install mosquitto",
            file=sys.stderr,
        )
        return 2
    checks = [*soak_file(out, facts), *soak_camera(out, arguments.seconds, arguments.fps, facts)]
    return 0 if write_report(out / "soak.json", facts, checks) else 1


def in_namespace_of_its_own() -> None:
    """Begin again in a mount namespace, so that no disk is left mounted however the soak ends."""
    if os.geteuid() != 0 or "FLOWEDGE_SOAK" in os.environ or shutil.which("unshare") is None:
        return
    os.environ["FLOWEDGE_SOAK"] = "1"
    inside = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode == 0:
        os.execvp(inside[0], [*inside, sys.executable, *sys.orig_argv[1:]])


def soak_file(out: Path, facts: dict[str, Any]) -> list[Check]:
    """Judge a video file with a station that is killed again and again until the file has ended."""
    folder = out / "file"
    folder.mkdir()
    video = folder / "line.mp4"
    frames = _FRAMES_OF_FILE
    write_video(video, frames)
    site = Site.make(folder, folder / "state", str(video))
    kills = 0
    with supervised(site, folder, "--until-end") as service:
        service.start()
        while service.life.status is None:
            # Killed after some records of its own, wherever it is then.
            before = site.newest()
            service.wait_until_ready()
            while service.life.status is None and site.newest() < before + frames // 5:
                time.sleep(0.01)
            if kills == _KILLS_OF_FILE:
                break
            service.kill()
            kills += 1
        status = service.wait()
    records = site.records()
    numbered = [received(body) for body in records]
    facts["frames_of_the_file"] = frames
    facts["kills_with_the_file"] = kills
    return [
        Check(
            "the station ended with the file", status == 0 and kills > 0, f"status {status}, {kills} kills"
        ),
        check_frames(frames, [json.loads(body)["source_id"] for body in records]),
        *check_journal(numbered),
        *check_receiver("file: JSON lines", numbered, verdicts_of_file(site.lines)),
    ]


def soak_camera(out: Path, seconds: float, fps: float, facts: dict[str, Any]) -> list[Check]:
    """Judge a camera at full speed while everything around breaks."""
    folder = out / "camera"
    folder.mkdir()
    disk, clock = SmallDisk(folder, _DISK_MB), WallClock(folder)
    camera = Camera(pictures(PICTURES, FRAME_SIZE), fps=fps)
    (folder / "broker").mkdir()
    broker = Broker(folder / "broker")
    site = Site.make(folder, disk.path / "state", camera.address, broker=broker)
    subscriber = Subscriber(broker, site.topic)
    camera.start()
    try:
        with supervised(site, folder, environment=clock.environment) as service:
            faults = faults_of(service, broker, camera, disk, clock, seconds)
            service.start()
            service.wait_until_ready()
            begun = time.monotonic()
            for fault in faults:
                sleep_until(begun + fault.at * seconds)
                fault.begun = time.monotonic()
                if not fault.skipped:
                    print(f"{time.monotonic() - begun:6.1f} s  {fault.name}", flush=True)
                    fault.happen()
                    fault.seconds = time.monotonic() - fault.begun
            sleep_until(begun + seconds)
            camera.stop()
            drained = drain(site, subscriber)
            service.stop()
            lives = service.lives
    finally:
        subscriber.close()
        broker.kill()
        camera.stop()
    records = site.records()
    numbered = [received(body) for body in records]
    checks = [
        *check_journal(numbered),
        *check_receiver("MQTT", numbered, subscriber.verdicts),
        *check_receiver("JSON lines", numbered, verdicts_of_file(site.lines)),
        Check("the journal's file is whole", site.integrity() == "ok", site.integrity()),
        check_lives(lives, faults),
        check_events(site, faults),
    ]
    last = lives[-1]
    quiet = [
        (end - last.started, after - last.started) for end, after in quiet_times(faults, begun + seconds)
    ]
    if seconds < _SHORT_SOAK_S and last.memory:
        # A busy machine leaves no quiet time in a minute, so the two halves of the process's life are compared.
        whole = last.memory[-1][0]
        quiet = [(0.2 * whole, 0.6 * whole), (0.6 * whole, whole)]
    levels = [level_between(last.memory, *times) for times in quiet]
    checks.append(check_memory(levels, quiet[-1][0] - quiet[0][0]))
    judged = [json.loads(body) for body in records]
    facts |= {
        "seconds_with_the_camera": seconds,
        "records": len(records),
        "records_per_second": round(len(records) / seconds, 1),
        "frames_sent": camera.sent,
        "frames_dropped": sum(one["dropped_before"] for one in judged),
        "frames_in_flight_at_breaks": camera.sent - sum(1 + one["dropped_before"] for one in judged),
        "nok": sum(one["signal"] == "nok" for one in judged),
        "not_inspected": sum(one["verdict"] == "not_inspected" for one in judged),
        "starts": len(lives),
        "repeats_over_mqtt": len(subscriber.verdicts) - len({one.id for one in subscriber.verdicts}),
        "drained_s": round(drained, 1),
        "memory_mb_after_rounds": [level and round(level, 1) for level in levels],
        "archived_pictures": sum(bool(one["picture"]) for one in judged),
        "faults": [
            {"name": fault.name, "skipped": fault.skipped, "seconds": fault.seconds} for fault in faults
        ],
        "memory": [{"pid": life.pid, "samples": life.memory} for life in lives],
    }
    disk.unmount()
    return checks


def faults_of(
    service: Service, broker: Broker, camera: Camera, disk: SmallDisk, clock: WallClock, seconds: float
) -> list[Fault]:
    """List what breaks, in the order of time. The last process lives through the same round of faults twice."""
    pause = max(2.0, 0.02 * seconds)

    def restart_broker() -> None:
        broker.send_signal(signal.SIGTERM)
        time.sleep(pause)
        broker.start()

    def lose_camera() -> None:
        camera.stop()
        time.sleep(pause)
        camera.start()

    def fill_disk() -> None:
        disk.fill()
        time.sleep(4 * pause)  # in ten minutes longer than the watchdog waits
        disk.empty()

    def jump(offset: float) -> Callable[[], None]:
        return lambda: clock.shift(offset)

    rounds = [
        fault
        for begin in _ROUNDS
        for fault in (
            Fault(_FIRST_OF_ROUND, begin, fill_disk, skipped=disk.problem),
            Fault("the broker is restarted", begin + 0.14, restart_broker),
            Fault(_LAST_OF_ROUND, begin + 0.22, lose_camera),
        )
    ]
    return [
        Fault("the broker is restarted", 0.03, restart_broker),
        Fault("the process is killed", 0.08, service.kill),
        Fault("the clock jumps by an hour", 0.10, jump(3600.0), skipped=clock.problem),
        Fault("the process is killed", 0.12, service.kill),
        Fault("the clock jumps back by a day", 0.14, jump(-86400.0), skipped=clock.problem),
        *rounds[: len(rounds) // 2],
        Fault("the clock is right again", 0.48, jump(0.0), skipped=clock.problem),
        *rounds[len(rounds) // 2 :],
    ]


def quiet_times(faults: Sequence[Fault], end: float) -> list[tuple[float, float]]:
    """Return the second half of the time between the last fault of each round and the next round.

    Args:
        faults: The faults, which have happened.
        end: The moment of the monotonic clock at which the soak ended.
    """
    # A clock that is set between the rounds ends no quiet time. A step of 23 MB, which came once and after it, made a
    # memory that stayed the same for the next 300 s look like a growing one.
    rounds = [fault.begun for fault in faults if fault.name == _FIRST_OF_ROUND]
    found = []
    for fault in faults:
        if fault.name == _LAST_OF_ROUND:
            over = fault.begun + (fault.seconds or 0.0)
            following = min((begun for begun in rounds if begun > over), default=end)
            found.append((over + 0.5 * (following - over), following))
    return found


@contextlib.contextmanager
def supervised(
    site: Site, folder: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[Service]:
    """Give the supervisor of a station, and end the station however the block ends."""
    program = str(Path(sys.executable).with_name("flowedge"))
    service = Service(
        [program, "station", "run", str(site.file), *options],
        folder,
        {**site.environment, **(environment or {})},
    )
    try:
        yield service
    finally:
        service.close()


def sleep_until(moment: float) -> None:
    """Wait for a moment of the monotonic clock."""
    time.sleep(max(0.0, moment - time.monotonic()))


def drain(site: Site, subscriber: Subscriber) -> float:
    """Wait until the receiver has the last record of the journal, and return the seconds that it took."""
    begun = time.monotonic()
    while time.monotonic() - begun < _DRAIN_S:
        last = site.newest()
        if subscriber.verdicts and subscriber.verdicts[-1].number >= last and last == site.newest():
            break
        time.sleep(0.2)
    return time.monotonic() - begun


def check_lives(lives: Sequence[Any], faults: Sequence[Fault]) -> Check:
    """Check that each process ended by what the soak did to it, and the last one by SIGTERM with status 0."""
    kills = sum(fault.name == "the process is killed" for fault in faults)
    ends = [life.ended_by or f"status {life.status}" for life in lives]
    return Check(
        "only the soak ended a process",
        ends == ["kill -9"] * kills + ["SIGTERM"] and lives[-1].status == 0,
        f"{', '.join(ends)}, at last with status {lives[-1].status}",
    )


def check_events(site: Site, faults: Sequence[Fault]) -> Check:
    """Check that the station has told of each kind of fault."""
    told = site.kinds_of_events()
    wanted = {"started", "source_lost", "source_back", "sink_down", "sink_back"}
    if any(fault.name == "the disk fills" and not fault.skipped for fault in faults):
        wanted.add("disk_low")
    return Check(
        "each fault is an event", wanted <= told, f"missing: {', '.join(sorted(wanted - told)) or 'none'}"
    )


if __name__ == "__main__":
    sys.exit(main())
