"""A server of the Open Inference Protocol: the clients of Triton, plain requests, and products of a pack."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

import flowedge
from flowedge.runtime.products import ProductLine
from flowedge.runtime.serving.settings import BatchSettings, ModelSettings, ServerSettings
from support.served import (
    THRESHOLDS,
    Gate,
    Served,
    infer_body,
    served,
    some_frames,
    tiny_folder,
)
from support.tiny_bundle import write_tiny_bundle
from support.waiting import wait_until

OUTPUTS = ("score", "verdict", "anomaly_map", "problem")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and with a pack of two products."""
    return tiny_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    (folder / "more").mkdir()
    write_tiny_bundle(folder / "more" / "extra.flowedge", thresholds=THRESHOLDS, seed=1)
    with served(
        [
            ModelSettings(bundle=folder / "bottle.flowedge"),
            ModelSettings(bundle=folder / "line.flowedgepack"),
        ],
        server=ServerSettings(port=0, model_control=True),
        batch=BatchSettings(largest=8, delay_ms=0, workers=1),
        folder=folder / "more",
    ) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[Any]:
    with triton.InferenceServerClient(server.address) as client:
        yield client


def image_of(frames: NDArray[np.uint8], *, binary: bool = True) -> Any:
    tensor = triton.InferInput("image", frames.shape, "UINT8")
    tensor.set_data_from_numpy(frames, binary_data=binary)
    return tensor


def texts(values: NDArray[Any]) -> list[str]:
    """Return texts, which the client gives as bytes or as text by the way they came."""
    return [one.decode() if isinstance(one, bytes) else str(one) for one in values.ravel()]


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("binary_in", [True, False])
def test_tritonclient_gets_the_answers_of_the_detector(
    client: Any, folder: Path, binary_in: bool, binary_out: bool | None, coding: str | None
) -> None:
    frames = some_frames(3)
    frames[1] = 128
    wanted = (
        binary_out
        if binary_out is None
        else [triton.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    )
    answer = client.infer(
        "bottle",
        [image_of(frames, binary=binary_in)],
        outputs=wanted,
        request_id="seven",
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    with flowedge.load(folder / "bottle.flowedge", threads=1) as detector:
        results = detector.detect_batch(frames)
    assert answer.get_response()["id"] == "seven"
    assert texts(answer.as_numpy("verdict")) == [one.verdict for one in results]
    assert len({one.verdict for one in results}) == 2
    assert texts(answer.as_numpy("problem")) == [""] * 3
    np.testing.assert_array_equal(
        answer.as_numpy("score"), np.array([[one.score] for one in results], np.float32)
    )
    np.testing.assert_array_equal(
        answer.as_numpy("anomaly_map"), np.stack([one.anomaly_map for one in results])
    )


def test_the_asynchronous_client_works_as_well(server: Served) -> None:
    import asyncio

    import tritonclient.http.aio as aio

    async def ask() -> NDArray[Any]:
        async with aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            answer = await client.infer("bottle", [image_of(some_frames(1))])
            found: NDArray[Any] = answer.as_numpy("anomaly_map")
            return found

    assert asyncio.run(ask()).shape == (1, 40, 60)


def test_the_client_learns_what_is_served(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bottle")
    assert client.is_model_ready("bottle", "1")
    assert not client.is_model_ready("nothing")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("line", "1")
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        {"name": "product", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    assert [one["name"] for one in metadata["outputs"]] == list(OUTPUTS)
    assert [one["shape"] for one in metadata["outputs"]] == [[-1, 1], [-1, 1], [-1, -1, -1], [-1, 1]]
    assert metadata["parameters"]["products"] == "cable,screw"
    config = client.get_model_config("bottle")
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 0}
    assert {one["name"] for one in client.get_model_repository_index()} == {"bottle", "line", "extra"}


def test_a_model_of_the_folder_is_loaded_and_unloaded_by_the_client(client: Any, server: Served) -> None:
    assert {"name": "extra"} in client.get_model_repository_index()
    assert not client.is_model_ready("extra")
    client.load_model("extra")
    assert client.infer("extra", [image_of(some_frames(1))]).as_numpy("score").shape == (1, 1)
    client.load_model("extra")  # a second load replaces it
    assert client.is_model_ready("extra")
    client.unload_model("extra")
    assert not client.is_model_ready("extra")
    assert server.get("/v2/health/ready").status == 200  # nobody named it at the start
    with pytest.raises(triton.InferenceServerException, match="extra is not loaded: unloaded"):
        client.infer("extra", [image_of(some_frames(1))])


def test_a_model_may_be_loaded_again_while_a_body_comes(client: Any, server: Served) -> None:
    body, headers = infer_body(some_frames(1))
    head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "Content-Length": len(body)}.items())
    with server.raw() as raw:
        raw.sendall(
            f"POST /v2/models/bottle/infer HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode() + body[:99]
        )
        wait_until(lambda: server.metric("flowedge_held_bytes") == len(body), "the body is expected")
        before = server.batcher()
        client.load_model("bottle")
        assert server.batcher() is not before
        raw.sendall(body[99:])
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("..%2Fbottle", "unknown model|nothing at"),
        ("nothing", "unknown model"),
        ("%2Fetc", "unknown model|nothing at"),
    ],
)
def test_a_name_of_a_request_is_no_path(client: Any, name: str, words: str) -> None:
    with pytest.raises(triton.InferenceServerException, match=words):
        client.load_model(name)


