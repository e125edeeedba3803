"""Uploads in parts against a real S3 server: what the store forgets, refuses, or has already."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from stages.core import connection, downloads, uploads
from stages.core.artifacts import FileEntry
from stages.core.errors import ConfigError
from stages.core.files import file_sha256
from stages.core.keys import sha256
from stages.core.store import Store
from stages.core.store_errors import Unavailable
from stages.core.uploads import RESTARTS, file_sums
from tests.support.faulty_store import Client, client_error


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of 5 MiB, the smallest that a store takes, and short pauses."""
    for module in (uploads, downloads):
        monkeypatch.setattr(module, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(connection, "PAUSES", (0.01, 0.1))
    return 5 << 20


@pytest.mark.parametrize("call", ["upload_part", "complete_multipart_upload"])
def test_an_upload_that_the_store_forgot_begins_anew_and_is_no_fault_of_the_input(
    store: Store, tmp_path: Path, small_parts: int, call: str
) -> None:
    """A store that is restarted forgets a transfer in parts, and answers 404."""
    path, tries = tmp_path / "file", []
    path.write_bytes(b"1" * (small_parts + 1))

    def forget_once(**request: Any) -> Any:
        tries.append(request["UploadId"])
        if len(tries) == 1:
            raise client_error("NoSuchUpload", 404)
        return getattr(store._client, call)(**request)

    entry = Store(store.address, Client(store._client, **{call: forget_once}), patience=60).put_file("x", path)
    assert store.digest("x") == entry.sha256 == file_sha256(path)
    assert len(set(tries)) == 2, "a second transfer"


def test_an_upload_that_is_forgotten_every_time_ends(store: Store, tmp_path: Path, small_parts: int) -> None:
    path, tries = tmp_path / "file", []
    path.write_bytes(b"1" * (small_parts + 1))

    def forget(**request: Any) -> Any:
        tries.append(request["UploadId"])
        raise client_error("NoSuchUpload", 404)

    store.patience = 60
    with pytest.raises(Unavailable, match=r"forgot an unfinished upload of s3://.*/x"):
        Store(store.address, Client(store._client, complete_multipart_upload=forget)).put_file("x", path)
    assert len(tries) == RESTARTS
    assert store.get("x") is None


def test_a_completion_whose_answer_was_lost_is_not_sent_again(store: Store, tmp_path: Path, small_parts: int) -> None:
    """The store forgets a transfer that is complete: the object is there."""
    path, sent = tmp_path / "file", []
    path.write_bytes(b"1" * (small_parts + 1))

    def complete(**request: Any) -> Any:
        store._client.complete_multipart_upload(**request)
        raise client_error("NoSuchUpload", 404)

    def part(**request: Any) -> Any:
        sent.append(request["PartNumber"])
        return store._client.upload_part(**request)

    lossy = Store(store.address, Client(store._client, complete_multipart_upload=complete, upload_part=part))
    assert lossy.put_file("x", path).sha256 == store.digest("x")
    assert sorted(sent) == [1, 2], "each part once"


def unfinished(store: Store) -> list[str]:
    """Uploads in parts that were begun, and neither completed nor given up."""
    rows = store._client.list_multipart_uploads(Bucket=store.address.bucket).get("Uploads", [])
    return [row["Key"] for row in rows if row["Key"].startswith(store.address.prefix)]


def test_an_upload_knows_each_block(store: Store, tmp_path: Path, small_parts: int) -> None:
    path = tmp_path / "file"
    data = random.Random(3).randbytes(2 * small_parts + 3)
    path.write_bytes(data)
    blocks = [data[at : at + small_parts] for at in range(0, len(data), small_parts)]
    entry = store.put_file("x", path, "name")
    assert entry == FileEntry(
        path="name",
        size=len(data),
        sha256=sha256(data),
        object="x",
        blocks="".join(f"{zlib.crc32(block):08x}" for block in blocks),
    )
    assert (file_sums(path).sha256, file_sums(path).blocks) == (entry.sha256, entry.blocks)
    store.get_file(entry, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert unfinished(store) == []


def test_a_failed_upload_leaves_no_parts(store: Store, tmp_path: Path, small_parts: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1" * (small_parts + 1))

    def refuse(**request: Any) -> Any:
        raise client_error("AccessDenied", 403)

    with pytest.raises(ConfigError, match="refuses access"):
        Store(store.address, Client(store._client, upload_part=refuse)).put_file("x", path)
    assert unfinished(store) == []
    assert store.get("x") is None


def test_bytes_that_are_stored_already_are_copied_in_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, real = [], store._client.put_object

    def counted(**request: Any) -> Any:
        sent.append(len(request["Body"]))
        return real(**request)

    monkeypatch.setattr(store._client, "put_object", counted)
    file = tmp_path / "model"
    file.write_bytes(b"weights" * 1000)
    size, digest = store.upload("checkpoints/a", file)
    assert store.upload("objects/a", file, stored={(size, digest): "checkpoints/a"}) == (size, digest)
    assert sent == [size], "sent once"
    assert store.digest("objects/a") == digest
    store.delete(["checkpoints/a"])
    store.upload("objects/b", file, stored={(size, digest): "checkpoints/a"})
    assert sent == [size, size], "its twin is gone: sent again"
    assert store.digest("objects/b") == digest
