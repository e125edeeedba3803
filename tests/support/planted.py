"""Recognizable credentials, and where they are looked for: in files, in what a program shows of itself, in any coding
that a secret is sent in.
"""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

SOURCES = {
    "HF_TOKEN": "hf_planted0token0of0the0hub",
    "MOXIN_SOURCE_AWS_ACCESS_KEY_ID": "PLANTEDKEYOFSOURCES0",
    "MOXIN_SOURCE_AWS_SECRET_ACCESS_KEY": "planted/secret+of=sources",
    "MOXIN_SOURCE_AWS_SESSION_TOKEN": "planted//session+token=of=sources",
    "HTTPS_PROXY": "http://me:planted-of-the-proxy@127.0.0.1:9",
}
"""What raw sources are read with, as a user sets it."""
CONTROL_PLANE = {
    "PREFECT_API_KEY": "pnu_planted0key",
    "GITHUB_TOKEN": "ghp_planted0token",
    "AWS_SESSION_TOKEN": "planted//session+token=of=nobody",
}
"""What else lies in a user's environment, and is no stage's business."""


def secrets_in(values: Mapping[str, str]) -> dict[str, str]:
    """Of variables, what of each is secret: of an address, its password alone."""
    return {
        name: urllib.parse.urlsplit(value).password or value if "://" in value else value
        for name, value in values.items()
    }


def spellings(secret: str) -> set[bytes]:
    """A secret as it is, in an address, in JSON, and in base64 wherever it stands in what was encoded."""
    plain = secret.encode()
    found = {plain, urllib.parse.quote(secret, safe="").encode(), secret.replace("/", "\\/").encode()}
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + plain)
        inner = coded[4 if shift else 0 : -4]  # without the ends, which depend on what stands beside it
        found |= {inner} if len(inner) >= 8 else set()
    return found


def held(data: bytes, secrets: Mapping[str, str]) -> list[str]:
    """The names of the secrets that some bytes hold, in any spelling."""
    return [name for name, secret in secrets.items() if any(one in data for one in spellings(secret))]


def held_in_files(root: Path, secrets: Mapping[str, str], but: Iterable[Path] = ()) -> Iterator[tuple[str, list[str]]]:
    """(file, names of secrets) of every file below a folder, and of its own name, that holds one. but: not those."""
    excluded = set(but)
    for path in sorted(root.rglob("*")):
        if path in excluded or not path.is_file() or path.is_symlink():
            continue
        names = held(path.read_bytes() + b"\0" + str(path).encode("utf-8", "surrogateescape"), secrets)
        if names:
            yield str(path.relative_to(root)), names
