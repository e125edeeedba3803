"""A stage of two processes for real: the launcher, torchrun, gloo, the store; stopped, and resumed by one process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.launch.base import Job
from flows.launch.process import ProcessHandle, ProcessLauncher
from flows.settings import Settings
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.contracts import CodeRef, ExitClass, InputRef, Lease, Resources, StageRequest
from stages.core.keys import artifact_digest, sha256
from stages.core.ledger import Ledger, upload_folder
from stages.formats import vocabulary
from stages.formats.shards import ShardWriter
from stages.pretrain.spec import Pretrain, PretrainConfig
from tests.support import wait_for
from tests.unit.test_pretrain import LENGTH, VOCABULARY, config

pytestmark = pytest.mark.timeout(300)


def _inputs(ledger: Ledger, folder: Path) -> dict[str, tuple[InputRef, ...]]:
    facets: dict[str, str | int] = {"tokenizer_digest": "digest", "vocab_size": VOCABULARY}
    with ShardWriter(folder, LENGTH, VOCABULARY, vocabulary.EOS_ID, "digest") as writer:
        writer.add(np.random.default_rng(0).integers(3, VOCABULARY, (64, LENGTH)))
    shards = upload_folder(ledger.store, "objects/shards", folder)
    ledger.store.put("objects/tokenizer/0", b"{}")
    tokenizer = (FileEntry(path="tokenizer.json", size=2, sha256=sha256(b"{}"), object="objects/tokenizer/0"),)
    made: dict[str, tuple[str, Any, dict[str, str | int]]] = {
        "tokens": ("TokenShards", shards, {**facets, "sequence_length": LENGTH, "dtype": "uint16"}),
        "tokenizer": ("Tokenizer", tokenizer, facets),
    }
    return {
        port: (
            InputRef(
                node=port, key="k", port=port,
                manifest=ArtifactManifest(type=kind, digest=artifact_digest(kind, own, files), facets=own, files=files),
            ),
        )
        for port, (kind, files, own) in made.items()
    }  # fmt: skip


def _start(settings: Settings, ledger: Ledger, inputs: Any, made: PretrainConfig) -> tuple[ProcessHandle, Lease]:
    key = "7" * 64
    request = StageRequest(
        run_id="run-1", node="pretrain_1", stage="pretrain", revision=Pretrain.revision, key=key, lease=ledger.acquire(key, "tester"),
        config=made.model_dump(mode="json"), inputs=inputs, outputs={"model": "Model"}, code=CodeRef(source_digest="0"),
        store=ledger.store.address,
    )  # fmt: skip
    resources = Pretrain.resources(made)
    assert resources.processes == made.processes
    job = Job(request, Resources(cpus=resources.cpus, processes=made.processes), "train")
    return ProcessLauncher(settings).start(job), request.lease


def test_two_processes_lose_one_and_one_process_ends_the_run(settings: Settings, ledger: Ledger, tmp_path: Path) -> None:
    inputs = _inputs(ledger, tmp_path)
    made = config(processes=2, dropout=0.1, tokens=150 * 4 * LENGTH, checkpoint_every=10, eval_windows=0)
    (handle, lease), steps = _start(settings, ledger, inputs, made), []
    for event in handle.events():
        if event["event"] == "metric":
            steps.append(event["step"])
            if len(steps) == 15:
                wait_for(lambda: 10 in ledger.checkpoint_steps("7" * 64), "the first checkpoint")
                os.kill(_second_process(settings), signal.SIGKILL)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED
    assert steps == list(range(1, len(steps) + 1))  # told once, by the first process
    ledger.release(lease)
    made = made.model_copy(update={"processes": 1})
    handle, _ = _start(settings, ledger, inputs, made)
    events = list(handle.events())
    assert handle.wait() == 0, events[-5:]
    found = ledger.manifest("7" * 64)
    assert found is not None
    assert found[0].attempt.resumed_from is not None
    assert found[0].attempt.resumed_from >= 10
    assert found[0].stats["steps"] == 150
    rows = ledger.store.get(found[0].metrics_object or "")
    assert rows is not None
    told = [line.split(b'"step": ')[1].split(b",")[0] for line in rows[0].splitlines()]
    assert [int(step) for step in told] == list(range(1, 151))  # no row lost, none doubled


def _second_process(settings: Settings) -> int:
    """The stage's process of rank 1."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            text = entry.read_bytes()
        except OSError:
            continue
        if b"\0RANK=1\0" in text and f"MOXIN_SCRATCH={settings.home / 'scratch'}".encode() in text:
            return int(entry.parent.name)
    raise AssertionError("there is no second process")
