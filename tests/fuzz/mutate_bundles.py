"""Damage a bundle: any bytes, fields of its manifest, and graphs whose hash was made to fit again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from flowedge.errors import BundleError
from flowedge.manifest_json import json_from_manifest, manifest_from_json
from fuzz.mutate_bytes import mutate_bytes

_VALUES: Final[tuple[Any, ...]] = (
    *(0, -1, 1, 2, 1 << 31, 1 << 63, 10**400, 1e308, -1e308, 1e-308, 0.5),
    *("", "a", "../x", "/etc/passwd", "\x1b[31m", "\u202e", "x" * 100_000, "nan"),
    *(None, True, [], {}, [[]], [0] * 10_000),
)


def damage_bundle(rng: np.random.Generator, bundle: Path) -> None:
    """Change one file of a bundle and leave every hash as it was."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    # The manifest is what everything else is checked against, so half of the cases are its own.
    path = bundle / "manifest.json" if rng.random() < 0.5 else files[int(rng.integers(len(files)))]
    data = path.read_bytes()
    if path.name == "manifest.json" and rng.random() < 0.6:
        changed = json.dumps(_change_field(rng, json.loads(data)), indent=2).encode()
    else:
        changed = mutate_bytes(rng, data)
    path.write_bytes(changed)


def change_nothing_that_counts(rng: np.random.Generator, bundle: Path) -> None:
    """Write the manifest with other spaces, and put a file into the bundle that the manifest does not list."""
    path = bundle / "manifest.json"
    path.write_bytes(json.dumps(json.loads(path.read_bytes()), indent=int(rng.integers(0, 9))).encode())
    (bundle / "notes.txt").write_bytes(rng.bytes(64))


def forge_graph(rng: np.random.Generator, bundle: Path) -> None:
    """Change the graph and make every hash fit, as somebody who wants to be believed would."""
    graph = bundle / "model.onnx"
    graph.write_bytes(mutate_bytes(rng, graph.read_bytes()))
    _sign_again(bundle)


def forge_manifest(rng: np.random.Generator, bundle: Path) -> None:
    """Change a field of the manifest and make its own hash fit where the manifest is still readable."""
    path = bundle / "manifest.json"
    path.write_bytes(json.dumps(_change_field(rng, json.loads(path.read_bytes()))).encode())
    _sign_again(bundle)


def _sign_again(bundle: Path) -> None:
    """Write the manifest anew with the hashes of the files as they are now. Leave it where it cannot be read."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_bytes())
    present = {str(file.relative_to(bundle)): file for file in bundle.rglob("*") if file.is_file()}
    for stored in content["files"] if isinstance(content.get("files"), list) else ():
        place = present.get(str(stored.get("path"))) if isinstance(stored, dict) else None
        if place is not None:
            stored["size"] = place.stat().st_size
            stored["sha256"] = hashlib.sha256(place.read_bytes()).hexdigest()
    _write_forged(path, content)


def _write_forged(path: Path, content: dict[str, Any]) -> None:
    # Schema 1 has no hash of its own, so the changed manifest can be read, and written again with a hash that fits.
    content.pop("sha256", None)
    content["schema"] = 1
    data = json.dumps(content).encode()
    path.write_bytes(data)
    try:
        path.write_bytes(json_from_manifest(manifest_from_json(data)))
    except (BundleError, ValueError):
        path.write_bytes(data)


def _change_field(rng: np.random.Generator, content: Any) -> Any:
    """Replace, remove, double or rename one field at a random depth of a JSON document."""
    places: list[tuple[Any, Any]] = []
    _collect(content, places.append)
    parent, key = places[int(rng.integers(len(places)))]
    match int(rng.integers(6)):
        case 0 if isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key)
        case 1:
            del parent[key]
        case 2 if isinstance(parent, list):
            parent.insert(key, parent[key])
        case 3 if isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
            parent[key] = parent[key] * float(rng.choice([-1, 0.1, 10, 1.001])) + float(rng.choice([0, 1e-3]))
        case _:
            parent[key] = _VALUES[int(rng.integers(len(_VALUES)))]
    return content


def _collect(value: Any, add: Callable[[tuple[Any, Any]], object]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        add((value, key))
        _collect(inner, add)
