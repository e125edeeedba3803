"""The trained model as files, written by all processes at once: no process holds the model.

The files are those that one process would write, so the same model has the same bytes, however many trained it. Each
file has a process that writes it; weights come one at a time, of each file one in turn, so that all write together. A
process that does not publish stores its files itself, and the first one links them into the output.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.core.artifacts import FileEntry
from stages.core.context import Context
from stages.lib.modeling import weight_files
from stages.lib.modeling.weight_files import WeightFile
from stages.lib.training.parallel_dims import ParallelDims

Fetch = Callable[[str, int], Tensor | None]
"""A weight by name, whole and float32, on the process of this number; None on others. Every process calls it."""


def writers(files: Sequence[str], processes: int) -> dict[str, int]:
    """Which process writes each file: spread over all of them, and so over the machines."""
    apart = max(1, processes // max(1, len(files)))
    return {file: number * apart % processes for number, file in enumerate(files)}


def export(
    ctx: Context[Any],
    port: str,
    dims: ParallelDims,
    shapes: Mapping[str, Sequence[int]],
    fetch: Fetch,
    stem: str = "model",
) -> None:
    """Write the weights of these names and shapes to an output. Every process calls it. stem: what the files' names
    begin with.
    """
    objects = ctx.tasks  # asked for by the first too: publishing then drops what an attempt that ended here had stored
    files = weight_files.split(shapes, stem)
    writer = writers(list(files), dims.world_size)
    mine = [file for file in files if writer[file] == dims.rank]
    stored_as = f"{port}.files/{dims.rank:05d}.{uuid.uuid4().hex}.{os.getpid()}"
    folder = Path(ctx.output(port)) if dims.rank == 0 else Path(objects.folder(stored_as)) if mine else None
    with ExitStack() as opened:
        open_files = {
            file: opened.enter_context(WeightFile(folder / file, {name: shapes[name] for name in files[file]}))
            for file in mine
            if folder is not None
        }
        for row in itertools.zip_longest(*files.values()):
            for file, name in zip(files, row, strict=True):
                if name is not None and (weight := fetch(name, writer[file])) is not None:
                    open_files[file].put(name, weight)
    entries: list[dict[str, Any]] = []
    if dims.rank and folder is not None:
        entries = [entry.model_dump() for entry in objects.upload(stored_as, folder)]
        objects.drop(folder)
    parts = dims.gather_to_first(entries)
    if dims.rank == 0:
        for entry in (FileEntry.model_validate(value) for part in parts[1:] for value in part):
            ctx.link(port, entry.path, entry)
        weight_files.write_index(files, weight_files.total_bytes(shapes), Path(ctx.output(port)), stem)
