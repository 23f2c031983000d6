"""A bundle records what the passes did, and a damaged record is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowedge.bundle import Bundle, write_bundle
from flowedge.errors import BundleError
from flowedge.lowering import (
    LOWERING,
    SCHEMA,
    Lowering,
    PassEffect,
    Totals,
    json_from_lowering,
    read_lowering,
)
from support.command_line import flowedge
from support.tiny_bundle import tiny_manifest

FULL = Lowering(
    schema=SCHEMA,
    passes=(
        PassEffect(
            name="fold_gain",
            exactness="re-association",
            summary="A factor goes into the weights.",
            before=Totals(steps=3, parameters=70, macs=900),
            after=Totals(steps=2, parameters=60, macs=800),
        ),
    ),
)


def bundle_with(folder: Path, content: bytes | None) -> Bundle:
    files: dict[str, Path | bytes] = {"model.onnx": b"a graph"}
    return write_bundle(
        folder / "a.flowedge", tiny_manifest(), files if content is None else files | {LOWERING: content}
    )


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    assert read_lowering(bundle_with(tmp_path, json_from_lowering(FULL))) == FULL


def test_a_bundle_that_says_nothing_is_an_older_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no lowering\.json\. Export the checkpoint again"):
        read_lowering(bundle_with(tmp_path, None))


def edited(**changes: Any) -> bytes:
    content = json.loads(json_from_lowering(FULL))
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = content
        for key in parents:
            target = target[int(key)] if key.isdigit() else target[key]
        target[last] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (edited(schema=3), r"schema 3, and this version reads \(1, 2\)"),
        (edited(passes__0__name="[red]fold[/red]"), "regex"),
        (edited(passes__0__name="\x1b[2Jfold"), "regex"),
        (edited(passes__0__name="fold\n"), "regex"),
        (edited(passes__0__before__macs=-1), "cannot be read"),
        (edited(passes__0__after__macs=1e300), "cannot be read"),
        (edited(passes__0__exactness="perfect"), "Invalid enum value"),
        (
            edited(passes=[json.loads(json_from_lowering(FULL))["passes"][0]] * 10_001),
            "cannot be read|bytes",
        ),
        (b" " * (1 << 20) + b"{}", "at most 1048576 are read"),
    ],
)
def test_a_file_that_is_not_what_the_exporter_writes_is_refused(
    content: bytes, what: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=what) as refused:
        read_lowering(bundle_with(tmp_path, content))
    assert LOWERING in str(refused.value)


def test_a_file_of_schema_1_is_read_without_its_list_of_steps(tmp_path: Path) -> None:
    step = {"level": 0, "step": 0, "kind": "coupling", "shape": [4, 8, 8], "parameters": 60, "macs": 800}
    lowering = read_lowering(bundle_with(tmp_path, edited(schema=1, program=[step])))
    assert lowering.passes == FULL.passes


def test_info_shows_the_passes(small_bundle: Path) -> None:
    done = flowedge("info", small_bundle, "--graph")
    assert done.status == 0, done.stderr
    assert "fold gain" in done.stdout
    assert "→" in done.stdout


def test_info_gives_the_same_as_json(small_bundle: Path) -> None:
    done = flowedge("info", small_bundle, "--graph", "--json")
    assert json.loads(done.stdout) == json.loads((small_bundle / LOWERING).read_bytes())


def test_the_graph_of_a_checkpoint_needs_an_export_first(small_checkpoint: Path) -> None:
    done = flowedge("info", small_checkpoint, "--graph")
    assert done.status == 2
    assert "flowedge export" in done.stderr
