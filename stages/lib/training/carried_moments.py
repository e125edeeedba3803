"""AdamW's moments from one phase of a training to the next: an artifact, for who chooses so.

The tensors have a checkpoint's names, float32 and whole, in files that all processes write as they write the model's;
a process of the next phase, whatever its topology and engine, reads by ranges what it keeps. `state.json` has how many
steps the moments come from, which AdamW divides by. The scale of a loss is not carried: a phase begins with its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.core.artifacts import FileEntry
from stages.core.context import Context
from stages.core.reading import open_file, sense
from stages.lib.training.backends.base import Backend
from stages.lib.training.export import export
from stages.lib.training.optimizer import MOMENTS, stored_name
from stages.lib.training.parallel_dims import ParallelDims
from stages.lib.training.stored_tensors import Part, StoredTensors, read_headers

STATE = "state.json"


def export_moments(
    ctx: Context[Any],
    port: str,
    dims: ParallelDims,
    shapes: Mapping[str, Sequence[int]],
    backend: Backend,
    updates: int,
) -> None:
    """Write the moments of the weights of these names and shapes. Every process calls it. updates: steps that they come
    from.
    """
    of = {stored_name(name, key): (name, key) for name in shapes for key in MOMENTS}

    def fetch(stored: str, writer: int) -> Tensor | None:
        name, key = of[stored]
        return backend.export(name, writer, key)

    export(ctx, port, dims, {stored: shapes[name] for stored, (name, _) in of.items()}, fetch, "moments")
    if dims.rank == 0:
        text = json.dumps({"optimizer": "adamw", "updates": updates}) + "\n"
        (Path(ctx.output(port)) / STATE).write_text(text, encoding="utf-8")


class CarriedMoments:
    """Those that a phase begins with."""

    def __init__(self, entries: Sequence[FileEntry]) -> None:
        """Raises Damaged, InputError or InfraError."""
        (state,) = (entry for entry in entries if entry.path == STATE)
        with open_file(state, verified=True) as stream, sense(state, ValueError, KeyError, TypeError):
            self.updates = int(json.loads(stream.read())["updates"])
        files = [entry for entry in entries if entry.path.endswith(".safetensors")]
        self._tensors = StoredTensors(files, read_headers(files))

    def load(self, backend: Backend) -> None:
        """Into a backend that has made no step. Raises InputError where they are of another model."""
        backend.load_moments(self._read, self.updates)

    def _read(self, batches: Iterable[Mapping[str, Tensor | Part]]) -> None:
        for targets in batches:
            self._tensors.read(targets)
