"""A rollout file names the version of each station. A station follows a signed file, and goes to no older version."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowedge.bundle import open_bundle, replace_in_bundle
from flowedge.bundle_files import hash_of_bundle
from flowedge.errors import EngineWrongError, FlowEdgeError, RegistryError, SignatureError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.area.settings import AreaSettings
from flowedge.runtime.registry.http_client import Connection
from flowedge.runtime.registry.rollout import (
    Rollout,
    Stage,
    beginning,
    fetch_rollout,
    next_rollout,
    read_rollout,
    store_rollout,
)
from flowedge.runtime.registry.signing import new_key, read_signing_key, sign_folder
from flowedge.runtime.registry.transfer import push, version_of
from flowedge.runtime.station import rollout_follower
from flowedge.runtime.station.fitting import Fitting
from flowedge.runtime.station.health_report import HealthReport
from flowedge.runtime.station.judges import Judges, open_judges
from flowedge.runtime.station.live import Live
from flowedge.runtime.station.overrides import Overrides
from flowedge.runtime.station.record import Event
from flowedge.runtime.station.rollout_follower import RolloutFollower
from flowedge.runtime.station.settings import InspectSettings, ProductSettings, RolloutSettings, read_station
from flowedge.runtime.station.station import Station
from flowedge.runtime.station.watch import Watch, WatchSettings
from flowedge.trusted_keys import moment_from, read_keys
from support.command_line import flowedge as command
from support.station_files import lines_of, write_photos, write_station
from support.tiny_bundle import write_tiny_bundle

CPU = "onnxruntime-cpu"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "rollout-cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three signed versions of a bundle in a registry, the keys, and the bundle of a station."""
    folder = tmp_path_factory.mktemp("rollout")
    for name in ("release", "other"):
        new_key(folder, name)
    for number in range(4):
        limit = Threshold(value=float(number), method="manual")
        write_tiny_bundle(
            folder / f"v{number}.flowedge", thresholds=Thresholds(image=limit, pixel=limit), seed=number
        )
        sign_folder(folder / f"v{number}.flowedge", read_signing_key(folder / "release.key"))
        push(folder / f"v{number}.flowedge", str(folder / "registry" / f"v{number}"))
    return folder


def stage(made: Path, number: int, **changed: object) -> Stage:
    """Return a stage for all stations that names a version."""
    pinned, sha256, _ = version_of(str(made / "registry" / f"v{number}"))
    one = Stage(
        bundle=pinned, sha256=sha256, since="2026-01-01T00:00:00+00:00", by="Ann", why=f"version {number}"
    )
    return msgspec.structs.replace(one, **changed)


class Line:
    """A station's judges with a follower, whose switches are made at once."""

    def __init__(self, made: Path, folder: Path) -> None:
        self.made, self.folder = made, folder
        self.events: list[Event] = []
        self.key = read_signing_key(made / "release.key")
        self.settings = RolloutSettings(file="rollout.toml", keys=made / "release.pub", rings=("canary",))
        self.base = ProductSettings(name="", bundle=made / "v0.flowedge")
        self.rollout: Rollout | None = None
        self.begin()

    def begin(self) -> None:
        """Start the station."""
        self.follower = RolloutFollower(
            self.settings,
            "line-3",
            self.folder / "state",
            [self.base],
            self.events.append,
            folder=self.folder,
        )
        fit = Fitting(AreaSettings(), Overrides(self.folder))
        opens = partial(open_judges, inspect=InspectSettings(engines=(CPU,), threads=1), fit=fit)
        self.judges = Judges(self.follower.products(), [CPU], opens, self.events.append)
        self.judges.open()
        bundles = {one.product: one.detector.bundle for one in self.judges.judges}
        self.watch = Watch(WatchSettings(), self.folder / "state", bundles)
        self.follower.attach(self.judges, self.watch, lambda action: (action(), True)[1])

    def set(self, one: Stage | None, **options: float) -> bytes:
        """Write the next version of the rollout file."""
        self.rollout, content = next_rollout(self.rollout, self.key, stage=one, **options)  # type: ignore[arg-type]
        store_rollout(str(self.folder / "rollout.toml"), content)
        return content

    @property
    def judging(self) -> str:
        """The SHA-256 of the bundle that judges."""
        return self.judges.judges[0].bundle_sha256

    def refuses(self, kind: type[FlowEdgeError], words: str) -> None:
        """Check that a look is refused and changes nothing."""
        before = self.judging
        with pytest.raises(kind, match=words):
            self.follower.look()
        assert self.judging == before


