"""The code in the pages of the documentation runs, their commands exist and their links have targets."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import flowedge
from flowedge.bundle import open_bundle
from flowedge.calibration.precision import add_half_graphs
from flowedge.cli.app import app
from flowedge.export.pack import pack_bundles
from support.pages import PAGES, REPOSITORY, Block, anchors_of, blocks_of, links_of, prose_of
from support.small_dataset import write_dataset

BLOCKS = [block for path in PAGES for block in blocks_of(path)]
PYTHON = [block for block in BLOCKS if block.language == "python" and not block.reason]
SHELL = [block for block in BLOCKS if block.language == "sh" and not block.reason]
COMMANDS: Any = typer.main.get_command(app)
OTHER_PROGRAMS = {
    "cd",
    "git",
    "jq",
    "curl",
    "docker",
    "find",
    "cp",
    "chown",
    "systemctl",
    "journalctl",
    "nvpmodel",
    "cmake",
    "build/score",
}  # their options are not ours to check
OPTIONS_OF_OTHERS = {
    "--query",
    *("--append", "--groups"),
    *("--platform", "--python-version", "--only-binary"),
    *("--build-arg", "--device", "--runtime"),
}  # in the text of pages, not of a command of ours


def names(blocks: list[Block]) -> list[str]:
    return [str(block) for block in blocks]


@pytest.mark.parametrize("block", BLOCKS, ids=names(BLOCKS))
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    assert block.language in ("python", "sh") or block.reason, (
        f"{block} is no python and no sh: write <!-- not run: REASON --> above it"
    )


@pytest.fixture(scope="module")
def bundle_of_pages(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle with a second precision."""
    path = tmp_path_factory.mktemp("pages") / "bottle.flowedge"
    shutil.copytree(small_bundle, path)
    add_half_graphs(open_bundle(path), ("fp16",))
    return path


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle_of_pages: Path, small_checkpoint: Path
) -> Path:
    """Go to a folder with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle_of_pages, "bottle.flowedge")
    pack_bundles({"bottle": bundle_of_pages, "cable": bundle_of_pages}, Path("line.flowedgepack"))
    shutil.copy(small_checkpoint, "bottle.ckpt")
    write_dataset(Path("datasets/bottle"))
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("block", PYTHON, ids=names(PYTHON))
def test_a_python_block_runs(block: Block) -> None:
    source = compile("\n" * block.line + block.text, block.page, "exec")
    exec(source, {"__name__": "__main__"})


def commands_of(text: str) -> Iterator[list[str]]:
    """Split the lines of a shell block into single commands, without comments and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((place for place, word in enumerate(words) if word in ("|", "&&", ";")), len(words))
            command, words = words[:end], words[end + 1 :]
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                command = command[1:]
            if command:
                yield [word for word in command if not word.startswith(">")]


@pytest.mark.parametrize("block", SHELL, ids=names(SHELL))
def test_the_commands_of_a_shell_block_exist(block: Block) -> None:
    for command in commands_of(block.text):
        problem = problem_of(command)
        assert not problem, f"{block}: {shlex.join(command)}: {problem}"


