"""The `tokenizer` stage over a small corpus with everything that is odd in it."""

from __future__ import annotations

import random
from pathlib import Path

from stages.core.artifacts import Documents
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats.documents import write_documents
from stages.tokenizer.run import run
from stages.tokenizer.spec import TokenizerConfig

VOCAB_SIZE = 600
RARE = "".join(chr(0x4E00 + n) for n in range(600))
"""More characters than the alphabet takes, each as common as the others."""


def corpus() -> list[str]:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=60)) + " </s> x</s> <s> <0x41>" for _ in range(120)]
    return [*texts, RARE, "tabs\tand\n\nlines  and   spaces"]


def write(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_documents(folder, ({"id": str(n), "text": t, "source": "s"} for n, t in enumerate(texts)))
    return folder


def train(root: Path, texts: list[str] | None = None, **config: object) -> LocalContext[TokenizerConfig]:
    texts = corpus() if texts is None else texts
    folder = write(root / "documents", texts)
    meta = {"text_bytes": sum(len(t.encode()) for t in texts)}
    inputs = {"documents": [local_artifact(Documents, folder, meta=meta)]}
    ctx = LocalContext(root, TokenizerConfig(**{"vocab_size": VOCAB_SIZE} | config), inputs)  # type: ignore[arg-type]
    run(ctx)
    return ctx
