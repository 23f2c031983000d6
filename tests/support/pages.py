"""Read the pages of the repository: their blocks of code, headings and links."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in (
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        *REPOSITORY.glob("examples/*.md"),
    )
    if path.is_file()
)
_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n\s*)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: The page's path from the root of the repository.
        line: The line of the opening fence.
        language: The word behind the fence, or an empty string.
        text: The text between the fences.
        reason: The reason of a comment ``<!-- not run: REASON -->`` above the block, or an empty string.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    page = path.read_text(encoding="utf-8")
    return [
        Block(
            page=path.relative_to(REPOSITORY).as_posix(),
            line=page[: found.start("language")].count("\n") + 1,
            language=found["language"],
            text=textwrap.dedent(found["text"]),
            reason=found["reason"] or "",
        )
        for found in _FENCE.finditer(page)
    ]


def prose_of(path: Path) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#{1,6} +(.+?)(?: +\{#(.+)\})?$", prose_of(path), re.MULTILINE)
    plain = (given or re.sub(r"[`*]|\[(.+?)\]\(.*?\)", r"\1", heading) for heading, given in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def links_of(path: Path) -> list[str]:
    """Return the targets of a page's links and pictures, without those in code."""
    prose = re.sub(r"`[^`\n]+`", "", prose_of(path))
    return re.findall(r"\]\(([^)\s]+)\)", prose)
