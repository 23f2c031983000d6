"""Set up the station of a soak: its bundle, its video, its file with settings, and what it leaves behind."""

from __future__ import annotations

import contextlib
import io
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

import flowedge
from flowedge.manifest import Threshold, Thresholds
from soak.camera import pictures
from support.mqtt_broker import PASSWORD, USER, Broker
from support.tiny_bundle import write_tiny_bundle

FRAME_SIZE = (240, 320)
PICTURES = 32
_NETWORK_SIZE = (64, 96)
_TOPIC = "soak"


@dataclass(frozen=True)
class Site:
    """The station of a soak.

    Attributes:
        file: The file with the settings.
        state: The state folder.
        lines: The file of the sink that writes JSON lines.
        topic: The topic of the records.
        environment: The secrets.
    """

    file: Path
    state: Path
    lines: Path
    topic: str = f"{_TOPIC}/record"
    environment: dict[str, str] = field(default_factory=lambda: {"SOAK_PASSWORD": PASSWORD})

    @classmethod
    def make(cls, folder: Path, state: Path, source: str, *, broker: Broker | None = None) -> Site:
        """Write the settings of a station that judges a source.

        Args:
            folder: The folder of the settings and the bundle.
            state: The folder of the journal and the archive.
            source: The address of the source.
            broker: The broker that gets each record.
        """
        bundle = folder / "soak.flowedge"
        if not bundle.exists():
            write_bundle_of_half_nok(bundle)
        site = cls(folder / "station.toml", state, folder / "verdicts.jsonl")
        text = f"""
[station]
name = "soak"
state = "{state}"

[inspect]
bundle = "{bundle}"
threads = 1

[source]
address = "{source}"
timeout_s = 5
reconnect_s = 0.2
reconnect_max_s = 1

[page]
port = 0

[archive]
ok_one_in = 50
max_gib = 0.5
min_free_gib = 0.2
waiting_mib = 16

[[sinks]]
kind = "jsonl"
path = "{site.lines}"
begin = "oldest"
rotate_mib = 0
"""
        if broker is not None:
            text += f"""
[[sinks]]
kind = "mqtt"
host = "127.0.0.1"
port = {broker.port}
topic = "{_TOPIC}"
username = "{USER}"
password_env = "SOAK_PASSWORD"
begin = "oldest"
retry_max_s = 1
"""
        site.file.write_text(text, encoding="utf-8")
        return site

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.state / "journal.sqlite"

    def newest(self) -> int:
        """Return the number of the newest record, or 0."""
        rows = self.ask("SELECT coalesce(max(number), 0) FROM records")
        return int(rows[0][0]) if rows else 0

    def records(self) -> list[bytes]:
        """Return the JSON of all records in the order of their numbers."""
        return [body.encode() for (body,) in self.ask("SELECT body FROM records ORDER BY number")]

    def kinds_of_events(self) -> set[str]:
        """Return the kinds of the events."""
        return {kind for (kind,) in self.ask("SELECT DISTINCT kind FROM events")}

    def integrity(self) -> str:
        """Return SQLite's own judgement of the file, which is ``ok`` for a whole one."""
        return str(self.ask("PRAGMA integrity_check")[0][0])

    def ask(self, statement: str) -> list[Any]:
        """Read the journal's file by SQLite alone, beside the station. A journal without tables has no rows."""
        if not self.journal.exists():
            return []
        connection = sqlite3.connect(f"{self.journal.as_uri()}?mode=ro", uri=True, timeout=30)
        with contextlib.closing(connection):
            try:
                return connection.execute(statement).fetchall()
            except sqlite3.OperationalError:
                return []


def write_bundle_of_half_nok(target: Path) -> None:
    """Write a bundle with a threshold that accepts about every second picture of the camera."""
    probe = target.with_name("probe.flowedge")
    write_tiny_bundle(probe, image_size=_NETWORK_SIZE)
    with flowedge.load(probe) as detector:
        frames = [np.asarray(Image.open(io.BytesIO(one))) for one in pictures(PICTURES, FRAME_SIZE)]
        scores = [detector(frame).score for frame in frames]
    limit = Threshold(
        value=float(np.median([score for score in scores if score is not None])), method="manual"
    )
    write_tiny_bundle(target, image_size=_NETWORK_SIZE, thresholds=Thresholds(image=limit, pixel=limit))


def write_video(file: Path, frames: int) -> None:
    """Write a video of pictures of which each differs from the one before."""
    height, width = FRAME_SIZE
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            coarse = np.random.default_rng(number).integers(40, 200, (15, 20, 3), dtype=np.uint8)
            picture = coarse.repeat(height // 15, 0).repeat(width // 20, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