def test_a_client_cannot_bring_a_configuration_or_files(client: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="as the operator of the server has named it"):
        client.load_model("bottle", config='{"max_batch_size": 4}')


def test_the_statistics_count_frames_and_runs(client: Any) -> None:
    before = client.get_inference_statistics("bottle")["model_stats"][0]
    client.infer("bottle", [image_of(some_frames(2))])
    after = client.get_inference_statistics("bottle", "1")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] == before["execution_count"] + 1
    stages = after["inference_stats"]
    assert stages["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
    assert {"queue", "compute_input", "compute_infer", "compute_output", "fail", "cache_hit"} <= set(stages)
    assert {one["batch_size"] for one in after["batch_stats"]} >= {2}
    assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} >= {"bottle", "line"}


PLAIN_TENSOR: dict[str, Any] = {"name": "image", "shape": [1, 2, 3, 3], "datatype": "UINT8", "data": [7] * 18}
JSON_REQUEST = json.dumps({"inputs": [PLAIN_TENSOR], "parameters": {"binary_data_output": True}}).encode()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/v2/health/live", None, 200, "text/plain"),
        ("GET", "/v2/health/ready", None, 200, "text/plain"),
        ("GET", "/v2/models/bottle/ready", None, 200, "text/plain"),
        ("GET", "/v2/models/bottle/versions/1/ready", None, 200, "text/plain"),
        ("GET", "/v2", None, 200, "application/json"),
        ("GET", "/v2/models/bottle", None, 200, "application/json"),
        ("GET", "/v2/models/bottle/versions/1", None, 200, "application/json"),
        ("GET", "/v2/models/bottle/versions/2", None, 404, "application/json"),
        ("GET", "/v2/models/bottle/config", None, 200, "application/json"),
        ("GET", "/v2/models/stats", None, 200, "application/json"),
        ("GET", "/v2/models/bottle/stats", None, 200, "application/json"),
        ("GET", "/v2/models/bottle/versions/1/stats", None, 200, "application/json"),
        ("POST", "/v2/repository/index", b"", 200, "application/json"),
        ("POST", "/v2/repository/index", b'{"ready":true}', 200, "application/json"),
        ("POST", "/v2/repository/models/bottle/load", b"{}", 200, "application/json"),
        ("POST", "/v2/models/bottle/infer", JSON_REQUEST, 200, "application/octet-stream"),
        ("POST", "/v2/models/bottle/versions/1/infer?q=1", JSON_REQUEST, 200, "application/octet-stream"),
        ("GET", "/v2/trace/setting", None, 400, "application/json"),
        ("POST", "/v2/models/bottle/trace/setting", b'{"trace_rate":null}', 400, "application/json"),
        ("POST", "/v2/logging", b'{"log_verbose_level":1}', 400, "application/json"),
        ("GET", "/v2/systemsharedmemory/region/r/status", None, 400, "application/json"),
        ("POST", "/v2/systemsharedmemory/region/r/register", b'{"key":"/r"}', 400, "application/json"),
        ("POST", "/v2/cudasharedmemory/unregister", b"", 400, "application/json"),
        ("GET", "/v2/models/bottle/infer", None, 405, "application/json"),
        ("GET", "/nothing", None, 404, "application/json"),
    ],
)
def test_each_request_that_tritonclient_sends_is_answered(
    server: Served, method: str, path: str, body: bytes | None, status: int, kind: str
) -> None:
    answer = server.send(method, path, body)  # without a Content-Type, as the client sends it
    assert (answer.status, answer.headers.get("content-type", "").partition(";")[0]) == (status, kind)
    if status >= 400:
        assert answer.error
    if kind == "application/octet-stream":
        described = json.loads(answer.body[: int(answer.headers["inference-header-content-length"])])
        sizes = [one["parameters"]["binary_data_size"] for one in described["outputs"]]
        assert int(answer.headers["inference-header-content-length"]) + sum(sizes) == len(answer.body)


