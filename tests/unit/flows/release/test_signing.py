"""Signatures over folders: what was signed verifies, and a byte, a file more or less, or another key does not."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import verifying

from flows.release import signing
from stages.core.errors import ConfigError, InputError
from tests.support.signing_keys import key_pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two files."""
    folder = tmp_path / "Moxin-LLM"
    (folder / "vision").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (folder / "vision" / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_what_was_signed_verifies_wherever_it_lies(folder: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = key_pair(tmp_path / "keys", curve=curve)
    assert signing.sign(folder, private) == folder / "model.sig"
    assert signing.verify(folder, public) == []
    moved = folder.rename(tmp_path / "elsewhere")
    (moved / ".cache").mkdir()
    (moved / ".cache" / "of a download").touch()
    assert signing.verify(moved, public) == []
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(moved, moved / "model.sig")


def test_a_signature_names_no_place_of_this_machine(folder: Path, tmp_path: Path) -> None:
    private, _ = key_pair(tmp_path / "keys")
    bundle = json.loads(signing.sign(folder, private).read_text())
    assert str(tmp_path).encode() not in base64.b64decode(bundle["dsseEnvelope"]["payload"])
    assert "PRIVATE" not in json.dumps(bundle)


def test_a_changed_byte_is_named_by_its_file(folder: Path, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path / "keys")
    signing.sign(folder, private)
    body = bytearray((folder / "model.safetensors").read_bytes())
    body[5000] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(body))
    (line,) = signing.verify(folder, public)
    assert line.startswith("model.safetensors: it has the SHA-256 ")
    (folder / "vision" / "config.json").unlink()
    (folder / "more.py").touch()
    assert [line.partition(": ")[0] for line in signing.verify(folder, public)] == [
        "model.safetensors",
        "more.py",
        "vision/config.json",
    ]


def test_another_key_or_an_altered_signature(folder: Path, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path / "keys")
    _, other = key_pair(tmp_path / "keys", "other")
    signature = signing.sign(folder, private)
    with pytest.raises(InputError, match=r"model\.sig"):
        signing.verify(folder, other)
    body = signature.read_bytes()
    for at in range(0, len(body), len(body) // 9):
        altered = bytearray(body)
        altered[at] ^= 1
        signature.write_bytes(bytes(altered))
        with pytest.raises(InputError, match=r"^model\.sig[^\n]*$"):
            signing.verify(folder, public)
    signature.unlink()
    with pytest.raises(InputError, match=r"has no model\.sig"):
        signing.verify(folder, public)


def test_keys_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path / "keys")
    wrong, _ = key_pair(tmp_path / "keys", "wrong", ec.SECP256K1())
    (tmp_path / "noise.pem").write_text("my secret words")
    for key in (tmp_path / "noise.pem", public, tmp_path / "none.pem", wrong):
        with pytest.raises(ConfigError, match=str(key)) as refused:
            signing.sign(folder, key)
        assert "secret" not in str(refused.value)
    signing.sign(folder, private)
    with pytest.raises(ConfigError, match="is a private key"):
        signing.verify(folder, private)
    with pytest.raises(ConfigError, match="is no public key in PEM form"):
        signing.verify(folder, tmp_path / "noise.pem")
    inside = folder / "key.pem"
    inside.write_bytes(private.read_bytes())
    with pytest.raises(ConfigError, match="lies in the folder that it signs"):
        signing.sign(folder, inside)