def problem_of(command: list[str]) -> str:
    """Return why a command cannot work, or an empty string."""
    if command[0] == "sudo":
        command = command[3:] if command[1] == "-u" else command[1:]
    program, *arguments = command
    program = program.removeprefix(".venv/bin/")
    if program == "flowedge":
        return problem_of_ours(COMMANDS, arguments)
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
        wanted = {word for word in arguments if "=" not in word}
        return "" if wanted <= targets else f"the Makefile has no {wanted - targets}"
    if program == "pip":
        extras = re.findall(r"\.\[([\w,-]+)\]", " ".join(arguments))
        known = set(re.findall(r"^([\w-]+) = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE))
        unknown = {one for extra in extras for one in extra.split(",")} - known
        return f"pyproject.toml has no extra {unknown}" if unknown else ""
    if program in ("python", "pytest"):
        paths = [word.partition("::")[0] for word in arguments if re.search(r"\.py\b", word)]
        missing = [path for path in paths if not (REPOSITORY / path).is_file()]
        return f"there is no {missing}" if missing else ""
    if program.startswith("."):
        return "" if (REPOSITORY / program).is_file() else "there is no such file"
    return "" if program in OTHER_PROGRAMS else f"{program} is not known to this test"


def problem_of_ours(group: Any, arguments: list[str]) -> str:
    """Check a command of FlowEdge against its real options, without running it."""
    if not arguments or arguments[0].startswith("-"):
        unknown = {word for word in arguments if word not in options_of(group)}
        return f"no options {unknown}" if unknown else ""
    name, *rest = arguments
    command = group.commands.get(name)
    if command is None:
        return f"no command {name}"
    if hasattr(command, "commands"):
        return problem_of_ours(command, rest)
    # The command keeps the names of its help option from the first context that asks.
    context = command.context_class(command, info_name=name, **COMMANDS.context_settings)
    try:
        values, left, _ = command.make_parser(context).parse_args(args=list(rest))
    except Exception as error:  # whichever package Typer takes its errors from
        return str(getattr(error, "message", error))
    lacking = [one.name for one in command.params if one.required and not values.get(one.name)]
    return f"too many arguments {left}" if left else f"lacks {lacking}" if lacking else ""


def options_of(command: Any) -> set[str]:
    own = {
        name for one in command.params for name in (*one.opts, *one.secondary_opts) if name.startswith("-")
    }
    return own.union({"--help"}, *(options_of(one) for one in getattr(command, "commands", {}).values()))


@pytest.mark.parametrize(
    "command",
    ["flowedge eval bottle.flowedge", "flowedge eval b d --fast", "flowedge bake", "make tea", "tea"],
)
def test_a_command_that_cannot_work_is_found(command: str) -> None:
    assert problem_of(shlex.split(command))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_an_option_that_a_page_names_exists(path: Path) -> None:
    if path.name in ("decisions.md", "CHANGELOG.md"):
        return  # they name options of their day
    named = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", " ".join(re.findall(r"`[^`\n]+`", prose_of(path))))
    tests = " ".join(file.read_text() for file in REPOSITORY.glob("tests/bench/*.py"))
    tests += (REPOSITORY / "tests/fuzz/run.py").read_text()
    known = options_of(COMMANDS) | OPTIONS_OF_OTHERS
    known |= set(re.findall(r"--[a-z-]+", (REPOSITORY / "deploy/install.sh").read_text()))
    unknown = {one for one in set(named) - known if f'"{one}"' not in tests}
    assert not unknown


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_link_leads_somewhere(path: Path) -> None:
    for link in links_of(path):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name}: {link}: no such file"
        # The site holds the pages of docs/ alone.
        docs = REPOSITORY / "docs"
        assert docs not in path.parents or docs in target.parents, f"{path.name}: {link}: not on the site"
        assert not anchor or anchor in anchors_of(target), f"{path.name}: {link}: no such heading"


@pytest.mark.parametrize("name", ["docs/design.md", "docs/security.md", "CONTRIBUTING.md", "README.md"])
def test_a_file_that_a_page_names_exists(name: str) -> None:
    named = set(re.findall(r"`([\w-]+(?:/[\w-]+)+\.py)", (REPOSITORY / name).read_text(encoding="utf-8")))
    missing = {path for path in named if not (REPOSITORY / path).is_file()}
    assert not missing


def test_the_walks_name_each_file_once() -> None:
    design = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    for walk in re.findall(r"^## The walk of one \w+\n(.+?)(?=^## )", design, re.MULTILINE | re.DOTALL):
        files = re.findall(r"^\| `([\w/]+\.py)`", walk, re.MULTILINE)
        assert len(files) == len(set(files)) >= 10


def strings_of(source: str) -> Iterator[str]:
    """Give every string of a module, with an ellipsis for each value that is put into it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


def test_the_guide_explains_messages_that_exist() -> None:
    folders = ("flowedge", "export", "runtime", "calibration")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]
    strings = "\n".join(one for file in files for one in strings_of(file.read_text(encoding="utf-8")))
    _, _, rows = (REPOSITORY / "docs/guide.md").read_text(encoding="utf-8").partition("## Troubleshoot")
    messages = re.findall(r"^\| `(.+?)` \|", rows, re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        assert all(part.strip() in strings for part in message.split("…")), message


def test_every_page_is_on_the_site() -> None:
    site = (REPOSITORY / "mkdocs.yml").read_text()
    docs = REPOSITORY / "docs"
    missing = [path for path in docs.rglob("*.md") if path.relative_to(docs).as_posix() not in site]
    assert not missing


def test_the_reference_has_every_public_name() -> None:
    pages = "".join(path.read_text() for path in (REPOSITORY / "docs" / "reference").glob("*.md"))
    for name in set(flowedge.__all__) - {"__version__"}:
        assert re.search(rf"^::: flowedge\.{name}\b", pages, re.MULTILINE), name
