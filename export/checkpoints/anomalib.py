"""Read anomalib's checkpoints of CFLOW, CS-Flow, FastFlow and U-Flow, versions 0.3 to 2.7.

A file is a Lightning checkpoint, or a pickled module that anomalib's "torch" export wrote. The generations of anomalib
keep the input pipeline, the hyper-parameters and the thresholds in different places. The version is not stored, and
since 1.0 neither is the model's name, so the reader tells both from the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.budget import MAX_DEPTH, above_budget
from flowedge.export.checkpoints.checkpoint import Checkpoint
from flowedge.export.checkpoints.contents import Contents, State, named
from flowedge.export.checkpoints.coupling_tensors import take_clamp_variant
from flowedge.export.checkpoints.family_tensors import (
    FamilyTensors,
    cflow_tensors,
    check_input_size,
    csflow_tensors,
    fastflow_tensors,
    take_network,
    uflow_tensors,
)
from flowedge.export.checkpoints.names import is_foreign
from flowedge.export.checkpoints.permutations import csflow_permutations
from flowedge.export.checkpoints.post_processing import source_scale
from flowedge.export.checkpoints.preprocessing import (
    albumentations_pipeline,
    fixed_pipeline,
    size_of,
)
from flowedge.export.checkpoints.settings import (
    CLAMP,
    EFFICIENTNET_PADDING,
    INPUT_SIZE,
    MEAN,
    PERMUTATIONS,
    RESIZE_METHOD,
    STD,
    TOP_PIXELS,
    USE_GAMMA,
    Choices,
    hidden_behind,
    stored_clamp,
)
from flowedge.export.checkpoints.stand_ins import StandIn, numpy_number
from flowedge.export.checkpoints.transforms import transform_pipeline
from flowedge.manifest import Family, Preprocessing
from flowedge.text import printable, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """Describe one of anomalib's models.

    Attributes:
        tensors: The function that reads the model's state dict.
        clamp: The default of the clamp.
        clamp_name: The name of the hyper-parameter that holds the clamp, or an empty string where the code fixes the
            clamp.
        side_of_0: The default side (pixels) of the square input in anomalib 0.x.
    """

    tensors: Callable[[State], FamilyTensors]
    clamp: float
    clamp_name: str = ""
    side_of_0: int = 256


_MODELS: Final[Mapping[Family, _Model]] = {
    "cflow": _Model(tensors=cflow_tensors, clamp=1.9, clamp_name="clamp_alpha"),
    "csflow": _Model(tensors=csflow_tensors, clamp=3.0, clamp_name="clamp", side_of_0=768),
    "fastflow": _Model(tensors=fastflow_tensors, clamp=2.0),
    "uflow": _Model(tensors=uflow_tensors, clamp=2.0, clamp_name="affine_clamp"),
}
# Tensors that anomalib fits on validation images. Two files of one training may hold different values of them.
_FITTED: Final = ("post_processor.", "image_threshold", "pixel_threshold", "normalization_metrics.")
_ANY_SIZE: Final = (256, 256)
_UNSAID_SIZE: Final = (
    "Version 2.7 stores no transform both when there was none and when it could not describe it, so the size cannot "
    "be assumed."
)


def family_of(contents: Contents) -> Family | None:
    """Return the family whose module names the state dict has, or None."""
    keys = tuple(contents.state)
    if any(key.startswith("graph.graph.module_list.") and ".cross_convolution1." in key for key in keys):
        return "csflow"
    if any(key.startswith("decoders.0.module_list.") for key in keys):
        return "cflow"
    if any(key.startswith("fast_flow_blocks.0.module_list.") for key in keys):
        return "fastflow"
    if any(key.startswith("flow.module_list.") and key.endswith(".downsample_kernel") for key in keys):
        return "uflow"
    return None


def recognises(contents: Contents) -> bool:
    """Return True when the state dict is of one of anomalib's four models."""
    return family_of(contents) is not None


def read(contents: Contents, given: Mapping[str, str]) -> Checkpoint:
    """Read the checkpoint.

    Raises:
        CheckpointError: A tensor is missing or misshapen, the input pipeline cannot be reproduced or is unknown,
            or a setting is wrong.
    """
    family = family_of(contents)
    assert family is not None, "read() follows recognises()"
    choices = Choices(family, given)
    generation = _generation(contents)
    hyper = hyperparameters_in(contents)
    anomalib_model = _MODELS[family]
    model = anomalib_model.tensors(contents.state)
    take_network(choices, model, hyper)
    stored = hyper.get(anomalib_model.clamp_name)
    unknown, held = hidden_behind(stored), None
    try:
        held = None if unknown else stored_clamp(stored)
    except CheckpointError:
        if not choices.gives(CLAMP):
            raise
        unknown = f"The file says {shown(stored)}, which is no clamp."
    choices.take(
        CLAMP,
        held=held,
        default=None if unknown else anomalib_model.clamp,
        why=unknown or "anomalib's default; the checkpoint does not hold it.",
    )
    permutations = None
    if choices.offers(USE_GAMMA):
        choices.take(USE_GAMMA, held=True)
        choices.take(EFFICIENTNET_PADDING, held="symmetric")
        permutations = _permutations(choices, generation, model)
    else:
        take_clamp_variant(choices, model.tensors, known="tanh")
    if choices.offers(TOP_PIXELS):
        choices.take(TOP_PIXELS, held=1)
    preprocessing = _preprocessing(contents, generation, choices, model.input_size)
    check_input_size(choices, model.input_size)
    return Checkpoint(
        repository="anomalib",
        generation=generation,
        family=family,
        tensors=model.tensors,
        backbone_naming=model.naming,
        hyperparameters=choices.values,
        assumed=tuple(choices.assumed),
        preprocessing=preprocessing,
        source_scale=source_scale(contents, generation, _post_processor(contents)),
        permutations=permutations,
        file=contents.file,
        sha256=contents.sha256,
    )


