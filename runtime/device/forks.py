"""Keep a forked process from destroying the engines that it inherits, whose threads it does not have.

A process that forks is copied with one thread only. An engine of ONNX Runtime or OpenVINO that is used there may wait
for ever for its other threads, and so may its destructor when the last reference goes or the process ends. CUDA refuses
every call of a forked process. So the child keeps what it inherited until it ends, and never calls it.
"""

from __future__ import annotations

import ctypes
import os
import weakref

_ENGINES: weakref.WeakSet[object] = weakref.WeakSet()


def keep_in_children(engine: object) -> None:
    """Make sure that a forked process never destroys an engine that it inherits."""
    _ENGINES.add(engine)


def _keep() -> None:
    # A reference that is never released outlives even the end of the interpreter, which a list of ours does not.
    for engine in list(_ENGINES):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


os.register_at_fork(after_in_child=_keep)
