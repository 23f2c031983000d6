"""A model repository for Triton: its files, the models in it, and the verdicts that they give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

pytest.importorskip("tritonclient.grpc", reason="Triton's messages come with tritonclient[grpc]")

import flowedge
from flowedge.bundle import open_bundle
from flowedge.errors import BundleError, FlowEdgeError, SettingsError
from flowedge.runtime.device.engine_file import EngineFacts, graph_hash, header_bytes
from flowedge.runtime.serving import triton_models
from flowedge.runtime.serving.triton_files import TritonSettings
from flowedge.runtime.serving.triton_repository import write_repository
from support.command_line import flowedge as command
from support.pretend_triton import Request, answer, config_of, loaded_model, pretend_triton, stacked
from support.served import some_frames, tiny_folder

CPU = "onnxruntime-cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and with a pack of two products."""
    return tiny_folder(tmp_path_factory.mktemp("triton"))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(np, "__version__", "1.26.4")
    return pretend_triton(monkeypatch)


def written(source: Path, target: Path, **choices: Any) -> tuple[str, ...]:
    return write_repository(source, target, TritonSettings(**choices))


def check_same(
    outputs: dict[str, NDArray[Any]], source: Path, frames: NDArray[np.uint8], **options: Any
) -> None:
    """Compare the outputs of a model with the answers of the bundle in this process, bit for bit."""
    with flowedge.load(source, engine=CPU, threads=1) as detector:
        results = detector.detect_batch(list(frames), **options)
    np.testing.assert_array_equal(outputs["score"], np.array([[one.score] for one in results], np.float32))
    np.testing.assert_array_equal(outputs["anomaly_map"], np.stack([one.anomaly_map for one in results]))
    assert outputs["verdict"].tolist() == [[one.verdict.encode()] for one in results]
    assert outputs["problem"].tolist() == [[b""]] * len(results)


def test_a_bundle_becomes_one_model_that_gives_its_verdicts(
    folder: Path, tmp_path: Path, logged: list[str]
) -> None:
    names = written(folder / "bottle.flowedge", tmp_path / "repo", engine=CPU, threads=1, batch=4, delay_ms=3)
    assert names == ("bottle",)
    config = config_of(tmp_path / "repo" / "bottle")
    assert (config.name, config.backend, config.max_batch_size) == ("bottle", "python", 4)
    assert config.dynamic_batching.max_queue_delay_microseconds == 3000
    assert [list(one.dims) for one in config.input] == [[-1, -1, 3]]
    assert [one.name for one in config.output] == ["score", "verdict", "anomaly_map", "problem"]
    model, frames = loaded_model(tmp_path / "repo" / "bottle"), some_frames(3)
    check_same(answer(model, image=frames), folder / "bottle.flowedge", frames)
    model.finalize()
    assert logged == []


def test_a_product_of_a_pack_becomes_a_model_of_that_product_alone(
    folder: Path, tmp_path: Path, logged: list[str]
) -> None:
    source = folder / "line.flowedgepack" / "products" / "screw"
    assert written(source, tmp_path / "repo", engine=CPU, threads=1) == ("screw",)
    assert [one.name for one in config_of(tmp_path / "repo" / "screw").input] == ["image"]
    model, frames = loaded_model(tmp_path / "repo" / "screw"), some_frames(2)
    check_same(answer(model, image=frames), source, frames)
    model.finalize()


def test_the_warm_up_is_a_frame_of_the_self_test(folder: Path, tmp_path: Path) -> None:
    written(folder / "line.flowedgepack", tmp_path)
    (run,) = config_of(tmp_path / "line").model_warmup
    image, product = run.inputs["image"], run.inputs["product"]
    frame = np.frombuffer((tmp_path / "line" / "warmup" / image.input_data_file).read_bytes(), np.uint8)
    assert frame.reshape(tuple(image.dims)).any()
    # Four bytes of the length stand before a text, as Triton's clients send it.
    assert (tmp_path / "line" / "warmup" / product.input_data_file).read_bytes() == b"\5\0\0\0cable"


def test_requests_for_several_products_are_judged_by_one_run_of_the_backbone(
    folder: Path, tmp_path: Path, logged: list[str]
) -> None:
    written(folder / "line.flowedgepack", tmp_path, engine=CPU, threads=1)
    model, frames = loaded_model(tmp_path / "line"), some_frames(3)
    judged: list[int] = []
    judge = model._model.judge

    def counted(some: Any, products: Any) -> Any:
        judged.append(len(some))
        return judge(some, products)

    model._model.judge = counted
    first, second, third = model.execute(
        [
            Request({"image": frames[:1], "product": stacked(["screw"])}),
            Request({"image": frames[1:]}, parameters={"product": "cable"}),
            Request({"image": frames}),
        ]
    )
    assert judged == [3]
    check_same(first.outputs, folder / "line.flowedgepack", frames[:1], product="screw")
    check_same(second.outputs, folder / "line.flowedgepack", frames[1:], product="cable")
    assert "name the product" in str(third.error)
    model.finalize()


