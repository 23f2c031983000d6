"""Flush floating-point numbers that are too small to be normal to zero, within one thread."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import struct
import sys
from collections.abc import Iterator
from typing import Final

# C99's <fenv.h>. The bits that flush denormals are FTZ and DAZ of x86-64's MXCSR and FZ of AArch64's FPCR; the
# offsets are those of Linux's fenv_t. Elsewhere no bit is set, and only the caller's mode is kept.
_LIBM: Final = ctypes.CDLL(None)
_FENV_BYTES: Final = 64
_FLUSH_OFFSET, _FLUSH_BITS = {
    ("linux", "x86_64"): (28, 0x8040),
    ("linux", "aarch64"): (0, 1 << 24),
}.get((sys.platform, platform.machine()), (0, 0))


@contextlib.contextmanager
def flushing_denormals() -> Iterator[None]:
    """Flush denormal floats to zero in this thread for a while, then go back to the caller's mode.

    The exp() of unlikely positions is denormal, and denormals slow a CPU down many times. The engines' own options
    (ONNX Runtime's ``set_denormal_as_zero``, OpenVINO's ``CPU_DENORMALS_OPTIMIZATION``) do this for their own threads.
    For the calling thread, which computes as well, the options act too late, or for all its later work.
    """
    callers = ctypes.create_string_buffer(_FENV_BYTES)
    _LIBM.fegetenv(callers)
    flushing = ctypes.create_string_buffer(callers.raw, _FENV_BYTES)
    (word,) = struct.unpack_from("<I", flushing, _FLUSH_OFFSET)
    struct.pack_into("<I", flushing, _FLUSH_OFFSET, word | _FLUSH_BITS)
    _LIBM.fesetenv(flushing)
    try:
        yield
    finally:
        _LIBM.fesetenv(callers)
