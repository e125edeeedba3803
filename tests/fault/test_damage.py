"""faults.md D, E, F: bytes that changed on this machine's disk or in the store are found, said, and never used."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.core import connection, runtime, staging
from stages.core.errors import InfraError, InputError, Preempted
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.registry import find_stage
from stages.core.store_errors import Damaged
from stages.lib.data.workers import Pool
from tests.support.bench import PIPE
from tests.support.checkpoints import save_checkpoint
from tests.support.limits import HANG
from tests.support.probe_pipeline import Stream, execution, profile_of, published, request_of, run_nodes, train_request
from tests.support.worker_tasks import rewrite

KEY = "a" * 64


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path / "events.jsonl")


def run(request: Any, stream: Stream) -> StageResult:
    stopper: Any = SimpleNamespace(context=None, cooperative=False)
    found = runtime.run(request, stream.events, stopper)
    assert found is not None
    return found


def warnings(stream: Stream) -> list[str]:
    return [e["message"] for e in stream.rows() if e.get("level") == "warning"]


def vocabulary(ledger: Ledger, given: Any, key: str) -> Any:
    base = request_of(ledger.store.address, ledger, key)
    more = {
        "stage": "probe_tokenizer",
        "node": "vocabulary",
        "config": {"vocab_size": 9},
        "inputs": {"documents": (given,)},
    }
    return base.model_copy(update=more | {"outputs": {"tokenizer": "Tokenizer"}})


def flip(path: Path) -> None:
    """Change one bit of a file and nothing else that `stat` shows."""
    before = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with open(path, "r+b") as stream:
        stream.write(data)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- D: the local cache -----------------------------------------------------------------------------------------------


def test_a_bit_flipped_in_the_cache_is_found_said_and_mended(ledger: Ledger, stream: Stream, tmp_path: Path) -> None:
    given = published(ledger, b"the text of a corpus")
    right = run(vocabulary(ledger, given, "1" * 64), stream)
    cached = tmp_path / "cache" / sha256(b"the text of a corpus")[:2] / sha256(b"the text of a corpus")
    before = cached.stat()
    flip(cached)
    after = cached.stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    again = run(vocabulary(ledger, given, "2" * 64), stream)
    assert again.outputs["tokenizer"].digest == right.outputs["tokenizer"].digest
    assert len(warnings(stream)) == 1
    assert "the copy of part.txt in the local cache was damaged" in warnings(stream)[0]
    assert cached.read_bytes() == b"the text of a corpus"


def test_an_output_that_was_spoilt_after_it_was_made_is_not_the_next_stages_input(
    ledger: Ledger, stream: Stream, tmp_path: Path
) -> None:
    made = run(request_of(ledger.store.address, ledger, "1" * 64, text="x", parts=1), stream).outputs["documents"]
    flip(tmp_path / "cache" / made.files[0].sha256[:2] / made.files[0].sha256)
    given = published(ledger, b"").model_copy(update={"manifest": made})
    result = run(vocabulary(ledger, given, "2" * 64), stream)
    content = ledger.store.get(result.outputs["tokenizer"].files[0].object)
    assert content is not None
    assert content[0] == b"x 0\n9"


def test_the_processes_of_one_attempt_verify_once(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = published(ledger, b"shared").manifest.files[0]
    hashed: list[Path] = []
    real = staging.file_sha256
    monkeypatch.setattr(staging, "file_sha256", lambda path: (hashed.append(path), real(path))[1])
    staging.Cache(tmp_path / "cache", ledger.store, "k/1", print).fetch([(entry, tmp_path / "0")])
    for attempt, expected in (("k/2", 1), ("k/2", 1), ("k/3", 2)):
        hashed_before = len(hashed)
        staging.Cache(tmp_path / "cache", ledger.store, attempt, print).fetch(
            [(entry, tmp_path / f"{attempt[-1]}-{hashed_before}")]
        )
        assert len(hashed) == expected, attempt


def test_what_a_killed_download_left_in_the_cache_goes(ledger: Ledger, tmp_path: Path) -> None:
    entry = published(ledger, b"text").manifest.files[0]
    left = tmp_path / "cache" / entry.sha256[:2] / f".{entry.sha256}.0123"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"te")
    staging.Cache(tmp_path / "cache", ledger.store, "k/1", print).fetch([(entry, tmp_path / "out")])
    assert not left.exists()


@pytest.mark.parametrize("how", ["stopped", "an input is damaged"])
def test_staging_ends_at_once_and_not_with_the_last_file(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A stage that is asked to stop while terabytes come in has seconds: what has not begun does not begin, what is on
    its way breaks off.
    """
    entries = [
        published(ledger, b"%d" % n, key=f"objects/up/k/000001/documents/{n}").manifest.files[0] for n in range(60)
    ]
    begun: list[str] = []

    def endless(key: str, *_: Any) -> None:
        begun.append(key)
        if how != "stopped" and len(begun) == 3:
            raise Damaged("it is damaged", key)
        assert ledger.store.interrupted.wait(HANG), "nobody broke it off"
        raise InfraError("broken off")

    def stopped(*_: object) -> None:
        raise Preempted("stopped on request")

    monkeypatch.setattr(ledger.store, "download", endless)
    before = signal.signal(signal.SIGALRM, stopped)
    if how == "stopped":
        signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Preempted if how == "stopped" else Damaged):
            staging.Cache(tmp_path / "cache", ledger.store, "k/1", print).fetch(
                [(e, tmp_path / str(n)) for n, e in enumerate(entries)]
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(begun) <= connection.THREADS + 3
    assert not ledger.store.interrupted.is_set(), "the store is of use again"


# --- E: checkpoints ---------------------------------------------------------------------------------------------------


def broken_training(ledger: Ledger, stream: Stream) -> None:
    """Seven steps are wanted; it ends after five, with checkpoints at 2 and 4."""
    request = train_request(ledger, KEY, steps=7, die_after=5)
    with pytest.raises(Preempted):
        run(request, stream)
    ledger.release(request.lease)
    assert ledger.checkpoint_steps(KEY) == [2, 4]


def spoil(ledger: Ledger, step: int, how: str) -> None:
    rows = {o.key.rsplit("/", 1)[1]: o.key for o in ledger.store.list(f"checkpoints/{KEY}/{step:012d}/")}
    if how == "bytes":
        ledger.store.put(rows["value.txt"], b"0.7")
    elif how == "lost":
        ledger.store.delete([rows["value.txt"]])
    else:
        body = ledger.store.get(rows["COMMIT.json"])
        assert body is not None
        ledger.store.put(rows["COMMIT.json"], body[0][: len(body[0]) // 2] if how == "cut" else b"")


@pytest.mark.parametrize("how", ["bytes", "lost", "cut", "empty"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(ledger: Ledger, stream: Stream, how: str) -> None:
    broken_training(ledger, stream)
    spoil(ledger, 4, how)
    result = run(train_request(ledger, KEY, steps=7), stream)
    assert result.attempt.resumed_from == 2
    said = [line for line in warnings(stream) if "the checkpoint at step 4 is damaged" in line]
    assert len(said) == 1
    assert "going back to the one at step 2" in said[0]
    assert result.metrics_object
    rows = ledger.store.get(result.metrics_object)
    assert rows is not None
    assert rows[0].count(b"\n") == 7, "each step's row once"
    assert list(ledger.store.list(f"damaged/checkpoints/{KEY}/")), "the marker is moved, not deleted"


def test_with_no_checkpoint_left_it_starts_anew_and_says_so(ledger: Ledger, stream: Stream) -> None:
    whole = run(train_request(ledger, "b" * 64, steps=7), stream)
    broken_training(ledger, stream)
    spoil(ledger, 4, "cut")
    spoil(ledger, 2, "bytes")
    result = run(train_request(ledger, KEY, steps=7), stream)
    assert result.attempt.resumed_from is None
    assert "there is none before it: starting anew" in warnings(stream)[-1]
    assert result.outputs["model"].digest == whole.outputs["model"].digest


def test_a_checkpoint_set_aside_does_not_push_the_one_resumed_from_out(
    ledger: Ledger, stream: Stream, tmp_path: Path
) -> None:
    broken_training(ledger, stream)
    spoil(ledger, 4, "cut")
    ledger.set_checkpoint_aside(KEY, 4)
    (tmp_path / "new").mkdir()
    save_checkpoint(ledger, ledger.acquire(KEY, "next"), 3, tmp_path / "new")
    assert ledger.checkpoint_steps(KEY) == [2, 3]


# --- F: objects -------------------------------------------------------------------------------------------------------


def test_a_damaged_object_leads_to_its_producer_and_the_plan_agrees(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import plan as plans

    profile = profile_of(PIPE, tmp_path)
    results = run_nodes(execution(PIPE, profile, ledger, tmp_path), PIPE, until="source_b")
    broken = results["source_a"].outputs["documents"].files[0]
    ledger.store.put(broken.object, b"A" * broken.size)
    monkeypatch.setenv("MOXIN_CACHE", str(tmp_path / "another machine"))
    run_ = execution(PIPE, profile, ledger, tmp_path, select="vocabulary")
    with pytest.raises(Exception, match=r"is damaged: .*'moxin run --select source_a --force' makes it again"):
        run_.node(PIPE["vocabulary"], results)
    states = {p.node.name: (p.state, p.reason) for p in plans.make_plan(PIPE, profile, ledger)}
    assert states["source_a"][0] is plans.State.RUN
    assert "lost" in states["source_a"][1]
    assert broken.object in states["source_a"][1]
    healed = run_nodes(execution(PIPE, profile, ledger, tmp_path), PIPE)
    assert healed["source_a"].outputs["documents"].digest == results["source_a"].outputs["documents"].digest
    assert {p.state for p in plans.make_plan(PIPE, profile, ledger)} == {plans.State.CACHED}


def test_a_lost_input_names_its_producer(ledger: Ledger, stream: Stream) -> None:
    given = published(ledger, b"text")
    ledger.store.delete([given.manifest.files[0].object])
    with pytest.raises(InputError, match=r"is not in the store .*'moxin run --select up --force'"):
        run(vocabulary(ledger, given, KEY), stream)


# --- what tasks read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_finds_lost_is_reported_or_made_again(
    ledger: Ledger, stream: Stream, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    refs = [published(ledger, b"text", key=f"objects/up/k/000001/documents/{n}") for n in range(2)]
    monkeypatch.setattr(find_stage("probe_tokenizer"), "reads", {"documents": "shards"})
    lost: list[str] = []

    def two_steps(ctx: Any) -> None:
        entries = [entry for given in ctx.inputs("documents") for entry in given.entries()]
        with Pool(ctx.tasks, workers) as pool:
            first = pool.map("first", rewrite, [{"file": entry} for entry in entries])
            files = [result.files[0] for result in first]
            if lost:
                ledger.store.delete([files[1].object])
                lost.clear()
            second = pool.map("second", rewrite, [{"file": entry} for entry in files])
        ctx.link("tokenizer", "copy", second[1].files[0])
        ctx.describe("tokenizer", facets={"vocab_size": 9, "tokenizer_digest": "d"})

    monkeypatch.setattr("stages.probe_tokenizer.run.run", two_steps)
    request = vocabulary(ledger, refs[0], "1" * 64)
    request = request.model_copy(update={"inputs": {"documents": tuple(refs)}})
    lost.append("a file of the first step")
    with pytest.raises(InfraError, match="a task of vocabulary had made it, and makes it again"):
        run(request, stream)
    made = run(request, stream).outputs["tokenizer"]
    assert [(f.path, f.size) for f in made.files] == [("copy", 4)]
    ledger.store.delete(["objects/up/k/000001/documents/1"])
    again = request.model_copy(update={"key": "2" * 64, "lease": ledger.acquire("2" * 64, "tester")})
    with pytest.raises(InputError, match="up made it: 'moxin run --select up --force' makes it again"):
        run(again, stream)
    assert ledger.damaged_objects("objects/up/k/000001/") == {"objects/up/k/000001/documents/1": ""}