def test_a_request_that_cannot_be_judged_has_no_verdict_and_harms_no_other(
    folder: Path, tmp_path: Path, logged: list[str]
) -> None:
    written(folder / "bottle.flowedge", tmp_path, engine=CPU, threads=1)
    model, frames = loaded_model(tmp_path / "bottle"), some_frames(1)
    judge = model._model.judge

    def fails_for_small_ones(some: Any, products: Any) -> Any:
        if any(frame.shape[0] == 2 for frame in some):
            raise RuntimeError("a driver's own error")
        return judge(some, products)

    model._model.judge = fails_for_small_ones
    small = np.full((1, 2, 3, 3), 7, np.uint8)
    good, grey, broken = model.execute(
        [Request({"image": frames}), Request({"image": frames[..., :1]}), Request({"image": small})]
    )
    check_same(good.outputs, folder / "bottle.flowedge", frames)
    assert grey.outputs == broken.outputs == {}
    assert "[N, H, W, 3]" in str(grey.error)
    assert "a driver's own error" in str(broken.error)
    assert len(logged) == 1
    model.finalize()


def test_numpy_2_is_refused_since_triton_would_send_empty_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_triton(monkeypatch)
    monkeypatch.setattr(np, "__version__", "2.4.6")
    written(folder / "bottle.flowedge", tmp_path)
    with pytest.raises(Exception, match=r"NumPy 2\.4\.6.*numpy<2"):
        loaded_model(tmp_path / "bottle")


def test_a_changed_bundle_is_refused_in_words(folder: Path, tmp_path: Path, logged: list[str]) -> None:
    written(folder / "bottle.flowedge", tmp_path)
    graph = tmp_path / "bottle" / "1" / "bundle" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(Exception, match=r"model\.onnx"):
        loaded_model(tmp_path / "bottle")


