"""Objects of a user's own classes in a checkpoint never run, and block only values that are needed."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import logging
import pathlib
import re
import types
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import Checkpoint, read_checkpoint
from support.checkpoint_files import cflow_state, fake_class, prefixed, save
from support.command_line import flowedge as run_flowedge

HYPER = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "clamp_alpha": 1.7}
SIZE = {"input_size": "64"}
RAN: list[str] = []


class Mode(enum.Enum):
    FAST = "fast"


class Level(enum.IntEnum):
    ONE = 1


class Network(str, enum.Enum):
    SMALL = "resnet18"


@dataclasses.dataclass
class Limits:
    low: float = 0.1
    names: tuple[str, ...] = ("a", "b")


class Slots:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 3


Point = collections.namedtuple("Point", ["x", "y"])


class Callback:
    """Notes whatever code of it an unpickler runs."""

    class Inner(enum.Enum):
        A = 1

    def __init__(self) -> None:
        self.limits, self.mode = Limits(), Mode.FAST

    def __setstate__(self, state: dict[str, object]) -> None:
        RAN.append("__setstate__")
        self.__dict__.update(state)

    def score(self, value: float) -> float:
        return value


class Names(list[str]):
    pass


class Table(dict[str, int]):
    pass


class Image(torch.Tensor):
    pass


class Resize(v2.Resize):  # type: ignore[misc]
    """A user's class that has the name of a known class."""


def metric(a: float, b: float) -> float:
    return a - b


def values() -> dict[str, object]:
    """List the objects that people put into hyper-parameters and callbacks."""
    return {
        "an enumeration": Mode.FAST,
        "an enumeration of numbers": {Level.ONE: [Level.ONE]},
        "an enumeration in a class": (Callback.Inner.A, Callback.Inner),
        "a dataclass": Limits(),
        "slots": Slots(),
        "a named tuple": Point(1, 2),
        "a callback": Callback(),
        "a class": Callback,
        "a function": metric,
        "a bound method": Callback().score,
        "a partial function": functools.partial(metric, 1.0, b=Level.ONE),
        "a list of its own kind": Names(["a"]),
        "a dict of its own kind": Table(a=1),
        "a module": nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        "a tensor of its own kind": torch.ones(2).as_subclass(Image),
        "torchvision's tensor": tv_tensors.Image(torch.zeros(3, 2, 2)),
        "a path": (pathlib.PurePosixPath("a/b"), pathlib.Path("a")),
        "times": (datetime.datetime(2026, 1, 2), datetime.timedelta(3), datetime.timezone.utc),
        "a namespace": argparse.Namespace(a=1, mode=Mode.FAST),
        "a simple namespace": types.SimpleNamespace(a=1),
        "NumPy's": (np.float64(1.5), np.int32(2), np.arange(3), np.dtype("f4"), np.random.default_rng(0)),
        "an array of objects": np.array([Mode.FAST, None], object),
        "collections": (collections.deque([1], 3), collections.Counter("ab"), collections.defaultdict(list)),
        "numbers": (decimal.Decimal("1.5"), complex(1, 2), uuid.UUID(int=5), slice(1, 2)),
        "text": (re.compile("a.c"), logging.getLogger("mine"), b"bytes", bytearray(b"x")),
        "an error": ValueError("no"),
        "torch's": (torch.device("cpu"), torch.float16, torch.Size([1]), torch.strided),
        "a scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau,
        "keys": {(1, (Mode.FAST, "a")): 1, frozenset({Mode.FAST}): 2, Mode: 3},
        "built in": (type(None), Ellipsis, min, len),
    }


def lightning(hyper: object, **entries: object) -> dict[str, object]:
    return {"state_dict": prefixed("model.", cflow_state()), "hyper_parameters": hyper, **entries}


def read(path: Path, value: object, **settings: str) -> Checkpoint:
    return read_checkpoint(save(path, value), settings={**SIZE, **settings})


def facts(checkpoint: Checkpoint) -> tuple[object, ...]:
    return (
        checkpoint.hyperparameters,
        checkpoint.preprocessing,
        checkpoint.assumed,
        checkpoint.generation,
        sorted(checkpoint.tensors),
    )


@pytest.fixture
def expected(tmp_path: Path) -> Checkpoint:
    return read(tmp_path / "plain.ckpt", lightning(dict(HYPER)))


@pytest.mark.parametrize("what", values())
@pytest.mark.parametrize("place", ["hyper_parameters", "callbacks", "beside"])
def test_what_nobody_needs_does_not_block_a_file(
    what: str, place: str, tmp_path: Path, expected: Checkpoint
) -> None:
    value = values()[what]
    RAN.clear()
    file = {
        "hyper_parameters": lightning({**HYPER, "evaluator": value}),
        "callbacks": lightning(dict(HYPER), callbacks={"MyCallback": {"state": value}}),
        "beside": lightning(dict(HYPER), extra=value),
    }[place]
    checkpoint = read(tmp_path / "model.ckpt", file)
    assert facts(checkpoint) == facts(expected)
    assert RAN == []


