"""Signatures of bundles and packs: what is signed is opened, and everything else is refused in words."""

from __future__ import annotations

import asyncio
import base64
import datetime
import os
import pickle
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from onnx import helper, numpy_helper

import flowedge
from flowedge import signature as signature_module
from flowedge import trusted_keys
from flowedge.bundle import open_bundle, replace_in_bundle
from flowedge.bundle_files import MANIFEST, SIGNATURE
from flowedge.calibration.threshold_changes import NewThresholds, set_thresholds
from flowedge.errors import BundleError, SignatureError
from flowedge.runtime.batch.inspector import BatchInspector
from flowedge.runtime.registry.signing import new_key, read_signing_key, sign_folder
from flowedge.runtime.serving.repository import Repository
from flowedge.runtime.serving.settings import ModelSettings, ServerSettings, ServeSettings
from flowedge.signed_text import join_signed_text, signed_bytes, split_signed_text
from flowedge.trusted_keys import moment_from, read_keys
from support.command_line import flowedge as command
from support.small_dataset import write_dataset
from support.station_files import write_station
from support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed bundle, its key, and a key that signed nothing."""
    folder = tmp_path_factory.mktemp("signed")
    write_tiny_bundle(folder / "a.flowedge")
    for name in ("release", "other"):
        new_key(folder, name)
    sign_folder(folder / "a.flowedge", read_signing_key(folder / "release.key"), comment="checked by Ann")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "work")
    return tmp_path / "work"


def files_of(folder: Path) -> list[str]:
    return sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())


def later(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    monkeypatch.setattr(signature_module, "utc_now", lambda: moment_from(moment))


def test_a_signed_bundle_opens_with_its_key_and_tells_who_signed_it(made: Path) -> None:
    bundle = open_bundle(made / "a.flowedge", require_signature=made / "release.pub")
    assert bundle.signature is not None
    assert (bundle.signature.key, bundle.signature.comment) == ("release", "checked by Ann")
    with flowedge.load(made / "a.flowedge", require_signature=made) as detector:
        assert detector.bundle.signature == bundle.signature
    assert all(check.passed for check in flowedge.verify(made / "a.flowedge", require_signature=made))


def test_every_file_of_a_signed_bundle_is_covered_by_its_signature(place: Path) -> None:
    bundle = place / "a.flowedge"
    listed = {stored.path for stored in open_bundle(bundle).manifest.files}
    assert {*listed, MANIFEST, SIGNATURE} == set(files_of(bundle))
    for name in files_of(bundle):
        file = bundle / name
        content = file.read_bytes()
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 1
        file.write_bytes(changed)
        with pytest.raises(BundleError, match=name.replace(".", r"\.")):
            open_bundle(bundle, require_signature=place / "release.pub")
        file.write_bytes(content)
    open_bundle(bundle, require_signature=place / "release.pub")


def test_a_manifest_with_right_hashes_that_nobody_signed_is_refused(place: Path) -> None:
    signature = (place / "a.flowedge" / SIGNATURE).read_bytes()
    bundle = open_bundle(place / "a.flowedge")
    forged = msgspec.structs.replace(bundle.manifest, backbone="another")
    replace_in_bundle(bundle, manifest=forged)
    (place / "a.flowedge" / SIGNATURE).write_bytes(signature)
    open_bundle(place / "a.flowedge")
    with pytest.raises(SignatureError, match=r"manifest\.json was changed after release had signed it"):
        open_bundle(place / "a.flowedge", require_signature=place)


def test_a_bundle_without_a_signature_is_refused_where_one_is_required(place: Path) -> None:
    (place / "a.flowedge" / SIGNATURE).unlink()
    with pytest.raises(SignatureError, match=r"is not signed.*flowedge sign"):
        flowedge.load(place / "a.flowedge", require_signature=place)


def test_a_change_of_a_threshold_removes_the_signature_and_the_command_says_so(place: Path) -> None:
    bundle = place / "a.flowedge"
    done = command("threshold", "set", bundle, "--image", "1", "--reason", "test")
    assert done.status == 0
    assert "was signed, and its new version is not. Sign it again with: flowedge sign" in done.stderr
    assert not (bundle / SIGNATURE).exists()
    assert command("sign", bundle, "--key", place / "release.key").status == 0
    open_bundle(bundle, require_signature=place)


def test_a_bundle_that_is_replaced_file_by_file_has_no_signature_of_the_old_version(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowedge.replacing._may_rename", lambda place: False)
    (place / "a.flowedge" / f"{MANIFEST}.minisig").write_text("a signature of the old version")
    set_thresholds(place / "a.flowedge", NewThresholds(image=1.0), reason="test")
    assert not (place / "a.flowedge" / SIGNATURE).exists()
    assert not (place / "a.flowedge" / f"{MANIFEST}.minisig").exists()


def test_a_key_that_is_not_trusted_is_named_with_those_that_are(made: Path) -> None:
    with pytest.raises(SignatureError, match=r"signed with the key release \(.*does not list.*other \("):
        open_bundle(made / "a.flowedge", require_signature=made / "other.pub")


def test_a_changed_word_of_the_statement_is_no_signature(place: Path) -> None:
    file = place / "a.flowedge" / SIGNATURE
    file.write_bytes(file.read_bytes().replace(b"Ann", b"Bob"))
    with pytest.raises(SignatureError, match="is not what the key release has signed"):
        open_bundle(place / "a.flowedge", require_signature=place)


def test_a_signature_over_another_kind_of_text_is_none_over_a_bundle(place: Path) -> None:
    file = place / "a.flowedge" / SIGNATURE
    body, _ = split_signed_text(file.read_bytes())
    other = read_signing_key(place / "release.key").private.sign(signed_bytes("application/other", body))
    file.write_bytes(join_signed_text(body, other))
    with pytest.raises(SignatureError, match="is not what the key release has signed"):
        open_bundle(place / "a.flowedge", require_signature=place)


@pytest.mark.parametrize(
    "content", [b"", b"schema = 1\n", b"# signature: AAAA\n", b"\xff\n" * 9, b"x" * (1 << 17)]
)
def test_a_file_that_is_no_signature_is_refused_with_its_name(place: Path, content: bytes) -> None:
    (place / "a.flowedge" / SIGNATURE).write_bytes(content)
    with pytest.raises(SignatureError, match=r"signature\.toml has "):
        open_bundle(place / "a.flowedge", require_signature=place)


def test_an_expired_signature_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = read_signing_key(place / "release.key")
    sign_folder(place / "a.flowedge", key, expires="2099-01-31")
    open_bundle(place / "a.flowedge", require_signature=place)
    later(monkeypatch, "2099-01-31T23:59:59Z")
    open_bundle(place / "a.flowedge", require_signature=place)
    later(monkeypatch, "2099-02-01T00:00:00Z")
    with pytest.raises(SignatureError, match="expired on 2099-02-01"):
        open_bundle(place / "a.flowedge", require_signature=place)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('expires = "2020-01-01"', r"release \(.*\) expired on 2020-01-02"),
        ("expires = 2020-01-01T00:00:00Z", r"release \(.*\) expired on 2020-01-01"),
        ('revoked = "the laptop was stolen"', r"release \(.*\) was revoked: the laptop was stolen"),
        ('signs = ["rollouts"]', r"release \(.*\) may sign rollouts, and no bundles"),
    ],
)
def test_a_key_that_is_not_accepted_any_more_is_refused_with_the_reason(
    place: Path, line: str, words: str
) -> None:
    with (place / "release.pub").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(SignatureError, match=words):
        open_bundle(place / "a.flowedge", require_signature=place / "release.pub")


def test_a_key_that_is_listed_twice_is_revoked_where_one_entry_is(place: Path) -> None:
    text = (place / "release.pub").read_text() + 'revoked = "lost"\n'
    (place / "zz-revoked.toml").write_text(text)
    with pytest.raises(SignatureError, match="was revoked: lost"):
        open_bundle(place / "a.flowedge", require_signature=place)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no public keys"),
        ("[[keys]]\nname = 'a'\n", "missing required field `public`"),
        ("[[keys]]\nname = 'a'\npublic = 'AAAA'\n", "has 3 bytes"),
        ("[[keys]]\nname = 'a'\npublic = 'AAAA'\ncolour = 1\n", "unknown field `colour`"),
        ("[[keys]]\nname = 'a\\u001b[31m'\npublic = 'AAAA'\n", "matching regex"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public keys"),
    ],
)
def test_a_file_of_keys_that_holds_none_is_refused_with_its_name(
    made: Path, tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "bad.pub").write_text(content)
    with pytest.raises(SignatureError, match=rf"(?s)bad\.pub.*{words}"):
        open_bundle(made / "a.flowedge", require_signature=tmp_path / "bad.pub")


def test_a_private_key_is_no_trusted_key_and_a_public_key_signs_nothing(made: Path) -> None:
    with pytest.raises(SignatureError, match="holds a private key"):
        read_keys(made / "release.key")
    with pytest.raises(SignatureError, match="is a public key"):
        read_signing_key(made / "release.pub")


def test_the_environment_requires_signatures_of_every_opening(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_REQUIRE_SIGNATURE", str(place / "other.pub"))
    for opens in (open_bundle, flowedge.load, flowedge.verify):
        with pytest.raises(SignatureError, match="does not list"):
            opens(place / "a.flowedge")
    open_bundle(place / "a.flowedge", require_signature=False)
    open_bundle(place / "a.flowedge", require_signature=place / "release.pub")


def test_every_command_that_opens_a_bundle_takes_the_option_and_leaves_the_environment_alone(
    place: Path,
) -> None:
    bundle, data = place / "a.flowedge", place / "data"
    write_dataset(data)
    for words in (
        ("run", bundle, data),
        ("eval", bundle, data),
        ("verify", bundle),
        ("info", bundle),
        ("calibrate", bundle, "--data", data),
        ("threshold", "show", bundle),
        ("bench", bundle, "--engines", "onnxruntime-cpu"),
        ("pack", bundle, "-o", place / "line.flowedgepack"),
        ("serve", bundle, "--port", "0"),
        ("batch", data, "--bundle", bundle, "-o", place / "out.parquet"),
        ("push", bundle, place / "pushed"),
    ):
        done = command(*words, "--require-signature", place / "other.pub")
        assert done.status == 2, words
        assert "does not list" in done.stderr, words
    assert "FLOWEDGE_REQUIRE_SIGNATURE" not in os.environ
    done = command("verify", bundle, "--require-signature", place / "release.pub")
    assert done.status == 0
    assert done.stdout.startswith("signed by release (")
    assert "checked by Ann" in done.stdout


def test_a_signature_of_minisign_over_the_manifest_is_accepted(place: Path) -> None:
    if shutil.which("minisign") is None:
        pytest.skip("minisign is not installed")
    bundle = place / "a.flowedge"
    (bundle / SIGNATURE).unlink()
    public, private = place / "mini.pub", place / "mini.sec"
    subprocess.run(["minisign", "-G", "-W", "-p", public, "-s", private], check=True, capture_output=True)
    subprocess.run(
        ["minisign", "-S", "-s", private, "-m", bundle / MANIFEST, "-t", "bundle v1"],
        check=True,
        capture_output=True,
    )
    opened = open_bundle(bundle, require_signature=public)
    assert opened.signature is not None
    assert (opened.signature.key, opened.signature.comment) == ("mini", "bundle v1")
    with pytest.raises(SignatureError, match=r"minisign key [0-9A-F]{16}, which"):
        open_bundle(bundle, require_signature=place / "release.pub")
    file = bundle / f"{MANIFEST}.minisig"
    file.write_text(file.read_text().replace("bundle v1", "bundle v2"))
    with pytest.raises(SignatureError, match="is not what the key mini has signed"):
        open_bundle(bundle, require_signature=public)


def test_openssl_verifies_what_flowedge_signs_and_its_keys_are_accepted(place: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, public = place / "ossl.key", place / "ossl.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    sign_folder(place / "a.flowedge", read_signing_key(key))
    open_bundle(place / "a.flowedge", require_signature=public)
    body, raw = split_signed_text((place / "a.flowedge" / SIGNATURE).read_bytes())
    # The encoding of DSSE, written down once more: the type's and the body's length in decimal digits.
    kind = b"application/vnd.flowedge.signature.v1+toml"
    (place / "message").write_bytes(b" ".join((b"DSSEv1", b"42", kind, str(len(body)).encode(), body)))
    (place / "signature").write_bytes(raw)
    verify: list[str | Path] = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"]
    verify += ["-in", place / "message", "-sigfile", place / "signature"]
    assert b"Success" in subprocess.run(verify, check=True, capture_output=True).stdout
    assert base64.b64encode(read_keys(public).keys[0].public) == base64.b64encode(
        load_pem_public_key(public.read_bytes()).public_bytes_raw()  # type: ignore[union-attr]
    )


def test_the_signed_bytes_are_those_of_the_specification() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, "Test Vectors"
    wanted = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert signed_bytes("http://example.com/HelloWorld", b"hello world") == wanted


def test_a_private_key_is_encrypted_with_the_password_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_KEY_PASSWORD", "secret")
    private, _ = new_key(tmp_path, "safe", expires="2099-01-31")
    assert private.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in private.read_bytes()
    read_signing_key(private)
    monkeypatch.setenv("FLOWEDGE_KEY_PASSWORD", "wrong")
    with pytest.raises(SignatureError, match="FLOWEDGE_KEY_PASSWORD to its password"):
        read_signing_key(private)
    with pytest.raises(SignatureError, match="exists already"):
        new_key(tmp_path, "safe")
    with pytest.raises(SignatureError, match="no name of a key"):
        new_key(tmp_path, "../safe")
    with pytest.raises(SignatureError, match="is past"):
        new_key(tmp_path, "old", expires="2020-01-31")
    (key,) = read_keys(tmp_path).keys
    assert key.expires == moment_from("2099-02-01T00:00:00Z")
    assert trusted_keys.key_id(key.public) == key.id


def test_a_bundle_that_does_not_verify_is_not_signed(place: Path) -> None:
    (place / "a.flowedge" / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx has 5 bytes"):
        sign_folder(place / "a.flowedge", read_signing_key(place / "release.key"))


def test_damaged_signatures_keys_and_statements_are_refused_in_words_and_end_nothing(place: Path) -> None:
    random = np.random.default_rng(7)
    files = {"signature": place / "a.flowedge" / SIGNATURE, "keys": place / "release.pub"}
    for file in files.values():
        content = file.read_bytes()
        for _ in range(150):
            damaged = bytearray(content)
            for at in random.integers(0, len(damaged), random.integers(1, 6)):
                match random.integers(3):
                    case 0:
                        damaged[at] = random.integers(256)
                    case 1:
                        del damaged[at : at + int(random.integers(1, 40))]
                        break
                    case _:
                        damaged[at:at] = damaged[: int(random.integers(1, 200))]
            file.write_bytes(damaged)
            # A damaged name or comment of the file of keys changes no key.
            with suppress(SignatureError):
                open_bundle(place / "a.flowedge", require_signature=place / "release.pub")
                assert file == files["keys"]
        file.write_bytes(content)


def test_info_and_the_check_of_a_station_tell_about_the_signature(place: Path, tmp_path: Path) -> None:
    bundle, key = place / "a.flowedge", place / "release.key"
    assert "by release (" in command("info", bundle).stdout
    assert "not checked" in command("info", bundle).stdout
    assert "checked by Ann" in command("info", bundle, "--require-signature", place / "release.pub").stdout
    set_thresholds(bundle, NewThresholds(image=1.0), reason="test")
    row = next(line for line in command("info", bundle).stdout.splitlines() if line.startswith("signature"))
    assert row.split() == ["signature", "none"]
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=3)
    sign_folder(bundle, read_signing_key(key), expires=soon.isoformat())
    file = write_station(tmp_path, photos=1, require_signature=str(place / "release.pub"))
    done = command("station", "check", file)
    assert (done.status, "tiny.flowedge is not signed" in done.stdout) == (1, True)
    file.write_text(file.read_text().replace('"tiny.flowedge"', f'"{bundle}"'))
    done = command("station", "check", file)
    assert (done.status, "signature is accepted until" in done.stdout) == (0, True)


def test_a_process_of_a_cluster_requires_the_signatures_that_its_job_required(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWEDGE_REQUIRE_SIGNATURE", str(place / "other.pub"))
    job = pickle.dumps(BatchInspector(place / "a.flowedge"))
    monkeypatch.delenv("FLOWEDGE_REQUIRE_SIGNATURE")
    with pytest.raises(SignatureError, match="does not list"):
        _ = pickle.loads(job).detector


def outside_tensor(location: str) -> onnx.TensorProto:
    """Return a tensor whose content is in another file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "outside")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="length", value="16")
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph_around(tensor: onnx.TensorProto, place: str) -> onnx.ModelProto:
    """Return a model that holds a tensor at one of the places where ONNX allows one."""
    constant = helper.make_node("Constant", [], ["out"], value=tensor)
    nodes = [constant]
    if place == "subgraph":
        branch = helper.make_graph([constant], "branch", [], [])
        nodes = [helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)]
    model = helper.make_model(helper.make_graph([] if place == "function" else nodes, "graph", [], []))
    match place:
        case "initializer":
            del model.graph.node[:]
            model.graph.initializer.append(tensor)
        case "sparse":
            del model.graph.node[:]
            model.graph.sparse_initializer.add(values=tensor)
        case "function":
            model.functions.append(helper.make_function("d", "f", [], ["out"], [constant], []))
        case "list":
            model.graph.node[0].attribute[0].ClearField("t")
            model.graph.node[0].attribute[0].tensors.append(tensor)
    return model


