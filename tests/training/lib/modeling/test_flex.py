"""What a GPU's attention is made of, on a CPU: FlexAttention's forward pass and blocks of queries, against the whole
mask.

Not covered, for want of a GPU: its compiled kernels, their backward pass, their speed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from stages.lib.modeling import decoder, flex
from stages.lib.modeling.attention import attend_in_blocks, attention_mask
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.shape import ModelShape

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def documents(seed: int, length: int, share: float = 0.01) -> Tensor:
    return (torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < share).cumsum(1)


def inputs(length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(2, heads, length, 16, generator=generator, dtype=dtype) for heads in (4, 2, 2))
    return query, key, value


def whole(query: Tensor, key: Tensor, value: Tensor, window: int | None, owners: Tensor | None) -> Tensor:
    mask = attention_mask(query.shape[2], window, owners, CPU)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def listed(mask: BlockMask, count: Any, indices: Any) -> Tensor:
    """The blocks of a list as bool [B, queries' blocks, keys' blocks]."""
    blocks = indices.shape[-1]
    chosen = torch.arange(blocks) < count[:, 0, :, None]
    return torch.zeros(len(count), blocks, blocks, dtype=torch.bool).scatter(-1, indices[:, 0].long(), chosen)


@given(st.integers(1, 700), st.none() | st.integers(1, 800), st.none() | st.integers(0, 99), st.booleans())
def test_no_pair_is_lost_and_whole_blocks_are_whole(
    length: int, window: int | None, seed: int | None, ordered: bool
) -> None:
    """Also for document ids that come back, which packing never makes."""
    owners = None if seed is None else documents(seed, length)
    if owners is not None and not ordered:
        owners = owners % 2
    allowed = attention_mask(length, window, owners, CPU)
    if allowed is None:
        allowed = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    mask = flex.block_mask(length, window, owners, CPU)
    count = -(-length // flex.BLOCK)
    padded = F.pad(allowed[:, 0], (0, count * flex.BLOCK - length) * 2)
    tiles = padded.unflatten(1, (count, -1)).unflatten(3, (count, -1))  # [B, queries' blocks, 128, keys' blocks, 128]
    some = listed(mask, mask.kv_num_blocks, mask.kv_indices) | listed(
        mask, mask.full_kv_num_blocks, mask.full_kv_indices
    )
    assert not (tiles.any(4).any(2) & ~some).any()
    entire = listed(mask, mask.full_kv_num_blocks, mask.full_kv_indices)
    inside = F.pad(torch.ones(length, length, dtype=torch.bool), (0, count * flex.BLOCK - length) * 2)
    outside = ~inside.unflatten(0, (count, -1)).unflatten(2, (count, -1))[None]
    assert (tiles | outside).all(4).all(2)[entire].all()


def test_a_long_context_costs_what_its_documents_and_window_cost() -> None:
    """32,768 tokens: (T / 128)^2 numbers in memory, and few blocks to compute."""
    windowed = flex.block_mask(32_768, 4_096, None, CPU)
    assert windowed.kv_indices.numel() == (32_768 // 128) ** 2
    assert windowed.sparsity() > 87  # the window is an eighth of the context, and the triangle's tip is missing
    packed = flex.block_mask(32_768, None, (torch.arange(32_768) // 1_024)[None], CPU)
    assert packed.sparsity() > 98


@pytest.mark.parametrize("length", [1, 100, 128, 300])
@pytest.mark.parametrize("window", [None, 50, 200])
@pytest.mark.parametrize("packed", [False, True])
def test_flex_attention_is_attention(length: int, window: int | None, packed: bool) -> None:
    owners = documents(7, length) if packed else None
    given_ = inputs(length)
    found = flex.attend(*given_, flex.block_mask(length, window, owners, CPU))
    torch.testing.assert_close(found, whole(*given_, window, owners), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 64, 1000])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_queries_are_attention(size: int, window: int | None, packed: bool) -> None:
    """Output and gradients."""
    owners = documents(5, 150) if packed else None
    given_ = [x.requires_grad_() for x in inputs(150, torch.float64)]
    results = []
    for made in (attend_in_blocks(*given_, window, owners, 0.0, size), whole(*given_, window, owners)):  # type: ignore[call-arg]
        results.append([made, *torch.autograd.grad(made.square().sum(), given_)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_dropout_in_blocks_zeroes_its_share() -> None:
    """Of equal weights and values of 1 a query's output is the share that stays, scaled up: on average 1."""
    query = torch.zeros(2, 4, 400, 16)
    torch.manual_seed(0)
    made = attend_in_blocks(query, query[:, :2], torch.ones(2, 2, 400, 16), 100, None, 0.3, 64)[..., 100:, 0]
    assert float(made.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(made.std()) == pytest.approx((0.3 / 0.7 / 100) ** 0.5, rel=0.1)


@pytest.mark.parametrize("half", [False, True])
def test_a_model_on_a_gpu_is_the_same_model(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    """The whole model by FlexAttention, also under autocast, where angles and projections have different types."""
    shape = ModelShape(
        layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, window=30, max_positions=512
    )
    model = MoxinLM(shape, 97, 0.1).eval()
    model.initialize(1)
    tokens, owners = torch.randint(97, (2, 200), generator=torch.Generator().manual_seed(2)), documents(3, 200)
    with torch.no_grad():
        expected = model(tokens, owners)
        monkeypatch.setattr(decoder, "fused", lambda x: False)
        monkeypatch.setattr(decoder, "on_gpu", lambda x: True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = model(tokens, owners)
    torch.testing.assert_close(found.float(), expected, atol=2e-2 if half else 1e-5, rtol=2e-2 if half else 1e-4)


def test_which_attention_a_gpu_takes() -> None:
    """Plain causality: flash attention, by SDPA. Else FlexAttention, or blocks of queries when weights are dropped."""
    shape = ModelShape(
        layers=1, hidden=32, intermediate=48, heads=2, kv_heads=2, head_dim=16, window=64, max_positions=512
    )
    model = MoxinLM(shape, 97, 0.1).train()
    owners = documents(1, 64)
    assert model._attend(64, None, CPU) is None
    assert getattr(model._attend(65, None, CPU), "func", None) is attend_in_blocks
    assert getattr(model._attend(64, owners, CPU), "func", None) is attend_in_blocks
    assert getattr(model.eval()._attend(64, owners, CPU), "func", None) is flex.attend
    assert getattr(MoxinLM(shape, 97, 0.0).train()._attend(65, None, CPU), "func", None) is flex.attend
