"""Answers by an engine's program in an environment of its own, and by transformers where that cannot write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from stages.core.context import LocalArtifact
from stages.core.testing import LocalContext
from stages.lib.engines import generation
from stages.lib.finetuning import model_loading
from stages.lib.finetuning.evaluated_model import LazyModel
from stages.lib.finetuning.generation import generate
from tests.support import tuning


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    return tuning.parent(tmp_path_factory.mktemp("generation"))


FAKE_VLLM = '''
"""vLLM's calls as far as generate_answers.py makes them; what it writes is the prompt's first id, its seed, and the
end.
"""
class SamplingParams:
    def __init__(self, *, temperature, max_tokens, stop_token_ids, seed, detokenize): self.given = locals()
class Out:
    def __init__(self, ids, reason): self.token_ids, self.finish_reason = ids, reason
class Request:
    def __init__(self, out): self.outputs = [out]
class LLM:
    def __init__(self, model, **given):
        import os
        assert given["dtype"] == "bfloat16" and given["skip_tokenizer_init"] and given["max_model_len"] == 3 + 4
        self.device = int(os.environ["CUDA_VISIBLE_DEVICES"])
    def generate(self, prompts, settings, use_tqdm):
        return [
            Request(Out((p["prompt_token_ids"][0], s.given["seed"], self.device), "stop" if i % 2 else "length"))
            for i, (p, s) in enumerate(zip(prompts, settings))
        ]
'''


def test_an_engines_answers_come_back_in_order_from_all_its_gpus(
    tmp_path: Path, model: LocalArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vllm.py").write_text(FAKE_VLLM)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH="{tmp_path / "site"}"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("MOXIN_OPEN_INSTRUCT_PYTHON", str(python))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = tuning.sft_config(engine="open-instruct", label_smoothing=0.0, precision="bf16", device="cuda")
    ctx = LocalContext(tmp_path, made, {"parent": [model]})
    prompts = [[n, 5, 6][: 1 + n % 3] for n in range(5)]
    counts: list[int] = []
    ctx.nproc_per_node = 2
    answers = generation.generate(ctx, model.path, prompts, generation.Sampling(4, 0.6, 100), counts.append)
    assert [ids[:3] for ids in answers] == [[n, 100 + n, n % 2] for n in range(5)]
    assert [ids[3:] for ids in answers] == [[], [], [2], [2], []]  # an end that the engine leaves out is put there
    assert sum(counts) == 5


def test_an_environment_that_cannot_write_is_said_and_transformers_writes(
    tmp_path: Path, model: LocalArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOXIN_OPEN_INSTRUCT_PYTHON", sys.executable)  # which has no vLLM
    load = model_loading.load_model
    monkeypatch.setattr(model_loading, "load_model", lambda folder, device, dtype: load(folder, torch.device("cpu")))
    made = tuning.sft_config(engine="open-instruct", label_smoothing=0.0, precision="bf16", device="cuda")
    ctx = LocalContext(tmp_path, made, {"parent": [model]})
    folder = model.path
    with LazyModel(ctx, folder, torch.device("cuda"), "parent") as subject:
        answers = subject.answers([[5, 6, 7]], max_new_tokens=4, temperature=0.0)
    assert answers == generate(
        load(folder, torch.device("cpu")), [[5, 6, 7]], generation.Sampling(4, 0.0, 0), rows=1, tokens=100
    )
    assert any("No module named 'vllm'" in line and "transformers does" in line for line in ctx.logs)