@pytest.mark.parametrize("at", ["node", "subgraph", "initializer", "sparse", "function", "list"])
def test_a_graph_with_weights_in_a_file_that_is_not_listed_is_not_signed(place: Path, at: str) -> None:
    bundle, key = open_bundle(place / "a.flowedge"), read_signing_key(place / "release.key")
    for location in ("weights.bin", "../weights.bin", "/tmp/weights.bin"):
        model = graph_around(outside_tensor(location), at).SerializeToString()
        bundle = replace_in_bundle(bundle, files={"model.onnx": model})
        with pytest.raises(SignatureError, match=r"model\.onnx takes weights from .*weights\.bin"):
            sign_folder(bundle.path, key)
    model = graph_around(outside_tensor("weights.bin"), at).SerializeToString()
    bundle = replace_in_bundle(bundle, files={"model.onnx": model, "weights.bin": bytes(16)})
    sign_folder(bundle.path, key)


def test_weights_outside_are_found_under_any_name_of_the_graph_and_behind_fields_that_are_ignored(
    place: Path,
) -> None:
    bundle, key = open_bundle(place / "a.flowedge"), read_signing_key(place / "release.key")
    tensor = outside_tensor("weights.bin")
    for entry in tensor.external_data:
        entry.MergeFromString(b"\x08\x01\x10\x01")  # the numbers of key and value with another wire type
    model = graph_around(tensor, "initializer").SerializeToString()
    assert onnx.load_from_string(model).graph.initializer[0].external_data[1].value == "weights.bin"
    (graph,) = bundle.manifest.graphs
    manifest = msgspec.structs.replace(
        bundle.manifest, graphs=(msgspec.structs.replace(graph, file="model.bin"),)
    )
    bundle = replace_in_bundle(bundle, manifest=manifest, files={"model.bin": model})
    with pytest.raises(SignatureError, match=r"model\.bin takes weights from 'weights\.bin'"):
        sign_folder(bundle.path, key)


def test_a_server_loads_only_what_a_key_of_its_file_has_signed(made: Path) -> None:
    settings = ServeSettings(
        server=ServerSettings(require_signature=made / "other.pub"),
        models=(ModelSettings(bundle=made / "a.flowedge"),),
    )
    with pytest.raises(SignatureError, match="does not list"):
        asyncio.run(Repository(settings).load_all())
