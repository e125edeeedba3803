"""`stages.lib.modeling.weights`: a process needs memory for its part of the weights."""

from __future__ import annotations

import json
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.shape import ModelShape
from stages.lib.modeling.weights import FreshWeights, StoredWeights, whole
from stages.lib.training.backends.factory import make_backend
from stages.lib.training.export import export
from stages.lib.training.parallel_dims import distributed
from stages.lib.training.parallel_sizes import ParallelSizes
from stages.pretrain.spec import PretrainConfig
from tests.support.decoders import shape
from tests.support.distributed import run_processes

LARGE = ModelShape(layers=17, hidden=512, intermediate=1376, heads=8, kv_heads=2, head_dim=64, max_positions=64)
ENTRIES = 3000
MIB = 1 << 20


def private_bytes() -> int:
    """Resident memory that no other process can share."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * resource.getpagesize()


class PeakPrivate:
    """The most private memory, looked at again and again by a thread."""

    def __init__(self) -> None:
        self._most, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self._most = max(self._most, private_bytes())

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._most


def _start_and_export(ctx: Any) -> None:
    """Begin a training with stored or fresh weights and write the model again; what memory of its own the process grew
    by goes to a file (pages of mapped files are the machine's, and shared). A small model goes before: what it needs,
    libraries need.
    """
    with distributed(ctx, torch.device("cpu"), 2) as dims:
        for size, folder, port in ((shape(), None, "small"), (LARGE, ctx.config, "model")):
            before, peak = private_bytes(), PeakPrivate()
            config = PretrainConfig(
                shape=size, sequence_length=64, tokens=64 * 8, global_batch_size=4, precision="fp32", warmup_steps=0,
                dropout=0.0, parallel=ParallelSizes(tensor=2), device="cpu",
            )  # fmt: skip
            with torch.device("meta"):
                model = MoxinLM(size, ENTRIES)
            shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            weights = FreshWeights(4, size.layers) if folder is None else StoredWeights(folder).require(model)
            backend = make_backend(model, weights, config, dims)
            export(ctx, port, dims, shapes, backend.export)
            grown = peak.stop() - before
        (ctx.root / "grown.json").write_text(json.dumps(grown))


def test_no_process_has_the_model_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From fresh weights to files, and from these to files again: 191 MiB of weights over four processes, two of which
    share each matrix.
    """
    monkeypatch.setattr("stages.lib.modeling.weight_files.SHARD_SIZE", 60 * MIB)
    bytes_ = 4 * LARGE.parameters(ENTRIES)
    assert bytes_ > 190 * MIB
    _, outcome = run_processes(_start_and_export, tmp_path / "fresh", 4, None, {})
    assert outcome == "done"
    folder = tmp_path / "fresh/rank-0/out/model"
    assert len(list(folder.glob("*.safetensors"))) == 4
    _, outcome = run_processes(_start_and_export, tmp_path / "stored", 4, folder, {})
    assert outcome == "done"
    grown = {
        (name, rank): json.loads((tmp_path / name / f"rank-{rank}/grown.json").read_text()) // MIB
        for name in ("fresh", "stored")
        for rank in range(4)
    }

    assert max(grown.values()) < 191 // 4 + 60, grown
    again, draw = tmp_path / "stored/rank-0/out/model", FreshWeights(4, LARGE.layers)
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    stored = StoredWeights(again)
    for name, size in stored.shapes().items():
        assert torch.equal(stored(name, size, whole(size)), draw(name, size, whole(size))), name
