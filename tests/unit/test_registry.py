"""Bundles go to registries and come back whole, or not at all and with the reason in words."""

from __future__ import annotations

import base64
import filecmp
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from flowedge.bundle import open_bundle, write_bundle
from flowedge.bundle_files import MANIFEST, SIGNATURE
from flowedge.calibration.threshold_changes import NewThresholds, set_thresholds
from flowedge.drafts import PREFIX
from flowedge.errors import BundleError, RegistryError, SignatureError
from flowedge.manifest import StoredFile
from flowedge.runtime.registry.credentials import basic_of
from flowedge.runtime.registry.http_client import Connection, HttpClient
from flowedge.runtime.registry.oci_client import OciRegistry, digest_of
from flowedge.runtime.registry.references import last_part, oci_reference
from flowedge.runtime.registry.signing import new_key, read_signing_key, sign_folder
from flowedge.runtime.registry.stores import FolderStore
from flowedge.runtime.registry.transfer import pull, push
from support.certificates import Authority
from support.command_line import flowedge as command
from support.oci_registry import PASSWORD, USER, Registry, registry
from support.tiny_bundle import tiny_manifest, write_tiny_bundle
from support.web_server import WebServer, serving

AT_ONCE = Connection(pause_s=0)
GRAPH = "model.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed bundle, which has a large file as well, and the key."""
    folder = tmp_path_factory.mktemp("made")
    small = write_tiny_bundle(folder / "small.flowedge")
    files: dict[str, Path | bytes] = {one.path: small.path / one.path for one in small.manifest.files}
    write_bundle(folder / "a.flowedge", small.manifest, {**files, "large.bin": os.urandom(3_000_000)})
    new_key(folder, "release")
    sign_folder(folder / "a.flowedge", read_signing_key(folder / "release.key"))
    return folder


