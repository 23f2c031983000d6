"""The manners of the command line: options that every command has, names that are mistyped, and what is imported."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer.main

from flowedge.cli.app import app
from flowedge.cli.group import COMMANDS
from support.command_line import flowedge
from support.small_dataset import write_dataset
from support.tiny_bundle import write_tiny_bundle

ROOT: Any = typer.main.get_command(app)


def all_commands() -> Iterator[tuple[str, ...]]:
    """Give the words of every command and every group, such as ``("cache", "list")``."""
    for name in COMMANDS:
        yield (name,)
        for inner in getattr(ROOT.commands[name], "commands", {}):
            yield (name, inner)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.flowedge").path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with one good picture."""
    assert cv2.imwrite(str(tmp_path / "good.png"), np.full((16, 24, 3), 60, np.uint8))
    return tmp_path


@pytest.mark.parametrize("words", [(), *all_commands()], ids=" ".join)
def test_every_command_has_the_options_of_all(words: tuple[str, ...]) -> None:
    short, long = flowedge(*words, "-h"), flowedge(*words, "--help")
    assert short.status == long.status == 0
    assert short.stdout == long.stdout
    for option in ("-h, --help", "-q, --quiet", "-v, --verbose"):
        assert option in short.stdout
    assert all(ord(one) < 128 for one in short.stdout)


@pytest.mark.parametrize("name", ["info", "station"])
def test_a_command_knows_its_short_help_also_outside_of_the_program(name: str) -> None:
    assert "-h" in ROOT.commands[name].make_context(name, [], resilient_parsing=True).help_option_names


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_has_the_first_line_of_each_command(name: str) -> None:
    command = ROOT.commands[name]
    text = inspect.cleandoc(command.help).split("\n\n")[0]
    assert " ".join(text.split()) == COMMANDS[name].summary


@pytest.mark.parametrize("arguments", [("-q", "run"), ("run", "-q"), ("run", "--quiet")])
def test_quiet_leaves_out_notes_and_keeps_errors_and_results(
    bundle: Path, images: Path, arguments: tuple[str, ...]
) -> None:
    (images / "bad.png").write_bytes(b"no picture")
    (images / "notes.txt").write_text("no image")
    spoken = flowedge("run", bundle, images)
    quiet = flowedge(*arguments, bundle, images)
    assert "notes.txt" in spoken.stderr
    assert "calibrate" in spoken.stderr
    assert "notes.txt" not in quiet.stderr
    assert "calibrate" not in quiet.stderr
    assert "bad.png" in quiet.stderr
    assert "good.png" in quiet.stdout
    assert quiet.status == spoken.status == 1


def test_quiet_of_one_command_does_not_last(bundle: Path, images: Path) -> None:
    flowedge("-q", "run", bundle, images)
    assert "calibrate" in flowedge("run", bundle, images).stderr


