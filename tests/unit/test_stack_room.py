"""An export is as quick from every depth of the caller's stack."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

import pytest

from flowedge.export.stack_room import with_stack_room

CALLS = 2000


def called_at_depth(depth: int, function: Callable[[], int]) -> int:
    return function() if depth == 0 else called_at_depth(depth - 1, function)


def nothing(value: int) -> int:
    return value


def page_faults_of_calls() -> int:
    """Count the page faults of a loop of calls. Each piece of stack that is asked for costs one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for value in range(CALLS):
        nothing(value)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@with_stack_room
def page_faults_with_room() -> int:
    return page_faults_of_calls()


def most_page_faults(function: Callable[[], int]) -> int:
    # A piece of 16 KiB holds the frames of about 200 calls, so one of these depths ends at a border.
    return max(called_at_depth(depth, function) for depth in range(100, 400))


def test_no_depth_makes_calls_ask_for_memory_again_and_again() -> None:
    assert most_page_faults(page_faults_with_room) < CALLS / 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 keeps each call's frame apart")
def test_without_room_there_is_such_a_depth() -> None:
    assert most_page_faults(page_faults_of_calls) >= CALLS