def hyperparameters_in(contents: Contents) -> dict[str, object]:
    """Return the model's hyper-parameters as plain data.

    Version 0.x holds them in its configuration under ``model``.
    """
    everything = _configuration(contents)
    inner = everything.get("model")
    return dict(named(inner)) if isinstance(inner, dict) else everything


def _configuration(contents: Contents) -> dict[str, object]:
    value = contents.get("hyper_parameters")
    module = _module(contents)
    if value is None and module is not None:
        value = module.attributes.get("_hparams")
    if isinstance(value, StandIn) and not value.items and not value.kind.module.startswith("omegaconf."):
        value = dict(value.attributes)  # such as argparse.Namespace
    return dict(named(_plain(value, {}, 0)))


def _generation(contents: Contents) -> str:
    stored = contents.get("hyper_parameters")
    configuration = _configuration(contents)
    if isinstance(configuration.get("dataset"), dict) and isinstance(configuration.get("model"), dict):
        return "0.x"
    if contents.get("anomalib_components_enabled") is not None or "anomalib_pre_processor_config" in dict(
        named(contents.root)
    ):
        return "2.7"
    if contents.has("post_processor."):
        return "2.0-2.6" if stored is not None else "2.x"
    module = _module(contents)
    if module is not None and contents.get("metadata") is not None:  # "torch" exports before 2.0
        return "1.x" if _child(module, "transform") is not None else "0.x"
    if "pre_processor" in configuration:
        return "2.0-2.6"
    if contents.has("_class") or "transform" in dict(named(contents.root)):
        return "1.x"
    # The file has the thresholds of versions before 2.0 and nothing that 1.0 added. So version 0.x made the model
    # without
    # its configuration, and the hyper-parameters are the constructor's arguments.
    return "0.x" if stored is not None and contents.has("image_threshold.", "pixel_threshold.") else "unknown"


def _module(contents: Contents) -> StandIn | None:
    """Return the pickled module of a "torch" export, or None."""
    value = contents.get("model") if isinstance(contents.root, dict) else contents.root
    return value if isinstance(value, StandIn) else None


def _child(module: StandIn, name: str) -> object:
    """Return a submodule or an attribute of a pickled module by its name, or None if there is neither."""
    return dict(named(module.attributes.get("_modules"))).get(name, module.attributes.get(name))


def _permutations(
    choices: Choices, generation: str, model: FamilyTensors
) -> tuple[tuple[NDArray[np.int64], ...], ...]:
    scheme = choices.take(
        PERMUTATIONS,
        held=None if generation == "unknown" else "per_level" if generation == "0.x" else "shared",
        default="shared",
        why="A bare state dict does not say whether anomalib 0.x (per_level) or a later one trained it.",
    )
    return csflow_permutations(scheme, model.tensors)


def _post_processor(contents: Contents) -> Mapping[str, object]:
    """Return the post-processor's settings.

    The settings are data since anomalib 2.7 and attributes of a pickled object before.
    """
    module = _module(contents)
    for value in (
        contents.get("anomalib_post_processor_config"),
        _configuration(contents).get("post_processor"),
        None if module is None else _child(module, "post_processor"),
    ):
        if isinstance(value, (dict, StandIn)):
            return value.attributes if isinstance(value, StandIn) else dict(named(value))
    return {}


