"""The object store against a real S3 server: transfers, conditions, listings, and errors that a user can act on."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import NoCredentialsError

from stages.core import store as store_module
from stages.core.disk import disk_full
from stages.core.errors import ConfigError, InfraError
from stages.core.files import file_sha256
from stages.core.messages import StoreAddress
from stages.core.store import PART_BYTES, Store
from stages.core.store_errors import Conflict, Damaged, Unavailable
from tests.support.faulty_store import Client, client_error


def with_keys(store: Store, access: str | None, secret: str) -> Store:
    """The same store, asked with other credentials and without the client's patience."""
    client = boto3.client(
        "s3",
        endpoint_url=store.address.endpoint,
        region_name=store.address.region,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}, connect_timeout=2),
    )
    return Store(store.address, client, patience=0)


# --- objects ----------------------------------------------------------------------------------------------------------


def test_a_patience_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_STORE_PATIENCE", "2 min")
    with pytest.raises(ConfigError, match="MOXIN_STORE_PATIENCE = '2 min': set it to seconds"):
        Store(StoreAddress(bucket="b"))


def test_get_returns_the_bytes_and_the_etag_of_the_last_put(store: Store) -> None:
    assert store.get("thing") is None
    etag = store.put("thing", b"one")
    assert store.get("thing") == (b"one", etag)
    other = store.put("thing", b"two")
    assert store.get("thing") == (b"two", other)
    assert other != etag


def test_if_absent_lets_only_the_first_writer_write(store: Store) -> None:
    store.put("once", b"first", if_absent=True)
    with pytest.raises(Conflict, match="once"):
        store.put("once", b"second", if_absent=True)
    found = store.get("once")
    assert found is not None
    assert found[0] == b"first"


def test_if_match_refuses_to_replace_what_has_changed_meanwhile(store: Store) -> None:
    read = store.put("record", b"1")
    now = store.put("record", b"2", if_match=read)
    with pytest.raises(Conflict):
        store.put("record", b"3", if_match=read)
    assert store.get("record") == (b"2", now)


def test_if_match_on_an_object_that_is_gone_does_not_create_it(store: Store) -> None:
    etag = store.put("record", b"1")
    store.delete(["record"])
    with pytest.raises((Conflict, InfraError)):
        store.put("record", b"2", if_match=etag)
    assert store.get("record") is None


def test_of_many_writers_exactly_one_wins(store: Store) -> None:
    def write(number: int) -> bool:
        try:
            store.put("race", b"%d" % number, if_absent=True)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        won = [number for number, ok in enumerate(pool.map(write, range(12))) if ok]
    found = store.get("race")
    assert found is not None
    assert [found[0]] == [b"%d" % number for number in won]


def test_a_write_whose_answer_was_lost_is_no_conflict_with_itself(store: Store) -> None:
    """The client repeats a request after a broken connection: the object is then there already, from the first try."""

    def put_twice(**request: Any) -> Any:
        store._client.put_object(**request)
        return store._client.put_object(**request)

    flaky = Store(store.address, Client(store._client, put_object=put_twice))
    etag = flaky.put("lease", b"mine", if_absent=True)
    assert store.get("lease") == (b"mine", etag)


# --- prefixes and listings --------------------------------------------------------------------------------------------


def test_a_prefix_is_added_on_the_way_in_and_removed_on_the_way_out(root_store: Store, store: Store) -> None:
    store.put("a/x", b"12345")
    assert [(o.key, o.size) for o in store.list("a/")] == [("a/x", 5)]
    assert root_store.get(store.address.prefix + "a/x") is not None
    assert store.where("a/x") == f"s3://{store.address.bucket}/{store.address.prefix}a/x"


def test_stores_with_different_prefixes_do_not_see_each_other(store: Store) -> None:
    inner = Store(store.address.model_copy(update={"prefix": store.address.prefix + "inner/"}), store._client)
    inner.put("x", b"1")
    assert store.get("x") is None
    assert [o.key for o in inner.list("")] == ["x"]
    assert [o.key for o in store.list("")] == ["inner/x"]


