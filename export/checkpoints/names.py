"""Decide which classes and functions a checkpoint's pickle may mention.

A mentioned name is never imported, looked up or called, whatever it is. An object that a file would build from an
allowed name becomes a stand-in. A name that only a hostile file has a use for ends the reading, so that nobody goes on
to open such
a file elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch


@dataclass(frozen=True, slots=True)
class Name:
    """Hold the name of a class or function that the file mentions. The name is never looked up."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


# The element type of each class of stored arrays.
STORED_TYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
        "ComplexFloatStorage": torch.complex64,
        "ComplexDoubleStorage": torch.complex128,
        "UntypedStorage": torch.uint8,
        # The integers that quantised tensors are stored as.
        "QInt8Storage": torch.int8,
        "QUInt8Storage": torch.uint8,
        "QInt32Storage": torch.int32,
        "QUInt4x2Storage": torch.uint8,
        "QUInt2x4Storage": torch.uint8,
    }
)
TYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
)
# The functions by which torch pickles tensors that are not dense and real. Such tensors are refused by their names.
ODD_TENSORS: Final = frozenset(
    Name("torch._utils", f"_rebuild_{kind}")
    for kind in ("sparse_tensor", "qtensor", "nested_tensor", "wrapper_subclass")
) | {Name("torch.nested._internal.nested_tensor", "_rebuild_njt")}
# The libraries and files of the supported repositories. A class that they define is not the user's own.
_KNOWN_LIBRARIES: Final = (
    *("FrEIA", "anomalib", "config", "freia_funcs", "jsonargparse", "lightning", "lightning_fabric"),
    *("lightning_utilities", "numpy", "omegaconf", "pytorch_lightning", "timm", "torch", "torchmetrics"),
    *("torchvision", "utils"),
)
# Modules of the standard library that define data, whole.
_DATA_MODULES: Final = (
    *(
        "_operator",
        "argparse",
        "array",
        "collections",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "fractions",
    ),
    *("ipaddress", "itertools", "numbers", "pathlib", "random", "re", "string", "typing", "uuid", "zoneinfo"),
)
# Single names of other modules of the standard library.
_DATA_NAMES: Final[Mapping[str, Collection[str]]] = MappingProxyType(
    {
        "builtins": (
            *(
                "bool",
                "bytearray",
                "complex",
                "float",
                "int",
                "object",
                "range",
                "slice",
                "str",
                "type",
                "xrange",
            ),
            *(
                "Ellipsis",
                "NotImplemented",
                "abs",
                "all",
                "any",
                "divmod",
                "enumerate",
                "hash",
                "len",
                "max",
                "min",
                "pow",
                "print",
                "repr",
                "reversed",
                "round",
                "sorted",
                "sum",
                "zip",
            ),
        ),
        "_io": ("BytesIO", "StringIO"),
        "contextlib": ("nullcontext",),
        "functools": ("partial", "partialmethod"),
        "http": ("HTTPStatus",),
        "inspect": ("Parameter", "Signature", "_ParameterKind", "_empty"),
        "logging": ("Filter", "Formatter", "Logger", "LoggerAdapter", "StreamHandler", "getLogger"),
        "operator": ("itemgetter",),
        "platform": ("uname_result",),
        "signal": ("Signals",),
        "statistics": ("NormalDist",),
        "time": ("struct_time",),
        "types": ("GenericAlias", "MappingProxyType", "NoneType", "SimpleNamespace"),
        "urllib.parse": ("ParseResult", "SplitResult"),
    }
)
# The parts of torch whose objects a module, a trainer or a callback may hold.
_TORCH_MODULES: Final = (
    *("torch._C._nn", "torch._dynamo", "torch.amp", "torch.ao", "torch.autograd", "torch.cuda"),
    *(
        "torch.distributed._mesh_layout",
        "torch.distributed.algorithms",
        "torch.distributed.device_mesh",
        "torch.distributed.fsdp",
        "torch.distributed.optim",
        "torch.distributed.tensor",
        "torch.distributions",
    ),
    *(
        "torch.fx",
        "torch.functional",
        "torch.nested",
        "torch.nn",
        "torch.optim",
        "torch.quantization",
        "torch.return_types",
    ),
    *("torch.torch_version", "torch.utils.data"),
)
_TORCH_NAMES: Final = ODD_TENSORS | frozenset(
    [
        Name("torch", name)
        for name in (*STORED_TYPES, *TYPES, "Tensor", "Generator", "device", "dtype", "layout")
    ]
    + [Name("torch", "OutOfMemoryError")]
    + [Name("torch", name) for name in ("memory_format", "strided", "contiguous_format", "preserve_format")]
    + [Name("torch", name) for name in ("channels_last", "finfo", "iinfo", "per_tensor_affine")]
    + [Name("torch", name) for name in ("per_tensor_symmetric", "per_channel_affine")]
    + [Name("torch._C", "_VariableFunctionsClass"), Name("torch._C", "Generator")]
    + [Name("torch.storage", "TypedStorage"), Name("torch.storage", "UntypedStorage")]
    + [Name("torch.serialization", "_get_layout"), Name("torch._utils", "_rebuild_device_tensor_from_numpy")]
)
# Modules that run, fetch or load things. No class in them is a part of a detector.
_RUNNERS: Final = (
    *(
        "IPython",
        "aiohttp",
        "cffi",
        "cloudpickle",
        "dill",
        "fabric",
        "httpx",
        "invoke",
        "joblib",
        "nbconvert",
    ),
    *(
        "numpy.distutils",
        "numpy.f2py",
        "numpy.testing",
        "paramiko",
        "pexpect",
        "pip",
        "pkg_resources",
        "plumbum",
    ),
    *("requests", "setuptools", "sh", "urllib3", "wget"),
)
# Modules of other versions of Python's standard library, which `sys.stdlib_module_names` leaves out.
_OTHER_STANDARD_MODULES: Final = frozenset(
    {
        *(
            "__builtin__",
            "_winapi",
            "asynchat",
            "asyncore",
            "cPickle",
            "cgi",
            "cgitb",
            "commands",
            "copy_reg",
            "crypt",
        ),
        *("distutils", "httplib", "imp", "lib2to3", "nntplib", "nt", "pipes", "popen2", "smtpd", "telnetlib"),
        *("urllib2", "xdrlib", "xmlrpclib"),
    }
)
_MAIN_MODULES: Final = ("__main__", "__mp_main__")


