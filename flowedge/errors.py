"""Define every error that a user can act on.

FlowEdgeError
├── CheckpointError           the checkpoint cannot be read, is not of a known model, or lacks something
│   └── UnsafeCheckpointError the file asks to run code or to build a class that is not on the allow-list
├── ExportError               the exported graph could not be made, or differs from the reference network
├── BundleError               the bundle on disk cannot be trusted, read or written
│   ├── BundleChangedError    another process replaced the bundle since it was opened
│   └── SignatureError        a signature is needed and is missing, wrong, expired or by an unknown key
├── ImageError                an image or a frame cannot be read, or is not what the bundle takes
├── DataError                 a folder of images is not what the command needs
├── SourceError               a camera, a video or another source of frames cannot be opened
├── CalibrationError          a constant or a threshold cannot be fitted on the given images
├── PrecisionError            a graph of lower precision cannot pass its gate
├── ProcessError              a detector was taken into another process
├── MissingPackageError       an optional package, such as torch or onnx, is not installed
├── SettingsError             a settings file, such as a station's, has a key or a value that is not allowed
├── RegistryError             a bundle cannot be pushed to a registry or pulled from it
├── JournalError              a station's journal cannot be opened, read or written
├── EngineCacheError          the cache of compiled engines cannot be used
└── EngineUnavailableError    the requested engine cannot run on this machine
    ├── EngineNotBuiltError   it must be compiled for this machine first
    └── EngineWrongError      it computes the graph wrongly on this machine

A wrong argument of a Python call is a ``ValueError`` or a ``TypeError``, and so is the use of a closed detector. A bug
of FlowEdge is an ``AssertionError``. The command line prints a ``FlowEdgeError`` on one line and ends with status 2.
After a ``PrecisionError`` it ends with status 1, since the command ran and its result did not pass.

Examples:
    >>> import flowedge
    >>> try:
    ...     detector = flowedge.load("missing.flowedge")
    ... except flowedge.errors.BundleError as error:
    ...     print(error)
    missing.flowedge is not a bundle: no such folder. Make one with: flowedge export CKPT -o missing.flowedge
"""

from __future__ import annotations


class FlowEdgeError(Exception):
    """An error that the user can act on. The message names the cause, the value and the next step."""


class CheckpointError(FlowEdgeError):
    """The checkpoint cannot be read, is not of a known model, or lacks something."""


class UnsafeCheckpointError(CheckpointError):
    """The file asks to run code or to build a class that is not on the allow-list."""


class ExportError(FlowEdgeError):
    """The exported graph could not be made, or differs from the reference network."""


class BundleError(FlowEdgeError):
    """The bundle on disk cannot be trusted, read or written."""


class BundleChangedError(BundleError):
    """Another process replaced the bundle since it was opened, so that a change of the old version is refused."""


class SignatureError(BundleError):
    """A signature is needed and is missing, wrong, expired or by a key that is not trusted, or a key cannot be read."""


class ImageError(FlowEdgeError):
    """An image or a frame cannot be read, or is not what the bundle takes."""


class DataError(FlowEdgeError):
    """A folder of images is not what the command needs."""


class SourceError(FlowEdgeError):
    """A camera, a video or another source of frames cannot be opened."""


class CalibrationError(FlowEdgeError):
    """A constant or a threshold cannot be fitted on the given images."""


class PrecisionError(FlowEdgeError):
    """A graph of lower precision cannot pass its gate, and was not written."""


class ProcessError(FlowEdgeError, TypeError):
    """A detector was pickled, copied, or used after a fork. Python's own word for the first two is a `TypeError`."""


class MissingPackageError(FlowEdgeError):
    """An optional package, such as torch or onnx, is not installed."""


class SettingsError(FlowEdgeError):
    """A settings file has a key or a value that is not allowed, or names a secret that is not there."""


class RegistryError(FlowEdgeError):
    """A bundle cannot be pushed to a registry or pulled from it, or a registry's answer cannot be trusted."""


class JournalError(FlowEdgeError):
    """A station's journal cannot be opened, read or written."""


class EngineCacheError(FlowEdgeError):
    """The cache of compiled engines cannot be used."""


class EngineUnavailableError(FlowEdgeError):
    """The requested engine cannot run on this machine."""


class EngineNotBuiltError(EngineUnavailableError):
    """The engine must be compiled for this machine first."""


class EngineWrongError(EngineUnavailableError):
    """The engine's answers to the bundle's self-test are wrong on this machine."""
