"""State dicts of wrapped models and averaged copies of weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import Checkpoint, read_checkpoint
from support.checkpoint_files import (
    State,
    cflow_state,
    fake_class,
    module_tree,
    prefixed,
    resnet,
    save,
    sequence,
)
from support.command_line import flowedge as run_flowedge

HYPER = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "clamp_alpha": 1.7}
SIZE = {"input_size": "64"}
TRIAL = Path(__file__).resolve().parents[3] / "shared" / "checkpoints" / "cflow_magnetic_tile.ckpt"


def lightning(state: Mapping[str, object], **entries: object) -> dict[str, object]:
    return {"state_dict": dict(state), "hyper_parameters": dict(HYPER), **entries}


def module_of(state: State) -> nn.Module:
    """Make a module that has this state dict."""
    root = nn.Module()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        owner = root
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        owner.register_buffer(leaf, tensor)
    return root


def read(path: Path, value: object, **settings: str) -> Checkpoint:
    return read_checkpoint(save(path, value), settings={**SIZE, **settings})


def assert_same(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    """Check that the checkpoint's tensors are those of the state, and all other facts those without wrappers."""
    expected = read(tmp_path / "plain.ckpt", lightning(prefixed("model.", state)))
    assert checkpoint.tensors.keys() == expected.tensors.keys()
    for name, array in expected.tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], array)
    assert checkpoint.hyperparameters == expected.hyperparameters
    assert checkpoint.generation == expected.generation


def renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "model._orig_mod.",
        "model.module.",
        "module.model.",
        "_orig_mod.model.",
        "model._orig_mod.module.",
        "model.module._orig_mod.",
        "module._orig_mod.model.module.",
        "_forward_module.model.",
        "_forward_module.module.model.",
        "model._fsdp_wrapped_module._checkpoint_wrapped_module.",
        "model.model.",
        "module.module.model.",
        "model._module.",
    ],
)
def test_a_wrapped_model_reads_as_the_model_in_it(prefix: str, tmp_path: Path) -> None:
    state = cflow_state()
    checkpoint = read(tmp_path / "wrapped.ckpt", lightning(prefixed(prefix, state)))
    assert_same(checkpoint, state, tmp_path)


def test_parts_of_a_model_may_be_wrapped_each_in_its_way(tmp_path: Path) -> None:
    state = cflow_state()

    def wrap(name: str) -> str:
        name = name.replace("encoder.", "encoder._orig_mod.").replace(
            "module_list.0.", "module_list.0.module."
        )
        return "model." + name.replace("decoders.1.", "decoders.1._orig_mod.").replace(
            "subnet.", "subnet._checkpoint_wrapped_module."
        )

    checkpoint = read(tmp_path / "wrapped.ckpt", lightning(renamed(state, wrap)))
    assert_same(checkpoint, state, tmp_path)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, AveragedModel, lambda m: AveragedModel(nn.DataParallel(m))]
)
def test_what_torchs_own_wrappers_save_reads_as_the_model_in_them(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    state = cflow_state()
    wrapped = wrap(module_of(prefixed("model.", state))).state_dict()
    checkpoint = read(tmp_path / "wrapped.ckpt", lightning(wrapped))
    assert_same(checkpoint, state, tmp_path)


def test_an_official_file_may_hold_compiled_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    encoder, decoders = resnet(rng), [sequence(rng, channels, condition=4) for channels in (256, 512)]

    def file(wrapper: str) -> dict[str, object]:
        return {
            "encoder_state_dict": prefixed(wrapper, encoder),
            "decoder_state_dict": [prefixed(wrapper, decoder) for decoder in decoders],
        }

    expected = read(tmp_path / "plain.pt", file(""))
    assert expected.hyperparameters["layers"] == ("layer3", "layer4")
    for wrapper in ("_orig_mod.", "module._orig_mod."):
        checkpoint = read(tmp_path / "wrapped.pt", file(wrapper))
        assert checkpoint.hyperparameters == expected.hyperparameters
        assert checkpoint.tensors.keys() == expected.tensors.keys()


def test_a_pickled_module_may_be_wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = cflow_state()
    kind = fake_class(monkeypatch, "anomalib.models.image.cflow.lightning_model", "Cflow")
    parallel = fake_class(monkeypatch, "torch.nn.parallel.data_parallel", "FakeParallel")
    inner = module_tree(kind, prefixed("model.", state), _hparams=dict(HYPER))
    outer = parallel()
    outer.__dict__.update(_parameters={}, _buffers={}, _modules={"module": inner})
    checkpoint = read(tmp_path / "model.pt", {"model": outer})
    expected = read(tmp_path / "plain.pt", {"model": inner})
    assert checkpoint.hyperparameters == expected.hyperparameters
    assert checkpoint.hyperparameters["clamp"] == 1.7
    assert checkpoint.tensors.keys() == expected.tensors.keys()


def test_two_tensors_that_get_one_name_are_refused_by_both_names_unless_they_are_equal(
    tmp_path: Path,
) -> None:
    state = prefixed("model.", cflow_state())
    name = next(iter(state))
    twin = name.replace("model.", "model._orig_mod.")
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / "two.ckpt", lightning({**state, twin: state[name] + 1}))
    assert name in str(caught.value)
    assert twin in str(caught.value)
    assert_same(
        read(tmp_path / "one.ckpt", lightning({**state, twin: state[name].clone()})), cflow_state(), tmp_path
    )


