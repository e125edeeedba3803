"""Signatures over release folders, by the `model-signing` library: an elliptic-curve key, nothing online.

    signing.sign(folder, Path("key.pem"))              model.sig in the folder: a Sigstore bundle over every file
    signing.verify(folder, Path("key.pub.pem"))        what of the folder is not what was signed

A private key is read where it lies, used, and forgotten: it is never copied, shown or logged. The library's own
command, `model_signing verify key`, takes the same signature.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stages.core.errors import ConfigError, InputError
from stages.core.files import file_sha256

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

SIGNATURE = "model.sig"
UNSIGNED = (".cache",)
"""What a download by huggingface_hub leaves in a folder beside its files."""
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""The curves that the library signs with, and the digest of each."""
HOW = "make one with 'openssl ecparam -name prime256v1 -genkey -noout -out key.pem'"


def private_key(path: Path) -> EllipticCurvePrivateKey:
    """A private key from a PEM file. Raises ConfigError, which never shows what is in the file."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    body = _read(path, "the private key")
    try:
        key = serialization.load_pem_private_key(body, None)
    except TypeError:
        raise ConfigError(f"{path}: the key is encrypted: decrypt it into a file that only you can read") from None
    except ValueError:  # its text may quote the file
        raise ConfigError(f"{path} is no private key in PEM form; {HOW}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise ConfigError(f"{path} is no key of a curve that model-signing knows ({', '.join(CURVES)}); {HOW}")
    return key


def public_key(path: Path) -> EllipticCurvePublicKey:
    """A public key from a PEM file. Raises ConfigError."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    body = _read(path, "the public key")
    if b"PRIVATE KEY" in body:
        raise ConfigError(f"{path} is a private key: 'openssl ec -in key.pem -pubout' gives the public one")
    try:
        key = serialization.load_pem_public_key(body)
    except ValueError:
        raise ConfigError(f"{path} is no public key in PEM form: 'openssl ec -in key.pem -pubout' gives one") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ConfigError(f"{path} is no key of a curve that model-signing knows ({', '.join(CURVES)})")
    return key


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error


def hash_of(key: EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    """The digest that goes with a key's curve."""
    from cryptography.hazmat.primitives import hashes

    return getattr(hashes, CURVES[key.curve.name])()


def key_id(key: EllipticCurvePublicKey) -> str:
    """The SHA-256 of a public key in PEM form: which key it was, without the key."""
    from cryptography.hazmat.primitives import serialization

    text = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(text).hexdigest()


def sign(folder: Path, key: Path) -> Path:
    """Sign every file of a folder; returns the signature's path. Raises ConfigError for a key that cannot sign, or that
    lies in the folder itself and would be published with it.
    """
    from model_signing import hashing, signing

    private_key(key)
    if key.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"the private key {key} lies in the folder that it signs: move it away before it is published"
        )
    target = folder / SIGNATURE
    target.unlink(missing_ok=True)
    config: Any = cast("Any", hashing.Config()).set_ignored_paths(paths=[SIGNATURE, *UNSIGNED])
    cast("Any", signing.Config()).use_elliptic_key_signer(private_key=key).set_hashing_config(config).sign(
        folder, target
    )
    return target


def verify(folder: Path, key: Path) -> list[str]:
    """What of a folder is not what was signed, a line each; none: all of it is. Raises ConfigError for a key that
    cannot be read, InputError where there is no signature or it is not of this key.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    public_key(key)
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise InputError(f"{folder} has no {SIGNATURE}: 'moxin release --sign KEY.pem' writes one")
    config: Any = cast("Any", verifying.Config()).use_elliptic_key_verifier(public_key=key)
    try:
        config.verify(folder, signature)
    except InvalidSignature:
        raise InputError(f"{SIGNATURE}: the signature is not of this key, or what it signs was altered") from None
    except ValueError as error:
        text = str(error)
        if text.startswith("Signature mismatch: "):  # the signature holds, the files are others
            return sorted(_altered(folder, signature)) or [text]
        raise InputError(f"{SIGNATURE} does not hold: {text.splitlines()[0]}") from error
    except Exception as error:  # what an altered bundle makes of its parsers is theirs to choose
        raise InputError(f"{SIGNATURE} cannot be read ({type(error).__name__}): it was cut or altered") from error
    return []


def _altered(folder: Path, signature: Path) -> Iterator[str]:
    """How the files of a folder differ from those that a signature lists; the library names them with raw bytes."""
    payload = json.loads(base64.b64decode(json.loads(signature.read_bytes())["dsseEnvelope"]["payload"]))
    signed = {row["name"]: row["digest"] for row in payload["predicate"]["resources"]}
    ignored = (*payload["predicate"]["serialization"]["ignore_paths"],)
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name in signed.keys() - paths.keys():
        yield f"{name}: it was signed, and is not there"
    for name, path in paths.items():
        if name in signed and (digest := file_sha256(path)) != signed[name]:
            yield f"{name}: it has the SHA-256 {digest}, {signed[name]} was signed"
        elif name not in signed and name.partition("/")[0] not in ignored:
            yield f"{name}: it was not signed"
