"""No module asks for a family by its name, and each table by family or by scoring rule is complete."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest

from flowedge.export.checkpoints.settings import FAMILY_SETTINGS
from flowedge.export.families import FAMILIES
from flowedge.export.graph import score
from flowedge.families import TRAITS, ScoringRule
from flowedge.manifest import Family
from flowedge.runtime import aggregate
from support.oracles import scores

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = set(get_args(Family))
# Modules that may compare with a family's name: none needs to today.
MAY_COMPARE = set[str]()
FILES = sorted(
    file
    for folder in ("flowedge", "export", "calibration", "runtime")
    for file in (REPOSITORY / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in file.parents)
)


def comparisons(source: str) -> list[str]:
    """Find the comparisons, patterns and named collections in a source text that hold a family's name."""
    nodes = list(ast.walk(ast.parse(source)))
    asked: list[ast.AST] = [node for node in nodes if isinstance(node, (ast.Compare, ast.match_case))]
    found = [
        one.value
        for node in asked
        for inner in ([node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.pattern])  # type: ignore[attr-defined]
        for one in ast.walk(inner)
        if isinstance(one, ast.Constant) and one.value in NAMES
    ]
    collections = [node for node in nodes if isinstance(node, (ast.Tuple, ast.Set, ast.List))]
    return [
        *(str(name) for name in found),
        *(
            str(item.value)
            for node in collections
            for item in node.elts
            if isinstance(item, ast.Constant) and item.value in NAMES
        ),
    ]


@pytest.mark.parametrize(
    "source",
    [
        'family == "cflow"',
        'x = 1 if m.family in ("uflow", "msflow") else 2',
        'match f:\n    case "csflow": pass',
        'SPECIAL = frozenset({"fastflow"})',
    ],
)
def test_a_comparison_with_a_family_is_found(source: str) -> None:
    assert comparisons(source)


def test_a_table_or_a_record_may_name_a_family() -> None:
    assert not comparisons('TABLE = {"cflow": 1}\nmade = Checkpoint(family="uflow")')


def test_no_module_compares_with_the_name_of_a_family() -> None:
    assert len(FILES) > 100
    asking = {
        str(file.relative_to(REPOSITORY)): names
        for file in FILES
        if file.relative_to(REPOSITORY) != Path("flowedge/manifest.py")  # the type that lists the names
        and (names := comparisons(file.read_text(encoding="utf-8")))
    }
    assert asking.keys() == MAY_COMPARE, asking


@pytest.mark.parametrize("table", [TRAITS, FAMILIES, FAMILY_SETTINGS], ids=["traits", "families", "settings"])
def test_a_table_by_family_has_every_family(table: Mapping[str, object]) -> None:
    assert table.keys() == NAMES


@pytest.mark.parametrize("module", [score, aggregate, scores], ids=["graph", "host", "oracle"])
def test_every_scoring_rule_is_in_the_graph_on_the_host_and_in_the_oracle(module: object) -> None:
    rules: Mapping[str, object] = vars(module)["_RULES"]
    assert rules.keys() == set(get_args(ScoringRule)) == {traits.scoring_rule for traits in TRAITS.values()}


def test_a_family_with_a_second_map_has_the_rule_that_gives_it() -> None:
    for traits in TRAITS.values():
        assert traits.multiplicative_map == (traits.scoring_rule == "two_likelihoods")
