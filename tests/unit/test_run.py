"""``flowedge run`` for a person and for a script: sources, rows, files, exit statuses, and ends before the end."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyte
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowedge.bundle import Bundle
from flowedge.cli.failing import FOUND_ANOMALOUS
from flowedge.cli.output import EscapingConsole
from flowedge.cli.rows import shortened
from flowedge.cli.streams import READER_GONE
from flowedge.errors import DataError, FlowEdgeError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.csv_file import COLUMNS, CsvFile, csv_line
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.frames.finding import find_all_images, find_images, listed_images
from flowedge.runtime.inspection import inspect_images
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.record import Inspection
from support.command_line import Finished, flowedge
from support.opened_engine import opened
from support.pages import REPOSITORY, blocks_of
from support.tiny_bundle import tiny_manifest, write_tiny_bundle
from support.waiting import rest_of

pytestmark = pytest.mark.usefixtures("without_proof")

COMMAND = [sys.executable, "-c", "from flowedge.cli import main; main()"]
LIMIT = -0.3
"""The threshold between the scores of a grey picture and of a noisy one."""


def limited(folder: Path, **options: Any) -> Bundle:
    threshold = Threshold(value=LIMIT, method="manual")
    return write_tiny_bundle(folder, thresholds=Thresholds(image=threshold, pixel=threshold), **options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return limited(tmp_path_factory.mktemp("tiny") / "tiny.flowedge").path


def write_picture(path: Path, *, noisy: bool = False, size: tuple[int, int] = (32, 48)) -> Path:
    """Write a grey picture with a score below ``LIMIT``, or a noisy one with a score above."""
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise if noisy else np.full_like(noise, 110)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two good pictures, a bad one, and another good one in a subfolder. The current folder is above."""
    for name in ("p2.png", "p10.png", "sub/p3.png"):
        write_picture(tmp_path / "photos" / name)
    write_picture(tmp_path / "photos" / "bad.png", noisy=True)
    monkeypatch.chdir(tmp_path)
    return Path("photos")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of so many pictures that their rows do not fit a pipe: a command waits until they are read."""
    folder = tmp_path_factory.mktemp("many")
    first = write_picture(folder / "0.png")
    for number in range(1, 3000):
        os.link(first, folder / f"{number}.png")
    return folder


def images_of(done: Finished) -> list[str]:
    return [json.loads(line)["image"] for line in done.stdout.splitlines()]


def test_several_sources_are_inspected_in_the_order_of_their_names_and_each_image_once(
    bundle: Path, photos: Path
) -> None:
    done = flowedge("run", bundle, "photos/p10.png", "photos/sub", "./photos", "photos/p*.png", "--json")
    assert images_of(done) == [f"photos/{name}" for name in ("p10.png", "sub/p3.png", "bad.png", "p2.png")]
    assert "an image was found again 4 times. Each image is inspected once." in done.stderr


def test_a_way_through_a_link_finds_no_image_again_but_two_links_are_two_images(photos: Path) -> None:
    Path("way").symlink_to(photos)
    (photos / "link.png").symlink_to("p2.png")
    found = find_all_images(["photos", "way", "way/../photos/p2.png"])
    assert [path.name for path in found.images] == ["bad.png", "link.png", "p2.png", "p10.png", "p3.png"]
    assert found.repeated == 6


def test_an_unquoted_pattern_takes_what_a_shell_puts_in_its_place(bundle: Path, photos: Path) -> None:
    (photos / "notes.txt").write_text("a note")
    (photos / "p2.png.overlay.png").write_bytes((photos / "p2.png").read_bytes())
    (photos / "texts").mkdir()
    line = f"{shlex.join(COMMAND)} run {bundle} photos/* --json"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert "no images: notes.txt, p2.png.overlay.png" in done.stderr
    assert "no image is there: texts" in done.stderr


def test_without_recursion_the_folder_alone_is_inspected_and_its_subfolders_are_named(
    bundle: Path, photos: Path
) -> None:
    deep = flowedge("run", bundle, photos, "--json", "--recursive")
    assert images_of(deep) == images_of(flowedge("run", bundle, photos, "--json"))
    flat = flowedge("run", bundle, photos, "--json", "--no-recursive")
    assert set(images_of(deep)) - set(images_of(flat)) == {"photos/sub/p3.png"}
    assert (flat.status, flat.stderr) == (0, "left out, since --no-recursive was given: sub\n")
    (photos / "only").mkdir()
    write_picture(photos / "only" / "deep" / "x.png")
    with pytest.raises(DataError, match="folder itself holds 0 files"):
        find_images(photos / "only", recursive=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "fotos"), "fotos does not exist"),
        ((), "name images, folders or patterns"),
        (("-",), "--list -"),
        (("photos", "--list", "names"), "--list names all images"),
        (("--list", "nowhere"), "nowhere cannot be read: No such file"),
        (("photos/none*", "photos/no*.png"), "2 names stand for no image"),
        (("photos", "--json", "--csv", "-"), "both fill standard output"),
        (("photos", "--csv", "no/folder.csv"), "no is not a folder"),
        (("photos", "--csv", "photos"), "is a folder"),
        (("photos", "--fail-on", "bad"), "--fail-on takes anomalous, not_inspected or none, got 'bad'"),
        (("photos", "--fail-on", "none,anomalous"), "excludes"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_before_the_bundle_is_loaded(
    arguments: Sequence[str], message: str, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowedge.load", None)
    done = flowedge("run", bundle, *arguments)
    assert done.status == 2
    assert done.stdout == "" or json.loads(done.stdout)["error"]["status"] == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "names", [b"photos/p2.png\nphotos/gone.png\n\n./photos/p2.png\n", b"photos/p2.png\0photos/gone.png"]
)
def test_a_list_names_images_on_lines_or_with_zero_bytes_between(
    names: bytes, bundle: Path, photos: Path
) -> None:
    Path("names").write_bytes(names)
    done = flowedge("run", bundle, "--list", "names", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["image"], line["verdict"]) for line in lines] == [
        ("photos/p2.png", "ok"),
        ("photos/gone.png", "not_inspected"),
    ]
    assert done.status == 1
    piped = subprocess.run(
        [*COMMAND, "run", bundle, "--list", "-", "--json"], input=names, capture_output=True, check=False
    )
    assert [json.loads(line)["image"] for line in piped.stdout.splitlines()] == [
        line["image"] for line in lines
    ]


def test_a_name_of_a_list_is_no_pattern_and_an_empty_list_is_refused() -> None:
    assert listed_images(b"a*.png\r\n\xff.png\n") == [Path("a*.png"), Path(os.fsdecode(b"\xff.png"))]
    with pytest.raises(DataError, match="names no image"):
        listed_images(b"\n\n")


# --- Batches ---------------------------------------------------------------------------------------------------------


class Counting(NullEngine):
    """An engine that takes certain numbers of images alone, and notes the number of each run."""

    def __init__(self, smallest: int, largest: int) -> None:
        super().__init__(tiny_manifest(), {"score": 0.5})
        self.batches = (smallest, largest)
        self.runs: list[int] = []

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        assert self.batches is not None
        assert self.batches[0] <= len(inputs[0]) <= self.batches[1]
        self.runs.append(len(inputs[0]))
        return super().infer(*inputs)


def verdicts(records: Iterator[Inspection]) -> list[tuple[str, str, bool]]:
    return [(Path(one.image).name, one.verdict, bool(one.problem)) for one in records]


def mixed(folder: Path) -> list[Path]:
    """Pictures of several sizes, one that is damaged and one that is missing."""
    for number in range(7):
        write_picture(
            folder / f"{number}.png", noisy=number % 3 == 1, size=(20 + 7 * number, 64 - 5 * number)
        )
    (folder / "3.png").write_bytes(b"\x89PNG")
    return [folder / f"{number}.png" for number in range(8)]


@pytest.mark.parametrize("batch", [2, 3, 100])
def test_a_batch_gives_the_records_of_one_by_one(batch: int, tmp_path: Path) -> None:
    images = mixed(tmp_path)
    made = limited(tmp_path / "b")
    with Detector(made, open_unproven("onnxruntime-cpu", made, "fp32")) as detector:
        alone = list(inspect_images(detector, images))
        together = list(inspect_images(detector, images, batch=batch))
    assert verdicts(iter(together)) == verdicts(iter(alone))
    assert [one.verdict for one in alone].count("not_inspected") == 2
    assert {"ok", "anomalous"} < {one.verdict for one in alone}
    scores = [[one.score or 0 for one in records] for records in (alone, together)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)
    assert [one.regions for one in together] == [one.regions for one in alone]


def test_a_frame_that_the_detector_refuses_takes_no_other_frame_of_its_batch_with_it(tmp_path: Path) -> None:
    made = limited(tmp_path / "b", takes_frames=True)
    images = [write_picture(tmp_path / f"{n}.png", size=(16, 24) if n != 1 else (17, 24)) for n in range(4)]
    with Detector(made, open_unproven("onnxruntime-cpu", made, "fp32")) as detector:
        records = list(inspect_images(detector, images, batch=4))
    assert [one.verdict == "not_inspected" for one in records] == [False, True, False, False]
    assert "17x24" in records[1].problem


@pytest.mark.parametrize(
    ("batches", "wanted", "runs"),
    [((1, 8), 1, [1] * 6), ((1, 4), 100, [3, 3]), ((4, 4), 1, [4, 4]), ((2, 8), 3, [3, 2, 2])],
)
def test_a_batch_keeps_to_the_numbers_that_the_engine_was_built_for(
    batches: tuple[int, int], wanted: int, runs: list[int], tmp_path: Path
) -> None:
    # Two of the eight files cannot be read, so a batch has fewer images than files.
    engine = Counting(*batches)
    detector = Detector(limited(tmp_path / "b"), opened(engine))
    assert len(list(inspect_images(detector, mixed(tmp_path), batch=wanted))) == 8
    assert engine.runs == runs


def test_the_command_takes_a_batch(bundle: Path, photos: Path) -> None:
    done = flowedge("run", bundle, photos, "--json", "--batch", "3")
    assert images_of(done) == images_of(flowedge("run", bundle, photos, "--json"))
    assert flowedge("run", bundle, photos, "--batch", "0").status == 2


# --- Rows and totals -------------------------------------------------------------------------------------------------


def test_a_record_comes_before_the_next_image_is_read(tmp_path: Path) -> None:
    images = [write_picture(tmp_path / f"{number}.png") for number in range(3)]
    detector = Detector(limited(tmp_path / "b"), opened(NullEngine(tiny_manifest(), {"score": 0.5})))
    records = inspect_images(detector, images)
    assert next(records).verdict == "anomalous"
    images[1].unlink()
    assert [one.verdict for one in records] == ["not_inspected", "anomalous"]


def test_the_first_row_comes_while_images_wait_and_one_that_is_deleted_then_is_not_inspected(
    bundle: Path, many: Path
) -> None:
    last = many / "3000.png"
    os.link(many / "0.png", last)
    with subprocess.Popen(
        [*COMMAND, "run", bundle, many], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        head, first = process.stdout.readline(), process.stdout.readline()
        last.unlink()  # the other rows do not fit the pipe, so the command has not come this far
        shown, said = rest_of(process)
    assert (head.split(), first.split()[0]) == (["verdict", "score", "ms", "image"], "ok")
    assert process.returncode == 1
    assert f"not inspected: {last} does not exist" in said
    assert "\n3001 images: 1 not_inspected, 3000 ok, " in shown


def test_rows_are_aligned_and_whole_in_a_pipe_and_totals_come_last(bundle: Path, photos: Path) -> None:
    name = "p" * 200 + ".png"
    write_picture(photos / name)
    (photos / "cut.png").write_bytes(b"\x89PNG")
    done = flowedge("run", bundle, photos)
    rows, _, totals = done.stdout.partition("\n\n")
    lines = rows.splitlines()
    column = lines[0].index("image")
    assert [line[column:] for line in lines[1:]] == [
        f"photos/{one}" for one in ("bad.png", "cut.png", "p2.png", "p10.png", name, "sub/p3.png")
    ]
    assert {line.split()[0] for line in lines[1:]} == {"ok", "anomalous", "not_inspected"}
    assert all(line[: column - 2].endswith(tuple("0123456789-s")) for line in lines)
    first, *facts = totals.splitlines()
    assert first.startswith("6 images: 1 anomalous, 1 not_inspected, 4 ok, ")
    assert first.endswith(" images/s")
    assert facts[0] == "threshold score above -0.3000 (set by hand)"
    assert facts[1] == "precision fp32"
    assert facts[2].startswith("engine onnxruntime-cpu: ")


@pytest.mark.parametrize(
    ("name", "room", "shown"),
    [
        ("photos/p1.png", 20, "photos/p1.png"),
        ("photos/line 3/p1.png", 14, "…line 3/p1.png"),
        ("ビジョン/検査/写真.png", 11, "…/写真.png"),
    ],
)
def test_a_long_name_keeps_its_end(name: str, room: int, shown: str) -> None:
    assert shortened(name, room) == shown


def on_terminal(*arguments: str | Path, columns: int = 100) -> tuple[int, list[str]]:
    """Run a command on a terminal, and return its exit status and what stands there in the end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    screen = pyte.Screen(columns, 60)
    stream = pyte.ByteStream(screen)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:
        pass  # the end of a terminal
    os.close(ours)
    stream.feed(seen)
    assert b"inspecting" in seen, "a bar was there"
    return process.wait(timeout=60), [line.rstrip() for line in screen.display if line.strip()]


