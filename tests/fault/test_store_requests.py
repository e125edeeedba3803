"""faults.md H: every kind of request to the store, cut, slowed, refused, lost and with a byte turned: the same bytes as
without, or one clear error and nothing under the name.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from botocore import xform_name

from stages.core import connection, downloads, runtime, uploads
from stages.core.errors import StageError
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.range_file import StoredFile
from stages.core.stopping import Stopper
from stages.core.store import Store
from stages.core.store_errors import Damaged, Unavailable
from stages.pipeline import PIPELINE
from tests.support.paths import ROOT
from tests.support.probe_pipeline import Stream, request_of
from tests.support.s3_proxy import WAYS, Proxy, store_behind

PART = 5 << 20
"""The smallest part that a store takes."""
DATA = random.Random(5).randbytes(PART + 54_321)
KINDS = {
    "a record written": r"PUT .*/record$",
    "a record read": r"GET .*/record$",
    "a file written": r"PUT .*/small$",
    "a transfer in parts begun": r"POST .*/big\?uploads",
    "a part written": r"PUT .*/big\?.*partNumber",
    "a transfer in parts completed": r"POST .*/big\?uploadId",
    "a listing": r"GET .*list-type=2",
    "a look at a size": r"HEAD .*/small$",
    "a copy": r"PUT .*/copy$",
    "a range read": r"GET .*/big$",
    "a removal": r"POST .*\?delete",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PAUSES", (0.01, 0.05))
    for module in (uploads, downloads):
        monkeypatch.setattr(module, "PART_BYTES", PART)


@pytest.fixture
def behind(proxy: Proxy, ledger: Ledger) -> Store:
    return store_behind(proxy, ledger.store.address, patience=5)


def everything(store: Store, folder: Path) -> dict[str, object]:
    """Each kind of request at least once; what came of it."""
    (folder / "small").write_bytes(DATA[:1000])
    (folder / "big").write_bytes(DATA)
    small, big = store.put_file("small", folder / "small"), store.put_file("big", folder / "big")
    store.put("record", b'{"a": 1}', if_absent=True)
    store.copy("small", "copy")
    listed = [(row.key, row.size) for row in store.list("")]
    store.get_file(big, folder / "back")
    with StoredFile(store, big, verified=True) as stream:
        streamed = sha256(stream.read())
    store.download("small", folder / "back-small", small.sha256)
    record = store.get("record")
    store.delete(["copy"])
    return {
        "streamed": streamed,
        "size": store.stored("small") and store.stored("small").size,
        "sums": (small.sha256, big.sha256, big.blocks, store.digest("big")),
        "listed": listed,
        "files": [sha256((folder / name).read_bytes()) for name in ("back", "back-small")],
        "record": record and record[0],
        "left": sorted(row.key for row in store.list("")),
    }


def always(pattern: str, what: str) -> Callable[[str, str], str | None]:
    """A rule: each request of a kind goes wrong."""
    return lambda method, path: what if re.match(pattern, f"{method} {path}") else None


@pytest.fixture
def expected(ledger: Ledger, tmp_path: Path) -> dict[str, object]:
    (tmp_path / "whole").mkdir()
    store = Store(ledger.store.address.model_copy(update={"prefix": f"whole-{ledger.store.address.prefix}"}))
    return everything(store, tmp_path / "whole")


@pytest.mark.parametrize("what", WAYS)
def test_trouble_with_the_first_request_of_each_kind_changes_nothing(
    proxy: Proxy, behind: Store, ledger: Ledger, tmp_path: Path, expected: dict[str, object], what: str
) -> None:
    met, lock = set[str](), threading.Lock()

    def rule(method: str, path: str) -> str | None:
        kind = next((kind for kind, pattern in KINDS.items() if re.match(pattern, f"{method} {path}")), None)
        with lock:
            if kind is None or kind in met:
                return None
            met.add(kind)
            return what

    proxy.rule = rule
    if what == "hang":
        behind = store_behind(proxy, ledger.store.address, patience=60, timeout=1)
    assert everything(behind, tmp_path) == expected
    assert met == KINDS.keys()


def test_no_stage_makes_a_request_of_another_kind(behind: Store, tmp_path: Path) -> None:
    """Stages and the control plane ask the store through `stages.core` alone: inputs that are read whole come by
    `get_file`, by shards and as a stream by `StoredFile`; records, checkpoints, tasks and outputs are put, listed and
    removed as here. Every operation of the client that stands there is made by `everything`, or cleans up only.
    """
    made, pattern = set[str](), re.compile(r"\b_client\.([a-z][a-z_0-9]+)")
    behind._client.meta.events.register("before-call.s3", lambda model, **_: made.add(xform_name(model.name)))
    everything(behind, tmp_path)
    written = {
        path.relative_to(ROOT).as_posix(): set(pattern.findall(path.read_text()))
        for folder in ("stages", "flows")
        for path in (ROOT / folder).rglob("*.py")
        if "_client" in path.read_text()
    }
    core = set[str]().union(*(names for path, names in written.items() if path.startswith("stages/core/")))
    assert core - made == {"copy", "abort_multipart_upload", "list_multipart_uploads", "list_parts", "delete_object"}
    assert "copy_object" in made
    elsewhere = {path for path in written if not path.startswith("stages/core/") and written[path] & made}
    assert elsewhere == {"stages/lib/formats/remote_s3.py"}, "a source of raw data: tests/unit/lib/formats"
    assert {mode for node in PIPELINE for mode in type(node).reads.values()} <= {"whole", "shards", "stream"}


@pytest.mark.parametrize("what", ["flip", "cut", "503"])
def test_a_range_that_never_comes_right_is_one_error_and_no_file(
    proxy: Proxy, behind: Store, ledger: Ledger, tmp_path: Path, what: str
) -> None:
    (tmp_path / "small").write_bytes(DATA[:1000])
    entry = ledger.store.put_file("small", tmp_path / "small")
    proxy.rule, behind.patience = always(r"GET .*/small$", what), 0.2
    with pytest.raises(StageError, match=r"^[^\n]*(s3://moxin/.*/small|cannot be reached)[^\n]*$") as caught:
        behind.get_file(entry, tmp_path / "out" / "file")
    assert isinstance(caught.value, Damaged if what == "flip" else Unavailable)
    assert list((tmp_path / "out").iterdir()) == []
    if what == "flip":
        assert len(proxy.log) == 2, "fetched once more"


def test_a_store_that_says_when_to_come_again_is_left_alone_until_then(
    proxy: Proxy, behind: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(behind.interrupted, "wait", waits.append)
    proxy.rule = on_request(0, "429")
    behind.put("x", b"1")
    proxy.rule = on_request(0, "503")
    behind.put("x", b"1")
    assert waits[0] == 1.0
    assert waits[1] < 0.05


@pytest.mark.parametrize("what", ["full", "expired", "expired 403"])
def test_what_does_not_end_is_told_as_what_it_is(proxy: Proxy, behind: Store, ledger: Ledger, what: str) -> None:
    """Also where the request is a look at an object, whose answer has no text."""
    ledger.store.put("record", b"1")
    proxy.rule, behind.patience = always(r".* .*/record$", what), 0.0
    said = "has no room left" if what == "full" else "have expired"
    for ask in (lambda: behind.put("record", b"2"), lambda: behind.get("record"), lambda: behind.stored("record")):
        with pytest.raises(Unavailable, match=rf"^[^\n]*{said}[^\n]*$"):
            ask()
    assert ledger.store.get("record") is not None


@pytest.mark.parametrize("what", ["flip sent", "drop", "503", "full"])
def test_a_file_that_never_arrives_whole_is_one_error_and_no_object(
    proxy: Proxy, behind: Store, ledger: Ledger, tmp_path: Path, what: str
) -> None:
    (tmp_path / "big").write_bytes(DATA)
    proxy.rule, behind.patience = always(r"PUT .*/big\?.*partNumber=2", what), 0.2
    with pytest.raises(Unavailable, match=r"^[^\n]+$"):
        behind.put_file("big", tmp_path / "big")
    assert list(ledger.store.list("")) == []
    rows = ledger.store._client.list_multipart_uploads(Bucket=ledger.store.address.bucket).get("Uploads", [])
    assert [row for row in rows if row["Key"].startswith(ledger.store.address.prefix)] == [], "parts are taken back"


def test_only_the_block_that_came_wrong_is_fetched_once_more(
    proxy: Proxy, behind: Store, ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(DATA)
    entry = ledger.store.put_file("big", tmp_path / "big")
    spoilt = [True]

    def rule(method: str, path: str) -> str | None:
        return "flip" if method == "GET" and spoilt and spoilt.pop() else None

    proxy.rule = rule
    behind.get_file(entry, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert [method for method, _, _ in proxy.log] == ["GET"] * 3
    proxy.log.clear()
    spoilt.append(True)
    behind.get_file(entry.model_copy(update={"blocks": ""}), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == DATA
    assert [method for method, _, _ in proxy.log] == ["GET"] * 4, "no block is known: all of them"


def test_a_file_whose_manifest_is_wrong_about_it_is_damaged(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(DATA)
    entry = ledger.store.put_file("big", tmp_path / "big")
    for change in ({"sha256": "0" * 64}, {"size": entry.size + 1}, {"size": entry.size - 1}):
        with pytest.raises(Damaged, match=r"s3://moxin/.*/big"):
            ledger.store.get_file(entry.model_copy(update=change), tmp_path / "out" / "file")
        assert list((tmp_path / "out").iterdir()) == []


def on_request(number: int, what: str) -> Callable[[str, str], str | None]:
    """A rule: one request goes wrong, by its number."""
    seen, lock = [0], threading.Lock()

    def rule(method: str, path: str) -> str | None:
        with lock:
            seen[0] += 1
            return what if seen[0] == number + 1 else None

    return rule


def test_an_attempt_publishes_the_same_or_nothing_whichever_request_goes_wrong(
    proxy: Proxy, behind: Store, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request of an attempt in turn, each in another way."""
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(runtime, "Store", lambda address: Store(address, behind._client, patience=5))

    def attempt(key: str) -> str:
        """The digest of what it published, or the error."""
        stream, stopper = Stream(tmp_path / key), cast("Stopper", SimpleNamespace(context=None, cooperative=False))
        try:
            result = runtime.run(
                request_of(behind.address, ledger, key * 16, text="x", parts=2), stream.events, stopper
            )
        except StageError as error:
            return str(error)
        assert result is not None
        assert ledger.missing_objects(result) == []
        return result.outputs["documents"].digest

    ways = [way for way in WAYS if way != "hang"]
    digest, requests = attempt("0000"), len(proxy.log)
    assert requests > 4
    for number in range(requests):
        key = f"{number + 1:04x}"
        proxy.rule = on_request(number, ways[number % len(ways)])
        answer = attempt(key)
        assert answer == digest or (ledger.manifest(key * 16) is None and "\n" not in answer), answer
