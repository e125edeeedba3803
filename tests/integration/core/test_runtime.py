"""The runtime inside one process: staging in, publishing, checkpoints, classification. Real store, no subprocess."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stages.probe_source.spec import SourceConfig

from stages.core import downloads, reading, runtime, secrets_file
from stages.core.artifacts import Artifact
from stages.core.errors import ConfigError, ExitClass, InfraError, InputError, Preempted
from stages.core.failures import classify
from stages.core.keys import artifact_digest, sha256
from stages.core.leases import LeaseLost
from stages.core.ledger import Ledger
from stages.core.messages import InputRef, Secrets, StageRequest, StageResult, StoredRequest
from stages.core.metric_rows import METRICS_FILE
from stages.core.registry import find_stage, validated_config
from stages.core.runtime_context import RuntimeContext
from stages.core.staging import Cache, link_or_copy
from stages.lib.data.workers import Pool
from tests.support.pool_tasks import tasks
from tests.support.probe_pipeline import Stream, published, request_of, train_request
from tests.support.worker_tasks import rewrite, square

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path / "events.jsonl")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The launcher's cache and scratch. No attempt may leave anything in scratch."""
    monkeypatch.setenv("MOXIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))
    yield tmp_path
    if (tmp_path / "scratch").exists():
        assert list((tmp_path / "scratch").iterdir()) == []


def run(request: StageRequest, stream: Stream) -> StageResult:
    stopper: Any = SimpleNamespace(context=None, cooperative=False)
    return runtime.run(request, stream.events, stopper)


def vocabulary_request(ledger: Ledger, *inputs: InputRef, key: str = KEY, **changes: Any) -> StageRequest:
    base = request_of(ledger.store.address, ledger, key)
    return base.model_copy(
        update={
            "stage": "probe_tokenizer", "node": "vocabulary", "config": {"vocab_size": 9},
            "inputs": {"documents": inputs},
            "outputs": {"tokenizer": "Tokenizer"}, **changes,
        }
    )  # fmt: skip


# --- a good attempt ---------------------------------------------------------------------------------------------------


def test_an_attempt_publishes_files_facets_statistics_and_provenance(ledger: Ledger, stream: Stream) -> None:
    request = request_of(ledger.store.address, ledger, text="x", parts=2, act="", sentinel=None)
    result = run(request, stream)
    found = ledger.manifest(KEY)
    assert found is not None
    assert found[0] == result
    made = result.outputs["documents"]
    assert [(f.path, f.size, f.sha256) for f in made.files] == [
        ("deep/part-00000.txt", 4, sha256(b"x 0\n")),
        ("deep/part-00001.txt", 4, sha256(b"x 1\n")),
    ]
    assert all(f.object == f"objects/probe_source/{KEY}/000001/documents/{f.path}" for f in made.files)
    assert made.digest == artifact_digest("Documents", {}, made.files)
    assert made.meta == {"parts": 2}
    assert result.stats == {"parts": 2, "node": "source"}
    assert ledger.missing_objects(result) == []
    assert result.identity == {"text": "x", "parts": 2}
    assert result.config == {"text": "x", "parts": 2, "act": "", "sentinel": None}
    assert (result.attempt.epoch, result.attempt.run_id, result.attempt.bytes_out) == (1, "run-1", 8)
    assert result.attempt.peak_rss_bytes > 1 << 20
    assert result.code.packages_digest, "looked up by the stage itself"
    assert result.code.model_copy(update={"packages_digest": None}) == request.code


def test_of_what_tasks_left_the_result_keeps_what_it_refers_to(
    ledger: Ledger, stream: Stream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(ctx: Any) -> None:
        with Pool(ctx.tasks) as pool:
            squares = pool.map("squares", square, tasks(tmp_path / "log", 3))
            copies = pool.map("copies", rewrite, [{"file": result.file("value")} for result in squares])
        for number, result in enumerate(copies):
            ctx.link("documents", f"part-{number}", result.file("copy/value"))

    monkeypatch.setattr("stages.probe_source.run.run", work)
    settings: dict[str, Any] = {"text": "x", "parts": 3, "act": "", "sentinel": None}
    result = run(request_of(ledger.store.address, ledger, **settings), stream)
    published = {f.object: f.path for f in result.outputs["documents"].files}
    assert sorted(published.values()) == ["part-0", "part-1", "part-2"]
    assert {row.key for row in ledger.store.list("work/")} == published.keys()
    assert ledger.missing_objects(result) == []


def test_many_files_are_listed_by_an_index_and_a_consumer_is_told_no_more_than_its_root(
    ledger: Ledger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"text": "x", "parts": 3, "act": "", "sentinel": None}
    few = run(request_of(ledger.store.address, ledger, **settings), stream)
    monkeypatch.setattr("stages.core.index.INLINE_FILES", 2)
    many = run(request_of(ledger.store.address, ledger, OTHER, **settings), stream).outputs["documents"]
    assert (many.files, many.count, many.size) == ((), 3, 12)
    assert [(f.path, f.sha256) for f in ledger.entries(many)] == [
        (f.path, f.sha256) for f in few.outputs["documents"].files
    ]
    inputs = [
        InputRef(node="source", key=key, port="documents", manifest=manifest.reference())
        for key, manifest in ((KEY, few.outputs["documents"]), (OTHER, many))
    ]
    first = run(vocabulary_request(ledger, inputs[0], key="d" * 64), stream)
    second = run(vocabulary_request(ledger, inputs[1], key="e" * 64), stream)
    assert first.outputs == {
        "tokenizer": second.outputs["tokenizer"].model_copy(update={"files": first.outputs["tokenizer"].files})
    }
    assert first.attempt.bytes_in == second.attempt.bytes_in == 12
    assert second.inputs["documents"][0].manifest == many


def test_an_input_that_is_not_read_whole_is_listed_and_an_output_links_what_the_store_has(
    ledger: Ledger, stream: Stream, monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    source = run(request_of(ledger.store.address, ledger, text="x", parts=2, act="", sentinel=None), stream)
    manifest = source.outputs["documents"].reference()
    ref = InputRef(node="source", key=KEY, port="documents", manifest=manifest)

    def passes_on(ctx: Any) -> None:
        (given,) = ctx.inputs("documents")
        with pytest.raises(TypeError, match="the output of source is not staged in"):
            given.files()
        assert not (ctx.root / "in").exists()
        for entry in given.entries(".txt"):
            with reading.open_file(entry) as stored:
                assert stored.read() == f"x {entry.path[-5]}\n".encode()
            ctx.link("tokenizer", f"copy/{entry.path}", entry)
        (ctx.output("tokenizer") / "a").write_text("b")
        ctx.describe("tokenizer", facets={"vocab_size": 9, "tokenizer_digest": "d"})

    monkeypatch.setattr("stages.probe_tokenizer.run.run", passes_on)
    monkeypatch.setattr(find_stage("probe_tokenizer"), "reads", {"documents": "shards"})
    made = run(vocabulary_request(ledger, ref, key="d" * 64), stream)
    assert [(f.path, f.object.split("/")[1]) for f in made.outputs["tokenizer"].files] == [
        ("a", "probe_tokenizer"),
        ("copy/deep/part-00000.txt", "probe_source"),
        ("copy/deep/part-00001.txt", "probe_source"),
    ]
    assert made.attempt.bytes_in == 8
    assert ledger.missing_objects(made) == []


def test_metric_rows_are_kept_beside_the_result_and_streamed(ledger: Ledger, stream: Stream) -> None:
    result = run(request_of(ledger.store.address, ledger), stream)
    assert result.metrics_object is not None
    kept = ledger.store.get(result.metrics_object)
    assert kept is not None
    rows = [json.loads(line) for line in kept[0].splitlines()]
    assert rows == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0, "val_loss": 2.25}]
    streamed = [(e["step"], e["values"]) for e in stream.rows() if e["event"] == "metric"]
    assert streamed == [(1, {"loss": 2.5}), (2, {"loss": 2.0, "val_loss": 2.25})]


def test_the_same_request_gives_the_same_artifact(ledger: Ledger, stream: Stream) -> None:
    one = run(request_of(ledger.store.address, ledger, "1" * 64), stream)
    two = run(request_of(ledger.store.address, ledger, "2" * 64), stream)
    assert one.outputs["documents"].digest == two.outputs["documents"].digest
    assert one.outputs["documents"].files != two.outputs["documents"].files, "but each has its own objects"


def test_inputs_arrive_in_wiring_order_and_are_counted(ledger: Ledger, stream: Stream) -> None:
    first, second = published(ledger, b"one", key="objects/1"), published(ledger, b"two!", key="objects/2")
    result = run(vocabulary_request(ledger, second, first), stream)
    made = ledger.store.get(result.outputs["tokenizer"].files[0].object)
    assert made is not None
    assert made[0] == b"two!one9"
    assert result.attempt.bytes_in == 7
    assert result.outputs["tokenizer"].facets == {"vocab_size": 9, "tokenizer_digest": sha256(b"two!one9")[:16]}


# --- the cache --------------------------------------------------------------------------------------------------------


def test_an_input_is_fetched_once_and_read_only(ledger: Ledger, stream: Stream, folders: Path) -> None:
    given = published(ledger, b"cached text")
    run(vocabulary_request(ledger, given), stream)
    cached = folders / "cache" / sha256(b"cached text")[:2] / sha256(b"cached text")
    assert cached.read_bytes() == b"cached text"
    assert cached.stat().st_mode & 0o777 == 0o444
    ledger.store.delete([given.manifest.files[0].object])
    assert run(vocabulary_request(ledger, given, key="b" * 64), stream).attempt.bytes_in == 11


def test_what_a_stage_made_is_in_the_cache_for_the_next_one(ledger: Ledger, stream: Stream, folders: Path) -> None:
    made = run(request_of(ledger.store.address, ledger), stream).outputs["documents"].files[0]
    assert (folders / "cache" / made.sha256[:2] / made.sha256).read_bytes() == b"a 0\n"


def test_a_cached_file_of_the_wrong_size_is_fetched_again(ledger: Ledger, stream: Stream, folders: Path) -> None:
    digest = sha256(b"text")
    damaged = folders / "cache" / digest[:2] / digest
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"te")
    run(vocabulary_request(ledger, published(ledger, b"text")), stream)
    assert damaged.read_bytes() == b"text"


