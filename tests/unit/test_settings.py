"""Settings files are checked whole, and an error tells what to type instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from flowedge.errors import SettingsError
from flowedge.runtime.settings import Settings, read_settings, secret_of


class _Lamp(Settings, frozen=True, kw_only=True, tag_field="kind", tag="lamp"):
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 502
    colour: Literal["red", "green"] = "red"


class _Horn(Settings, frozen=True, kw_only=True, tag_field="kind", tag="horn"):
    loudness: float = 1.0


class _Inspect(Settings, frozen=True, kw_only=True):
    bundle: Path
    engines: tuple[str, ...] = ()


class _File(Settings, frozen=True, kw_only=True):
    inspect: _Inspect
    sinks: tuple[_Lamp | _Horn, ...] = ()
    limits: dict[str, float] = msgspec.field(default_factory=dict)


def _read(tmp_path: Path, text: str) -> _File:
    file = tmp_path / "station.toml"
    file.write_text(text, encoding="utf-8")
    return read_settings(file, _File)


def test_a_path_is_relative_to_the_folder_of_the_file(tmp_path: Path) -> None:
    assert _read(tmp_path, "inspect = {bundle = 'b.flowedge'}").inspect.bundle == tmp_path / "b.flowedge"
    assert _read(tmp_path, "inspect = {bundle = '/b.flowedge'}").inspect.bundle == Path("/b.flowedge")


def test_tables_of_several_kinds_are_told_apart(tmp_path: Path) -> None:
    read = _read(
        tmp_path, "inspect = {bundle = 'b'}\n[[sinks]]\nkind = 'horn'\nloudness = 2\n[[sinks]]\nkind = 'lamp'"
    )
    assert read.sinks == (_Horn(loudness=2.0), _Lamp())


BASE = "inspect = {bundle = 'b'}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inspekt = 1", "unknown key inspekt. Did you mean inspect?"),
        ("inspect = {bundel = 'b'}", "[inspect]: unknown key bundel. Did you mean bundle?"),
        ("inspect = {}", "[inspect]: the key bundle is missing."),
        ("inspect = {bundle = 3}", "[inspect] bundle: expected the path of a file or folder, got 3."),
        ("inspect = {bundle = ''}", "[inspect] bundle: expected the path of a file or folder, got ''."),
        (BASE + "sinks = 3", "[sinks]: expected array, got 3."),
        (BASE + "[[sinks]]\nkind = 'lamb'", "got 'lamb'. Did you mean lamp?"),
        (BASE + "[[sinks]]", "[sinks] number 1: the key kind is missing."),
        (
            BASE + "[[sinks]]\nkind = 'horn'\nport = 3",
            "[sinks] number 1: unknown key port. Known are: kind, loudness.",
        ),
        (
            BASE + "[[sinks]]\nkind='horn'\n[[sinks]]\nkind = 'lamp'\nport = 70000",
            "[sinks] number 2, port: expected int <= 65535, got 70000.",
        ),
        (
            BASE + "[[sinks]]\nkind = 'lamp'\ncolour = 'gren'",
            "colour: invalid enum value, got 'gren'. Did you mean green?",
        ),
        (BASE + "limits = {a = 'x'}", "[limits]"),
        ("a = [" + "[" * 5000 + "]" * 5001, "too many tables or lists"),
        ("a = ", "is no TOML: "),
        ("# " + "x" * 2_000_000, "more than 1048576 bytes"),
        (BASE + '"x\\u001b[31m" = 1', r"unknown key x\x1b[31m"),
    ],
)
def test_what_is_not_allowed_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _read(tmp_path, text)
    assert str(tmp_path / "station.toml") in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read: No such file"):
        read_settings(tmp_path / "missing.toml", _File)
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    with pytest.raises(SettingsError, match="not UTF-8 at byte 5"):
        read_settings(tmp_path / "latin.toml", _File)


def test_a_secret_comes_from_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATION_PASSWORD", "apple")
    (tmp_path / "password").write_text("pear\nnote\n", encoding="utf-8")
    assert secret_of("STATION_PASSWORD", None) == "apple"
    assert secret_of(None, tmp_path / "password") == "pear"
    assert secret_of(None, None) is None


def test_a_secret_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATION_PASSWORD", raising=False)
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    (tmp_path / "large").write_text("a-long-enough-key\n" * 5000, encoding="utf-8")
    for env, file, said in (
        ("STATION_PASSWORD", None, "STATION_PASSWORD is not set"),
        (None, tmp_path / "missing", "missing cannot be read"),
        (None, tmp_path / "empty", "the first line of"),
        (None, tmp_path / "large", "more than 65536 bytes"),
        ("STATION_PASSWORD", tmp_path / "empty", "named twice"),
    ):
        with pytest.raises(SettingsError, match=said):
            secret_of(env, file)
