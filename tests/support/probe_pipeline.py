"""What several test files share: a small pipeline of probe stages, its profiles, and a launcher without processes."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from stages.probe_shards.spec import Shards
from stages.probe_source.spec import Source
from stages.probe_tokenizer.spec import Vocabulary
from stages.probe_train.spec import Train

from flows import profiles
from flows.execute import Execution
from flows.launch.base import Job
from stages.core import runtime
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.errors import ExitClass
from stages.core.graph import Pipeline
from stages.core.keys import artifact_digest, sha256
from stages.core.ledger import Ledger
from stages.core.messages import Attempt, CodeRef, InputRef, StageRequest, StageResult, StoreAddress
from tests.support.limits import HANG
from tests.support.paths import PROBES, ROOT

PROFILE = """
parallel = 2
retries = 2
patience = 0

[stage.probe_train]
sequence_length = 16

[node.source_b]
text = "b"
"""


def small_pipeline() -> Pipeline:
    """Two sources, a vocabulary, shards, two phases of training: every kind of port."""
    source_a, source_b = Source(name="source_a"), Source(name="source_b")
    both = [source_a.documents, source_b.documents]
    vocabulary = Vocabulary(name="vocabulary", documents=both)
    shards = Shards(name="shards", documents=both, tokenizer=vocabulary.tokenizer)
    train_1 = Train(name="train_1", shards=shards.shards, tokenizer=vocabulary.tokenizer)
    train_2 = Train(name="train_2", shards=shards.shards, tokenizer=vocabulary.tokenizer, parent=train_1.model)
    return Pipeline([source_a, source_b, vocabulary, shards, train_1, train_2])


def profile_of(pipeline: Pipeline, folder: Path, *overrides: str, text: str = PROFILE) -> profiles.Profile:
    """Load a profile from TOML text."""
    (folder / "test.toml").write_text(text, encoding="utf-8")
    return profiles.load("test", pipeline, overrides, folder)


class Recorder:
    """An observer that keeps every event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        self.events.append((node, event))

    def states(self, node: str) -> list[str]:
        """The states that a node went through."""
        return [e["state"] for n, e in self.events if n == node and e["event"] == "state"]

    def messages(self, level: str | None = None) -> list[str]:
        """All log messages, or those of one level."""
        return [str(e["message"]) for _, e in self.events if e["event"] == "log" and level in (None, e.get("level"))]


class InlineHandle:
    """A job that runs the real runtime in a thread of this process."""

    id = "inline"

    def __init__(self, job: Job, cache: Path, before: Callable[[Job], None] | None) -> None:
        self.stopper = SimpleNamespace(context=None, cooperative=False)
        self.stops: list[float] = []
        reader, writer = os.pipe()
        self._stream = os.fdopen(reader, encoding="utf-8")
        self._code = 0
        self._thread = threading.Thread(target=self._run, args=(job, cache, writer, before), daemon=True)
        self._thread.start()

    def _run(self, job: Job, cache: Path, writer: int, before: Callable[[Job], None] | None) -> None:
        events = runtime.Events(writer)
        try:
            if before is not None:
                before(job)
            runtime.run(job.request, events, self.stopper)  # type: ignore[arg-type]
            exit_class, message = ExitClass.OK, ""
        except BaseException as error:
            exit_class, message = runtime.classify(error, cache)
        self._code = exit_class.code
        events.emit("done", exit=exit_class, message=message)
        events._stream.close()

    def events(self) -> Iterator[dict[str, Any]]:
        for line in self._stream:
            yield json.loads(line)

    def wait(self) -> int:
        self._thread.join()
        self._stream.close()
        return self._code

    def stop(self, grace: float) -> None:
        self.stops.append(grace)
        if self.stopper.context is not None:
            self.stopper.context.stopping = True


class InlineLauncher:
    """Counts what it starts. `before` runs in the job's thread, and may raise what the stage would raise."""

    name: ClassVar[str] = "inline"
    detached: ClassVar[bool] = False

    def __init__(self, folder: Path, before: Callable[[Job], None] | None = None) -> None:
        self.jobs: list[Job] = []
        self.handles: list[InlineHandle] = []
        self._folder, self._before = folder, before

    @property
    def started(self) -> list[str]:
        """Names of the nodes that were started, in order."""
        return [job.request.node for job in self.jobs]

    def start(self, job: Job) -> InlineHandle:
        self.jobs.append(job)
        handle = InlineHandle(job, self._folder, self._before)
        self.handles.append(handle)
        return handle

    def take_over(self, id: str, job: Job) -> None:
        return None  # a stage ends with its control plane

    def reap(self, run_id: str | None = None) -> list[str]:
        return []


def execution(
    pipeline: Pipeline,
    profile: profiles.Profile,
    ledger: Ledger,
    home: Path,
    launcher: Any = None,
    select: str = "full",
    force: bool = False,
    run_id: str = "run-1",
) -> Execution:
    """An execution with an inline launcher and a recorder as its only observer."""
    selected = frozenset(node.name for node in pipeline.select(select))
    return Execution(run_id, profile, ledger, launcher or InlineLauncher(home), home, selected, force, [Recorder()])


def run_nodes(run: Execution, pipeline: Pipeline, until: str | None = None) -> dict[str, StageResult]:
    """Run the selected nodes in order; nodes outside the selection are answered from the ledger."""
    results: dict[str, StageResult] = {}
    for node in pipeline:
        results[node.name] = run.node(node, results).result
        if node.name == until:
            break
    return results