def test_the_users_own_classes_are_listed_and_those_of_libraries_are_not(tmp_path: Path) -> None:
    path = save(tmp_path / "model.ckpt", lightning({**HYPER, "evaluator": values()}))
    listed = read_checkpoint(path, settings=SIZE).stand_ins
    own = {
        f"{__name__}.{kind.__qualname__}"
        for kind in (Mode, Level, Limits, Slots, Callback, Names, Table, Callback.Inner)
    }
    assert own | {f"{__name__}.metric"} <= set(listed)
    assert [name for name in listed if not name.startswith(__name__)] == []
    done = run_flowedge("info", path, "--set", "input_size=64")
    assert done.status == 0, done.stderr
    assert "Callback" in done.stdout


def test_a_script_that_was_run_as_main_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Checkpoint
) -> None:
    evaluator = fake_class(monkeypatch, "__main__", "MyEvaluator")()
    checkpoint = read(tmp_path / "model.ckpt", lightning({**HYPER, "evaluator": evaluator}))
    assert facts(checkpoint) == facts(expected)
    assert checkpoint.stand_ins == ("__main__.MyEvaluator",)


@pytest.mark.parametrize(
    "hyper",
    [
        argparse.Namespace(**HYPER),
        types.SimpleNamespace(**HYPER),
        {**HYPER, "backbone": Network.SMALL},
        {**HYPER, "clamp_alpha": np.float64(1.7)},
        Table(HYPER),  # type: ignore[arg-type]
    ],
    ids=[
        "Namespace",
        "SimpleNamespace",
        "an enumeration of text",
        "NumPy's number",
        "a dict of its own kind",
    ],
)
def test_values_in_containers_that_are_known_are_read(
    hyper: object, tmp_path: Path, expected: Checkpoint
) -> None:
    checkpoint = read(tmp_path / "model.ckpt", lightning(hyper))
    assert checkpoint.hyperparameters == expected.hyperparameters


@pytest.mark.parametrize(
    ("hidden", "setting"),
    [({"clamp_alpha": Limits()}, "clamp"), ({"layers": [Mode, Mode]}, ""), ({"backbone": Limits()}, "")],
)
def test_a_value_that_is_needed_and_hidden_is_refused_by_name_unless_the_tensors_or_the_user_tell(
    hidden: dict[str, object], setting: str, tmp_path: Path, expected: Checkpoint
) -> None:
    file = lightning({**HYPER, **hidden})
    if setting:
        with pytest.raises(CheckpointError, match=rf"Limits.*--set {setting}="):
            read(tmp_path / "model.ckpt", file)
        checkpoint = read(tmp_path / "model.ckpt", file, clamp="1.7")
    else:
        checkpoint = read(tmp_path / "model.ckpt", file)
    assert checkpoint.hyperparameters == expected.hyperparameters


def test_a_network_that_only_a_hidden_name_tells_is_refused_by_the_class_that_hides_it(
    tmp_path: Path,
) -> None:
    file = lightning({**HYPER, "backbone": Limits()})
    state = {
        name.replace("conv1", "conv_one"): tensor
        for name, tensor in prefixed("model.", cflow_state()).items()
    }
    with pytest.raises(CheckpointError, match=r"Limits.*--set backbone="):
        read(tmp_path / "model.ckpt", {**file, "state_dict": state})


@pytest.mark.parametrize(
    "transform",
    [Resize((64, 64)), v2.Compose([v2.Resize((64, 64)), Resize((64, 64))]), Callback()],
    ids=["a known name", "one step", "an object"],
)
def test_a_transform_of_the_users_own_is_refused_by_name_until_the_user_says_what_it_does(
    transform: object, tmp_path: Path
) -> None:
    file = lightning(dict(HYPER), transform=transform)
    with pytest.raises(CheckpointError, match=rf"{__name__}\.(Resize|Callback)"):
        read_checkpoint(save(tmp_path / "model.ckpt", file))
    settings = {"resize_method": "cv2_bilinear", "mean": "0.5,0.5,0.5", "std": "1,1,1"}
    checkpoint = read(tmp_path / "model.ckpt", file, **settings)
    assert checkpoint.preprocessing.resize == (64, 64)
    assert checkpoint.preprocessing.method == "cv2_bilinear"


def test_a_pre_processor_of_the_users_own_is_not_taken_for_its_transform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = fake_class(monkeypatch, "my_project.steps", "Sharpen")()
    processor.__dict__.update(transform=v2.Resize((64, 64)))
    file = lightning({**HYPER, "pre_processor": processor})
    with pytest.raises(CheckpointError, match=r"my_project\.steps\.Sharpen"):
        read_checkpoint(save(tmp_path / "model.ckpt", file))


def test_weights_in_an_object_of_the_users_own_are_missed_by_name(tmp_path: Path) -> None:
    state = prefixed("model.", cflow_state())
    name = "model.decoders.0.module_list.0.subnet.0.weight"
    file = {**lightning(dict(HYPER)), "state_dict": {**state, name: Limits()}}
    with pytest.raises(CheckpointError, match=r"flow\.0\.0|subnet"):
        read(tmp_path / "model.ckpt", file)
