"""`pretrain` or `vlm` started by the process launcher with several ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.launch.base import Job
from flows.launch.process import ProcessHandle, ProcessLauncher
from flows.settings import Settings
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.checkpoints import upload_folder
from stages.core.config import StageConfig
from stages.core.context import LocalArtifact
from stages.core.keys import artifact_digest, sha256
from stages.core.ledger import Ledger
from stages.core.messages import CodeRef, InputRef, Lease, StageRequest
from stages.core.resources import Resources
from stages.lib.formats import vocabulary
from stages.lib.formats.shards import ShardWriter
from stages.pretrain.spec import Pretrain
from tests.support.pretraining import LENGTH, VOCABULARY


def uploaded_inputs(ledger: Ledger, folder: Path) -> dict[str, tuple[InputRef, ...]]:
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


def uploaded_artifacts(ledger: Ledger, inputs: Mapping[str, Sequence[LocalArtifact]]) -> dict[str, Any]:
    """Inputs of a stage run in this process, for one that a launcher starts."""
    found: dict[str, Any] = {}
    for port, (artifact,) in inputs.items():
        files = upload_folder(ledger.store, f"objects/{port}", artifact.path)
        made = artifact.manifest.model_copy(update={"files": files})
        found[port] = (InputRef(node=port, key="k", port=port, manifest=made),)
    return found


def started(
    settings: Settings, ledger: Ledger, inputs: Any, made: StageConfig, nproc: int = 2, stage: Any = Pretrain
) -> tuple[ProcessHandle, Lease]:
    key = "7" * 64
    request = StageRequest(
        run_id="run-1", node=f"{stage.stage}_1", stage=stage.stage, revision=stage.revision, key=key,
        lease=ledger.acquire(key, "tester"),
        config=made.model_dump(mode="json"), inputs=inputs, outputs={"model": "Model"}, code=CodeRef(source_digest="0"),
        store=ledger.store.address,
    )  # fmt: skip
    job = Job(request, Resources(cpus=2, nproc_per_node=nproc), stage.env, stage.processes(made))
    return ProcessLauncher(settings).start(job), request.lease