@pytest.fixture
def line(made: Path, tmp_path: Path) -> Iterator[Line]:
    one = Line(made, tmp_path)
    yield one
    one.follower.close()
    one.judges.close()


def test_a_rollout_is_read_with_the_key_that_signed_it_and_with_no_other(made: Path) -> None:
    rollout, content = next_rollout(
        None, read_signing_key(made / "release.key"), stage=stage(made, 1), name="bottles"
    )
    assert read_rollout(content, read_keys(made / "release.pub"), "file") == rollout
    assert (rollout.name, rollout.version) == ("bottles", 1)
    with pytest.raises(SignatureError, match=r"release \(.*\), which .*other.pub does not list"):
        read_rollout(content, read_keys(made / "other.pub"), "file")
    with pytest.raises(SignatureError, match="is not what the key release has signed"):
        read_rollout(content.replace(b"Ann", b"Bob"), read_keys(made / "release.pub"), "file")
    with pytest.raises(SignatureError, match="no rollout that this FlowEdge reads"):
        read_rollout(content.replace(b"schema = 1", b"schema = 2"), read_keys(made / "release.pub"), "file")
    with pytest.raises(SignatureError, match="has no signature in its last line"):
        read_rollout(content[:-20], read_keys(made / "release.pub"), "file")


def test_a_key_for_bundles_alone_and_a_signature_of_a_bundle_make_no_rollout(
    made: Path, tmp_path: Path
) -> None:
    _, content = next_rollout(None, read_signing_key(made / "release.key"), stage=stage(made, 1))
    text = (made / "release.pub").read_text() + 'signs = ["bundles"]\n'
    (tmp_path / "bundles.pub").write_text(text)
    with pytest.raises(SignatureError, match="may sign bundles, and no rollouts"):
        read_rollout(content, read_keys(tmp_path / "bundles.pub"), "file")
    signature = (made / "v1.flowedge" / "signature.toml").read_bytes()
    with pytest.raises(SignatureError, match="no rollout that this FlowEdge reads"):
        read_rollout(signature, read_keys(made / "release.pub"), "file")


def test_the_last_stage_that_fits_and_has_begun_is_in_force(made: Path) -> None:
    key = read_signing_key(made / "release.key")
    rollout = None
    for one in (
        stage(made, 1),
        stage(made, 2, rings=("canary",)),
        stage(made, 3, stations=("line-7*",)),
        stage(made, 0, since="2030-01-01T00:00:00+00:00"),
        stage(made, 3, product="cable"),
    ):
        rollout, _ = next_rollout(rollout, key, stage=one)
    assert rollout is not None
    assert rollout.version == 5

    def why(station: str, rings: tuple[str, ...], product: str = "", now: str = "2026-12-01") -> str:
        found = rollout.stage_for(station, rings, product, moment_from(now))
        return "none" if found is None else found.why

    assert why("line-1", ()) == "version 1"
    assert why("line-1", ("canary",)) == "version 2"
    assert why("line-7-left", ("canary",)) == "version 3"
    assert why("line-1", ("canary",), now="2030-01-02") == "version 0"
    assert why("line-1", (), product="cable") == "version 3"
    assert why("line-1", (), product="bottle") == "none"
    assert why("line-1", (), now="2025-01-01") == "none"


def test_old_stages_of_the_same_stations_are_dropped_but_for_the_last(made: Path) -> None:
    key = read_signing_key(made / "release.key")
    rollout, _ = next_rollout(None, key, stage=stage(made, 0, rings=("canary",)))
    for number in range(1, 4):
        rollout, _ = next_rollout(rollout, key, stage=stage(made, number))
    assert [one.why for one in rollout.stages] == ["version 0", "version 2", "version 3"]


@pytest.mark.parametrize("place", ["file", "memory"])
def test_a_rollout_file_is_stored_and_fetched(tmp_path: Path, place: str) -> None:
    reference = (
        str(tmp_path / "rollout.toml") if place == "file" else f"memory://{tmp_path.name}/rollout.toml"
    )
    assert fetch_rollout(reference) is None
    store_rollout(reference, b"content")
    assert fetch_rollout(reference) == b"content"
    with pytest.raises(RegistryError, match="can only be read"):
        store_rollout("https://server.example/rollout.toml", b"content")
    with pytest.raises(RegistryError, match="is not encrypted"):
        fetch_rollout("http://server.example/rollout.toml", Connection())


