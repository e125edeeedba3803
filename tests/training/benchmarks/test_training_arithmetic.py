"""`benchmarks.training*`: their arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training, training_gpu
from stages.lib.modeling.shape import ModelShape

GIB = 2.0**30


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="has no GPU that PyTorch can use, and nothing was measured"):
        training_gpu.main([])


@pytest.mark.parametrize("theirs", [False, True])
def test_both_sides_do_the_work_that_is_counted(theirs: bool) -> None:
    """FLOPs by PyTorch's counter, which has the whole square of attention where the formula has the causal half."""
    shape = training_gpu.shape_of(training_gpu.parse(["--small"]), 0.0)
    build = training_gpu.contenders()["transformers, sdpa" if theirs else "this project"]
    model, loss_of = build(shape, 300, torch.device("cpu"))
    model.double()
    ids = torch.randint(3, 300, (2, 64))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_of(ids).backward()
    causal = 12.0 * shape.layers * shape.heads * shape.head_dim * 64 / 2
    assert counter.get_total_flops() == pytest.approx(2 * 64 * (shape.flops_per_token(300, 64) + causal), rel=0.03)


def test_a_line_counts_model_flops() -> None:
    """8 layers of the 7B at a context of 4,000, by hand: 218,112,000 parameters a layer, and 2,000 keys a token."""
    shape, options = ModelShape(layers=8), training_gpu.parse(["--batch", "2"])
    flops = 6 * (8 * 218_112_000 + 4096 + 32_000 * 4096) + 12 * 8 * 4096 * 2000
    assert shape.flops_per_token(32_000, 4000) == flops
    line = training_gpu.row("x", shape, options, 4000, 0.5, 40 * GIB, 989e12)
    assert line == f"| x | 16,000 | {16_000 * flops / 1e12:.2f} | {16_000 * flops / 989e12:.1%} | 40.0 | 43.5 |"
    assert training_gpu.step_bytes(shape, 32_000, 8000) / GIB == pytest.approx(
        6.8 * 1e9 / GIB + 8 * 4.99 * 1e9 / GIB, rel=0.01
    )
    assert "| unknown |" in training_gpu.row("x", shape, options, 4000, 0.5, 0.0, None)


@pytest.mark.parametrize(("memory", "layers"), [(80, 13), (140, 24), (24, 3)])
def test_as_many_layers_as_fit(memory: int, layers: int) -> None:
    """By hand: 6.8 GB for the vocabulary's matrices and all logits of 8,000 tokens, and 3.05 + 1.93 GB a layer, into 85
    % of the memory.
    """
    options = training_gpu.parse([])
    shape = training_gpu.shape_of(options, memory * GIB)
    assert training_gpu.step_bytes(shape, 32_000, 8000) <= 0.85 * memory * GIB
    assert training_gpu.step_bytes(ModelShape(layers=shape.layers + 1), 32_000, 8000) > 0.85 * memory * GIB
    assert shape.layers == layers
    with pytest.raises(SystemExit, match="not even one layer fits 2 GiB"):
        training_gpu.shape_of(options, 2 * GIB)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA T4", None),
    ],
)
def test_cards_by_name(name: str, flops: float | None) -> None:
    assert training_gpu.peak_of(name) == flops


def test_the_cpu_benchmark_refuses_curves_that_differ() -> None:
    """Its table is not printed when a contender trained something else."""
    same = [{"seconds": 0.1, "losses": [7.0, 6.9], "memory": 1e8, "peak": 1e11}]
    other = [{"seconds": 0.1, "losses": [7.0, 6.8], "memory": 1e8, "peak": 1e11}]
    table = training.table("tiny", 0.0, {"moxin": same, "trl": same}, 1)
    assert "| TRL SFTTrainer, SDPA | 10,240 | 66 | 66% of 100 | 100 | 6.9000 | 0.0000 |" in table
    with pytest.raises(SystemExit, match=r"trl, tiny: its loss curve differs by 0\.1000 from moxin's"):
        training.table("tiny", 0.0, {"moxin": same, "trl": other}, 1)
    assert "0.1000" in training.table("tiny", 0.1, {"moxin": same, "trl": other}, 1)