def folder_with(path: Path, **files: str) -> Path:
    """A folder of small files; `__` in a name stands for a folder."""
    for name, text in files.items():
        target = path / name.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return path


def copy_ledger(source: Ledger, target: Ledger) -> None:
    """Copy every object of one ledger to another prefix of the same bucket."""
    client, bucket = source.store._client, source.store.address.bucket
    before, after = source.store.address.prefix, target.store.address.prefix

    def copy(key: str) -> None:
        client.copy_object(Bucket=bucket, Key=after + key, CopySource={"Bucket": bucket, "Key": before + key})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(copy, [row.key for row in source.store.list("")]))


def request_of(store: StoreAddress, ledger: Ledger, key: str = "a" * 64, **config: Any) -> StageRequest:
    """A request for one `probe_source` node, with its lease taken."""
    return StageRequest(
        run_id="run-1",
        node="source",
        stage="probe_source",
        revision=1,
        key=key,
        lease=ledger.acquire(key, "tester"),
        config=config,
        inputs={},
        outputs={"documents": "Documents"},
        code=CodeRef(source_digest="0" * 64),
        store=store,
    )


def python_with_probes(folder: Path) -> str:
    """A stand-in for `sys.executable` that runs `-m stages.core.runtime`, torchrun and an element of an array with the
    probe stages in reach.

    The launcher's own code stays as it is: what it starts is a real process with the environment that it makes.
    """
    script = folder / "python-with-probes"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "module, *arguments = [word for word in sys.argv[1:] if word not in ('-u', '-m')]\n"
        "main = __name__ == '__main__'  # else: a worker of a stage's pool\n"
        "if main and module == 'torch.distributed.run':\n"
        "    os.environ['PYTHON_EXEC'] = sys.argv[0]\n"
        "    sys.argv = sys.argv[2:]\n"
        "    runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
        "import stages\n"
        f"stages.__path__.append({str(PROBES)!r})\n"
        "if main and module == 'stages.lib.data.job_array':\n"
        "    from stages.lib.data import job_array\n"
        "    sys.exit(job_array.main(arguments))\n"
        "if main:\n"
        "    from stages.core import runtime\n"
        "    assert module == 'stages.core.runtime', sys.argv\n"
        "    sys.exit(runtime.main(arguments))\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    return str(script)


def published(
    ledger: Ledger, data: bytes, path: str = "part.txt", key: str = "objects/up/k/000001/documents/0"
) -> InputRef:
    """An input artifact of one file, as an upstream stage would have left it."""
    ledger.store.put(key, data)
    files = (FileEntry(path=path, size=len(data), sha256=sha256(data), object=key),)
    manifest = ArtifactManifest(
        type="Documents", digest=artifact_digest("Documents", {}, files), facets={}, files=files
    )
    return InputRef(node="up", key="k", port="documents", manifest=manifest)


def train_request(ledger: Ledger, key: str, **config: Any) -> StageRequest:
    facets: dict[str, str | int] = {"tokenizer_digest": "d", "vocab_size": 9, "sequence_length": 16, "dtype": "uint16"}
    files = published(ledger, b"tokens").manifest.files
    shards = ArtifactManifest(type="TokenShards", digest="5" * 64, facets=facets, files=files)
    tokenizer = ArtifactManifest(type="Tokenizer", digest="6" * 64, facets=facets, files=files)
    return StageRequest(
        run_id="run-1", node="train", stage="probe_train", revision=1, key=key, lease=ledger.acquire(key, "tester"),
        config=config,
        inputs={
            "shards": (InputRef(node="shards", key="k", port="shards", manifest=shards),),
            "tokenizer": (InputRef(node="vocabulary", key="k", port="tokenizer", manifest=tokenizer),),
        },
        outputs={"model": "Model"}, code=CodeRef(source_digest="0"), store=ledger.store.address,
    )  # fmt: skip


def events_of(output: bytes) -> list[dict[str, Any]]:
    """The events on a runtime's standard output. Fails on any line that is not one."""
    rows = [json.loads(line) for line in output.splitlines()]
    assert all(isinstance(row, dict) and "event" in row for row in rows), rows
    return rows


class Stream:
    """An event stream into a file, to be read back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.events = runtime.Events(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))

    def rows(self) -> list[dict[str, Any]]:
        return events_of(self._path.read_bytes())


def wait_for(condition: Callable[[], object], what: str, seconds: float = HANG) -> None:
    """Wait until a condition holds; fail with its name."""
    deadline = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        deadline.wait(0.02)
    raise AssertionError(f"{what} did not happen within {seconds} s")


KEY = "ab" * 32


def result_with(files: Iterable[FileEntry] = (), epoch: int = 1, run_id: str = "run") -> StageResult:
    """A manifest such as the runtime makes."""
    manifest = ArtifactManifest(type="Documents", digest="d" * 64, facets={}, files=tuple(files))
    attempt = Attempt(
        run_id=run_id,
        epoch=epoch,
        started_at="",
        ended_at="",
        wall_seconds=1,
        cpu_seconds=1,
        peak_rss_bytes=1,
        bytes_in=0,
        bytes_out=0,
    )
    return StageResult(
        key=KEY, node="source", stage="probe_source", revision=1, config={}, identity={}, inputs={},
        outputs={"documents": manifest}, code=CodeRef(source_digest="s"), attempt=attempt,
    )  # fmt: skip