def test_quiet_keeps_an_error() -> None:
    done = flowedge("-q", "info", "/missing")
    assert done.status == 2
    assert "/missing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("rnu",), "Did you mean 'run'?"),
        (("cache", "lst"), "Did you mean 'list'?"),
        (("run", "b", "i", "--jsno"), "Did you mean --json?"),
        (("--versoin",), "Did you mean --version or --verbose?"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_right_one(arguments: tuple[str, ...], meant: str) -> None:
    done = flowedge(*arguments)
    assert done.status == 2
    assert meant in " ".join(done.stderr.split())


def test_arguments_at_each_others_place_are_recognised(bundle: Path, images: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(b"weights")
    made = tmp_path / "made.flowedge"
    for wrong, right in (
        (("run", images, bundle, "--json"), ("run", bundle, images, "--json")),
        (("eval", images, bundle), ("eval", bundle, images)),
        (("calibrate", images, "--data", bundle), ("calibrate", bundle, "--data", images)),
        (("verify", checkpoint, "--against", bundle), ("verify", bundle, "--against", checkpoint)),
        (("export", made, "-o", checkpoint), ("export", checkpoint, "-o", made)),
        (("export", made, checkpoint), ("export", checkpoint, "-o", made)),
        (("export", checkpoint, made), ("export", checkpoint, "-o", made)),
        (("calibrate", bundle, images), ("calibrate", bundle, "--data", images)),
        (("calibrate", images, bundle), ("calibrate", bundle, "--data", images)),
        (("verify", bundle, checkpoint), ("verify", bundle, "--against", checkpoint)),
        (("verify", images, bundle), ("verify", bundle, "--data", images)),
    ):
        done = flowedge(*wrong)
        assert done.status == 2
        assert f"flowedge {' '.join(map(str, right))}" in " ".join(done.stderr.split()), done.stderr


BLOCKING = """
import sys
BLOCKED = ("torch", "onnx", "onnxruntime", "cv2", "numpy", *sys.argv.pop(1).split())
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Blocker())
from flowedge.cli import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "export missing",
        "export {file} --backbone-weights missing",
        "export {file} --transform-from missing",
        "export {file} --fp16 --calib-data missing",
        "export {file} --fp16 --calib-data {folder} --labelled missing",
        "export {file} -o missing/made.flowedge",
        "export {file} -o {bundle}",
        "info missing",
        "info {file} --transform-from missing",
        "verify missing",
        "verify {bundle} --against missing",
        "verify {bundle} --against {file} --data missing",
        "verify {bundle} --against {file} --backbone-weights missing",
        "calibrate missing --data {folder}",
        "calibrate {bundle} --data missing",
        "calibrate {bundle} --data {folder} --labelled missing",
        "eval missing {folder}",
        "eval {bundle} missing",
        "eval {bundle} {folder} --html missing/page.html",
        "run missing {folder}",
        "run {bundle} missing",
        "build missing --engine tensorrt",
        "pack {bundle} missing -o made.flowedgepack",
        "pack {bundle} -o missing/made.flowedgepack",
        "threshold show missing",
        "threshold set missing --image 1 --reason test",
        "threshold fit missing --data {folder}",
        "threshold fit {bundle} --data missing",
        "bench missing",
        "bench {bundle} --peer missing",
        "bench {bundle} --against missing",
        "bench {bundle} --against {file} --backbone-weights missing",
        "bench {bundle} --html missing/page.html",
        "bench {bundle} --markdown missing/page.md",
        "demo --out {folder}",
    ],
)
def test_a_wrong_path_is_refused_before_a_large_library_is_imported(
    bundle: Path, images: Path, tmp_path: Path, arguments: str
) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"weights")
    words = arguments.format(bundle=bundle, folder=images, file=file).split()
    done = subprocess.run(
        [sys.executable, "-c", BLOCKING, "", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("flowedge: ")
    assert ("missing" in done.stderr) == ("missing" in arguments)


@pytest.mark.parametrize("words", [("--version",), (), *all_commands()], ids=" ".join)
def test_help_and_version_import_no_large_library(words: tuple[str, ...]) -> None:
    arguments = words if words == ("--version",) else (*words, "--help")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKING, "pydantic PIL importlib.metadata", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [("-v", "run"), ("run", "-v")])
def test_verbose_logs_files_engines_and_times_to_standard_error(
    bundle: Path, images: Path, arguments: tuple[str, ...]
) -> None:
    done = flowedge(*arguments, bundle, images, "--json")
    assert done.status == 0
    assert re.search(
        r"INFO flowedge\.bundle: read and verified .*tiny\.flowedge: .* \d\.\d\d s\n", done.stderr
    )
    assert re.search(r"INFO flowedge\.runtime\.opening\.unproven: passed over tensorrt: ", done.stderr)
    assert re.search(r"unproven: opened fp32 on \S+ \(.*\), \d", done.stderr)
    assert "DEBUG" not in done.stderr
    assert json.loads(done.stdout)["image"].endswith("good.png")
    quiet = flowedge("run", bundle, images)
    assert "INFO" not in quiet.stderr


def test_twice_verbose_logs_each_file_and_escapes_its_name(bundle: Path, images: Path) -> None:
    (images / "good.png").rename(images / "a\x1b[31m.png")
    done = flowedge("run", bundle, images, "-vv")
    assert "DEBUG flowedge.runtime.frames.images: read" in done.stderr
    assert "a\\x1b[31m.png" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_program_sees_the_log_where_it_configures_logging_and_nothing_else(bundle: Path) -> None:
    code = (
        "import logging, sys, flowedge.bundle\n"
        "flowedge.bundle.open_bundle(sys.argv[1])\n"
        "print('silent', flush=True)\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(name)s %(levelname)s')\n"
        "flowedge.bundle.open_bundle(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["silent", "flowedge.bundle INFO"]
    assert done.stderr == ""


def test_an_error_is_json_where_the_result_would_be(bundle: Path, images: Path) -> None:
    for arguments, kind in (
        (("info", "/missing", "--json"), "CheckpointError"),
        (("verify", images, "--json"), "BundleError"),
        (("run", bundle, "/missing", "--json"), "DataError"),
        (("run", "--json"), "UsageError"),
        (("bench", "--json"), "FlowEdgeError"),
    ):
        done = flowedge(*arguments)
        error = json.loads(done.stdout)["error"]
        assert (error["kind"], error["status"]) == (kind, done.status)
        assert error["message"].split("\n")[0] in " ".join(done.stderr.split())
    assert flowedge("info", "/missing", "--", "--json").stdout == ""


@pytest.mark.parametrize(
    ("option", "value"), [("--jpeg-decoder", "gpus"), ("--style", "boxy"), ("--threads", "many")]
)
def test_a_wrong_value_of_an_option_is_told_without_the_classes_of_a_library(option: str, value: str) -> None:
    done = flowedge("run", "bottle.flowedge", "photos", option, value, "--json")
    message = json.loads(done.stdout)["error"]["message"]
    assert message.startswith(f"Invalid value for '{option}': ")
    for text in (message, done.stderr):
        assert "error," not in text


JSON_OF = {
    "export": "export {checkpoint} -o made.flowedge",
    "info": "info {bundle}",
    "verify": "verify {bundle}",
    "calibrate": "calibrate {copy} --data {data}",
    "eval": "eval {copy} {data}",
    "run": "run {bundle} {photo}",
    "bench": "bench {bundle} --engines onnxruntime-cpu --batch 1 --seconds 0",
    "build": "build {bundle} --engine tensorrt",
    "doctor": "doctor",
    "demo": "demo --out {data}",
    "threshold show": "threshold show {bundle}",
    "threshold set": "threshold set {copy} --image 1 --reason test",
    "threshold fit": "threshold fit {copy} --data {data}",
    "batch": "batch {photos} -o out.parquet --bundle {bundle} --workers 1",
    "compare": "compare missing.parquet other.parquet",
    "pack": "pack {bundle} -o line.flowedgepack",
    "sign": "sign {copy} --key {key}",
    "push": "push {copy} pushed",
    "pull": "pull {copy} -o pulled.flowedge",
    "rollout set": "rollout set rollout.toml {copy} --key {key} --why test",
    "rollout renew": "rollout renew rollout.toml --key {key}",
    "rollout show": "rollout show rollout.toml",
    "rollout check": "rollout check rollout.toml --keys {key}",
    "keys new": "keys new release -o {data}",
    "keys show": "keys show {key}",
    "serve": "serve {bundle} --host 0.0.0.0",
    "triton": "triton {bundle} -o {data}/models",
    "station init": "station init {bundle} -o other.toml --source {photos}",
    "station check": "station check {station}",
    "station run": "station run {station} --until-end",
    "station status": "station status {station}",
    "station records": "station records {station} --last 1",
    "station export": "station export {station} -o records.parquet",
    "station drift": "station drift {station}",
    "station shadow": "station shadow {station} --bundle {copy} --data {photos}",
    "cache list": "cache list",
    "cache clear": "cache clear",
}
"""A call of every command. Those that cannot work here show that an error is JSON as well."""


def test_every_command_has_a_call_for_json() -> None:
    single = {" ".join(words) for words in all_commands() if not hasattr(command_of(words), "commands")}
    assert set(JSON_OF) == single


@pytest.mark.parametrize("name", JSON_OF)
def test_json_means_one_object_on_stdout_and_nothing_else(
    name: str, small_checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path / "cache"))
    write_dataset(tmp_path / "data")
    photos, station = tmp_path / "data" / "test" / "good", tmp_path / "station.toml"
    if name.startswith("station"):
        flowedge("station", "init", bundle, "-o", station, "--source", photos)
        station.write_text(station.read_text().replace("#port = 8080", "port = 0"))
    if name in ("station records", "station export"):
        assert flowedge("station", "run", station, "--until-end").status == 0
    shutil.copytree(bundle, tmp_path / "copy.flowedge")
    words = JSON_OF[name].format(
        checkpoint=small_checkpoint,
        bundle=bundle,
        copy=tmp_path / "copy.flowedge",
        data=tmp_path / "data",
        photos=photos,
        photo=next(photos.iterdir()),
        station=station,
        key=tmp_path / "none.key",
    )
    done = flowedge(*words.split(), "--json", "-q", cwd=tmp_path)
    assert done.stdout.count("\n") == 1
    assert isinstance(json.loads(done.stdout), dict)
    if done.status == 0:
        assert done.stderr == ""


def command_of(words: tuple[str, ...]) -> Any:
    command = ROOT
    for word in words:
        command = command.commands[word]
    return command