def test_a_damaged_input_is_refused_by_name(ledger: Ledger, stream: Stream) -> None:
    given = published(ledger, b"text")
    ledger.store.put(given.manifest.files[0].object, b"tex!")
    with pytest.raises(
        InputError, match=r"objects/up/k/000001/documents/0 is damaged: SHA-256 .*'moxin run --select up --force'"
    ):
        run(vocabulary_request(ledger, given), stream)
    assert ledger.damaged_objects("objects/up/k/000001/") == {given.manifest.files[0].object: sha256(b"tex!")}


def test_an_input_that_is_damaged_on_this_machine_alone_is_not_said_of_the_store(
    ledger: Ledger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad disk must not have the producer made again: that may be a pre-training."""
    given = published(ledger, b"text")
    monkeypatch.setattr(downloads, "_write", lambda descriptor, data, at: os.pwrite(descriptor, b"tex!", at))
    with pytest.raises(
        InfraError,
        match=r"documents/0 is whole in the store, but its copy on this machine is damaged: look at its disk",
    ):
        run(vocabulary_request(ledger, given), stream)
    assert ledger.damaged_objects("objects/up/k/000001/") == {}


def test_a_log_on_a_full_disk_ends_no_stage() -> None:
    stream = runtime.Events(os.open("/dev/full", os.O_WRONLY))
    stream.emit("log", level="info", message="x")
    stream.emit("done", exit=ExitClass.OK, message="")
    with open(os.devnull, "w") as elsewhere:  # what could not be written is tried again when it is closed
        os.dup2(elsewhere.fileno(), stream._stream.fileno())
    stream._stream.close()


def test_secrets_are_taken_by_the_python_that_stays(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of one that begins anew in an engine's Python would lie there for ever."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "request.json").write_text(request_of(ledger.store.address, ledger, KEY).model_dump_json())
    (tmp_path / "secrets.json").write_text(
        Secrets(environment={}, files={"MOXIN_TEST_BUNDLE": "a certificate"}).model_dump_json()
    )

    def enter(*_: Any) -> None:
        assert list((tmp_path / "scratch").iterdir()) == []
        raise Preempted("begun anew")

    monkeypatch.setattr(runtime, "engine_python", lambda *_: "/another/python")
    monkeypatch.setattr(runtime, "enter", enter)
    monkeypatch.setattr(runtime, "Stopper", lambda: None)
    real = os.dup(1), os.dup(2)
    try:
        assert (
            runtime.main([str(tmp_path / "request.json"), "--secrets", str(tmp_path / "secrets.json")])
            == ExitClass.PREEMPTED.code
        )
    finally:
        for number, saved in enumerate(real, 1):
            os.dup2(saved, number)
            os.close(saved)


def test_a_request_is_read_from_the_store_and_must_have_its_digest(ledger: Ledger, tmp_path: Path) -> None:
    request = request_of(ledger.store.address, ledger, KEY)
    body = request.model_dump_json().encode()
    place = StoredRequest(store=ledger.store.address, object=f"requests/{KEY}/000001.json", sha256=sha256(body))
    with pytest.raises(InfraError, match=r"000001\.json is gone: another attempt has taken over"):
        runtime.read_request(place.model_dump_json())
    ledger.store.put(place.object, body)
    assert runtime.read_request(place.model_dump_json(exclude_defaults=True)) == request
    ledger.store.put(place.object, body + b" ")
    with pytest.raises(InfraError, match="is another one now"):
        runtime.read_request(place.model_dump_json())
    (tmp_path / "request.json").write_bytes(body)
    assert runtime.read_request(str(tmp_path / "request.json")) == request


def test_a_link_falls_back_to_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("x")
    monkeypatch.setattr(os, "link", refuses)
    link_or_copy(source, target)
    assert target.read_text() == "x"
    assert target.stat().st_ino != source.stat().st_ino
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]


def test_a_link_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("new")
    (tmp_path / "target").write_text("old")
    link_or_copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "old"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../escape", "a/../../escape", "/tmp/escape", "../../../../cache/x"])
def test_a_path_out_of_the_artifact_is_refused(ledger: Ledger, stream: Stream, path: str, folders: Path) -> None:
    with pytest.raises(InputError, match=r"artifact up\.documents lists a path outside itself"):
        run(vocabulary_request(ledger, published(ledger, b"evil", path=path)), stream)
    assert not list(folders.rglob("escape"))
    assert not Path("/tmp/escape").exists()


def test_an_unknown_setting_is_named(ledger: Ledger, stream: Stream) -> None:
    with pytest.raises(ConfigError, match=r"^source\.txet: stage 'probe_source' has no such setting$"):
        run(request_of(ledger.store.address, ledger, txet="x"), stream)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parts": -1}, r"node\.parts = -1: Input should be greater than or equal to 0"),
        ({"parts": "many"}, r"node\.parts = 'many': Input should be a valid integer"),
        ({"text": None}, r"node\.text = None: Input should be a valid string"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated_config(find_stage("probe_source"), "node", values)


def test_a_valid_configuration_is_the_stages_own_class() -> None:
    assert validated_config(find_stage("probe_source"), "node", {"text": "b"}) == SourceConfig(text="b")


@pytest.mark.parametrize("name", ["no_such_stage", "core", "shards"])
def test_a_stage_that_is_not_in_the_image_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"this image has no stage '{name}'"):
        find_stage(name)


def test_a_request_of_another_version_is_refused(ledger: Ledger, stream: Stream) -> None:
    request = request_of(ledger.store.address, ledger).model_copy(update={"schema_version": 99})
    with pytest.raises(ConfigError, match="the request has schema 99, this image speaks 1"):
        run(request, stream)


def test_facets_left_unstated_are_a_bug_of_the_stage(ledger: Ledger, stream: Stream) -> None:
    request = request_of(ledger.store.address, ledger).model_copy(update={"outputs": {"documents": "Tokenizer"}})
    with pytest.raises(TypeError, match="left facets of documents unstated: tokenizer_digest, vocab_size") as caught:
        run(request, stream)
    assert classify(caught.value, Path())[0] is ExitClass.BUG
    assert ledger.manifest(KEY) is None


def test_facets_other_than_predicted_are_a_bug_of_the_stage(ledger: Ledger, stream: Stream) -> None:
    request = vocabulary_request(ledger, published(ledger, b"x"), expected_facets={"tokenizer": {"vocab_size": 8}})
    with pytest.raises(TypeError, match=r"tokenizer\.vocab_size is 9, the plan said 8"):
        run(request, stream)
    assert ledger.manifest(KEY) is None


def test_an_output_without_files_is_a_bug_of_the_stage(ledger: Ledger, stream: Stream) -> None:
    with pytest.raises(TypeError, match="wrote no file to its output documents"):
        run(request_of(ledger.store.address, ledger, parts=0), stream)


def test_an_output_that_was_not_declared_is_a_bug_of_the_stage(ledger: Ledger, stream: Stream) -> None:
    request = request_of(ledger.store.address, ledger).model_copy(update={"outputs": {"texts": "Documents"}})
    with pytest.raises(KeyError, match="has no output documents"):
        run(request, stream)


def test_a_stage_whose_lease_went_elsewhere_does_not_begin(ledger: Ledger, stream: Stream) -> None:
    request = request_of(ledger.store.address, ledger)
    ledger.release(request.lease)
    ledger.acquire(KEY, "other")
    with pytest.raises(LeaseLost, match="epoch 2 of 'other'"):
        run(request, stream)
    assert not list(ledger.store.list(f"objects/probe_source/{KEY}/000001/"))


def test_a_stage_whose_lease_goes_elsewhere_publishes_nothing(
    ledger: Ledger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(ledger.store.address, ledger)
    publish = RuntimeContext.publish

    def too_late(*arguments: Any) -> StageResult:
        ledger.release(request.lease)
        ledger.acquire(KEY, "other")
        return publish(*arguments)

    monkeypatch.setattr(RuntimeContext, "publish", too_late)
    with pytest.raises(LeaseLost, match="epoch 2 of 'other'"):
        run(request, stream)
    assert ledger.manifest(KEY) is None
    assert list(ledger.store.list(f"objects/probe_source/{KEY}/000001/")), "its objects are there, and invisible"


def test_an_attempt_that_begins_again_after_it_has_published_ends_with_what_it_published(
    ledger: Ledger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler may put a job back into its queue, under its epoch, between its publication and its end."""
    request = request_of(ledger.store.address, ledger, text="x", parts=1, act="", sentinel=None)
    first = run(request, stream)
    digests = ledger.recorded_digests(first)

    def with_other_bytes(ctx: Any) -> None:
        (ctx.output("documents") / "deep").mkdir()
        (ctx.output("documents") / "deep" / "part-00000.txt").write_bytes(b"y 0\n")

    monkeypatch.setattr("stages.probe_source.run.run", with_other_bytes)
    with contextlib.suppress(LeaseLost):  # which would be too late
        assert run(request, stream) == first
    (entry,) = first.outputs["documents"].files
    assert ledger.store.digest(entry.object) == entry.sha256, "what is published keeps its bytes"
    assert ledger.recorded_digests(first) == digests


@pytest.mark.parametrize("forced", [False, True])
def test_of_two_processes_of_one_attempt_the_later_one_stores_nothing_over_what_is_published(
    ledger: Ledger, stream: Stream, monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    """A machine that its scheduler took for dead may live on while the job runs again elsewhere."""
    settings: dict[str, Any] = {"text": "x", "parts": 1, "act": "", "sentinel": None}
    replaces = None
    if forced:
        before = request_of(ledger.store.address, ledger, **settings)
        run(before, stream)
        ledger.release(before.lease)
        replaces = ledger.manifest(KEY)
    request = request_of(ledger.store.address, ledger, **settings)
    request = request.model_copy(update={"replaces": replaces and replaces[1]})
    results: list[StageResult] = []
    inner = importlib.import_module("stages.probe_source.run").run

    def with_other_bytes(ctx: Any) -> None:
        monkeypatch.setattr("stages.probe_source.run.run", inner)
        results.append(run(request, stream))
        (ctx.output("documents") / "deep").mkdir()
        (ctx.output("documents") / "deep" / "part-00000.txt").write_bytes(b"y 0\n")

    monkeypatch.setattr("stages.probe_source.run.run", with_other_bytes)
    with contextlib.suppress(LeaseLost):
        assert run(request, stream) == results[0]
    (entry,) = results[0].outputs["documents"].files
    assert entry.object.startswith(f"objects/probe_source/{KEY}/{request.lease.epoch:06d}-{results[0].attempt.start}/")
    assert ledger.store.digest(entry.object) == entry.sha256


@pytest.mark.parametrize("first_wins", [False, True])
def test_two_processes_of_one_attempt_that_store_at_the_same_time_store_nothing_over_each_other(
    ledger: Ledger, stream: Stream, monkeypatch: pytest.MonkeyPatch, first_wins: bool
) -> None:
    """Each has looked whether the other had published before it stores its outputs, of other bytes."""
    request = request_of(ledger.store.address, ledger, text="x", parts=1, act="", sentinel=None)
    results, texts = list[StageResult](), iter([b"1\n", b"2\n"])
    inner, publish = RuntimeContext._publish, Ledger.publish

    def with_other_bytes(ctx: Any) -> None:
        (ctx.output("documents") / "part-00000.txt").write_bytes(next(texts))

    def meanwhile(*_: Any) -> None:
        monkeypatch.setattr(RuntimeContext, "_publish", inner)
        monkeypatch.setattr(Ledger, "publish", publish)
        results.append(run(request, stream))

    def stores_later(ctx: RuntimeContext, *given: Any) -> StageResult:
        meanwhile()
        return inner(ctx, *given)

    def publishes_first(there: Ledger, *given: Any) -> None:
        publish(there, *given)
        meanwhile()

    monkeypatch.setattr("stages.probe_source.run.run", with_other_bytes)
    if first_wins:
        monkeypatch.setattr(Ledger, "publish", publishes_first)
    else:
        monkeypatch.setattr(RuntimeContext, "_publish", stores_later)
    results.append(run(request, stream))
    assert results[0] == results[1]
    assert bool(results[0].attempt.start) is not first_wins
    (entry,) = results[0].outputs["documents"].files
    assert ledger.store.digest(entry.object) == entry.sha256, "what is published keeps its bytes"
    assert ledger.missing_objects(results[0]) == []
    manifest = ledger.store.get(f"manifests/{KEY}.json")
    assert manifest is not None
    assert ledger.recorded_digests(results[0]) == {f"manifests/{KEY}.json": sha256(manifest[0])}


def test_an_attempt_whose_key_another_one_has_published_does_not_begin(ledger: Ledger, stream: Stream) -> None:
    late = request_of(ledger.store.address, ledger)
    run(late, stream)
    ledger.release(late.lease)
    with pytest.raises(LeaseLost, match=r"published by another attempt \(epoch 1\)"):
        run(request_of(ledger.store.address, ledger), stream)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def metrics_of(ledger: Ledger, result: StageResult) -> list[dict[str, float]]:
    assert result.metrics_object is not None
    found = ledger.store.get(result.metrics_object)
    assert found is not None
    return [json.loads(line) for line in found[0].splitlines()]


def test_a_resumed_attempt_gives_what_an_uninterrupted_one_gives(ledger: Ledger, stream: Stream) -> None:
    whole = run(train_request(ledger, "1" * 64, steps=7), stream)
    broken = train_request(ledger, "2" * 64, steps=7, die_after=5)
    with pytest.raises(Preempted, match="lost the machine after step 5"):
        run(broken, stream)
    assert ledger.checkpoint_steps("2" * 64) == [2, 4]
    ledger.release(broken.lease)
    again = train_request(ledger, "2" * 64, steps=7, die_after=5)
    resumed = run(again, stream)
    assert resumed.attempt.resumed_from == 4
    assert whole.attempt.resumed_from is None
    assert resumed.outputs["model"].digest == whole.outputs["model"].digest
    assert metrics_of(ledger, resumed) == metrics_of(ledger, whole), "each step once, though step 5 was done twice"
    assert [e["step"] for e in stream.rows() if e["event"] == "checkpoint"] == [2, 4, 6, 2, 4, 6]
    assert any("resuming from the checkpoint at step 4" in e.get("message", "") for e in stream.rows())


def test_a_checkpoint_that_is_here_is_not_fetched_again(
    ledger: Ledger, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage looks whether it trained already, and the engine that it drives looks again: at 7B that is 114 GB."""
    request = request_of(ledger.store.address, ledger)
    (tmp_path / "attempt").mkdir()
    context = runtime.RuntimeContext(request, find_stage(request.stage), ledger, stream.events, tmp_path / "attempt")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a").write_text("1")
    context.checkpoints.save(3, tmp_path / "weights")
    fetched: list[str] = []
    load = ledger.load_checkpoint
    monkeypatch.setattr(
        ledger,
        "load_checkpoint",
        lambda files, folder: (fetched.extend(entry.path for entry in files), load(files, folder)),
    )
    first, second = context.checkpoints.latest(), context.checkpoints.latest()
    assert first == second
    assert first is not None
    assert (first[1] / "a").read_text() == "1"
    assert fetched == [METRICS_FILE, "a"]


def test_a_model_that_its_last_checkpoint_holds_is_sent_once(
    ledger: Ledger, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child is published as a last checkpoint before it is measured (14.5 GB at 7B), and then as the result."""
    request = request_of(ledger.store.address, ledger)
    root = tmp_path / "attempt"
    root.mkdir()
    context = runtime.RuntimeContext(request, find_stage(request.stage), ledger, stream.events, root)
    sent, real = [0], ledger.store._client.put_object

    def counted(**asked: Any) -> Any:
        if not asked["Key"].endswith(".json"):
            sent[0] += len(asked["Body"])
        return real(**asked)

    monkeypatch.setattr(ledger.store._client, "put_object", counted)
    (port, kind), *_ = request.outputs.items()
    weights = b"w" * 100_000
    (tmp_path / "last").mkdir()
    for folder in (context.output(port), tmp_path / "last"):
        (folder / "model").write_bytes(weights)
    (context.output(port) / "card").write_bytes(b"a card")
    context.checkpoints.save(3, tmp_path / "last")
    assert sent[0] == len(weights), "and the metric rows, which are none"
    context.describe(
        port, facets=request.expected_facets.get(port, {}) | dict.fromkeys(Artifact.registry[kind].facets, 1)
    )
    manifest = context._upload(port, kind, "objects/x", Cache(tmp_path / "cache", ledger.store, "a", print))
    assert sent[0] == len(weights) + len(b"a card")
    assert {file.path: ledger.store.digest(file.object) for file in manifest.files} == {
        file.path: file.sha256 for file in manifest.files
    }


def test_what_is_remembered_outlives_the_attempt_and_the_key(ledger: Ledger, stream: Stream, tmp_path: Path) -> None:
    contexts = []
    for key in ("1" * 64, "2" * 64):
        (tmp_path / key).mkdir()
        request = request_of(ledger.store.address, ledger, key)
        contexts.append(
            runtime.RuntimeContext(request, find_stage(request.stage), ledger, stream.events, tmp_path / key)
        )
    assert contexts[0].recall("measured-x") is None
    contexts[0].remember("measured-x", {"nll": [0.1, 2.5e-300], "text": "\u00fc </think>"})
    assert contexts[1].recall("measured-x") == {"nll": [0.1, 2.5e-300], "text": "\u00fc </think>"}


def test_secrets_become_environment_and_files_that_only_this_user_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOXIN_TEST_KEY", "MOXIN_TEST_BUNDLE"):
        monkeypatch.setenv(name, "to be replaced")
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path))
    secrets = Secrets(environment={"MOXIN_TEST_KEY": "k"}, files={"MOXIN_TEST_BUNDLE": "a certificate"})
    (tmp_path / "secrets.json").write_text(secrets.model_dump_json())
    secrets_file.take_secrets(tmp_path / "secrets.json")
    assert os.environ["MOXIN_TEST_KEY"] == "k"
    path = Path(os.environ["MOXIN_TEST_BUNDLE"])
    assert path.read_text() == "a certificate"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