COPIES: dict[str, Callable[[State, State], dict[str, object]]] = {
    "timm": lambda one, two: lightning(one, state_dict_ema=two),
    "torchvision": lambda one, two: lightning(
        one, model_ema={**prefixed("module.", two), "n_averaged": torch.tensor(3)}
    ),
    "inside, as a callback's module": lambda one, two: lightning({**one, **prefixed("ema_", two)}),
    "inside, by swa_utils": lambda one, two: lightning(
        {**one, **prefixed("averaged_model.module.", two), "averaged_model.n_averaged": torch.tensor(3)}
    ),
    "inside, by ema_pytorch": lambda one, two: lightning(
        {
            **one,
            **prefixed("ema.ema_model.", two),
            **prefixed("ema.online_model.", one),
            "ema.initted": torch.tensor(True),
        }
    ),
    "a callback's state": lambda one, two: lightning(
        one, callbacks={"EMACallback{'decay': 0.999}": {"decay": 0.999, "weights": two}}
    ),
    "a callback's key": lambda one, two: lightning(one, callbacks={"MyCallback": {"ema_state_dict": two}}),
}


@pytest.mark.parametrize("place", COPIES)
def test_an_averaged_copy_is_taken_on_request_and_announced_otherwise(place: str, tmp_path: Path) -> None:
    trained, averaged = (prefixed("model.", cflow_state(seed)) for seed in (0, 1))
    file = COPIES[place](trained, averaged)
    checkpoint = read(tmp_path / "model.ckpt", file)
    assert_same(checkpoint, cflow_state(0), tmp_path)
    assert checkpoint.weights == "trained"
    assert checkpoint.other_weights
    checkpoint = read(tmp_path / "model.ckpt", file, weights="ema")
    assert_same(checkpoint, cflow_state(1), tmp_path)
    assert [(a.name, a.value, a.given) for a in checkpoint.assumed if a.name == "weights"] == [
        ("weights", "ema", True)
    ]


def test_a_copy_of_the_parameters_alone_leaves_the_buffers_as_they_are(tmp_path: Path) -> None:
    trained, averaged = (prefixed("model.", cflow_state(seed)) for seed in (0, 1))
    name = "model.decoders.0.module_list.0.subnet.0.weight"
    file = lightning(trained, ema_state_dict={name: averaged[name]})
    checkpoint = read(tmp_path / "model.ckpt", file, weights="ema")
    assert_same(checkpoint, {**cflow_state(0), name.removeprefix("model."): averaged[name]}, tmp_path)


