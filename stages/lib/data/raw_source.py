"""Raw sources as a user names them: a file, or a published list of files, of which all or some are taken.

    { uri = "https://../400m-1x.txt", listed = true, take = 100, rewrite = { "s3://commoncrawl/" =
    "https://data.commoncrawl.org/" }, .. }

A list is a text file with one address a line, plain or .gz. `take` files are drawn by a hash of their addresses: a
uniform sample that a larger one contains. Light to import: a list is fetched by `expanded` alone.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from stages.core.errors import ConfigError, InfraError, InputError
from stages.core.shrinking import Rehearsal
from stages.lib.formats.sources import RawFile
from stages.lib.formats.uris import shown

LARGEST = 1 << 30
"""Bytes of a list, at most: Common Crawl's whole pool is 5 million addresses, 700 MB."""
SECONDS = 60.0
"""For each part of an answer."""


class RawSource(RawFile):
    """A raw file, or a list of such."""

    listed: bool = Field(default=False, description="`uri` is a text file that lists the files, one address a line")
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="listed: of the list; unset: not checked"
    )
    take: int | None = Field(
        default=None, gt=0, description="listed: files to take, drawn by a hash of their addresses; unset: all"
    )
    rewrite: Mapping[str, str] = Field(
        default={},
        description=(
            "listed: {how addresses begin: how they begin where they are read}; the listed address becomes a mirror"
        ),
    )

    @model_validator(mode="after")
    def _belongs(self) -> RawSource:
        if not self.listed and (self.sha256 or self.take or self.rewrite):
            raise ValueError("sha256, take and rewrite go with listed = true")
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """Two files of a list."""
        return values | {"take": min(self.take or 2, 2)} if self.listed else values


def expanded(source: RawSource, where: str) -> list[RawFile]:
    """The files of a source. where: name of the setting, for errors. Raises InputError or InfraError when a list cannot
    be had.
    """

    def file(uri: str, mirrors: tuple[str, ...]) -> RawFile:
        return RawFile(
            **{**{name: getattr(source, name) for name in RawFile.model_fields}, "uri": uri, "mirrors": mirrors}
        )

    if not source.listed:
        return [file(source.uri, source.mirrors)]
    data = _fetched((source.uri, *source.mirrors), where)
    if source.sha256 and (digest := hashlib.sha256(data).hexdigest()) != source.sha256:
        raise InputError(
            f"{where}: {shown(source.uri)} has SHA-256 {digest}, not {source.sha256}: it has changed; look at it, and"
            " set the digest anew"
        )
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{where}: {shown(source.uri)} is no list of addresses: {error}") from error
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if odd := next((line for line in lines if not urllib.parse.urlsplit(line).scheme), None):
        raise InputError(f"{where}: {shown(source.uri)} lists {odd[:80]!r}, which is no address")
    if not lines:
        raise InputError(f"{where}: {shown(source.uri)} lists nothing")
    if source.take is not None and source.take < len(lines):
        drawn = set(sorted(lines, key=lambda line: hashlib.sha256(line.encode()).digest())[: source.take])
        lines = [line for line in lines if line in drawn]
    return [file(*_rewritten(line, source.rewrite)) for line in lines]


def _rewritten(address: str, rewrite: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """(where to read, mirrors)."""
    for begins, instead in rewrite.items():
        if address.startswith(begins):
            return instead + address.removeprefix(begins), (address,)
    return address, ()


def _fetched(addresses: tuple[str, ...], where: str) -> bytes:
    """The bytes of a list, from the first address that has it."""
    last: InputError | InfraError | None = None
    for address in addresses:
        try:
            return _fetch(address, where)
        except (InputError, InfraError) as error:
            last = error
    assert last is not None
    raise last


def _fetch(address: str, where: str) -> bytes:
    parts = urllib.parse.urlsplit(address)
    try:
        if parts.scheme == "file":
            return Path(urllib.parse.unquote(parts.path)).read_bytes()
        if parts.scheme not in ("https", "http") or (
            parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost")
        ):
            raise ConfigError(f"{where}: a list is fetched from https:// or file://, not {shown(address)}")
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            data = answer.read(LARGEST + 1)
            promised = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        kind = InputError if 400 <= error.code < 500 and error.code not in (408, 429) else InfraError
        raise kind(f"{where}: {shown(address)} answers {error.code} {error.reason}") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{where}: {shown(address)} is not there, or is no file") from error
    except (OSError, http.client.HTTPException) as error:
        raise InfraError(
            f"{where}: {shown(address)} cannot be read: {getattr(error, 'reason', None) or error}"
        ) from error
    if len(data) > LARGEST or (promised is not None and promised.isdigit() and len(data) < int(promised)):
        raise InfraError(
            f"{where}: {shown(address)} gave {len(data)} bytes"
            + (f" of {promised}" if promised else f", a list has {LARGEST} at most")
        )
    return data
