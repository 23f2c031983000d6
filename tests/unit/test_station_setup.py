"""``flowedge station init`` writes a file that runs as it is, and ``flowedge station check`` finds what is wrong."""

from __future__ import annotations

import itertools
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowedge.errors import SettingsError
from flowedge.runtime.settings import parse_settings
from flowedge.runtime.station.settings import StationSettings, parse_station, read_station
from flowedge.runtime.station.template import station_file
from support.command_line import flowedge
from support.station_files import write_station

GIVEN: dict[str, dict[str, Any]] = {
    "station": {"name": "line-3", "state": "state"},
    "inspect": {"bundle": "tiny.flowedge"},
    "source": {"address": "photos"},
}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "station-cache"))


def check(file: Path) -> dict[str, tuple[str, str]]:
    done = flowedge("station", "check", file, "--json")
    items = json.loads(done.stdout)["items"]
    assert done.status == int(any(item["state"] == "wrong" for item in items))
    return {item["name"]: (item["state"], item["text"]) for item in items}


def test_a_new_file_runs_as_it_is(tmp_path: Path) -> None:
    write_station(tmp_path)
    done = flowedge(
        "station",
        "init",
        tmp_path / "tiny.flowedge",
        "-o",
        tmp_path / "new.toml",
        "--source",
        tmp_path / "photos",
    )
    assert done.status == 0, done.stderr
    # The page's usual port may be taken on this machine.
    text = (tmp_path / "new.toml").read_text().replace("#port = 8080", "port = 0")
    (tmp_path / "new.toml").write_text(text)
    ran = flowedge("station", "run", tmp_path / "new.toml", "--until-end", "--json")
    assert ran.status == 0, ran.stderr
    assert json.loads(ran.stdout)["records"]["all"] == 8
    assert len((tmp_path / "verdicts.jsonl").read_bytes().splitlines()) == 8


def test_without_a_source_a_folder_is_watched_and_a_camera_drops_its_oldest_frame(tmp_path: Path) -> None:
    write_station(tmp_path)
    assert flowedge("station", "init", "tiny.flowedge", "-o", "a.toml", cwd=tmp_path).status == 0
    settings = read_station(tmp_path / "a.toml")
    assert (settings.source.address, settings.source.watch) == ("incoming", True)
    assert (tmp_path / "incoming").is_dir()
    assert settings.station.name == "tiny"
    assert settings.inspect.bundle == tmp_path / "tiny.flowedge"
    camera = ("--source", "rtsp://camera.local/live")
    assert flowedge("station", "init", "tiny.flowedge", "-o", "b.toml", *camera, cwd=tmp_path).status == 0
    settings = read_station(tmp_path / "b.toml")
    assert settings.source.address == "rtsp://camera.local/live"
    assert settings.inspect.when_full == "drop_oldest"


def test_init_replaces_no_file_and_takes_no_password(tmp_path: Path) -> None:
    file = write_station(tmp_path)
    before = file.read_bytes()
    done = flowedge("station", "init", tmp_path / "tiny.flowedge", "-o", file)
    assert done.status == 2
    assert "exists already" in done.stderr
    forced = flowedge("station", "init", tmp_path / "tiny.flowedge", "-o", file, "--force")
    assert forced.status == 2  # the file is not one that init wrote
    assert file.read_bytes() == before
    done = flowedge(
        "station",
        "init",
        tmp_path / "tiny.flowedge",
        "-o",
        tmp_path / "b.toml",
        "--source",
        "rtsp://me:pw@cam/live",
    )
    assert done.status == 2
    assert "password_env" in done.stderr
    assert not (tmp_path / "b.toml").exists()


def test_each_key_of_a_new_file_has_a_description_and_its_default() -> None:
    text = station_file(GIVEN, [{"kind": "jsonl", "path": "verdicts.jsonl"}])
    plain = parse_station(
        '[station]\nname = "line-3"\nstate = "state"\n[inspect]\nbundle = "tiny.flowedge"\n'
        '[source]\naddress = "photos"\n[[sinks]]\nkind = "jsonl"\npath = "verdicts.jsonl"',
        name="plain.toml",
        folder=Path("/f"),
    )
    assert parse_station(text, name="new.toml", folder=Path("/f")) == plain
    keys = re.compile(r"#?\w+ = ?|#?\w+ =$")
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        if keys.match(line) and not re.match(r"#?kind = ", line):
            assert before.startswith("# "), f"{line} has no description"
    # Each default is one that the file takes: the keys of the tables that are there are uncommented.
    tables = text.split("#[[")[0]
    with_defaults = re.sub(
        r"(?m)^#(\w+ = .+)$", r"\1", re.sub(r"(?ms)^#\[.*?(?=^\[)", "", tables + "\n[page]\n")
    )
    read: StationSettings = parse_station(
        with_defaults.removesuffix("[page]\n"), name="defaults.toml", folder=Path("/f")
    )
    assert read.inspect == plain.inspect


