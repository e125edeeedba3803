"""Entries of suites scored as the `evaluate` stage does, for its tests."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from stages.capability.benchmarks import DATA_SETS, render
from stages.core.artifacts import Documents
from stages.core.testing import LocalContext, local_artifact
from stages.evaluate.mirrors import Mirrors
from stages.evaluate.spec import EvaluateConfig
from stages.lib.evaluation.suite_file import TaskEntry
from stages.lib.formats.documents import write_documents
from stages.tokenizer.run import run as train_tokenizer
from stages.tokenizer.spec import TokenizerConfig
from tests.support import benchmark_rows as bench


def scored(harness: ModuleType, loaded: Any, index: Any, suite: Path, config: EvaluateConfig, **entry: Any) -> Any:
    """One entry of a suite, as the stage scores it."""
    from stages.evaluate.tasks import bind

    asked = TaskEntry(**entry)
    return harness.score(loaded, bind(index, asked, Mirrors([suite]), config.seed), asked, config)


def values(found: Any) -> dict[str, tuple[float, float | None]]:
    """{"metric,filter": (value, standard error)}, the harness's own keys."""
    return {f"{metric.name},{metric.filter}": (metric.value, metric.stderr) for metric in found.metrics}


def own(name: str, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A suite of one's own."""
    return {"name": name, "tasks": list(tasks), **more}


def make_model(root: Path) -> Path:
    """A Mistral of random weights, large enough ones that answers differ clearly, with a tokenizer trained on
    prompts.
    """
    from transformers import MistralConfig, MistralForCausalLM

    (root / "in").mkdir()
    texts = [render(id, row) for id in DATA_SETS.values() for row in bench.rows(id, 200, seed=5)]
    write_documents(root / "in", ({"id": str(n), "text": text, "source": "prompts"} for n, text in enumerate(texts)))
    ctx = LocalContext(root, TokenizerConfig(vocab_size=420), {"documents": [local_artifact(Documents, root / "in")]})
    train_tokenizer(ctx)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = MistralConfig(
        vocab_size=420,
        max_position_embeddings=512,
        sliding_window=48,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        **shape,
    )
    MistralForCausalLM(config).save_pretrained(ctx.output("tokenizer"))
    return ctx.output("tokenizer")