def test_a_moment_to_begin_is_now_or_the_first_of_a_date() -> None:
    assert beginning("2027-01-02").isoformat() == "2027-01-02T00:00:00+00:00"
    assert beginning("2027-01-02T12:00:00+02:00").isoformat() == "2027-01-02T12:00:00+02:00"
    assert beginning(None) <= beginning("2099-01-01")
    with pytest.raises(RegistryError, match="--since: expected a date"):
        beginning("tomorrow")


def test_a_station_switches_to_what_the_rollout_names_and_keeps_it_over_a_restart(
    line: Line, made: Path
) -> None:
    line.set(stage(made, 1))
    before = line.judges.judges[0]
    line.follower.look()
    wanted = hash_of_bundle(made / "v1.flowedge")
    assert line.judging == wanted
    assert line.judges.current(before) is line.judges.judges[0], (
        "a frame of the old detector goes to the new one"
    )
    (event,) = (one for one in line.events if one.kind == "bundle_changed")
    assert event.data["sha256"] == wanted
    assert (event.data["by"], event.data["why"]) == ("Ann", "version 1")
    judge = line.judges.judges[0]
    assert not line.watch.due(judge.detector), "the self-test was before the switch, so no frame waits for it"
    line.follower.look()
    assert line.judges.judges[0] is judge, "nothing is opened again"
    line.follower.close()
    line.judges.close()
    line.begin()
    assert line.judging == wanted
    assert line.follower.status()["in_force"][""]["sha256"] == wanted


def test_going_back_is_a_step_forward_and_downloads_nothing(line: Line, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "registry", tmp_path / "registry")
    for number in (1, 2):
        line.set(stage(tmp_path, number))
        line.follower.look()
    shutil.rmtree(tmp_path / "registry" / "v1")
    line.set(stage(made, 1, bundle=str(tmp_path / "registry" / "v1")))
    line.follower.look()
    assert line.judging == hash_of_bundle(made / "v1.flowedge")
    line.set(stage(made, 3))
    line.follower.look()
    line.set(stage(made, 0))
    line.follower.look()
    kept = {one.name for one in (tmp_path / "state" / "rollout" / "bundles").iterdir()}
    assert kept == {hash_of_bundle(made / f"v{number}.flowedge")[:32] for number in (0, 3, 1)}


def test_an_older_file_another_file_and_an_expired_one_change_nothing(
    line: Line, made: Path, tmp_path: Path
) -> None:
    old = line.set(stage(made, 1))
    line.set(stage(made, 2))
    line.follower.look()
    (tmp_path / "rollout.toml").write_bytes(old)
    line.refuses(SignatureError, "has version 1, and this station has taken version 2 already")
    assert line.rollout is not None
    line.rollout = msgspec.structs.replace(line.rollout, version=1)
    line.set(stage(made, 3))
    line.refuses(SignatureError, "has version 2, and this station has taken version 2 already")
    line.rollout = msgspec.structs.replace(line.rollout, version=9, name="another")
    line.set(stage(made, 3))
    line.refuses(SignatureError, "is the rollout another, and this station follows rollout")
    line.rollout = msgspec.structs.replace(line.rollout, name="rollout")
    line.set(stage(made, 3), days=-1)
    line.refuses(RegistryError, "expired on .*flowedge rollout renew")
    line.set(None)
    line.follower.look()
    assert line.judging == hash_of_bundle(made / "v3.flowedge")


def test_a_bundle_that_is_not_signed_or_is_another_version_changes_nothing(
    line: Line, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "registry", tmp_path / "registry")
    one = stage(tmp_path, 1)
    line.set(one)
    (tmp_path / "registry" / "v1" / "signature.toml").unlink()
    line.refuses(SignatureError, "is not signed")
    shutil.rmtree(tmp_path / "registry" / "v1")
    shutil.copytree(made / "registry" / "v2", tmp_path / "registry" / "v1")
    line.refuses(RegistryError, "is another version than the one that is wanted")
    (tmp_path / "rollout.toml").unlink()
    line.refuses(RegistryError, "the rollout file rollout.toml is not there")


