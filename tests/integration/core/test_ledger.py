"""The ledger over a real store: publishing once, damaged records, attempts, names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.core.checkpoints import upload_folder
from stages.core.keys import sha256
from stages.core.leases import LeaseLost
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord, DamagedRecord, NodeRecord
from tests.support.probe_pipeline import KEY, folder_with, result_with

# --- manifests --------------------------------------------------------------------------------------------------------


def test_a_result_is_published_once_and_read_back(ledger: Ledger) -> None:
    assert ledger.manifest(KEY) is None
    lease = ledger.acquire(KEY, "one")
    ledger.publish(result_with(), lease)
    found = ledger.manifest(KEY)
    assert found is not None
    assert found[0] == result_with()


def test_a_second_publisher_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one")
    ledger.publish(result_with(), lease)
    with pytest.raises(LeaseLost, match=f"node source: key {KEY[:12]} was published by another attempt"):
        ledger.publish(result_with(run_id="other"), lease)
    found = ledger.manifest(KEY)
    assert found is not None
    assert found[0].attempt.run_id == "run"


def test_a_forced_rerun_replaces_exactly_the_manifest_that_it_saw(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "one")
    ledger.publish(result_with(), lease)
    found = ledger.manifest(KEY)
    assert found is not None
    ledger.publish(result_with(run_id="second"), lease, replaces=found[1])
    with pytest.raises(LeaseLost):
        ledger.publish(result_with(run_id="third"), lease, replaces=found[1])
    now = ledger.manifest(KEY)
    assert now is not None
    assert now[0].attempt.run_id == "second"


@pytest.mark.parametrize("body", [b"not json", b"{}", b'{"schema_version": 1, "surprise": 2}'])
def test_a_damaged_manifest_is_named(ledger: Ledger, body: bytes) -> None:
    ledger.store.put(f"manifests/{KEY}.json", body)
    with pytest.raises(
        DamagedRecord, match=rf"s3://.*/manifests/{KEY}\.json is no manifest of this version .*: 'moxin repair'"
    ):
        ledger.manifest(KEY)


def test_objects_that_went_missing_or_changed_size_are_found(ledger: Ledger, tmp_path: Path) -> None:
    prefix = f"objects/probe_source/{KEY}/000001/documents"
    files = upload_folder(ledger.store, prefix, folder_with(tmp_path, a="1", b__c__d="22", e="333"))
    assert [f.path for f in files] == ["a", "b/c/d", "e"]
    result = result_with(files)
    assert ledger.missing_objects(result) == []
    ledger.store.delete([f"{prefix}/b/c/d"])
    ledger.store.put(f"{prefix}/e", b"4444")
    assert ledger.missing_objects(result) == [f"{prefix}/b/c/d", f"{prefix}/e"]


# --- lost records -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (f"leases/{KEY}.json", lambda ledger: ledger.lease(KEY)),
        (f"leases/{KEY}.json", lambda ledger: ledger.acquire(KEY, "me")),
        (f"attempts/{KEY}/000001.json", lambda ledger: ledger.attempts(KEY)),
        ("nodes/tiny/a.json", lambda ledger: ledger.node("tiny", "a")),
        ("nodes/tiny/a.json", lambda ledger: ledger.nodes("tiny")),
        (f"checkpoints/{KEY}/{5:012d}/COMMIT.json", lambda ledger: ledger.checkpoint(KEY, 5)),
    ],
)
@pytest.mark.parametrize("body", [b"", b'{"key": "ab', b"[]", b"\xff\x00"])
def test_every_damaged_record_is_named_with_what_to_do(
    ledger: Ledger, name: str, read: Callable[[Ledger], object], body: bytes
) -> None:
    ledger.store.put(name, body)
    with pytest.raises(DamagedRecord) as caught:
        read(ledger)
    assert name in str(caught.value)
    assert "'moxin repair'" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- attempts, nodes, tags --------------------------------------------------------------------------------------------


def test_attempts_are_listed_oldest_first_without_their_logs(ledger: Ledger) -> None:
    def record(epoch: int, **more: Any) -> AttemptRecord:
        return AttemptRecord(key=KEY, epoch=epoch, node="n", run_id="r", launcher="l", started_at="t", **more)

    for epoch in (10, 2, 1):
        ledger.record_attempt(record(epoch))
        ledger.store.put(ledger.log_key(KEY, epoch), b"{}\n")
    ledger.record_attempt(record(2, exit_class="oom", message="out of memory"))
    found = ledger.attempts(KEY)
    assert [a.epoch for a in found] == [1, 2, 10]
    assert found[1].exit_class == "oom"


def test_nodes_are_remembered_by_profile(ledger: Ledger) -> None:
    ledger.set_node("tiny", NodeRecord(node="a", key="1", run_id="r", at="t"))
    ledger.set_node("tiny", NodeRecord(node="a", key="2", run_id="r", at="t"))
    ledger.set_node("tiny", NodeRecord(node="b", key="3", run_id="r", at="t"))
    ledger.set_node("tiny-two", NodeRecord(node="a", key="4", run_id="r", at="t"))
    assert {name: record.key for name, record in ledger.nodes("tiny").items()} == {"a": "2", "b": "3"}
    assert ledger.nodes("none") == {}


def test_a_name_that_another_run_has_moved_stays_there(ledger: Ledger) -> None:
    def record(key: str, run: str) -> NodeRecord:
        return NodeRecord(node="a", key=key * 16, run_id=run, at="t")

    nothing = ledger.node_etags("tiny")
    assert ledger.move_node("tiny", record("1", "first"), nothing) is None
    before = ledger.node_etags("tiny")
    assert ledger.move_node("tiny", record("2", "first"), before) is None
    assert ledger.move_node("tiny", record("2", "second"), before) is None  # the same result: nothing to say
    said = ledger.move_node("tiny", record("3", "second"), before)
    assert said is not None
    assert said.startswith("run first has given a of tiny another result meanwhile (222222222222): that one stays")
    node = ledger.node("tiny", "a")
    assert node is not None
    assert node.key == "2" * 16
    assert not ledger.set_node("tiny", record("3", "second"), nothing)


# --- who reports damage ----------------------------------------------------------------------------------------------


def test_two_reports_of_damage_at_one_time_are_both_kept(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    rival, read = Ledger(ledger.store), ledger._damage_report
    prefix = f"objects/s/{KEY}/000001/"

    def late(folder: str) -> tuple[dict[str, str], str | None]:
        known = read(folder)
        if not rival.damaged_objects(folder).keys() >= {f"{prefix}out/b"}:
            rival.report_damage(f"{prefix}out/b", "2" * 64)
        return known

    monkeypatch.setattr(ledger, "_damage_report", late)
    ledger.report_damage(f"{prefix}out/a", "1" * 64)
    assert ledger.damaged_objects(prefix) == {f"{prefix}out/a": "1" * 64, f"{prefix}out/b": "2" * 64}


def test_publishing_writes_down_the_digests_of_what_the_manifest_cannot_state(ledger: Ledger) -> None:
    lease = ledger.acquire(KEY, "a")
    result = result_with().model_copy(update={"metrics_object": "objects/m"})
    ledger.publish(result, lease, metrics_sha256="5" * 64)
    name = f"manifests/{KEY}.json"
    body = ledger.store.get(name)
    assert body is not None
    assert ledger.recorded_digests(result) == {name: sha256(body[0]), "objects/m": "5" * 64}
    ledger.store.put(f"objects/probe_source/{KEY}/000001/DIGESTS.json", b"{")
    with pytest.raises(DamagedRecord, match="DIGESTS"):
        ledger.recorded_digests(result)


def test_a_result_of_before_has_no_digests(ledger: Ledger) -> None:
    assert ledger.recorded_digests(result_with()) is None