def test_numbers_may_be_nested_like_the_shape(server: Served) -> None:
    nested = {**PLAIN_TENSOR, "data": [[[[7] * 3] * 3] * 2]}
    answers = [
        server.send("POST", "/v2/models/bottle/infer", json.dumps({"inputs": [tensor]}).encode()).json
        for tensor in (PLAIN_TENSOR, nested)
    ]
    assert answers[0] == answers[1]
    assert [one["name"] for one in answers[0]["outputs"]] == list(OUTPUTS)


def product_input(*names: str) -> Any:
    tensor = triton.InferInput("product", [len(names)], "BYTES")
    tensor.set_data_from_numpy(np.array([name.encode() for name in names], object))
    return tensor


def test_a_product_that_several_models_have_needs_the_name_of_one(folder: Path) -> None:
    pack, picture = folder / "line.flowedgepack", cv2.imencode(".png", some_frames(1)[0])[1].tobytes()
    with served([ModelSettings(bundle=pack, name=name) for name in ("left", "right")]) as both:
        refused = both.send("POST", "/v1/inspect?product=screw", picture)
        assert (refused.status, refused.json["verdict"]) == (400, "not_inspected")
        assert "left, right all have the product 'screw'" in refused.error
        assert both.send("POST", "/v1/inspect?product=screw&model=left", picture).json["model"] == "left"


