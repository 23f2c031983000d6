"""Run one fuzz case: damage a seed, give it to the product as a user would, and judge how the product answered."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from flowedge.errors import FlowEdgeError
from flowedge.runtime.frames.images import read_image
from fuzz.mutate_bundles import change_nothing_that_counts, damage_bundle, forge_graph, forge_manifest
from fuzz.mutate_bytes import cut_end
from fuzz.mutate_checkpoints import mutate_checkpoint
from fuzz.mutate_pictures import mutate_picture
from fuzz.seeds import copy_bundle, read_seed
from support.command_line import flowedge

KINDS: Final = ("checkpoint", "bundle", "picture")
_EXPORTED_SHARE: Final = 0.02
"""The share of the checkpoint cases in which a checkpoint that ``info`` accepts is exported as well."""


class BrokenPromiseError(Exception):
    """The product answered in a way that it promises not to."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """The valid inputs, and what the product answers to them.

    Attributes:
        folder: The folder that `fuzz.seeds.write_seeds` filled.
        checkpoints: The bytes of each checkpoint, by file name.
        pictures: The bytes of each picture, by file name.
        answers: By the name of a bundle, what ``run --json`` says of the picture ``colour.png``.
    """

    folder: Path
    checkpoints: dict[str, bytes]
    pictures: dict[str, bytes]
    answers: dict[str, dict[str, Any]]


def load_seeds(folder: Path) -> Seeds:
    """Read the seeds and record the answers of the undamaged bundles."""
    answers = {path.name: _answer_of(path, folder) for path in sorted((folder / "bundles").iterdir())}
    return Seeds(folder, read_seed(folder, "checkpoints"), read_seed(folder, "pictures"), answers)


def run_case(seeds: Seeds, seed: int, number: int, place: Path, ask_for_time: Callable[[], None]) -> str:
    """Run the case of this number in an empty folder and return what happened, in a few words.

    Args:
        seeds: The valid inputs.
        seed: The seed of the whole run.
        number: The number of the case, which decides everything else.
        place: The current folder of the process. Afterwards the folder holds only the case's ``input``.
        ask_for_time: Called before work that rightly takes long, such as an export.

    Raises:
        BrokenPromiseError: The product broke a promise.
        Exception: Any other error is a traceback that a user would have seen.
    """
    rng = np.random.default_rng([seed, number])
    kind = KINDS[number % len(KINDS)]
    if kind == "checkpoint":
        return _run_checkpoint(rng, seeds, place, ask_for_time)
    return _RUN[kind](rng, seeds, place)


def _run_checkpoint(
    rng: np.random.Generator, seeds: Seeds, place: Path, ask_for_time: Callable[[], None]
) -> str:
    name = sorted(seeds.checkpoints)[int(rng.integers(len(seeds.checkpoints)))]
    path = place / f"input{Path(name).suffix}"
    path.write_bytes(mutate_checkpoint(rng, seeds.checkpoints[name]))
    done = flowedge("info", path, "--json")
    if not _is_refusal(done.status, done.stderr, path.name):
        json.loads(done.stdout)
        if rng.random() < _EXPORTED_SHARE:
            ask_for_time()
            return _export(path, place)
        return "accepted"
    return "refused"


def _export(path: Path, place: Path) -> str:
    bundle = place / "exported.flowedge"
    done = flowedge("export", path, "-o", bundle)
    if _is_refusal(done.status, done.stderr, path.name):
        if bundle.exists():
            raise BrokenPromiseError(f"export was refused and left {bundle.name}")
        return "accepted, not exported"
    checked = flowedge("verify", bundle)
    if checked.status != 0:
        raise BrokenPromiseError(f"the exported bundle does not verify: {checked.stderr or checked.stdout}")
    shutil.rmtree(bundle)
    return "exported"


def _run_bundle(rng: np.random.Generator, seeds: Seeds, place: Path) -> str:
    names = sorted(seeds.answers)
    name = names[int(rng.integers(len(names)))]
    bundle = place / "input.flowedge"
    copy_bundle(seeds.folder / "bundles" / name, bundle)
    draw = rng.random()
    is_whole = draw < 0.05
    has_forged_graph = 0.05 <= draw < 0.1
    # A forged manifest may say another threshold: then only the manner of the answer is judged.
    has_forged_manifest = 0.1 <= draw < 0.3
    engine = "openvino" if has_forged_graph and draw < 0.06 else "onnxruntime-cpu"
    if is_whole:
        change_nothing_that_counts(rng, bundle)
    elif has_forged_graph:
        forge_graph(rng, bundle)
    elif has_forged_manifest:
        forge_manifest(rng, bundle)
    else:
        damage_bundle(rng, bundle)
    done = _run_on_picture(bundle, seeds.folder, engine)
    if _is_refusal(done.status, done.stderr, bundle.name):
        if is_whole:
            raise BrokenPromiseError(f"a bundle with nothing damaged was refused: {done.stderr}")
        return "refused"
    answer = _essence(json.loads(done.stdout.splitlines()[0]))
    if has_forged_manifest:
        return "forged and judged"
    expected = seeds.answers[name]
    # A graph that passed its self-test may round otherwise.
    same = _is_alike(answer, expected) if has_forged_graph else answer == expected
    if not same:
        raise BrokenPromiseError(f"a damaged bundle answered {answer} in place of {expected}")
    return "answered as before"


def _is_alike(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Compare two answers whose scores may differ by a thousandth."""
    difference = abs(answer["score"] - expected["score"])
    return bool(
        answer["verdict"] == expected["verdict"] and difference <= 1e-3 * max(1.0, abs(expected["score"]))
    )