def test_rows_and_bar_do_not_disturb_each_other_on_a_terminal(bundle: Path, photos: Path) -> None:
    write_picture(photos / ("p" * 100 + "end.png"))
    (photos / "cut.png").write_bytes(b"\x89PNG")
    status, lines = on_terminal("run", bundle, photos)
    assert status == 1
    words = [line.split() for line in lines]
    assert words[0] == ["verdict", "score", "ms", "image"]
    assert [(row[0], row[-1]) for row in words[1:3]] == [
        ("anomalous", "photos/bad.png"),
        ("not_inspected", "photos/cut.png"),
    ]
    assert lines[3].startswith("not inspected: photos/cut.png is not a JPEG")
    rest = [row for row in words[4:] if row[0] == "ok"]
    assert [row[-1] for row in rest[:2]] == ["photos/p2.png", "photos/p10.png"]
    assert rest[2][-1].startswith("…pp")
    assert rest[2][-1].endswith("end.png")
    assert not any("inspecting" in line for line in lines), "the bar is gone"
    assert sum(line.startswith("6 images: ") for line in lines) == 1


# --- CSV -------------------------------------------------------------------------------------------------------------


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_csv_has_a_line_of_each_image_with_the_values_of_json(bundle: Path, photos: Path) -> None:
    (photos / 'cut, "here".png').write_bytes(b"\x89PNG")
    done = flowedge("run", bundle, photos, "--csv", "run.csv", "--json", "--out", "out")
    content = Path("run.csv").read_bytes().decode()
    assert content.count("\r\n") == content.count("\n") == 6
    rows = read_csv(content)
    assert tuple(rows[0]) == COLUMNS
    for row, line in zip(rows, map(json.loads, done.stdout.splitlines()), strict=True):
        for name in ("image", "verdict", "precision", "engine", "engine_reason", "problem"):
            assert row[name] == line[name]
        for name in ("overlay", "mask", "log_nfa"):
            assert row[name] == (line[name] or "")
        for name in ("score", "threshold", "anomalous_share", "latency_ms"):
            assert (float(row[name]) if row[name] else None) == line[name]
        assert row["regions"] == ("" if line["score"] is None else str(len(line["regions"])))
    assert [row["verdict"] for row in rows].count("not_inspected") == 1


