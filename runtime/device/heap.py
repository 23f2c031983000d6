"""Choose how the C library of Linux, glibc, shares its heap between the threads of this process."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_ARENA_MAX: Final = -8  # from glibc's <malloc.h>


def share_one_heap() -> None:
    """Let all threads of this process take memory from one heap of glibc. Elsewhere nothing is changed.

    By default glibc gives each thread one of many heaps, called arenas, and keeps what is freed in the arena that it
    came from. A new thread, such as the one of a camera that is connected again, may get another arena, so the process
    grows while the pictures that were freed before leave gaps in the old one. With one arena the gaps are filled again.

    The call counts only before the first other thread of the process takes memory.

    Source: the manual pages mallopt(3) and malloc_info(3).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)