def _run_picture(rng: np.random.Generator, seeds: Seeds, place: Path) -> str:
    name = sorted(seeds.pictures)[int(rng.integers(len(seeds.pictures)))]
    whole = seeds.pictures[name]
    is_cut = rng.random() < 0.2
    path = place / f"input{Path(name).suffix}"
    path.write_bytes(cut_end(rng, whole) if is_cut else mutate_picture(rng, whole))
    try:
        pixels = read_image(path)
    except FlowEdgeError as error:
        if path.name not in str(error):
            raise BrokenPromiseError(f"the message does not name the file: {error}") from error
        return "refused"
    if is_cut and not np.array_equal(pixels, read_image(seeds.folder / "pictures" / name)):
        raise BrokenPromiseError(
            f"a picture that was cut to {path.stat().st_size} bytes was read with other pixels"
        )
    expected = _pixels_of_pillow(path)
    if expected is None:
        raise BrokenPromiseError("a picture that Pillow refuses was read")
    if pixels.shape != expected.shape or not np.array_equal(pixels, expected):
        raise BrokenPromiseError("a picture was read with other pixels than Pillow's")
    return "read as Pillow does"


def _pixels_of_pillow(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """Read a picture as the trainers do, or return None where Pillow refuses it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
    except Exception:  # Pillow raises many kinds of error on damaged files
        return None


_RUN: Final[dict[str, Callable[[np.random.Generator, Seeds, Path], str]]] = {
    "bundle": _run_bundle,
    "picture": _run_picture,
}


def _run_on_picture(bundle: Path, folder: Path, engine: str = "onnxruntime-cpu") -> Any:
    return flowedge("run", bundle, folder / "pictures" / "colour.png", "--json", "--engine", engine)


def _answer_of(bundle: Path, folder: Path) -> dict[str, Any]:
    done = _run_on_picture(bundle, folder)
    if done.status != 0:
        raise RuntimeError(done.stderr)
    return _essence(json.loads(done.stdout))


def _essence(line: dict[str, Any]) -> dict[str, Any]:
    """Keep what an operator acts on."""
    return {
        key: line.get(key)
        for key in ("verdict", "score", "threshold", "log_nfa", "regions", "anomalous_share")
    }


def _is_refusal(status: int, stderr: str, name: str) -> bool:
    """Return whether a command refused its input in the promised way: status 1 or 2 and one line that names the file.

    Raises:
        BrokenPromiseError: The status is another one, or the message has no line of ours or does not name the file.
    """
    if "Traceback" in stderr:
        raise BrokenPromiseError(f"a traceback was printed: {stderr[-2000:]}")
    if any(ord(one) < 32 and one not in "\n\t" for one in stderr):
        raise BrokenPromiseError(f"a control character was printed: {stderr!r}")
    if status == 0:
        return False
    if status not in (1, 2) or "flowedge: " not in stderr:
        raise BrokenPromiseError(f"the command ended with status {status} and said {stderr!r}")
    if name not in stderr:
        raise BrokenPromiseError(f"the message does not name {name}: {stderr}")
    return True


def leftovers(place: Path) -> list[str]:
    """Name what a case left behind beside its input, in its folder and in the home folder below it."""
    found = [str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()]
    return [
        name
        for name in found
        if not Path(name).parts[0].startswith("input") and not name.startswith("home/cache")
    ]


def clear(place: Path) -> None:
    """Empty the folder of the cases, but for the home folder's cache."""
    for path in place.iterdir():
        if path.is_dir() and path.name != "home":
            shutil.rmtree(path)
        elif not path.is_dir():
            os.unlink(path)