def test_a_bundle_whose_engine_answers_wrongly_or_that_needs_other_frames_changes_nothing(
    line: Line, made: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "wrong.flowedge"
    shutil.copytree(made / "v1.flowedge", bundle)
    model = (made / "v2.flowedge" / "model.onnx").read_bytes()
    replace_in_bundle(open_bundle(bundle), files={"model.onnx": model})
    other = tmp_path / "other.flowedge"
    shutil.copytree(made / "v1.flowedge", other)
    opened = open_bundle(other)
    replace_in_bundle(opened, manifest=msgspec.structs.replace(opened.manifest, pixel_range=(0.0, 4095.0)))
    for place, kind, words in (
        (bundle, EngineWrongError, "wrongly"),
        (other, RegistryError, "takes other grey levels of the source"),
    ):
        sign_folder(place, line.key)
        push(place, str(tmp_path / "registry" / place.name))
        pinned, sha256, _ = version_of(str(tmp_path / "registry" / place.name))
        line.set(stage(made, 1, bundle=pinned, sha256=sha256))
        line.refuses(kind, words)


def test_a_bundle_that_was_damaged_on_the_disk_is_replaced_by_the_one_before_it(
    line: Line, made: Path
) -> None:
    for number in (1, 2):
        line.set(stage(made, number))
        line.follower.look()
    line.follower.close()
    line.judges.close()
    folders = {
        number: line.folder
        / "state"
        / "rollout"
        / "bundles"
        / hash_of_bundle(made / f"v{number}.flowedge")[:32]
        for number in (1, 2)
    }
    (folders[2] / "model.onnx").write_bytes(b"damaged")
    line.begin()
    assert line.judging == hash_of_bundle(made / "v1.flowedge")
    assert any(one.level == "alarm" and "model.onnx" in one.text for one in line.events)
    line.follower.look()
    assert line.judging == hash_of_bundle(made / "v2.flowedge"), "it is pulled again"


@pytest.mark.parametrize("end", ["removed", "revoked"])
def test_a_station_follows_a_new_key_after_the_old_one_was_replaced(
    line: Line, made: Path, tmp_path: Path, end: str
) -> None:
    line.set(stage(made, 1))
    assert line.rollout is not None
    line.rollout = msgspec.structs.replace(line.rollout, version=1 << 50)
    line.set(stage(made, 1))
    line.follower.look()
    keys = tmp_path / "keys"
    keys.mkdir()
    shutil.copy(made / "other.pub", keys)
    if end == "revoked":
        (keys / "release.pub").write_text((made / "release.pub").read_text() + 'revoked = "it was stolen"\n')
    line.settings = msgspec.structs.replace(line.settings, keys=keys)
    line.key = read_signing_key(made / "other.key")
    line.follower._settings = line.settings
    line.rollout = msgspec.structs.replace(line.rollout, version=2)
    line.set(None)
    assert line.follower._newest().version == 3
    line.rollout = msgspec.structs.replace(line.rollout, version=1)
    line.set(None)
    with pytest.raises(SignatureError, match="has version 2, and this station has taken version 3 already"):
        line.follower._newest()


def test_a_bundle_in_force_stays_where_another_product_does_not_get_it(line: Line, made: Path) -> None:
    line.set(one := stage(made, 1))
    line.follower.look()
    place = line.follower._state._bundle_folder(one.sha256)
    (place / "signature.toml").unlink()
    with pytest.raises(FlowEdgeError):
        line.follower._state.pulled(msgspec.structs.replace(one, bundle=str(line.folder / "gone")), "")
    assert (place / "model.onnx").exists(), "the engine that judges still reads its self-test"
    assert line.follower._state.pulled(one, "") == place
    assert (place / "signature.toml").exists()


def test_a_switch_that_ends_at_the_last_moment_is_no_failure(line: Line, made: Path) -> None:
    def late(action: Any) -> bool:
        action()
        return False  # the wait has ended just before

    line.set(stage(made, 1))
    line.follower._between_frames = late
    line.follower.look()
    assert line.judging == hash_of_bundle(made / "v1.flowedge")


def test_a_problem_is_told_once_until_it_is_another_one(line: Line, made: Path) -> None:
    for _ in range(3):
        line.follower._look_and_tell()
    problems = [one for one in line.events if one.kind == "rollout_problem"]
    assert [one.text for one in problems] == [
        "no bundle is changed: the rollout file rollout.toml is not there."
    ]
    live = Live()
    report = HealthReport(live, line.folder)
    report.rollout(line.follower.status())
    assert [(part.name, part.state) for part in live.parts] == [("rollout", "warning")]
    line.set(stage(made, 1))
    line.follower._look_and_tell()
    report.rollout(line.follower.status())
    assert [(part.state, part.text) for part in live.parts] == [("ok", "version 1")]
    assert line.follower.status()["problem"] == ""


def test_a_switch_that_the_engine_does_not_come_to_is_given_up(
    line: Line, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.set(stage(made, 1))
    monkeypatch.setattr(rollout_follower, "_SWITCH_S", 0.01)
    line.follower._between_frames = lambda action: True
    line.refuses(RegistryError, "too busy to switch")


def test_a_running_station_switches_between_two_frames_and_loses_none(made: Path, tmp_path: Path) -> None:
    tables = f'[rollout]\nfile = "rollout.toml"\nkeys = "{made / "release.pub"}"\nrings = ["canary"]\nevery_s = 1\n'
    file = write_station(tmp_path, photos=2, tables=tables, engines=[CPU])
    file.write_text(file.read_text().replace('address = "photos"', 'address = "photos"\nwatch = true'))
    key = read_signing_key(made / "release.key")
    switched = threading.Event()
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        if event.kind == "bundle_changed":
            switched.set()

    def wait_for(count: int) -> None:
        for _ in range(600):
            if len(lines_of(tmp_path / "verdicts.jsonl")) >= count:
                return
            time.sleep(0.05)
        raise AssertionError("the records do not come")

    with Station(read_station(file), folder=tmp_path, on_event=take) as station:
        thread = threading.Thread(target=station.run)
        thread.start()
        try:
            wait_for(2)
            rollout, content = next_rollout(None, key, stage=stage(made, 1, rings=("canary",)))
            store_rollout(str(tmp_path / "rollout.toml"), content)
            assert switched.wait(30)
            write_photos(tmp_path / "photos", 2, first=2)
            wait_for(4)
            status = station.status()["rollout"]
        finally:
            station.stop()
            thread.join()
    assert (status["version"], status["problem"]) == (rollout.version, "")
    records = [line for line in lines_of(tmp_path / "verdicts.jsonl") if "source_id" in line]
    hashes = [line["bundle_sha256"] for line in records]
    first, second = hash_of_bundle(tmp_path / "tiny.flowedge"), hash_of_bundle(made / "v1.flowedge")
    assert hashes == [first, first, second, second]
    assert [line["verdict"] == "not_inspected" for line in records] == [False] * 4
    kinds = [event.kind for event in events]
    assert kinds.index("rollout_problem") < kinds.index("bundle_changed")
    assert kinds.count("self_test_passed") == 2


def test_the_commands_set_show_check_and_renew_a_rollout(made: Path, tmp_path: Path) -> None:
    file, key, keys = tmp_path / "rollout.toml", made / "release.key", made / "release.pub"
    done = command(
        "rollout",
        "set",
        file,
        made / "registry" / "v1",
        "--key",
        key,
        "--ring",
        "canary",
        "--why",
        "a new lamp",
        "--json",
    )
    assert done.status == 0, done.stderr
    (one,) = json.loads(done.stdout)["stages"]
    assert (one["rings"], one["why"], one["sha256"]) == (
        ["canary"],
        "a new lamp",
        hash_of_bundle(made / "v1.flowedge"),
    )
    done = command("rollout", "check", file, "--keys", keys, "--station", "line-3", "--ring", "canary")
    assert (done.status, "a new lamp" in done.stdout) == (0, True)
    done = command("rollout", "check", file, "--keys", keys, "--station", "line-3")
    assert "line-3: no stage fits. Name the rings" in done.stdout
    options = ("--key", key, "--keys", keys, "--why", "all", "--since", "2999-01-02")
    done = command("rollout", "set", file, made / "registry" / "v1", *options)
    assert done.status == 0, done.stderr
    done = command("rollout", "check", file, "--keys", keys, "--station", "line-3")
    assert "line-3: no stage has begun, and the first one that fits begins at 2999-01-02" in done.stdout
    assert "The signature was not checked" in command("rollout", "show", file).stderr
    done = command("rollout", "renew", file, "--key", made / "other.key")
    assert (done.status, "does not list" in done.stderr) == (2, True)
    done = command(
        "rollout", "renew", file, "--key", made / "other.key", "--keys", keys, "--days", "1", "--json"
    )
    assert json.loads(done.stdout)["version"] == 3
    done = command("rollout", "check", file, "--keys", keys)
    assert (done.status, "other (" in done.stderr) == (2, True)
    unsigned = tmp_path / "unsigned"
    shutil.copytree(made / "registry" / "v1", unsigned)
    (unsigned / "signature.toml").unlink()
    before = file.read_bytes()
    done = command(
        "rollout", "set", file, unsigned, "--key", made / "other.key", "--keys", keys, "--why", "x"
    )
    assert (done.status, "is not signed, and stations take no such bundle" in done.stderr) == (2, True)
    assert file.read_bytes() == before
    done = command("rollout", "set", file, tmp_path / "none", "--key", key, "--why", "x")
    assert done.status == 2
    assert "other (" in done.stderr