def test_a_file_that_is_there_is_replaced_on_demand_and_only_where_flowedge_wrote_it(
    bundle: Path, photos: Path
) -> None:
    files = ("--csv", "run.csv", "--html", "run.html")
    assert flowedge("run", bundle, photos, *files).status == 0
    before = Path("run.csv").read_bytes()
    refused = flowedge("run", bundle, photos / "p2.png", *files)
    assert (refused.status, refused.stdout, Path("run.csv").read_bytes()) == (2, "", before)
    assert "run.csv exists already. Replace it with --force" in refused.stderr
    assert flowedge("run", bundle, photos / "p2.png", *files, "--force").status == 0
    assert len(read_csv(Path("run.csv").read_bytes().decode())) == 1
    picture = (photos / "p2.png").read_bytes()
    assert flowedge("run", bundle, photos, "--csv", photos / "p2.png", "--force").status == 2
    assert (photos / "p2.png").read_bytes() == picture


def test_csv_on_standard_output_is_that_of_a_file(bundle: Path, photos: Path) -> None:
    flowedge("run", bundle, photos, "--csv", "run.csv")
    done = flowedge("run", bundle, photos, "--csv", "-")
    rows = [read_csv(Path("run.csv").read_bytes().decode()), read_csv(done.stdout)]
    assert [[row["image"], row["score"]] for row in rows[0]] == [
        [row["image"], row["score"]] for row in rows[1]
    ]
    assert done.stderr == ""


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "＝"])  # noqa: RUF001, wide forms count too
def test_no_name_of_a_file_is_a_formula_for_a_spreadsheet(sign: str, bundle: Path, photos: Path) -> None:
    name = f"{sign}cmd('x').png"
    write_picture(Path(name))
    Path(f"{sign}cut.png").write_bytes(b"\x89PNG")
    Path("names").write_text(f"{name}\n{sign}cut.png\n", encoding="utf-8")
    done = flowedge("run", bundle, "--list", "names", "--csv", "-", "--out", "out")
    for row in read_csv(done.stdout):
        texts = [value for column, value in row.items() if column not in ("score", "threshold")]
        assert not any(text.startswith(sign) for text in texts), row
        assert Path(row["image"]).exists()
        assert row["score"] == "" or float(row["score"]) < 0, "a number keeps its sign"