def may_stand_in(name: Name) -> bool:
    """Return True when a pickle may name this class or function, for which a stand-in is made that never runs.

    The classes of the user's own scripts and of most libraries may be mentioned. From torch and Python's standard
    library only names for data, modules and trainers are allowed. Names that run or fetch something are not.
    """
    parts = [*name.module.split("."), *name.qualname.split(".")]
    if name.module in _MAIN_MODULES:
        parts = name.qualname.split(".")
    if not all(part.isidentifier() and not _is_special(part) for part in parts):
        return False
    if "." in name.qualname and any(map(_is_standard, name.qualname.split("."))):
        return False  # an attribute of a module that another module imported, such as os in torchvision
    root = name.module.partition(".")[0]
    if root == "torch":
        return name in _TORCH_NAMES or _is_within(name.module, _TORCH_MODULES)
    if root == "builtins" and name.qualname.endswith(
        ("Error", "Exception", "Interrupt", "Iteration", "Warning")
    ):
        return True
    if _is_standard(root):
        is_data = _is_within(name.module, _DATA_MODULES)
        return is_data or name.qualname.partition(".")[0] in _DATA_NAMES.get(name.module, ())
    return not _is_within(name.module, _RUNNERS)


def is_foreign(name: Name) -> bool:
    """Return True for a name that is neither Python's nor of a library or repository that the readers know."""
    root = name.module.partition(".")[0]
    return not (_is_standard(root) or root in _KNOWN_LIBRARIES)


def _is_special(part: str) -> bool:
    return part.startswith("__") and part.endswith("__")


def _is_standard(root: str) -> bool:
    return root in sys.stdlib_module_names or root in _OTHER_STANDARD_MODULES


def _is_within(module: str, roots: Collection[str]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)