@pytest.mark.parametrize(("device", "engine"), [(0, "onnxruntime-cuda"), (1, "onnxruntime-cuda:1")])
def test_each_gpu_has_an_instance_of_its_own(
    folder: Path, tmp_path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch, device: int, engine: str
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(triton_models, "LoadedModel", opened.append)
    written(folder / "bottle.flowedge", tmp_path, engine="onnxruntime-cuda", gpu=True, instances=2)
    (group,) = config_of(tmp_path / "bottle").instance_group
    assert (group.kind, group.count) == (group.KIND_GPU, 2)
    loaded_model(tmp_path / "bottle", device=device)
    assert opened[0].engine == engine


def test_an_ensemble_around_tritons_own_backend_gives_the_verdicts_of_the_bundle(
    folder: Path, tmp_path: Path, logged: list[str]
) -> None:
    source = folder / "bottle.flowedge"
    names = written(source, tmp_path, backend="onnxruntime", name="line-3", threads=2)
    assert names == ("line-3-prepare", "line-3-graph", "line-3-decide", "line-3")
    graph = config_of(tmp_path / "line-3-graph")
    assert (graph.platform, graph.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert graph.parameters["intra_op_thread_count"].string_value == "2"
    score = next(one for one in graph.output if one.name == "score")
    assert (list(score.dims), score.HasField("reshape"), list(score.reshape.shape)) == ([1], True, [])
    file = tmp_path / "line-3-graph" / "1" / graph.default_model_filename
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (run,) = graph.model_warmup
    warm_up = np.frombuffer((tmp_path / "line-3-graph" / "warmup" / "input").read_bytes(), np.float32)
    session.run(None, {"image": warm_up.reshape(1, *run.inputs["image"].dims)})
    check_same(run_ensemble(tmp_path, "line-3", session, some_frames(2)), source, some_frames(2))


def run_ensemble(repository: Path, name: str, session: Any, frames: NDArray[np.uint8]) -> dict[str, Any]:
    """Run the steps of an ensemble as its configuration says."""
    tensors: dict[str, NDArray[Any]] = {"image": frames}
    for step in config_of(repository / name).ensemble_scheduling.step:
        given = {inner: tensors[outer] for inner, outer in step.input_map.items()}
        if step.model_name.endswith("-graph"):
            outputs = dict(
                zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True)
            )
            outputs["score"] = outputs["score"][:, None]
        else:
            model = loaded_model(repository / step.model_name)
            wanted = list(step.output_map)
            (response,) = model.execute([Request(given, wanted)])
            assert response.error is None, response.error
            outputs = response.outputs
            model.finalize()
        tensors |= {outer: outputs[inner] for inner, outer in step.output_map.items()}
    return {one.name: tensors[one.name] for one in config_of(repository / name).output}


def plan_file(file: Path, bundle: Path, **changes: Any) -> Path:
    """Write a file as flowedge build writes an engine."""
    facts: dict[str, Any] = {
        "engine": "tensorrt",
        "version": "10.3",
        "graph": graph_hash(open_bundle(bundle), "fp32"),
        "precision": "fp32",
        "device": "",
        "capability": "",
        "driver": "",
        "batches": (1, 1, 8),
    }
    file.write_bytes(header_bytes(EngineFacts(**facts | changes), b"the engine") + b"the engine")
    return file


def test_the_engine_of_tensorrt_is_taken_from_flowedge_build_or_from_trtexec(
    folder: Path, tmp_path: Path
) -> None:
    source = folder / "bottle.flowedge"
    ours, other = plan_file(tmp_path / "a.engine", source), tmp_path / "b.plan"
    other.write_bytes(b"the engine")
    for number, plan in enumerate((ours, other)):
        written(source, tmp_path / "repo", backend="tensorrt", plan=plan, gpu=True, name=f"m{number}")
        model = tmp_path / "repo" / f"m{number}-graph"
        assert config_of(model).platform == "tensorrt_plan"
        assert (model / "1" / "model.plan").read_bytes() == b"the engine"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"graph": "0" * 64}, "not of TensorRT and of the graph"),
        ({"engine": "tensorrt-rtx"}, "is of tensorrt-rtx"),
        ({"batches": (1, 1, 4)}, r"--batch 1,1,8"),
        ({"batches": (2, 4, 8)}, r"--batch 1,1,8"),
    ],
)
def test_another_engine_of_tensorrt_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    plan = plan_file(tmp_path / "a.engine", folder / "bottle.flowedge", **changes)
    with pytest.raises(FlowEdgeError, match=told):
        written(folder / "bottle.flowedge", tmp_path / "repo", backend="tensorrt", plan=plan)
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("source", "choices", "told"),
    [
        ("bottle", {"backend": "tensorrt"}, "needs --plan"),
        ("bottle", {"backend": "onnxruntime", "plan": Path("x")}, "needs --plan"),
        ("bottle", {"plan": Path("x")}, "for --backend tensorrt"),
        ("bottle", {"backend": "onnxruntime", "engine": CPU}, "--engine is for"),
        ("bottle", {"backend": "onnxruntime", "precision": "fp16"}, "fp16"),
        ("bottle", {"precision": "int8"}, "no int8 graph"),
        ("bottle", {"precision": "fp64"}, "no precision 'fp64'"),
        ("line", {"precision": "fp16"}, "no fp16 graph"),
        ("bottle", {"engine": "openvno"}, "no engine 'openvno'"),
        ("line", {"backend": "onnxruntime"}, "belongs to a pack"),
        ("bottle", {"backend": "pytorch"}, "backend"),
        ("bottle", {"name": "../up"}, "name"),
        ("nothing", {}, "nothing"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused_and_nothing_is_written(
    folder: Path, tmp_path: Path, source: str, choices: dict[str, Any], told: str
) -> None:
    place = folder / (f"{source}.flowedgepack" if source == "line" else f"{source}.flowedge")
    with pytest.raises((FlowEdgeError, BundleError, SettingsError), match=told):
        written(place, tmp_path / "repo", **choices)
    assert not (tmp_path / "repo").exists()


def test_models_are_added_and_only_our_own_are_replaced(folder: Path, tmp_path: Path) -> None:
    bundle, repository = folder / "bottle.flowedge", tmp_path / "repo"
    assert command("triton", bundle, "-o", repository).status == 0
    added = command("triton", bundle, "-o", repository, "--name", "other", "--json")
    assert json.loads(added.stdout) == {"repository": str(repository), "model": "other", "models": ["other"]}
    again = command("triton", bundle, "-o", repository, "--batch", "2")
    assert again.status == 2
    assert "--force" in again.stderr
    assert config_of(repository / "bottle").max_batch_size == 8
    assert command("triton", bundle, "-o", repository, "--batch", "2", "--force").status == 0
    assert config_of(repository / "bottle").max_batch_size == 2
    assert sorted(one.name for one in repository.iterdir()) == ["bottle", "other"]
    assert [one.name for one in tmp_path.iterdir()] == ["repo"]
    (repository / "other" / "config.pbtxt").write_text('name: "other"\n')
    foreign = command("triton", bundle, "-o", repository, "--name", "other", "--force")
    assert foreign.status == 2
    assert "was not written by flowedge triton" in " ".join(foreign.stderr.split())
