"""Count how readable the docstrings and comments are, and check them against limits.

Run as a program, this file prints the counts of every folder, and each sentence that breaks the rule:

    python tests/contract/test_prose.py [PATH ...]

CONTRIBUTING.md explains the rule, in its section "Prose".
"""

import ast
import functools
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("flowedge", "export", "runtime", "calibration")
FAULTS = ("a semicolon", "begins without a subject", "two relative clauses", "begins with a pronoun")

# The folders whose code needs its reasons written beside it: compiler passes, quantisation and a-contrario statistics.
DENSE_ROOMS = ("export/graph", "calibration/precision", "runtime/nfa")

# A sentence that opens with one of these words continues a name above it instead of saying what it is about.
_OPENINGS = re.compile(r"(Of|As|What|Whether|How|None|Likewise|The same|That|Those|So does|Nor|And|But)\b")
_RELATIVE = re.compile(r", (?:which|who|that|whose|where)\b| (?:which|whose) ")
# Headings of Google's docstring sections are no sentences.
_HEADING = re.compile(
    r"\s*(Args|Returns|Raises|Yields|Attributes|Example|Examples|Note|Notes|Source|Sources):\s*$"
)
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|cf|vs|etc|Sec|Eq|Fig|No|al|approx|resp)\.$")


class Sentence(NamedTuple):
    """One sentence of a docstring or of an attribute's text."""

    path: Path
    line: int
    text: str
    opens: bool  # The sentence is the first one of its docstring.

    @property
    def faults(self) -> list[str]:
        """The rules that this sentence breaks, in words. Empty for a plain sentence."""
        faults = []
        if ";" in self.text:
            faults.append("a semicolon")
        if _OPENINGS.match(self.text):
            faults.append("begins without a subject")
        if len(_RELATIVE.findall(self.text)) > 1:
            faults.append("two relative clauses")
        if re.match(r"(It|They|Its|Their)\b", self.text):
            faults.append("begins with a pronoun")
        return faults


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield `(line, text)` of every docstring, and of every string that stands below an attribute."""
    for node in ast.walk(tree):
        for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if not isinstance(body, list):
                continue
            for statement in body:
                if (
                    isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                ):
                    yield statement.lineno, statement.value.value


@functools.cache
def sentences_of(path: Path) -> tuple[Sentence, ...]:
    """Split the docstrings of one Python file into sentences. Code and section headings are left out."""
    found: list[Sentence] = []
    for line, text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
        prose: list[str] = []
        indent = min(
            (len(row) - len(row.lstrip()) for row in text.splitlines()[1:] if row.strip()), default=0
        )
        in_example = False
        for number, row in enumerate(text.splitlines()):
            row = row[indent:] if number and not row[:indent].strip() else row
            if not row.strip():
                prose.append("\n")
                in_example = False
            elif _HEADING.match(row) or in_example:
                prose.append("\n")
                in_example = in_example or "Example" in row
            elif ">>>" in row or row.strip().startswith("|"):
                prose.append("\n")
            else:
                # An argument's entry, "name: text", is a sentence of its own.
                entry = re.match(r" {4}([`*\w, ]+): (.*)", row)
                prose.append(("\n" + entry.group(2)) if entry else row.strip())
        opens = True
        for paragraph in " ".join(prose).split("\n"):
            for sentence in _split(paragraph.strip()):
                found.append(Sentence(path, line, sentence, opens))
                opens = False
    return tuple(found)


def _split(paragraph: str) -> Iterator[str]:
    """Yield the sentences of one paragraph. A full stop after an abbreviation ends none."""
    begun = ""
    for piece in re.split(r"(?<=[.!?:])\s+(?=[A-Z`\"(])", re.sub(r"\s+", " ", paragraph)):
        begun = f"{begun} {piece}".strip()
        if not _ABBREVIATION.search(begun):
            if len(begun.split()) > 1:
                yield begun
            begun = ""
    if len(begun.split()) > 1:
        yield begun


def comment_rate(paths: list[Path]) -> float:
    """Return the comment lines per 100 lines of code. Neither blank lines nor docstrings count as code."""
    comments = code = 0
    for path in paths:
        source = path.read_text(encoding="utf-8")
        documented: set[int] = set()
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        kinds: dict[int, set[int]] = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            kinds.setdefault(token.start[0], set()).add(token.type)
        blank = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        for line, types in kinds.items():
            if line in documented:
                continue
            comments += tokenize.COMMENT in types
            code += bool(types - blank - {tokenize.COMMENT})
    return 100 * comments / max(code, 1)


def python_files(*places: str | Path) -> list[Path]:
    """Return the Python files below the given files and folders of the repository, sorted."""
    found: list[Path] = []
    for place in places:
        place = ROOT / place
        found += [place] if place.is_file() else list(place.rglob("*.py"))
    # flowedge/export and its like are links to the folders of the root, which are counted there.
    return sorted({p for p in found if not any(parent.is_symlink() for parent in p.parents)})


def share(paths: list[Path], fault: str) -> float:
    """Return the share of sentences, from 0 to 1, that have the fault of this name."""
    sentences = [s for path in paths for s in sentences_of(path)]
    return sum(fault in s.faults for s in sentences) / max(len(sentences), 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_at_most_one_sentence_in_a_hundred_breaks_a_rule(fault: str) -> None:
    assert share(python_files(*ROOMS), fault) <= 0.01


@pytest.mark.parametrize("room", DENSE_ROOMS)
def test_dense_code_says_why(room: str) -> None:
    assert comment_rate(python_files(room)) >= 4


def test_no_docstring_opens_with_a_broken_rule() -> None:
    broken = [
        f"{s.path}:{s.line}: {s.text}"
        for p in python_files(*ROOMS)
        for s in sentences_of(p)
        if s.opens and s.faults
    ]
    assert not broken, "\n".join(broken)


def _report(places: list[str]) -> None:
    """Print each sentence with a fault, then a table of the counts of each folder."""
    for path in python_files(*places):
        for sentence in sentences_of(path):
            if sentence.faults:
                where = path.relative_to(ROOT)
                print(f"{where}:{sentence.line}: {', '.join(sentence.faults)}: {sentence.text[:160]}")
    print(f"{'':28} comments/100  semicolon  no subject  clauses  pronoun  sentences")
    for place in [*places, *(["all"] if len(places) > 1 else [])]:
        files = python_files(*(places if place == "all" else [place]))
        sentences = [s for path in files for s in sentences_of(path)]
        counts = [sum(fault in s.faults for s in sentences) for fault in FAULTS]
        shares = [f"{100 * n / max(len(sentences), 1):8.1f} %" for n in counts]
        print(f"{place:28} {comment_rate(files):12.1f} {' '.join(shares)}  {len(sentences):9}")


if __name__ == "__main__":
    _report(sys.argv[1:] or [*ROOMS, *DENSE_ROOMS])
