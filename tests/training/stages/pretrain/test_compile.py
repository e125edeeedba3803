"""`compile = true`: blocks through torch.compile give the same curve, alone, in FSDP2, and with activation
checkpointing inside.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages.lib.modeling import flex
from stages.lib.modeling.attention import attention_mask
from stages.lib.modeling.decoder import AttentionContext, MoxinLM, rotary
from stages.lib.modeling.recompute import Policy
from stages.lib.modeling.shape import ModelShape
from tests.support.pretraining import artifacts, config, train

__all__ = ["artifacts"]  # a fixture: named here so that pytest finds it
SHAPE = ModelShape(
    layers=2, hidden=32, intermediate=48, heads=4, kv_heads=2, head_dim=16, window=150, max_positions=512
)


def build(policy: Policy = "none") -> MoxinLM:
    model = MoxinLM(SHAPE, 97, 0.0, policy)
    model.initialize(3)
    return model


def traced_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of torch.compile but its last step, the C++ compiler, which takes half a minute."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.parametrize("documents", [False, True])
def test_compiled_blocks_give_the_same_loss_and_gradients(
    policy: Policy, documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced_alone(monkeypatch)
    check_gradients(policy, documents)


@pytest.mark.slow  # the C++ compiler: half a minute
def test_and_so_they_do_with_kernels_in_cpp() -> None:
    torch._dynamo.reset()
    check_gradients("selective", documents=True)


def check_gradients(policy: Policy, documents: bool) -> None:
    ids = torch.randint(0, 97, (2, 200), generator=torch.Generator().manual_seed(1))
    owners = torch.tensor([[0] * 70 + [1] * 130] * 2) if documents else None
    found = []
    for compiled in (False, True):
        model = build(policy)
        if compiled:
            model.compile_blocks()
        loss, _ = model.loss_sum(ids, owners)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_a_block_with_a_gpus_attention_is_one_graph(policy: Policy) -> None:
    """Traced whole, FlexAttention and checkpointing included, once for all blocks and for other documents; not compiled
    further here.
    """
    torch._dynamo.reset()
    model, graphs = build(policy), []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    x = torch.randn(2, 200, SHAPE.hidden)
    cos, sin = rotary(torch.arange(200), SHAPE.head_dim, SHAPE.rope_theta)
    for block in model.model.layers:
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)
    for end in (70, 100):
        documents = torch.tensor([[0] * end + [1] * (200 - end)] * 2)
        seen = AttentionContext(
            cos, sin, attend=partial(flex.attend, mask=flex.block_mask(200, 150, documents, torch.device("cpu")))
        )
        plain = AttentionContext(cos, sin, mask=attention_mask(200, 150, documents, torch.device("cpu")))
        with torch.no_grad():
            for block, same in zip(model.model.layers, build().model.layers, strict=True):
                torch.testing.assert_close(block(x, seen), same._sublayers(x, plain), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("policy", ["none", "selective"])
def test_it_trains_the_same_model_in_fsdp2(
    tmp_path: Path, artifacts: Any, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced_alone(monkeypatch)
    plain, _ = train(tmp_path / "plain", 1, config(dropout=0.0), artifacts)
    losses, outcome = train(
        tmp_path / "two", 2, config(dropout=0.0, micro_batch_size=1, compile=True, recompute=policy), artifacts
    )
    assert outcome == "done"
    assert np.allclose(losses, plain, atol=1e-4)


def test_what_cannot_be_compiled_is_refused_before_the_run() -> None:
    with pytest.raises(ValidationError, match="engine 'colossalai' compiles no blocks: set compile = false"):
        config(compile=True, engine="colossalai")
    with pytest.raises(ValidationError, match=r"compile = true cannot be combined with parallel\.tensor = 2"):
        config(compile=True, parallel={"tensor": 2})
    assert config(compile=True).identity() == config().identity()
