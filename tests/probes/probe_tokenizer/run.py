"""Run `probe_tokenizer`."""

from __future__ import annotations

import hashlib

from stages.probe_tokenizer.spec import VocabularyConfig

from stages.core.context import Context


def run(ctx: Context[VocabularyConfig]) -> None:
    """Write one file, made of all documents."""
    text = b"".join(path.read_bytes() for given in ctx.inputs("documents") for path in given.files())
    body = text + str(ctx.config.vocab_size).encode()
    (ctx.output("tokenizer") / "tokenizer.json").write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()[:16]
    ctx.describe("tokenizer", facets={"vocab_size": ctx.config.vocab_size, "tokenizer_digest": digest})
