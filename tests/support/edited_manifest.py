"""Change manifests without the library, with or without the hash that fits the change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sealed(content: dict[str, Any]) -> bytes:
    """Return the JSON of a manifest's content with its hash, by the documented recipe alone."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}).encode()


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle, and give it the hash that fits."""
    content = json.loads((folder / "manifest.json").read_bytes())
    edit(content)
    (folder / "manifest.json").write_bytes(sealed(content))