def test_frames_of_several_products_share_one_run_of_the_backbone(
    client: Any, server: Served, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = some_frames(2)
    answer = client.infer("line", [image_of(frames), product_input("screw", "cable")])
    with flowedge.load_pack(folder / "line.flowedgepack", threads=1) as line:
        expected = line.detect_batch(list(frames), product=["screw", "cable"])
    assert (
        answer.as_numpy("score").tolist()
        != client.infer("line", [image_of(frames), product_input("cable")]).as_numpy("score").tolist()
    )
    np.testing.assert_array_equal(
        answer.as_numpy("score"), np.array([[one.score] for one in expected], np.float32)
    )
    runs: list[int] = []
    judged = ProductLine._judged

    def counted(self: ProductLine, given: Any, rows: Any, color: Any) -> Any:
        runs.append(len(given))
        return judged(self, given, rows, color)

    monkeypatch.setattr(ProductLine, "_judged", counted)
    batcher = server.batcher("line")
    with Gate(batcher) as gate:
        threads = [
            threading.Thread(target=ask_product, args=(server, name, frames[:1]))
            for name in ("cable", "screw", "cable")
        ]
        threads[0].start()
        gate.entered.acquire()
        for thread in threads[1:]:
            thread.start()
        while batcher.frames_waiting < 2:
            threading.Event().wait(0.005)
        gate.open()
        for thread in threads:
            thread.join()
    assert runs == [1, 2]


def ask_product(server: Served, product: str, frames: NDArray[np.uint8]) -> None:
    body, headers = infer_body(frames, parameters={"product": product})
    assert server.send("POST", "/v2/models/line/infer", body, headers).status == 200


@pytest.mark.parametrize(
    ("products", "words"),
    [((), "name the product. This model has: cable, screw"), (("bolt",), "there is no product 'bolt'")],
)
def test_a_product_that_is_not_there_is_refused(client: Any, products: tuple[str, ...], words: str) -> None:
    inputs = [image_of(some_frames(1)), *([product_input(*products)] if products else [])]
    with pytest.raises(triton.InferenceServerException, match=words):
        client.infer("line", inputs)


def picture_of(drawn: Any, flags: int) -> NDArray[Any]:
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(drawn["png"]), np.uint8), flags)
    assert decoded is not None
    return decoded


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_is_judged_as_the_detector_judges_its_file(
    server: Served, folder: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"part{suffix}"
    assert cv2.imwrite(str(file), some_frames(1)[0])
    answer = server.send("POST", "/v1/inspect?product=bottle&map=png", file.read_bytes())
    assert answer.status == 200, answer.body
    found = answer.json
    with flowedge.load(folder / "bottle.flowedge", threads=1) as detector:
        result = detector(file)
    expected = result.to_dict()
    assert (found.pop("model"), found.pop("height"), found.pop("width")) == ("bottle", 40, 60)
    drawn = found.pop("map")
    for one in (found, expected):
        one.pop("latency_ms")
        one.pop("engine_reason")
    assert found == expected
    assert found["regions"]
    levels = picture_of(drawn, cv2.IMREAD_UNCHANGED)
    assert levels.dtype == np.uint16
    step = (drawn["high"] - drawn["low"]) / 65534
    values = drawn["low"] + step * (levels.astype(np.float64) - 1)
    np.testing.assert_allclose(values, result.anomaly_map, rtol=0, atol=step)


def test_a_picture_can_be_drawn_and_belongs_to_a_product(server: Served) -> None:
    picture = cv2.imencode(".png", some_frames(1)[0])[1].tobytes()
    answer = server.send("POST", "/v1/inspect?product=screw&map=overlay", picture).json
    assert (answer["model"], answer["product"]) == ("line", "screw")
    drawn = picture_of(answer["overlay"], cv2.IMREAD_COLOR)
    assert drawn.shape[0] > 40
    assert "by the parameter model" in server.send("POST", "/v1/inspect", picture).error
    unknown = server.send("POST", "/v1/inspect?product=nut", picture)
    assert (unknown.status, "no model has the product 'nut'" in unknown.error) == (404, True)
    assert "Send a picture to /v1/inspect" in server.get("/").error
    assert server.send("POST", "/v1/inspect?model=bottle", picture).status == 200


def test_prometheus_reads_the_numbers(server: Served) -> None:
    body, headers = infer_body(some_frames(1))
    server.send("POST", "/v2/models/bottle/infer", body, headers)
    families = {one.name: one for one in text_string_to_metric_families(server.get("/metrics").body.decode())}
    samples = {
        (sample.name, sample.labels.get("model")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["flowedge_model_loaded", "bottle"] == 1
    assert samples["flowedge_request_seconds_count", "bottle"] >= 1
    assert samples["flowedge_ready", None] == 1
    assert families["flowedge_verdicts"].type == "counter"