def record(name: str) -> Inspection:
    return Inspection(
        image=name, verdict="ok", score=0.1, threshold=None, anomalous_share=None, latency_ms=None,
        precision="fp32", engine="null", engine_reason="named",
    )  # fmt: skip


def test_a_full_disk_leaves_whole_lines_and_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "run.csv"
    script = (
        "import resource, sys; sys.path[:0] = sys.argv[2:]; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from pathlib import Path; from unit.test_run import record; from flowedge.runtime.csv_file import CsvFile;"
        "sink = CsvFile(Path(sys.argv[1]))\nfor n in range(100): sink.put(None, record(f'{n}.png'), None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, file, Path(__file__).parent.parent],
        # Python would write its compiled modules within the limit, and keep the halves.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "run.csv cannot be written: File too large. It ends with the last whole line." in done.stderr
    rows = read_csv(file.read_bytes().decode())
    assert len(rows) > 5
    assert file.read_bytes().endswith(csv_line(record(f"{len(rows) - 1}.png")).encode())
    with pytest.raises(FlowEdgeError, match="No space left"):
        CsvFile(Path("/dev/full"))


# --- Exit statuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "with_cut", "with_bad", "status"),
    [
        ((), False, True, 0),
        ((), True, True, 1),
        (("--fail-on", "not_inspected"), True, False, 1),
        (("--fail-on", "anomalous"), False, True, FOUND_ANOMALOUS),
        (("--fail-on", "anomalous"), False, False, 0),
        (("--fail-on", "anomalous"), True, False, 1),
        (("--fail-on", "anomalous,not_inspected"), True, True, FOUND_ANOMALOUS),
        (("--fail-on", "anomalous", "--fail-on", "not_inspected"), True, False, 1),
        (("--fail-on", "none"), True, True, 0),
    ],
)
def test_the_exit_status_tells_what_failed(
    options: Sequence[str], with_cut: bool, with_bad: bool, status: int, bundle: Path, photos: Path
) -> None:
    if with_cut:
        (photos / "cut.png").write_bytes(b"\x89PNG")
    if not with_bad:
        (photos / "bad.png").unlink()
    for output in ((), ("--json",), ("--csv", "-")):
        assert flowedge("run", bundle, photos, *options, *output).status == status