def test_check_opens_everything_and_starts_nothing(tmp_path: Path) -> None:
    file = write_station(tmp_path)
    items = check(file)
    assert items["[inspect] bundle"][0] == "ok"
    assert "onnxruntime-cpu" in items["[inspect] bundle"][1]
    assert items["[source] photos"] == ("ok", "gives frames of 40x60")
    assert items["[[sinks]] jsonl"][0] == "ok"
    assert "verdict" in items["[area]"][1]
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "verdicts.jsonl").exists()


def test_check_tells_each_fault_and_goes_on(tmp_path: Path) -> None:
    file = write_station(
        tmp_path,
        engines=["openvino:NPU", "onnxruntime-cpu", "no-such-engine"],
        tables='[[sinks]]\nkind = "jsonl"\nname = "other"\npath = "missing/verdicts.jsonl"\n'
        '[[sinks]]\nkind = "webhook"\nurl = "https://localhost:1"\nsecret_env = "NO_SUCH_SECRET"\n',
    )
    file.write_text(file.read_text().replace('address = "photos"', 'address = "phots"'))
    items = check(file)
    assert items["[inspect] engine openvino:NPU"][0] == "wrong"
    assert items["[inspect] engine onnxruntime-cpu"][0] == "ok"
    assert "no-such-engine" in items["[inspect] engine no-such-engine"][1]
    assert items["[source] phots"][0] == "wrong"
    assert items["[[sinks]] other"][0] == "wrong"
    assert "NO_SUCH_SECRET" in items["[[sinks]] webhook"][1]


def test_check_tells_of_a_page_that_cannot_be_served_and_of_one_that_everybody_sees(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = write_station(tmp_path, tables=f"[page]\nport = {port}\n")
        state, text = check(file)["[page]"]
        assert (state, f"port {port}" in text) == ("wrong", True)
        file.write_text(file.read_text().replace(f"port = {port}", 'port = 0\ntoken_env = "NO_SUCH_TOKEN"'))
        assert "NO_SUCH_TOKEN" in check(file)["[page]"][1]
        file.write_text(file.read_text().replace('token_env = "NO_SUCH_TOKEN"', 'address = "0.0.0.0"'))
        state, text = check(file)["[page]"]
        assert (state, "Nobody can change anything" in text) == ("warning", True)


def test_check_tells_that_nothing_is_ever_ok_without_a_threshold(tmp_path: Path) -> None:
    from support.tiny_bundle import write_tiny_bundle

    file = write_station(tmp_path)
    write_tiny_bundle(tmp_path / "plain.flowedge")
    file.write_text(file.read_text().replace("tiny.flowedge", "plain.flowedge"))
    state, text = check(file)["[inspect] threshold"]
    assert state == "warning"
    assert "flowedge calibrate" in text


def test_the_page_about_stations_describes_every_key_in_a_table() -> None:
    page = (Path(__file__).parents[2] / "docs/station.md").read_text(encoding="utf-8")
    described = set(re.findall(r"(?m)^\| `([\w.]+)`(?=[ ,])", page)) | set(
        re.findall(r"`\[+([\w.]+)\]+`", page)
    )
    text = station_file(GIVEN, [])
    missing = {key for key in re.findall(r"(?m)^#?(\w+) =", text) if key not in described}
    assert not missing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[station]\nname = "line 1"', "[station] name: expected 1 to 64 letters, digits"),
        ('[[sinks]]\nkind = "webhook"\nurl = "htp://x"', "url: expected an address that begins with http"),
        ('[[sinks]]\nkind = "mqtt"\ntopic = "a/#"', "topic: expected a topic of 1 to 200 characters without"),
        ('[[sinks]]\nkind = "mqtt"\nname = "a b"', "name: expected 1 to 64 letters, digits"),
    ],
)
def test_a_text_that_is_not_allowed_is_explained_without_a_pattern(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings(text, StationSettings, name="station.toml", folder=tmp_path)
    assert words in str(error.value)


def test_every_pattern_of_the_settings_has_words() -> None:
    def patterns(info: msgspec.inspect.Type, *, has_words: bool = False) -> Iterator[tuple[str, bool]]:
        match info:
            case msgspec.inspect.Metadata(type=inner, extra=extra):
                yield from patterns(inner, has_words="allowed" in (extra or {}))
            case msgspec.inspect.StrType(pattern=str(pattern)):
                yield pattern, has_words
            case msgspec.inspect.UnionType(types=types):
                for one in types:
                    yield from patterns(one)
            case msgspec.inspect.StructType(fields=fields):
                for field in fields:
                    yield from patterns(field.type)
            case msgspec.inspect.VarTupleType(item_type=inner) | msgspec.inspect.DictType(value_type=inner):
                yield from patterns(inner)

    found = dict(patterns(msgspec.inspect.type_info(StationSettings)))
    assert len(found) >= 4
    assert [pattern for pattern, has_words in found.items() if not has_words] == []
