"""Generation with the rolling buffer: logits of the whole sequence, transformers' own continuations, bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.modeling import generate as generation
from stages.lib.modeling.generate import RollingCache, advance, choose, generate, prefill
from stages.lib.modeling.hf_checkpoint import save_model
from tests.support.decoders import VOCAB, build, tokens
from tests.support.examples import max_examples

EOS = VOCAB  # no id of the model: nothing ends early


@pytest.mark.parametrize("window", [None, 1, 7, 16])
@pytest.mark.parametrize("chunk", [1, 5, 40])
def test_logits_are_those_of_the_whole_sequence(window: int | None, chunk: int) -> None:
    """Fed in pieces of any size, shorter and longer than the buffer, then token by token."""
    model, ids = build(window=window, layers=3), tokens(2, 60)
    with torch.no_grad():
        expected = model(ids)
    cache = RollingCache(model, torch.zeros(2, dtype=torch.long), 60)
    assert cache.slots == (window or 60)
    seen = 0
    while seen < 60:
        step = min(chunk if seen < 45 else 1, 60 - seen)
        logits = advance(model, ids[:, seen : seen + step], cache)
        seen += step
        torch.testing.assert_close(logits, expected[:, seen - 1], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 8])
def test_greedy_continuations_are_those_of_transformers(tmp_path: Path, window: int | None) -> None:
    from transformers import MistralForCausalLM

    model = build(window=window)
    save_model(model, tmp_path, tmp_path, "card")
    theirs = MistralForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    prompt = tokens(1, 11)
    wanted = theirs.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)[
        0, 11:
    ].tolist()
    assert generate(model, prompt.tolist(), 40, EOS) == [wanted]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.sampled_from([None, 3, 8]), st.integers(1, 20))
@max_examples(20)
def test_a_batch_of_prompts_of_any_lengths_is_each_alone(lengths: list[int], window: int | None, new: int) -> None:
    model = build(window=window)
    prompts = [tokens(1, n, seed=i)[0].tolist() for i, n in enumerate(lengths)]
    together = generate(model, prompts, new, EOS)
    assert together == [generate(model, [prompt], new, EOS)[0] for prompt in prompts]
    assert all(len(ids) == new for ids in together)


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = build(window=9), tokens(1, 50).tolist()
    whole = generate(model, prompt, 12, EOS)
    for chunk in (1, 8, 9, 10, 49):
        monkeypatch.setattr(generation, "CHUNK", chunk)
        assert generate(model, prompt, 12, EOS) == whole


def test_the_cache_is_an_eighth_at_32k() -> None:
    """Paper 3.2: W = 4096, context 32,768."""
    model, starts = build(window=4096, max_positions=32768), torch.zeros(1, dtype=torch.long)
    rolling, full = (
        RollingCache(model, starts, 32768),
        RollingCache(build(window=None, max_positions=32768), starts, 32768),
    )
    assert full.nbytes == 8 * rolling.nbytes == 2 * 4 * 2 * 2 * 8 * 32768


def test_a_sequence_ends_at_eos_and_the_others_go_on() -> None:
    model = build()
    free = generate(model, [[5], [6]], 10, EOS)
    eos = free[0][3]
    ended = generate(model, [[5], [6]], 10, eos)
    assert ended[0] == free[0][: free[0].index(eos)]
    assert ended[1] == (free[1][: free[1].index(eos)] if eos in free[1] else free[1])


def test_sampling_follows_temperature_top_p_and_seed() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, -1)
    draws = choose(logits, 0.5, 1.0, torch.Generator().manual_seed(0)).bincount(minlength=4) / 4000
    torch.testing.assert_close(draws, (logits[0] / 0.5).softmax(-1), atol=0.03, rtol=0.1)
    nucleus = choose(logits, 1.0, 0.7, torch.Generator().manual_seed(0))  # 0.64 and 0.24: two are needed for 0.7
    assert set(nucleus.tolist()) == {0, 1}
    assert set(choose(logits, 1.0, 0.1, torch.Generator().manual_seed(0)).tolist()) == {0}  # never none
    model = build()
    made = [generate(model, [[3]], 20, EOS, 1.0, 0.9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one id"):
        generate(build(), [[1], []], 5, EOS)
    with pytest.raises(ValueError, match="eval"):
        generate(build().train(), [[1]], 5, EOS)
    assert prefill(build(), [[1, 2], [3]], 8)[1].starts.tolist() == [0, 1]