def test_fail_on_anomalous_is_refused_where_nothing_can_be_anomalous(tmp_path: Path, photos: Path) -> None:
    without = write_tiny_bundle(tmp_path / "without.flowedge").path
    done = flowedge("run", without, photos, "--fail-on", "anomalous")
    assert (done.status, done.stdout) == (2, "")
    assert "has no threshold" in done.stderr


def test_the_commands_of_the_guide_run(bundle: Path, photos: Path) -> None:
    block = next(one for one in blocks_of(REPOSITORY / "docs" / "guide.md") if "--csv today.csv" in one.text)
    Path("bottle.flowedge").symlink_to(bundle)
    write_picture(Path("line1/a b.png"))
    write_picture(Path("line2/c.png"))
    write_picture(Path("extra.jpg"))
    Path("stamp").touch()
    write_picture(photos / "new.jpg")
    os.utime("stamp", (0, 0))
    ended = []
    for line in block.text.replace("| jq .verdict", "").splitlines():
        script = f'flowedge() {{ {shlex.join(COMMAND)} "$@"; }}; {line}'
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=False
        )
        ended.append((done.returncode, done.stdout.count("png") + done.stdout.count("jpg")))
        assert "Traceback" not in done.stderr
    assert [status for status, _ in ended] == [0, 0, 0, FOUND_ANOMALOUS, 0]
    assert [count for _, count in ended][:4] == [5, 3, 1, 5]
    assert len(read_csv(Path("today.csv").read_bytes().decode())) == 1
    assert Path("today.html").stat().st_size > 1000
    assert (Path("pictures") / "line1" / "a b.png.overlay.png").is_file()


