"""faults.md H: a store that answers 503, drops connections or breaks bodies is waited for; nothing is fetched or
published twice.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.core import connection, runtime
from stages.core.errors import InfraError
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import StoreAddress
from stages.core.store import PART_BYTES, Store
from stages.core.workspace import kept_folder
from tests.support.probe_pipeline import Stream, request_of, train_request
from tests.support.s3_proxy import Proxy, proxied, store_behind

KEY = "a" * 64


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short pauses: what is tested is that there are some, and that they end."""
    monkeypatch.setattr(connection, "PAUSES", (0.02, 0.1))
    monkeypatch.setenv("MOXIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture
def behind(proxy: Proxy, ledger: Ledger) -> Store:
    return store_behind(proxy, ledger.store.address, patience=60)


def times(count: int, what: str, *methods: str) -> Any:
    """A rule: the first requests of these methods go wrong."""
    left, lock = [count], threading.Lock()

    def rule(method: str, path: str) -> str | None:
        with lock:
            if method in methods and left[0] > 0:
                left[0] -= 1
                return what
        return None

    return rule


@pytest.mark.parametrize("what", ["503", "drop"])
def test_every_call_outlasts_a_store_that_fails_for_a_while(
    proxy: Proxy, behind: Store, tmp_path: Path, what: str
) -> None:
    (tmp_path / "file").write_bytes(b"some bytes")
    calls: dict[str, Any] = {
        "PUT": lambda: behind.put("x", b"1"), "GET": lambda: behind.get("x"), "POST": lambda: behind.delete(["gone"]),
        "HEAD": lambda: behind.download("up", tmp_path / "down", sha256(b"some bytes")),
    }  # fmt: skip
    behind.upload("up", tmp_path / "file")
    for method, call in calls.items():
        proxy.rule = times(5, what, method)
        call()
        assert sum(done == what for _, _, done in proxy.log) == 5, method
        proxy.log.clear()
    proxy.rule = times(5, what, "GET")
    assert [row.key for row in behind.list("")] == ["up", "x"]
    proxy.rule = times(3, what, "PUT")
    behind.upload("up", tmp_path / "file")
    assert (tmp_path / "down").read_bytes() == b"some bytes"


def test_patience_ends(proxy: Proxy, behind: Store) -> None:
    behind.patience = 0.3
    proxy.rule = lambda method, path: "503"
    with pytest.raises(InfraError, match=r"failed on s3://.*/x: .*503"):
        behind.put("x", b"1")
    assert len(proxy.log) > 2


class Waited(Exception):
    """Raised in place of a pause."""


def store_at(port: int, prefix: str, monkeypatch: pytest.MonkeyPatch, interactive: bool) -> tuple[Store, list[str]]:
    """A store at a port of this machine with a client of its own that never pauses, and the requests that it sends."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.0)
    address = StoreAddress(bucket="moxin", endpoint=f"http://127.0.0.1:{port}", prefix=prefix)
    store, sent = Store(address, interactive=interactive), list[str]()
    store._client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.method))
    return store, sent


def no_pause(*given: object) -> bool:
    raise Waited


def test_a_command_that_somebody_sits_before_takes_a_closed_port_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request, no pause. A flow waits: its store may be being restarted."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store, sent = store_at(port, "", monkeypatch, interactive=True)
    monkeypatch.setattr(store.interrupted, "wait", no_pause)
    with pytest.raises(InfraError, match=rf"127.0.0.1:{port} cannot be reached .*: is it up\? try 'moxin up'"):
        store.get("x")
    assert sent == ["GET"]

    store, sent = store_at(port, "", monkeypatch, interactive=False)
    assert store.patience == connection.PATIENCE
    monkeypatch.setattr(store.interrupted, "wait", no_pause)
    with pytest.raises(Waited):
        store.get("x")
    assert len(sent) == 1 + connection.RETRIES


def test_a_store_that_was_there_is_waited_for_by_such_a_command_too(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(str(ledger.store.address.endpoint)) as proxy:
        store, _ = store_at(proxy.server_address[1], ledger.store.address.prefix, monkeypatch, interactive=True)
        assert store.get("x") is None
    store._client.meta.events.register("before-send.s3", lambda **_: store._client.close())  # no connection is kept
    monkeypatch.setattr(store.interrupted, "wait", no_pause)
    with pytest.raises(Waited):
        store.get("x")


def test_a_write_that_is_repeated_is_no_conflict_with_itself(proxy: Proxy, behind: Store) -> None:
    """The store wrote, and its answer was lost."""
    lost = times(1, "cut", "PUT")
    proxy.rule = lambda method, path: lost(method, path)
    etag = behind.put("once", b"mine", if_absent=True)
    assert behind.get("once") == (b"mine", etag)


def test_a_body_that_breaks_goes_on_where_it_broke(
    proxy: Proxy, behind: Store, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(2 * PART_BYTES + 12_345)
    (tmp_path / "file").write_bytes(data)
    ledger.store.upload("big", tmp_path / "file")
    counted: list[int] = []
    write = os.pwrite

    def counting(descriptor: int, chunk: bytes, at: int) -> int:
        counted.append(len(chunk))
        return write(descriptor, chunk, at)

    monkeypatch.setattr(os, "pwrite", counting)
    proxy.rule = times(4, "cut", "GET")
    behind.download("big", tmp_path / "out", sha256(data))
    assert (tmp_path / "out").read_bytes() == data
    assert sum(counted) == len(data), "no byte is fetched twice"
    assert sum(done == "cut" for _, _, done in proxy.log) == 4


# --- what a stage does ------------------------------------------------------------------------------------------------


def run(request: Any, stream: Stream) -> Any:
    stopper: Any = SimpleNamespace(context=None, cooperative=False)
    return runtime.run(request, stream.events, stopper)


def warnings(stream: Stream) -> list[str]:
    return [e["message"] for e in stream.rows() if e.get("level") == "warning"]


def test_a_checkpoint_that_cannot_be_stored_is_left_out_and_the_training_goes_on(
    proxy: Proxy, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOXIN_STORE_PATIENCE", "0.1")
    stream = Stream(tmp_path / "events")
    first = f"/checkpoints/{KEY}/{2:012d}/"
    proxy.rule = lambda method, path: "drop" if method == "PUT" and first in path else None
    request = train_request(ledger, KEY, steps=7)
    result = run(request.model_copy(update={"store": request.store.model_copy(update={"endpoint": proxy.url})}), stream)
    assert result.outputs["model"].files
    said = [line for line in warnings(stream) if "no checkpoint at step 2" in line]
    assert len(said) == 1
    assert [e["step"] for e in stream.rows() if e["event"] == "checkpoint"] == [4, 6]


def test_outputs_that_cannot_be_published_are_kept_for_the_next_attempt(
    proxy: Proxy, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOXIN_STORE_PATIENCE", "0.02")
    proxy.rule = lambda method, path: "503" if method == "PUT" and "/objects/" in path else None
    address = ledger.store.address.model_copy(update={"endpoint": proxy.url})
    stream = Stream(tmp_path / "events")
    request = request_of(address, ledger, KEY, text="x", parts=2)
    with pytest.raises(InfraError, match=rf"failed on .*The outputs are done and kept in {kept_folder(KEY)}"):
        run(request, stream)
    assert ledger.manifest(KEY) is None
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == [kept_folder(KEY).name]
    ledger.release(request.lease)

    from stages.probe_source import run as stage

    monkeypatch.setattr(stage, "run", lambda ctx: pytest.fail("the work was done a second time"))
    result = run(request_of(ledger.store.address, ledger, KEY, text="x", parts=2), stream)
    assert [f.sha256 for f in result.outputs["documents"].files] == [sha256(b"x 0\n"), sha256(b"x 1\n")]
    assert result.outputs["documents"].meta == {"parts": 2}
    assert result.stats == {"parts": 2, "node": "source"}
    assert result.metrics_object
    assert ledger.missing_objects(result) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def root_again(folder: Path) -> Path:
    """Outputs of one more attempt."""
    (folder / "again" / "out" / "documents").mkdir(parents=True)
    (folder / "again" / "out" / "documents" / "kept.txt").write_text("kept")
    return folder / "again"


@pytest.mark.parametrize("what", ["changed output", "other code", "cut state", "another user's", "to replace another"])
def test_kept_outputs_that_do_not_fit_are_made_anew(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from stages.core import workspace

    request = request_of(ledger.store.address, ledger, KEY, text="x", parts=1)
    root = tmp_path / "root"
    (root / "out" / "documents").mkdir(parents=True)
    (root / "out" / "documents" / "kept.txt").write_text("kept")
    (tmp_path / "scratch").mkdir()
    kept = workspace.keep(request, root, {})
    assert kept is not None
    if what == "changed output":
        (kept / "out" / "documents" / "kept.txt").write_text("kep")
    elif what == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(kept, 12345, 12345)
    elif what == "cut state":
        (kept / workspace.STATE).write_text('{"source_digest"')
    elif what == "to replace another":  # a person forced it since: what is kept may link what is gone by now
        shutil.rmtree(kept)
        run(request, Stream(tmp_path / "before"))
        ledger.release(request.lease)
        published = ledger.manifest(KEY)
        assert published is not None
        kept = workspace.keep(request, root_again(tmp_path), {})
        request = request_of(ledger.store.address, ledger, KEY, text="x", parts=1)
        request = request.model_copy(update={"replaces": published[1]})
    else:
        request = request.model_copy(update={"code": request.code.model_copy(update={"source_digest": "other"})})
    result = run(request, Stream(tmp_path / "events"))
    assert [f.path for f in result.outputs["documents"].files] == ["deep/part-00000.txt"]