@pytest.fixture(scope="module")
def real_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def oci(real_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("FLOWEDGE_REGISTRY_USER", USER)
    monkeypatch.setenv("FLOWEDGE_REGISTRY_PASSWORD", PASSWORD)
    return real_registry


@pytest.fixture
def web(made: Path, tmp_path: Path) -> Iterator[WebServer]:
    shutil.copytree(made / "a.flowedge", tmp_path / "web" / "a")
    with serving(tmp_path / "web") as server:
        yield server


@pytest.fixture(params=["folder", "memory", "oci"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "oci":
            host = request.getfixturevalue("oci").host
            return f"oci://{host}/{tmp_path.name.lower().replace('[', '-').replace(']', '')}/a:v1"
        case "memory":
            return f"memory://{tmp_path.name}/a"
    return str(tmp_path / "shared" / "a")


def same(one: Path, other: Path) -> bool:
    """Return True where two folders hold the same files with the same content."""
    names = [
        sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        for root in (one, other)
    ]
    return names[0] == names[1] and not any(filecmp.cmpfiles(one, other, names[0], shallow=False)[1:])


def nothing_left(folder: Path) -> bool:
    """Return True where no draft and no target is in a folder."""
    return not any(one.name.startswith(PREFIX) or one.name == "got" for one in folder.iterdir())


def test_a_bundle_comes_back_byte_for_byte_with_its_signature(made: Path, tmp_path: Path, place: str) -> None:
    pushed = push(made / "a.flowedge", place)
    pulled = pull(place, tmp_path / "got", require_signature=made / "release.pub")
    assert same(made / "a.flowedge", tmp_path / "got")
    assert pulled.signature is not None
    assert pulled.signature.key == "release"
    assert (
        pulled.sha256
        == pushed.sha256
        == hashlib.sha256((tmp_path / "got" / MANIFEST).read_bytes()).hexdigest()
    )
    pull(pushed.reference, tmp_path / "again", sha256=pushed.sha256)
    with pytest.raises(RegistryError, match="is another version than the one that is wanted"):
        pull(place, tmp_path / "other", sha256="0" * 64)


def test_a_name_that_is_taken_is_not_overwritten_unless_forced(
    made: Path, tmp_path: Path, place: str
) -> None:
    push(made / "a.flowedge", place)
    with pytest.raises(RegistryError, match="is there already"):
        push(made / "small.flowedge", place)
    push(made / "small.flowedge", place, overwrite=True)
    pull(place, tmp_path / "got")
    assert same(made / "small.flowedge", tmp_path / "got")


def test_what_no_trusted_key_has_signed_is_refused_before_its_files_come(
    made: Path, tmp_path: Path, web: WebServer
) -> None:
    new_key(tmp_path, "other")
    with pytest.raises(SignatureError, match=r"http://.*a was signed with the key release .* does not list"):
        pull(f"{web.url}/a", tmp_path / "got", require_signature=tmp_path / "other.pub")
    (web.folder / "a" / SIGNATURE).unlink()
    with pytest.raises(SignatureError, match=r"http://.*a is not signed"):
        pull(f"{web.url}/a", tmp_path / "got", require_signature=made / "release.pub")
    assert {path.rpartition("/")[2] for path in web.paths} == {MANIFEST, SIGNATURE, f"{MANIFEST}.minisig"}
    assert nothing_left(tmp_path)


def test_a_half_pushed_bundle_is_refused_in_words(made: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    push(made / "a.flowedge", str(shared))
    manifest = (shared / MANIFEST).read_bytes()
    (shared / MANIFEST).unlink()
    with pytest.raises(RegistryError, match="Its push was interrupted or still runs"):
        pull(str(shared), tmp_path / "got")
    (shared / MANIFEST).write_bytes(manifest)
    content = (shared / "large.bin").read_bytes()
    (shared / "large.bin").unlink()
    with pytest.raises(RegistryError, match=r"lacks large\.bin, which its manifest lists"):
        pull(str(shared), tmp_path / "got")
    (shared / "large.bin").write_bytes(content[:-1])
    with pytest.raises(
        RegistryError, match=r"large\.bin is not the file that the manifest lists: it has 2999999 bytes"
    ):
        pull(str(shared), tmp_path / "got")
    (shared / "large.bin").write_bytes(content + b"x")
    with pytest.raises(RegistryError, match="it has more than 3000000 bytes"):
        pull(str(shared), tmp_path / "got")
    assert nothing_left(tmp_path)


def test_a_push_that_breaks_leaves_nothing_that_can_be_pulled(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"memory://{tmp_path.name}/a"
    push(made / "a.flowedge", place)
    system = type(fsspec.filesystem("memory"))
    opens = system.open

    def breaks(self: object, path: str, mode: str = "rb", **options: object) -> object:
        if "large" in path:
            raise OSError("the network is gone")
        return opens(self, path, mode, **options)

    monkeypatch.setattr(system, "open", breaks)
    with pytest.raises(RegistryError, match="cannot be written: the network is gone"):
        push(made / "a.flowedge", place, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(RegistryError, match="was interrupted or still runs"):
        pull(place, tmp_path / "got")


def test_a_changed_a_cut_and_a_missing_blob_of_a_registry_are_refused(
    made: Path, tmp_path: Path, oci: Registry
) -> None:
    place = f"oci://{oci.host}/damaged/a:v1"
    push(made / "a.flowedge", place)
    content = (made / "a.flowedge" / "large.bin").read_bytes()
    blob = oci.blob(hashlib.sha256(content).hexdigest())
    for damaged, words in (
        (content[:1000] + b"x" + content[1001:], "is not the file that was pushed: its SHA-256"),
        (content[:1000], "has 1000 bytes, and 3000000 are listed"),
        (content + b"more", "has 3000004 bytes, and 3000000 are listed"),
    ):
        blob.write_bytes(damaged)
        with pytest.raises(RegistryError, match=words):
            pull(place, tmp_path / "got", connection=AT_ONCE)
    blob.unlink()
    with pytest.raises(RegistryError, match="answers 404"):
        pull(place, tmp_path / "got", connection=AT_ONCE)
    assert nothing_left(tmp_path)
    shutil.rmtree(oci.folder / "docker/registry/v2/repositories/damaged")


def test_an_artefact_that_is_not_there_and_one_of_another_kind_are_refused(
    tmp_path: Path, oci: Registry
) -> None:
    with pytest.raises(RegistryError, match="is not in the registry"):
        pull(f"oci://{oci.host}/never/pushed:v1", tmp_path / "got")
    other = OciRegistry(oci_reference(f"oci://{oci.host}/other/kind:v1"), AT_ONCE)
    other.push({"a": b"a"}, {"a": "text/plain"}, "application/other", {}, overwrite=False)
    with pytest.raises(RegistryError, match="is no bundle and no pack, but 'application/other'"):
        pull(f"oci://{oci.host}/other/kind:v1", tmp_path / "got")
    named = OciRegistry(oci_reference(f"oci://{oci.host}/other/kind@{digest_of(b'x')}"), AT_ONCE)
    with pytest.raises(RegistryError, match="names a digest, and a push makes one"):
        named.push({}, {}, "application/other", {}, overwrite=False)


def test_the_password_comes_from_the_environment_or_from_docker_login(
    made: Path, tmp_path: Path, real_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"oci://{real_registry.host}/login/a:v1"
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RegistryError, match="wants a user and a password, and none is known"):
        push(made / "small.flowedge", place)
    (tmp_path / ".docker").mkdir()
    config = tmp_path / ".docker" / "config.json"
    config.write_text(json.dumps({"credsStore": "desktop", "auths": {real_registry.host: {}}}))
    with pytest.raises(RegistryError, match="in a program, which FlowEdge does not start"):
        push(made / "small.flowedge", place)
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    config.write_text(json.dumps({"auths": {real_registry.host: {"auth": auth}}}))
    push(made / "small.flowedge", place)
    monkeypatch.setenv("FLOWEDGE_REGISTRY_USER", USER)
    monkeypatch.setenv("FLOWEDGE_REGISTRY_PASSWORD", "wrong")
    with pytest.raises(RegistryError, match=r"answers 401 .*docker login"):
        pull(place, tmp_path / "got")
    assert basic_of("other:5000") is not None


def test_a_cut_download_goes_on_where_it_was(made: Path, tmp_path: Path, web: WebServer) -> None:
    web.cuts["/a/large.bin"] = [1_000_000, 0, 500_000]
    web.cuts[f"/a/{MANIFEST}"] = [10]
    pull(f"{web.url}/a", tmp_path / "got", connection=AT_ONCE)
    assert same(made / "a.flowedge", tmp_path / "got")
    ranges = [headers.get("range") for _, path, headers in web.requests if path == "/a/large.bin"]
    assert ranges == [None, "bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]


def test_a_cut_download_begins_again_where_the_server_has_no_ranges(
    made: Path, tmp_path: Path, web: WebServer
) -> None:
    web.has_ranges = False
    web.cuts["/a/large.bin"] = [1_000_000, 2_000_000]
    pull(f"{web.url}/a", tmp_path / "got", connection=AT_ONCE)
    assert same(made / "a.flowedge", tmp_path / "got")


def test_a_server_that_cuts_every_answer_is_given_up_and_the_old_bundle_stays(
    made: Path, tmp_path: Path, web: WebServer
) -> None:
    shutil.copytree(made / "small.flowedge", tmp_path / "old.flowedge")
    web.cuts["/a/large.bin"] = [0] * 100
    with pytest.raises(
        RegistryError, match=r"was cut off: 0 of 3000000 bytes came, and 5 tries brought no more"
    ):
        pull(f"{web.url}/a", tmp_path / "old.flowedge", overwrite=True, connection=AT_ONCE)
    assert same(made / "small.flowedge", tmp_path / "old.flowedge")
    assert nothing_left(tmp_path)


def test_a_pull_that_is_interrupted_changes_nothing(made: Path, tmp_path: Path, web: WebServer) -> None:
    shutil.copytree(made / "small.flowedge", tmp_path / "old.flowedge")

    class Interrupts:
        def step(self, name: str, total: int | None = None) -> None:
            pass

        def advance(self, count: int = 1) -> None:
            raise KeyboardInterrupt

        def note(self, text: str) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        pull(f"{web.url}/a", tmp_path / "old.flowedge", overwrite=True, reports=Interrupts())
    assert same(made / "small.flowedge", tmp_path / "old.flowedge")
    assert nothing_left(tmp_path)


def test_a_new_version_downloads_only_what_changed(made: Path, tmp_path: Path, web: WebServer) -> None:
    pull(f"{web.url}/a", tmp_path / "got")
    set_thresholds(web.folder / "a", NewThresholds(image=2.0), reason="test")
    sign_folder(web.folder / "a", read_signing_key(made / "release.key"))
    web.requests.clear()
    pulled = pull(
        f"{web.url}/a",
        tmp_path / "got",
        overwrite=True,
        require_signature=made / "release.pub",
        connection=AT_ONCE,
    )
    assert pulled.downloaded == 0
    assert pulled.kept > 3_000_000
    assert {path.rpartition("/")[2] for path in web.paths} == {MANIFEST, SIGNATURE, f"{MANIFEST}.minisig"}
    assert open_bundle(tmp_path / "got", require_signature=made / "release.pub").signature is not None


def test_a_folder_that_cannot_be_renamed_gets_the_new_signature_too(
    made: Path, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(f"{web.url}/a", tmp_path / "got")
    set_thresholds(web.folder / "a", NewThresholds(image=2.0), reason="test")
    sign_folder(web.folder / "a", read_signing_key(made / "release.key"))
    monkeypatch.setattr("flowedge.replacing._may_rename", lambda place: False)
    pull(f"{web.url}/a", tmp_path / "got", overwrite=True)
    assert same(web.folder / "a", tmp_path / "got")


@pytest.mark.parametrize("of", ["manifest", "download"])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(
    monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    class Dripping(io.BytesIO):
        headers: ClassVar[dict[str, str]] = {}
        status = 200

        def read(self, size: int | None = -1) -> bytes:
            raise AssertionError("a read of many bytes waits for all of them")

        def read1(self, size: int | None = -1) -> bytes:
            return b"x"

    monkeypatch.setattr(HttpClient, "_send", lambda *_: Dripping())
    monkeypatch.setattr("flowedge.runtime.registry.http_client._SLOW_AFTER_S", 0.0)
    monkeypatch.setattr("flowedge.runtime.registry.http_client._SLOWEST_BYTES_PER_S", 1e12)
    client, url = HttpClient(Connection()), "https://server.example/file"
    ask = client.read if of == "manifest" else partial(client.download, sha256="0" * 64, to=io.BytesIO())
    with pytest.raises(RegistryError, match="is too slow: 1 bytes came"):
        ask(url, 1000)


def test_a_password_in_an_address_is_in_no_message(made: Path) -> None:
    store = FolderStore("memory://ann:secret@server/a")
    with pytest.raises(RegistryError, match="memory://server/a") as caught:
        store.download(StoredFile(path="model.onnx", size=1, sha256="0" * 64), io.BytesIO())
    assert "secret" not in str(caught.value)


def test_a_bundle_is_not_pushed_onto_itself(made: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "a.flowedge"
    shutil.copytree(made / "a.flowedge", bundle)
    shutil.copytree(bundle, tmp_path / "linked", copy_function=os.link)
    (tmp_path / "link").symlink_to(bundle)
    for place in ("a.flowedge", "linked", "link"):
        with pytest.raises(RegistryError, match="is the bundle itself, or shares files with it"):
            push(bundle, str(tmp_path / place), overwrite=True)
    assert same(made / "a.flowedge", bundle)


@pytest.mark.parametrize("name", [SIGNATURE, f"{MANIFEST}.minisig"])
def test_a_signature_of_any_kind_is_pulled_into_a_folder_that_cannot_be_renamed(
    made: Path, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pull(f"{web.url}/a", tmp_path / "got")
    set_thresholds(web.folder / "a", NewThresholds(image=2.0), reason="test")
    (web.folder / "a" / name).write_text("a signature")
    monkeypatch.setattr("flowedge.replacing._may_rename", lambda place: False)
    pull(f"{web.url}/a", tmp_path / "got", overwrite=True)
    assert same(web.folder / "a", tmp_path / "got")


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/passwd", "a/../../b", ".hidden", "signature.toml", "a\\b"]
)
def test_a_manifest_with_a_path_outside_is_refused(tmp_path: Path, web: WebServer, path: str) -> None:
    from flowedge.manifest_json import json_from_manifest

    manifest = tiny_manifest(files=(StoredFile(path=path, size=1, sha256="0" * 64),))
    (web.folder / "a" / MANIFEST).write_bytes(json_from_manifest(manifest))
    with pytest.raises(
        BundleError, match=r"http://.*: .*(is not a path that a bundle may hold|is in the bundle twice)"
    ):
        pull(f"{web.url}/a", tmp_path / "got")
    assert nothing_left(tmp_path)
    assert [one.rpartition("/")[2] for one in web.paths if "outside" in one or "passwd" in one] == []


def test_a_manifest_or_a_signature_that_is_too_long_is_refused(tmp_path: Path, web: WebServer) -> None:
    (web.folder / "a" / SIGNATURE).write_bytes(b"x" * (1 << 17))
    with pytest.raises(RegistryError, match="has more than 65536 bytes"):
        pull(f"{web.url}/a", tmp_path / "got")
    (web.folder / "a" / MANIFEST).write_bytes(b"x" * (5 << 20))
    with pytest.raises(RegistryError, match="has more than 4194304 bytes"):
        pull(f"{web.url}/a", tmp_path / "got")


def test_servers_elsewhere_are_spoken_with_over_tls_alone(tmp_path: Path, web: WebServer) -> None:
    with pytest.raises(RegistryError, match="is not encrypted, and only servers on this machine"):
        pull("http://registry.example/a", tmp_path / "got")
    with pytest.raises(RegistryError, match="no password belongs into an address"):
        pull("https://user:secret@registry.example/a", tmp_path / "got")
    web.answers[f"/a/{MANIFEST}"] = lambda headers: (302, {"Location": "http://registry.example/a"}, b"")
    with pytest.raises(RegistryError, match="is not encrypted, and only servers on this machine"):
        pull(f"{web.url}/a", tmp_path / "got")
    web.answers[f"/a/{MANIFEST}"] = lambda headers: (302, {"Location": "file:///etc/passwd"}, b"")
    with pytest.raises(RegistryError, match="no address of http or https"):
        pull(f"{web.url}/a", tmp_path / "got")
    web.answers[f"/a/{MANIFEST}"] = lambda headers: (302, {"Location": f"/a/{MANIFEST}"}, b"")
    with pytest.raises(RegistryError, match="leads on and on: more than 5 redirects"):
        pull(f"{web.url}/a", tmp_path / "got")


def test_a_server_on_this_machine_is_asked_without_the_proxy_of_the_environment(
    made: Path, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        pull(f"{web.url}/a", tmp_path / "got")
        assert proxy.requests == []
        HttpClient(Connection(plain_http=True)).read("http://registry.example/a", 100)
        assert [path for _, path, _ in proxy.requests] == ["http://registry.example/a"]


def test_a_certificate_is_checked_and_a_redirect_takes_no_password_along(
    tmp_path: Path, web: WebServer
) -> None:
    authority = Authority(tmp_path)
    with serving(web.folder, authority.issue("server")) as safe:
        with pytest.raises(RegistryError, match="its certificate is not accepted"):
            pull(f"{safe.url}/a", tmp_path / "got")
        pull(f"{safe.url}/a", tmp_path / "got", connection=Connection(ca_file=authority.file))
        safe.answers["/away"] = lambda headers: (302, {"Location": f"{web.url}/a/{MANIFEST}"}, b"")
        client = HttpClient(Connection(ca_file=authority.file))
        with pytest.raises(RegistryError, match=r"leads to .* which is not encrypted"):
            client.read(f"{safe.url}/away", 100)
    web.answers["/away"] = lambda headers: (
        307,
        {"Location": web.url.replace("127.0.0.1", "localhost") + "/b"},
        b"",
    )
    client = HttpClient(Connection(), authorization={web.url: "Basic secret"})
    client.read(f"{web.url}/away", 100, {"Authorization": "Bearer secret"})
    (_, _, first), (_, path, second) = web.requests
    assert first["authorization"] == "Bearer secret"
    assert path == "/b"
    assert "authorization" not in second


def test_a_registry_with_tokens_gets_one_for_the_password(
    tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_REGISTRY_USER", USER)
    monkeypatch.setenv("FLOWEDGE_REGISTRY_PASSWORD", PASSWORD)
    challenge = f'Bearer realm="{web.url}/token",service="registry",scope="repository:a:pull"'
    web.answers["/v2/"] = lambda headers: (401, {"WWW-Authenticate": challenge}, b"")
    web.answers["/token"] = lambda headers: (200, {}, b'{"token": "abc"}')
    host = web.url.removeprefix("http://")
    with pytest.raises(RegistryError, match="is not in the registry"):
        pull(f"oci://{host}/a:v1", tmp_path / "got")
    paths = [(path, headers.get("authorization")) for _, path, headers in web.requests]
    basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert paths == [
        ("/v2/", None),
        ("/token?scope=repository%3Aa%3Apull&service=registry", basic),
        ("/v2/a/manifests/v1", "Bearer abc"),
    ]
    web.answers["/token"] = lambda headers: (200, {}, b'{"token": "a\\nb"}')
    with pytest.raises(RegistryError, match="gives no token"):
        pull(f"oci://{host}/a:v1", tmp_path / "got")
    web.answers["/v2/"] = lambda headers: (401, {"WWW-Authenticate": "Negotiate"}, b"")
    with pytest.raises(RegistryError, match="asks for a log-in by 'Negotiate'"):
        pull(f"oci://{host}/a:v1", tmp_path / "got")


def test_an_artefact_is_what_its_digest_says(tmp_path: Path, web: WebServer) -> None:
    web.answers["/v2/"] = lambda headers: (200, {}, b"{}")
    host, digest = web.url.removeprefix("http://"), f"sha256:{'1' * 64}"
    for content, words in (
        (b"{}", "is another artefact: its digest is sha256:44136fa3"),
        (b"x" * (5 << 20), "has more than 4194304 bytes"),
    ):
        web.answers[f"/v2/a/manifests/{digest}"] = lambda headers, content=content: (200, {}, content)  # type: ignore[misc]
        with pytest.raises(RegistryError, match=words):
            pull(f"oci://{host}/a@{digest}", tmp_path / "got")
    layer = {
        "mediaType": "a",
        "digest": digest,
        "size": 3,
        "annotations": {"org.opencontainers.image.title": MANIFEST},
    }
    for manifest, words in (
        ({}, "is no artefact of FlowEdge"),
        ({"mediaType": "a/b", "layers": []}, "is no artefact of FlowEdge, but 'a/b'"),
        ({"layers": [layer, layer]}, "twice"),
        ({"layers": [{**layer, "size": 5 << 20}]}, "has more than 4194304 bytes"),
        ({"layers": [{**layer, "digest": "md5:0"}]}, "is no artefact of FlowEdge"),
        ({"layers": [layer]}, "has the digest sha256:"),
    ):
        whole = {"mediaType": "application/vnd.oci.image.manifest.v1+json", **manifest} if manifest else {}
        web.answers["/v2/a/manifests/v1"] = lambda headers, whole=whole: (200, {}, json.dumps(whole).encode())  # type: ignore[misc]
        web.answers[f"/v2/a/blobs/{digest}"] = lambda headers: (200, {}, b"abc")
        with pytest.raises(RegistryError, match=words):
            pull(f"oci://{host}/a:v1", tmp_path / "got")


@pytest.mark.parametrize(
    "text",
    [
        "oci://",
        "oci://host",
        "oci://host/UPPER",
        "oci://host/a:b:c",
        "oci://host/../a",
        "oci://ho st/a",
        "oci://h/a\x1b",
    ],
)
def test_what_is_no_name_in_a_registry_is_refused(text: str) -> None:
    with pytest.raises(RegistryError, match="is no name in a registry"):
        oci_reference(text)


def test_references_are_read_and_name_their_bundles() -> None:
    one = oci_reference("oci://registry.example:5000/line-3/bottle:v7")
    assert (one.host, one.repository, one.name) == ("registry.example:5000", "line-3/bottle", "v7")
    assert oci_reference("oci://[::1]:5000/a").name == "latest"
    assert last_part("oci://registry.example/line/bottle:v7") == "bottle"
    assert last_part("s3://bucket/x/bottle.flowedge/") == "bottle.flowedge"
    assert last_part("s3://bucket/..") == ""


def test_a_place_that_fsspec_does_not_know_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"nosuch://x cannot be opened: Protocol not known: nosuch"):
        pull("nosuch://x", tmp_path / "got")
    with pytest.raises(RegistryError, match="can only be read"):
        push(made / "small.flowedge", "https://registry.example/a")


def test_the_commands_push_and_pull(made: Path, tmp_path: Path) -> None:
    keys = made / "release.pub"
    done = command("push", made / "a.flowedge", tmp_path / "shared", "--json", "--require-signature", keys)
    assert json.loads(done.stdout)["is_signed"] is True
    done = command("pull", tmp_path / "shared", "-o", tmp_path / "got", "--require-signature", keys)
    assert done.status == 0, done.stderr
    assert "signed by release (" in done.stdout
    assert same(made / "a.flowedge", tmp_path / "got")
    done = command("pull", tmp_path / "shared", "-o", tmp_path / "got")
    assert (done.status, "exists already" in done.stderr) == (2, True)
    done = command("push", made / "small.flowedge", tmp_path / "unsigned")
    assert "It is not signed" in done.stderr
    done = command("pull", tmp_path / "unsigned", "-o", tmp_path / "no", "--require-signature", keys)
    assert (done.status, "is not signed" in done.stderr, (tmp_path / "no").exists()) == (2, True, False)
