"""`dedup` over a store, through the runtime: its inputs, its request, what it published, and what its tasks left there
while it was at work.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stages.core import runtime
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.events import Events
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import CodeRef, InputRef, StageRequest, StageResult
from stages.core.task_objects import work_prefix
from stages.dedup.spec import DedupConfig
from stages.lib.formats.documents import write_documents
from tests.support.deduplication import planted
from tests.support.probe_pipeline import Stream

SHARDS = 8


def corpus() -> list[list[str]]:
    texts = planted(3, size=160, copies=120)
    return [texts[n::SHARDS] for n in range(SHARDS)]


def source(ledger: Ledger, folder: Path, number: int, texts: list[str], damage: bool = False) -> InputRef:
    """An input in the store, with the ids that `tests.support.deduplication.dedup` gives."""
    folder.mkdir(parents=True)
    write_documents(folder, ({"id": f"{number}-{i}", "text": t, "source": f"s{number}"} for i, t in enumerate(texts)))
    data = bytearray((folder / "part-00000.parquet").read_bytes())
    if damage:
        data[4:2004] = bytes(2000)
    ledger.store.put(f"objects/up/{number}", bytes(data))
    files = (
        FileEntry(path="part-00000.parquet", size=len(data), sha256=sha256(bytes(data)), object=f"objects/up/{number}"),
    )
    manifest = ArtifactManifest(type="Documents", digest=f"{number:064x}", facets={}, files=files)
    return InputRef(node="up", key="k", port="documents", manifest=manifest)


def sources(ledger: Ledger, folder: Path, texts: list[list[str]], damage: int | None = None) -> tuple[InputRef, ...]:
    return tuple(source(ledger, folder / "up" / str(n), n, some, n == damage) for n, some in enumerate(texts))


def request(ledger: Ledger, inputs: tuple[InputRef, ...], key: str, **config: Any) -> StageRequest:
    return StageRequest(
        run_id="run-1", node="dedup_text", stage="dedup", revision=3, key=key, lease=ledger.acquire(key, "tester"),
        config=DedupConfig(**config).model_dump(mode="json"), inputs={"sources": inputs},
        outputs={"documents": "Documents"}, code=CodeRef(source_digest="0" * 64), store=ledger.store.address,
    )  # fmt: skip


def run_here(asked: StageRequest, events: Events) -> StageResult:
    """One attempt, in this process."""
    stopper: Any = SimpleNamespace(context=None, cooperative=False)
    result = runtime.run(asked, events, stopper)
    assert result is not None
    return result


def by_processes(ledger: Ledger, inputs: tuple[InputRef, ...], folder: Path, workers: int = 2) -> StageResult:
    """What processes of this machine make of the inputs, by the recipe with the most steps."""
    asked = request(ledger, inputs, "0" * 64, recipe="dclm", workers=workers)
    return run_here(asked, Stream(folder / "processes.jsonl").events)


def same(ledger: Ledger, key: str, expected: StageResult) -> None:
    """Fail unless a key's result is the expected one."""
    published = ledger.manifest(key)
    assert published is not None
    result = published[0]
    assert result.outputs["documents"].digest == expected.outputs["documents"].digest
    assert result.stats == expected.stats
    for entry in result.outputs["documents"].files:
        assert ledger.store.digest(entry.object) == entry.sha256


class Attempts(threading.Thread):
    """Watches what tasks of a key store, until it is left: how many attempts at a task left files, for each task."""

    def __init__(self, ledger: Ledger, key: str) -> None:
        super().__init__(daemon=True)
        self._store, self._prefix = ledger.store, work_prefix("dedup", key)
        self._names: set[str] = set()
        self._over = threading.Event()

    def receipts(self, step: str) -> set[str]:
        """Tasks of a step that are done."""
        store, prefix = self._store, self._prefix
        return {row.key.rpartition("/")[2].removesuffix(".json") for row in store.list(f"{prefix}{step}/")}

    def run(self) -> None:
        store, prefix = self._store, self._prefix
        while not self._over.wait(0.05):
            for row in store.list(prefix):
                step, files, rest = row.key.removeprefix(prefix).partition(".files/")
                if files:
                    self._names.add(f"{step}/{rest.partition('/')[0]}")

    def __enter__(self) -> Attempts:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()

    def several(self) -> set[str]:
        """Tasks that were done more than once: `sign/000003`."""
        counted = Counter(name.partition(".")[0] for name in self._names)
        return {task for task, count in counted.items() if count > 1}


def at_work(scratch: Path, step: str) -> dict[str, int]:
    """Tasks of a step in the hands of processes whose scratch folder this is, and which process has each."""
    return {path.name.partition(".")[0]: int(path.suffix[1:]) for path in scratch.glob(f"stage-*/{step}.files/*.*.*")}


def machine(folder: Path, **variables: str) -> dict[str, str]:
    """The environment of another machine: it knows the code, and has disks of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "NUMBA_CACHE_DIR") if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "MOXIN_SCRATCH": str(folder / "scratch")} | variables


def ended(process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Fail with the end of its log unless it ends well."""
    assert process.wait(seconds) == 0, log.read_text(errors="replace")[-3000:]