def _plain(value: object, seen: dict[int, tuple[object, object]], depth: int) -> object:
    """Turn nodes of OmegaConf, dicts of Lightning, enumerations of text and scalars of NumPy into plain values.

    All other stand-ins stay. A file may share and nest its objects as it likes.

    Args:
        value: The object.
        seen: Objects and their converted forms by identity, so that each object is converted once.
        depth: The number of containers that the object is in.

    Raises:
        CheckpointError: The containers are nested deeper than the budget allows.
    """
    if id(value) in seen:
        return seen[id(value)][1]
    if depth > MAX_DEPTH:
        raise above_budget("containers inside containers of the hyper-parameters", depth, MAX_DEPTH)
    seen[id(value)] = (value, None)  # a container that holds itself gets None
    result = value
    if isinstance(value, StandIn):
        pairs = [item for item in value.items if isinstance(item, tuple) and len(item) == 2]
        if value.kind.module.startswith("omegaconf."):
            attributes = value.attributes
            result = _plain(attributes.get("_content", attributes.get("_val")), seen, depth + 1)
        elif pairs:
            result = _plain(dict(pairs), seen, depth + 1)
        elif (number := numpy_number(value)) is not value:
            result = number
        elif len(value.args) == 1 and isinstance(value.args[0], str) and not value.state:
            result = value.args[0]  # a member of an enumeration, or a path
    elif isinstance(value, dict):
        result = {key: _plain(item, seen, depth + 1) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        result = [_plain(item, seen, depth + 1) for item in value]
    seen[id(value)] = (value, result)
    return result


def _preprocessing(
    contents: Contents, generation: str, choices: Choices, from_shapes: tuple[int, int] | None
) -> Preprocessing:
    configuration = _configuration(contents)
    if contents.transform_from is not None:
        transform = _transform_of_run(contents, contents.transform_from, generation)
        return transform_pipeline(choices, transform, from_shapes=from_shapes)
    if generation == "0.x" and "dataset" in configuration:
        return albumentations_pipeline(choices, configuration["dataset"])
    if generation == "0.x":
        stored = configuration.get("input_size")  # a constructor's argument there
        side = _MODELS[choices.family].side_of_0
        why = "The default of anomalib 0.x, without whose configuration the model was saved."
        return fixed_pipeline(
            choices,
            size=from_shapes if from_shapes is not None or stored is None else size_of(stored),
            default_size=(side, side),
            size_why=why,
            method="cv2_bilinear",
            why=why,
        )
    transform = _transform(contents, configuration)
    if transform is not None:
        try:
            return transform_pipeline(choices, transform, from_shapes=from_shapes)
        except CheckpointError:
            # A pipeline that the user gives in full replaces a transform that cannot be reproduced.
            if not choices.gives(INPUT_SIZE, RESIZE_METHOD, MEAN, STD):
                raise
    return fixed_pipeline(
        choices,
        size=from_shapes,
        default_size=None if generation == "2.7" else (256, 256),
        size_why=_UNSAID_SIZE if generation == "2.7" else "anomalib's default for this model since 1.0.",
        method="float_bilinear",
        why="anomalib's default; the checkpoint does not say its transform.",
    )


def _transform_of_run(contents: Contents, other: Contents, generation: str) -> object:
    """Return the transform that another file of the same training holds.

    Raises:
        CheckpointError: The file is of another model or holds no transform, or the checkpoint's own is another one.
    """
    family, file = family_of(contents), printable(other.file)
    if family_of(other) != family:
        raise CheckpointError(
            f"--transform-from {file} holds {family_of(other) or 'no known model'}, and the checkpoint {family}. Name "
            "a file of the same training."
        )
    shapes, others = (
        {name: tuple(tensor.shape) for name, tensor in one.state.items() if not name.startswith(_FITTED)}
        for one in (contents, other)
    )
    if shapes != others:
        different = sorted(name for name in shapes | others if shapes.get(name) != others.get(name))
        name = different[0]
        raise CheckpointError(
            f"--transform-from {file} is of another model: {len(different)} tensors differ in shape, such as {name}, "
            f"{others.get(name, 'missing')} there and {shapes.get(name, 'missing')} in the checkpoint. Name a file of "
            "the same training."
        )
    transform = _transform(other, _configuration(other))
    if transform is None:
        raise CheckpointError(
            f"--transform-from {file} holds no transform either. Name the model.pt of anomalib's torch export."
        )
    own = _transform(contents, _configuration(contents))
    if generation == "0.x" or (
        own is not None and _read_alone(family, own) != _read_alone(family, transform)
    ):
        raise CheckpointError(
            f"the checkpoint holds its own transform, which is another one than that of --transform-from {file}. Leave "
            "the option out."
        )
    return transform


def _read_alone(family: Family | None, transform: object) -> Preprocessing:
    assert family is not None, "its caller knows the family"
    return transform_pipeline(Choices(family, {}), transform, from_shapes=_ANY_SIZE)


def _transform(contents: Contents, configuration: Mapping[str, object]) -> object:
    """Return the description or the stand-in of the input transform, or None."""
    described = dict(named(contents.get("anomalib_pre_processor_config"))).get("transform")
    owners = [described, contents.get("transform")]
    processors = [configuration.get("pre_processor")]
    module = _module(contents)
    if module is not None:
        owners.append(_child(module, "transform"))
        processors.append(_child(module, "pre_processor"))
    for processor in processors:
        if isinstance(processor, StandIn):
            # A class of the user's own may do more than its transform.
            owners.append(processor if is_foreign(processor.kind) else _child(processor, "transform"))
    return next((owner for owner in owners if owner is not None), None)