def test_lightnings_averaging_callback_gives_what_lightning_loads(tmp_path: Path) -> None:
    trained, averaged = (prefixed("model.", cflow_state(seed)) for seed in (0, 1))
    file = lightning(averaged, current_model_state=trained, averaging_state={"n_averaged": torch.tensor(9)})
    checkpoint = read(tmp_path / "model.ckpt", file)
    assert_same(checkpoint, cflow_state(1), tmp_path)
    assert checkpoint.other_weights == "current_model_state"
    assert [(a.value, a.given) for a in checkpoint.assumed if a.name == "weights"] == [("ema", False)]
    assert_same(read(tmp_path / "model.ckpt", file, weights="trained"), cflow_state(0), tmp_path)
    assert_same(read(tmp_path / "model.ckpt", file, weights="ema"), cflow_state(1), tmp_path)


def test_weights_that_the_file_does_not_hold_are_refused(tmp_path: Path) -> None:
    state = prefixed("model.", cflow_state())
    with pytest.raises(CheckpointError, match="no averaged copy"):
        read(tmp_path / "model.ckpt", lightning(state), weights="ema")
    with pytest.raises(CheckpointError, match="averaged weights only"):
        read(tmp_path / "ema.ckpt", {"state_dict_ema": state, "hyper_parameters": HYPER}, weights="trained")
    with pytest.raises(CheckpointError, match="state_dict_ema, model_ema"):
        read(tmp_path / "two.ckpt", lightning(state, state_dict_ema=state, model_ema=state), weights="ema")
    with pytest.raises(CheckpointError, match="trained or ema"):
        read(tmp_path / "model.ckpt", lightning(state), weights="best")


def test_a_file_of_averaged_weights_alone_is_read(tmp_path: Path) -> None:
    state = prefixed("model.", cflow_state())
    checkpoint = read(tmp_path / "ema.ckpt", {"state_dict_ema": state, "hyper_parameters": HYPER})
    assert_same(checkpoint, cflow_state(), tmp_path)
    assert checkpoint.weights == "ema"


def test_an_optimizers_averages_are_no_copy(tmp_path: Path) -> None:
    state = prefixed("model.", cflow_state())
    optimizer = {"exp_avg": dict(state), "state": {"exp_avg": dict(state)}}
    checkpoint = read(tmp_path / "model.ckpt", lightning(state, optimizer_state_dict=optimizer))
    assert not checkpoint.other_weights


@pytest.mark.skipif(not TRIAL.exists(), reason="the recorded checkpoint is not on this machine")
@pytest.mark.parametrize("wrapper", ["model._orig_mod.", "model.module."])
def test_a_real_checkpoint_reads_the_same_wrapped(wrapper: str, tmp_path: Path) -> None:
    saved = torch.load(TRIAL, map_location="cpu", weights_only=False)
    wrapped = {name.replace("model.", wrapper, 1): value for name, value in saved["state_dict"].items()}
    settings = {"input_size": "256"}
    path = save(tmp_path / "wrapped.ckpt", {**saved, "state_dict": wrapped})
    checkpoint, expected = (read_checkpoint(p, settings=settings) for p in (path, TRIAL))
    assert checkpoint.tensors.keys() == expected.tensors.keys()
    assert all(np.array_equal(checkpoint.tensors[n], expected.tensors[n]) for n in expected.tensors)
    assert checkpoint.source_scale == expected.source_scale
    assert checkpoint.assumed == expected.assumed


def test_info_says_that_there_is_an_averaged_copy(tmp_path: Path) -> None:
    state = prefixed("model.", cflow_state())
    path = save(tmp_path / "model.ckpt", lightning(state, state_dict_ema=state))
    done = run_flowedge("info", path, "--set", "input_size=64")
    assert done.status == 0, done.stderr
    assert "state_dict_ema" in done.stdout
    assert "--set weights=ema" in done.stdout
