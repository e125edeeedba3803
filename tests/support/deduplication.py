"""Documents with duplicates planted among them, and the `dedup` stage over them."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

from stages.core.artifacts import Documents
from stages.core.task_objects import FolderObjects
from stages.core.testing import LocalContext, local_artifact
from stages.dedup.run import run
from stages.dedup.spec import DedupConfig
from stages.lib.formats.documents import write_documents


def dedup(root: Path, *sources: list[str], tasks: Path | None = None, **config: Any) -> LocalContext[DedupConfig]:
    """tasks: where an earlier attempt has left what its tasks made."""
    inputs = []
    for n, texts in enumerate(sources):
        folder = root / f"in-{n}"
        folder.mkdir(parents=True)
        write_documents(folder, ({"id": f"{n}-{i}", "text": t, "source": f"s{n}"} for i, t in enumerate(texts)))
        inputs.append(local_artifact(Documents, folder))
    ctx = LocalContext(root, DedupConfig(**config), {"sources": inputs})
    ctx.tasks = ctx.tasks if tasks is None else FolderObjects(tasks)
    run(ctx)
    return ctx


def words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9))) for _ in range(count)]


def planted(seed: int, size: int = 60, copies: int = 40) -> list[str]:
    """Random texts, and copies of some with a stretch replaced: similarities from 0.5 to 1."""
    rng = random.Random(seed)
    texts = [" ".join(words(rng, 80)) for _ in range(size)]
    for _ in range(copies):
        base = rng.choice(texts[:size]).split(" ")
        width = rng.randint(0, 12)
        start = rng.randint(0, len(base) - width)
        copy = " ".join(base[:start] + words(rng, width) + base[start + width :])
        texts.append(rng.choice([copy, copy.upper(), copy.replace(" ", ", ")]))
    rng.shuffle(texts)
    return texts
