"""Published lists of files (`RawSource.listed`), fetched as every remote file is."""

from __future__ import annotations

import gzip
import hashlib
import io
import urllib.parse
import zlib
from collections.abc import Mapping
from pathlib import Path

from stages.core.errors import ConfigError, InfraError, InputError
from stages.lib.data.raw_source import RawSource
from stages.lib.formats.remote import RemoteFile
from stages.lib.formats.remote_http import Http
from stages.lib.formats.sources import RawFile
from stages.lib.formats.uris import shown

LARGEST = 1 << 30
"""Bytes of a list, at most: Common Crawl's whole pool is 5 million addresses, 700 MB."""


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
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(LARGEST + 1)
            if len(data) > LARGEST:
                raise InputError(f"{where}: {shown(source.uri)} unpacks to more than {LARGEST} bytes, which is no list")
        text = data.decode("utf-8")
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
        with RemoteFile(Http(address, address), address) as remote:
            data = io.BufferedReader(remote).read(LARGEST + 1)
    except (InputError, InfraError) as error:
        raise type(error)(f"{where}: {error}") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{where}: {shown(address)} is not there, or is no file") from error
    except OSError as error:
        raise InfraError(f"{where}: {shown(address)} cannot be read: {error}") from error
    if len(data) > LARGEST:
        raise InfraError(f"{where}: {shown(address)} gave {len(data)} bytes, a list has {LARGEST} at most")
    return data
