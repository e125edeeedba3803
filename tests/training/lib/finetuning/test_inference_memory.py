"""What reading and writing with a model takes in memory: the formula against a real forward pass, and a plan for 7B."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from stages.core.artifacts import ArtifactManifest
from stages.lib.finetuning import inference_memory
from stages.lib.modeling.shape import ModelShape
from stages.sft.spec import Sft, SftConfig

PEAK = """
import json, sys
import torch
from stages.lib.finetuning.log_probs import label_log_probs
from transformers import MistralConfig, MistralForCausalLM

torch.set_num_threads(1)
shape, vocabulary, rows, length = json.loads(sys.argv[1])
names = {"num_hidden_layers": "layers", "hidden_size": "hidden", "intermediate_size": "intermediate",
         "num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "head_dim": "head_dim",
         "sliding_window": "window", "max_position_embeddings": "max_positions"}
shape = {theirs: shape[mine] for theirs, mine in names.items()}
config = MistralConfig(vocab_size=vocabulary, attn_implementation="sdpa", **shape)
model = MistralForCausalLM(config)
row = {"input_ids": [7] * length, "labels": [7] * length}
label_log_probs(model, [{"input_ids": [7] * 64, "labels": [7] * 64}], 64)
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")  # the highest so far begins anew: loading took more
before = status("VmRSS")
label_log_probs(model, [row] * rows, rows * length)
print(1024 * (status("VmHWM") - before))
"""


@pytest.mark.parametrize(("rows", "length"), [(16, 512), (2, 4096)], ids=["many short rows", "few long rows"])
def test_the_memory_of_reading_is_what_the_formula_says(rows: int, length: int) -> None:
    """A real forward pass, in a process of its own: what it takes at its highest beyond the weights."""
    shape = ModelShape(
        layers=2, hidden=256, intermediate=896, heads=4, kv_heads=1, head_dim=64, window=4096, max_positions=8192
    )
    told = json.dumps([shape.model_dump(), 4000, rows, length])
    found = int(subprocess.run([sys.executable, "-c", PEAK, told], check=True, capture_output=True, text=True).stdout)
    planned = inference_memory.read_bytes(shape, 4000, rows * length, length, "fp32")
    print(f"{rows} x {length}: measured {found / 2**20:.0f} MiB, formula {planned / 2**20:.0f} MiB")
    assert 0.75 * planned < found < 1.35 * planned


def test_the_paper_models_measurements_fit_a_card_of_80_gb() -> None:
    shape = ModelShape()
    weights = 2 * shape.parameters(32_000)
    assert (
        inference_memory.read_bytes(shape, 32_000, 16_384, 16_384, "bf16") < 4 * 2**30
    )  # 64 rows of it in float32 took 60 GB a tensor
    row = inference_memory.cache_bytes(shape, 25_600, "bf16")
    rows = inference_memory.rows_at_once(shape, 25_600, "bf16", 24 * 2**30)
    assert rows * row <= 24 * 2**30 < (rows + 1) * row
    assert weights + 24 * 2**30 < 60 * 2**30


def test_a_plan_knows_what_measuring_takes() -> None:
    made = SftConfig(
        engine="open-instruct",
        label_smoothing=0.0,
        device="cuda",
        max_length=16_384,
        max_new_tokens=8192,
        samples=8,
        eval_problems=200,
    )
    meta = {"parameters": 8_114_180_096, "rows": 1000}
    manifest = ArtifactManifest(type="Model", digest="0" * 64, facets={}, meta=meta)
    inputs = {"parent": [manifest], "conversations": [manifest], "heldout": [manifest], "problems": [manifest]}
    found = Sft.measuring(made, inputs)
    assert found.written_tokens == 2 * 208 * 8192
    assert found.read_tokens == 2 * 512 * 8192
    assert found.flops == 2.0 * 8_114_180_096 * found.read_tokens
    assert found.weights_bytes == 2 * 8_114_180_096
    assert found.memory_bytes < 25e9
    few = [manifest.model_copy(update={"meta": {"rows": 100}})]
    fewer = Sft.measuring(made, inputs | {"heldout": few, "problems": few})
    assert (fewer.read_tokens, fewer.written_tokens) == (2 * 100 * 8192, 2 * 108 * 8192), "no more than are held out"
    work = Sft.work(made, inputs)
    assert work.written_flops == found.written_flops
    assert work.flops > found.flops