def test_a_listing_goes_on_after_a_thousand_keys_in_order(store: Store) -> None:
    names = [f"many/{number:04d}" for number in range(1003)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    assert [o.key for o in store.list("many/")] == names
    assert store.delete(o.key for o in store.list("many/")) == 1003
    assert list(store.list("many/")) == []


def test_deleting_nothing_asks_nothing(store: Store) -> None:
    assert store.delete([]) == 0


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PART_BYTES + 12_345])
def test_a_file_survives_the_round_trip(store: Store, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    block = bytes(range(256)) * 4096 + b"x"
    source.write_bytes((block * (size // len(block) + 1))[:size])
    assert store.upload("file", source) == (size, file_sha256(source))
    store.download("file", target, file_sha256(source))
    assert target.read_bytes() == source.read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    etag = next(iter(store.list("file"))).etag.strip('"')
    assert ("-" in etag) == (size > PART_BYTES), "more than one part means a multipart upload"


def test_an_upload_carries_a_checksum_that_the_store_keeps(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    store.upload("file", tmp_path / "file")
    head = store._client.head_object(
        Bucket=store.address.bucket, Key=store.address.prefix + "file", ChecksumMode="ENABLED"
    )
    assert any(name.startswith("ChecksumCRC") and name != "ChecksumType" for name in head)


def test_a_damaged_object_is_refused_and_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    store.put("file", b"not what the manifest says")
    with pytest.raises(Damaged, match=r"s3://.*/file is damaged: SHA-256 [0-9a-f]{64}, but its manifest says a{64}"):
        store.download("file", tmp_path / "in" / "file", "a" * 64)
    assert list((tmp_path / "in").iterdir()) == []


def test_a_missing_object_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"s3://.*/nowhere.*404"):
        store.download("nowhere", tmp_path / "file", "a" * 64)
    assert not (tmp_path / "file").exists()


def test_a_full_disk_during_a_download_is_said_in_one_line(store: Store, tmp_path: Path) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.put("file", b"x")
    full = Store(store.address, Client(store._client, get_object=fill))
    with pytest.raises(InfraError, match=r"no space left on the disk that holds .*: free some"):
        full.download("file", tmp_path / "file", "a" * 64)


def test_other_trouble_with_the_disk_is_not_taken_for_a_full_one() -> None:
    assert disk_full(OSError(errno.EACCES, "denied"), "x") is None
    assert isinstance(disk_full(OSError(errno.EDQUOT, "quota"), "x"), InfraError)


# --- trust and trouble ------------------------------------------------------------------------------------------------


def test_a_store_that_honours_conditional_writes_passes_the_probe_and_stays_empty(store: Store) -> None:
    store.probe()
    assert list(store.list("")) == []


def test_a_store_that_ignores_if_none_match_is_refused(store: Store) -> None:
    def careless(**request: Any) -> Any:
        request.pop("IfNoneMatch", None)
        return store._client.put_object(**request)

    with pytest.raises(ConfigError, match="ignores 'If-None-Match"):
        Store(store.address, Client(store._client, put_object=careless)).probe()
    assert list(store.list("")) == []


def test_a_store_that_is_down_is_named_in_one_line(store_server: object) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}, connect_timeout=1),
    )
    with pytest.raises(InfraError) as caught:
        Store(StoreAddress(bucket="b", endpoint=endpoint), client, patience=0).get("x")
    assert endpoint in str(caught.value)
    assert "moxin up" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operation", ["get", "put", "list", "upload", "download"])
def test_wrong_credentials_are_one_line_without_the_secret(store: Store, tmp_path: Path, operation: str) -> None:
    stranger = with_keys(store, "AKIASTRANGER", "a-secret-that-nobody-may-see")
    file = tmp_path / "file"
    file.write_bytes(b"x")
    calls: dict[str, Callable[[], Any]] = {
        "get": lambda: stranger.get("x"),
        "put": lambda: stranger.put("x", b"1"),
        "list": lambda: list(stranger.list("")),
        "upload": lambda: stranger.upload("x", file),
        "download": lambda: stranger.download("x", tmp_path / "out", "a" * 64),
    }
    with pytest.raises(ConfigError) as caught:
        calls[operation]()
    assert "refuses access" in str(caught.value)
    assert "check the credentials" in str(caught.value)
    assert "secret-that" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_secret_for_a_known_key_is_refused_too(store: Store, store_server: Any) -> None:
    access = store_server.credentials["AWS_ACCESS_KEY_ID"]
    with pytest.raises(ConfigError, match="refuses access"):
        with_keys(store, access, "wrong").get("x")


def test_no_credentials_at_all_says_what_to_set(store: Store) -> None:
    def ask(**_: Any) -> Any:
        raise NoCredentialsError

    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        Store(store.address, Client(store._client, get_object=ask)).get("x")


def test_a_bucket_that_does_not_exist_is_named(root_store: Store) -> None:
    elsewhere = Store(root_store.address.model_copy(update={"bucket": "no-such-bucket"}), root_store._client)
    with pytest.raises(InfraError, match="no bucket 'no-such-bucket'"):
        elsewhere.get("x")


def test_an_error_of_the_store_names_object_code_and_status(store: Store) -> None:
    def fail(**_: Any) -> Any:
        raise client_error("SlowDown", 503, "please\nwait")

    with pytest.raises(InfraError, match=r"failed on s3://.*/x: SlowDown \(HTTP 503\)"):
        Store(store.address, Client(store._client, put_object=fail), patience=0).put("x", b"1")


@pytest.mark.parametrize(("start", "end"), [(90, 101), (100, 101), (500, 600)])
def test_a_range_beyond_the_end_is_an_object_that_is_too_short(store: Store, start: int, end: int) -> None:
    store.put("x", b"1" * 100)
    with pytest.raises(Damaged, match=r"s3://.*/x ends (at|before) byte"):
        store.get_range("x", start, end)
    assert store.get_range("x", 0, 100) == b"1" * 100
    assert store.get_range("x", 99, 100) == b"1"
    assert store.get_range("x", 7, 7) == b""


def test_a_store_that_ignores_ranges_is_named(store: Store) -> None:
    def whole(**request: Any) -> Any:
        request.pop("Range")
        return store._client.get_object(**request)

    store.put("x", b"1" * 100)
    careless = Store(store.address, Client(store._client, get_object=whole))
    with pytest.raises(InfraError, match=r"sent bytes 0-99 of s3://.*/x, asked for 10-19"):
        careless.get_range("x", 10, 20)


def test_an_object_that_could_not_be_deleted_is_named(store: Store) -> None:
    """The answer's status is 200: the error stands in its body."""
    answer = {"Errors": [{"Key": f"{store.address.prefix}b", "Code": "AccessDenied", "Message": "no\nway"}]}
    with pytest.raises(InfraError, match=r"did not delete s3://.*/b: AccessDenied no way$"):
        Store(store.address, Client(store._client, delete_objects=lambda **_: answer)).delete(["a", "b"])
    store.delete(["never there"])


def test_a_listing_that_never_ends_is_an_error(store: Store) -> None:
    row = {"Key": f"{store.address.prefix}a", "Size": 1, "ETag": "x", "LastModified": datetime.now(UTC)}
    page = {"Contents": [row], "IsTruncated": True}
    for token in ({}, {"NextContinuationToken": "the same"}):
        endless = Store(store.address, Client(store._client, list_objects_v2=lambda t=token, **_: page | t))
        with pytest.raises(InfraError, match="without an end"):
            list(endless.list(""))


def test_the_representation_shows_the_address_only(store: Store) -> None:
    assert repr(store) == f"Store(s3://{store.address.bucket}/{store.address.prefix})"


# --- stores without a Date, long transfers, and bytes that are there already ------------------------------------------


def test_an_age_without_a_date_header_grows_by_the_stores_own_clock(store: Store) -> None:
    """A store or proxy that sends no Date: a lease of a dead host must run out all the same."""

    def dateless(parsed: dict[str, Any], **_: Any) -> None:
        parsed["ResponseMetadata"]["HTTPHeaders"].pop("date", None)

    store.put("x", b"1")
    store._client.meta.events.register("after-call.s3.GetObject", dateless)
    ages = []
    for wait in (1.1, 2.1):
        time.sleep(wait)
        found = store.get_with_age("x")
        assert found is not None
        ages.append(found[2])
    assert 0 <= ages[0] < 3, "the store's clock has whole seconds"
    assert ages[1] - ages[0] == pytest.approx(2.1, abs=0.5), "carried on by this machine's clock"
    assert list(store.list("probe/")) == []


def test_patience_counts_from_the_last_progress_of_a_transfer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short outages of one long download, further apart than patience lasts; and one that gets nowhere."""
    clock = [0.0]
    monkeypatch.setattr(store_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(store.interrupted, "wait", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    moved, failures = [0], [0]

    def transfer() -> str:
        clock[0] += 10 * store.patience
        failures[0] += 1
        moved[0] += step
        if failures[0] > 3:
            return "done"
        raise Unavailable("away")

    step = 1
    assert store._patiently("x", transfer, lambda: moved[0]) == "done"
    step, failures[0] = 0, 0
    with pytest.raises(Unavailable):
        store._patiently("x", transfer, lambda: 0)
    assert failures[0] == 2