def test_the_help_tells_every_exit_status_of_run() -> None:
    text = " ".join(flowedge("run", "--help").stdout.split())
    for status in ("0 when", "1 when", "2 when", f"{FOUND_ANOMALOUS} when"):
        assert status in text


# --- Ends before the end ---------------------------------------------------------------------------------------------


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    return subprocess.Popen(
        [*COMMAND[:2], restore + COMMAND[2], *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def files_of_a_run(bundle: Path, many: Path, folder: Path) -> tuple[str | Path, ...]:
    return (
        "run",
        bundle,
        many,
        "--csv",
        folder / "run.csv",
        "--html",
        folder / "run.html",
        "--out",
        folder / "out",
    )


def test_ctrl_c_keeps_what_was_written_and_says_that_the_page_is_not_complete(
    bundle: Path, many: Path, tmp_path: Path
) -> None:
    with started(*files_of_a_run(bundle, many, tmp_path)) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        shown, said = rest_of(process)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in said
    rows = read_csv((tmp_path / "run.csv").read_bytes().decode())
    shown_rows = ("".join(lines) + shown).partition("\n\n")[0].splitlines()[1:]
    assert 3 <= len(shown_rows) <= len(rows) <= len(shown_rows) + 1
    assert f"\n{len(shown_rows)} images: " in shown or f"\n{len(shown_rows) + 1} images: " in shown
    assert all(Path(row["overlay"]).stat().st_size for row in rows)
    page = (tmp_path / "run.html").read_text()
    assert f"the run ended after {len(rows)} of 3000 images" in page


def test_a_reader_that_leaves_ends_the_run_quietly_and_the_files_keep_what_was_written(
    bundle: Path, many: Path, tmp_path: Path
) -> None:
    arguments = shlex.join([*COMMAND, *map(str, files_of_a_run(bundle, many, tmp_path))])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{arguments} | head -3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (READER_GONE, "")
    assert len(done.stdout.splitlines()) == 3
    rows = read_csv((tmp_path / "run.csv").read_bytes().decode())
    assert 2 <= len(rows) < 3000
    assert f"the run ended after {len(rows)} of 3000 images" in (tmp_path / "run.html").read_text()


def test_a_killed_run_leaves_whole_lines(bundle: Path, many: Path, tmp_path: Path) -> None:
    with started("run", bundle, many, "--csv", tmp_path / "run.csv") as process:
        assert process.stdout is not None
        for _ in range(100):
            process.stdout.readline()
        process.kill()
    content = (tmp_path / "run.csv").read_bytes()
    assert content.endswith(b"\r\n")
    assert 99 <= len(read_csv(content.decode())) < 3000


def test_a_console_of_rows_escapes_what_a_terminal_would_act_on() -> None:
    assert EscapingConsole(width=80).render_str("a\x1b[2J").plain == "a\\x1b[2J"
