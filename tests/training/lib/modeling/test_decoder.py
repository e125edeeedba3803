"""`stages.lib.modeling`: the paper's architecture, equal to transformers', and the properties that training relies
on.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.core.errors import InputError
from stages.lib.modeling import weight_files
from stages.lib.modeling.attention import AdditiveBlockMask, WeightDropout, attention_mask, block_attention
from stages.lib.modeling.config_file import read_shape
from stages.lib.modeling.decoder import Attention, AttentionContext, MoxinLM, rotary, rotate
from stages.lib.modeling.hf_checkpoint import load_model, save_model
from stages.lib.modeling.kernels import chunked_cross_entropy
from stages.lib.modeling.sequence_dropout import SequenceDropout
from stages.lib.modeling.shape import ModelShape
from tests.support.decoders import VOCAB, build, shape, tokens

# --- numbers --------------------------------------------------------------------------------------------------------


def test_the_papers_model_has_8_114_180_096_parameters() -> None:
    assert ModelShape().parameters(32_000) == 8_114_180_096
    with torch.device("meta"):
        model = MoxinLM(ModelShape(), 32_000)
    assert sum(p.numel() for p in model.parameters()) == 8_114_180_096
    assert ModelShape().model_dump() == {
        "layers": 36, "hidden": 4096, "intermediate": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128,
        "window": 4096,
        "max_positions": 32768, "rope_theta": 10000.0, "norm_eps": 1e-5,
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 1}, {"layers": 3, "head_dim": 16}, {"hidden": 20}])
def test_the_formula_counts_every_parameter(changes: dict[str, int]) -> None:
    model = MoxinLM(shape(**changes), VOCAB)
    assert sum(p.numel() for p in model.parameters()) == shape(**changes).parameters(VOCAB)


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="4 query heads cannot share 3 key-value heads evenly"):
        shape(kv_heads=3)
    with pytest.raises(ValidationError, match="head_dim 7 is odd"):
        shape(head_dim=7)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_the_flops_formula_fits_a_counted_step(kv_heads: int) -> None:
    """Forward and backward, by PyTorch's counter. It counts the whole T x T attention, the formula the causal half."""
    batch, length = 2, 64
    model = (
        build(hidden=64, intermediate=96, heads=4, kv_heads=kv_heads, head_dim=16, vocab_size=VOCAB).train().double()
    )
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # our own kernels (float32) are not counted
        model.loss_sum(tokens(batch, length))[0].backward()
    used = model.shape
    causal = 12.0 * used.layers * used.heads * used.head_dim * length / 2
    expected = batch * length * (used.flops_per_token(VOCAB, length) + causal)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_a_window_bounds_the_flops_of_attention() -> None:
    unbounded, windowed = shape(), shape(window=16)
    assert windowed.flops_per_token(VOCAB, 16) == unbounded.flops_per_token(VOCAB, 16)
    assert windowed.flops_per_token(VOCAB, 10_000) == windowed.flops_per_token(VOCAB, 20_000)
    assert windowed.flops_per_token(VOCAB, 1000) < unbounded.flops_per_token(VOCAB, 1000)
    assert ModelShape().flops_per_token(32_000, 2000) * 2e12 == pytest.approx(9.7e22, rel=0.05)  # paper 3.4: 6ND


# --- initialization ---------------------------------------------------------------------------------------------------


def test_initial_weights_have_the_spread_they_should() -> None:
    layers = 3
    model = MoxinLM(shape(layers=layers, hidden=128, intermediate=160, head_dim=32), 500)
    model.initialize(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = 0.02 / math.sqrt(2 * layers) if into_stream else 0.02
        error = 5 / math.sqrt(2 * parameter.numel())
        assert float(parameter.detach().std()) == pytest.approx(std, rel=error), name
        assert abs(float(parameter.detach().mean())) < 5 * std / math.sqrt(parameter.numel()), name


def test_initial_weights_follow_the_seed_alone() -> None:
    models = [MoxinLM(shape(), VOCAB) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(seed + 10 * models.index(model))
        model.initialize(seed)
    one, same, other = ([p.detach() for p in model.parameters()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


# --- equal to transformers
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 5, 64])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_transformers(tmp_path: Path, window: int | None, kv_heads: int) -> None:
    """Saved here, loaded there, in float32; the window smaller and larger than the 24 tokens."""
    from transformers import MistralForCausalLM

    model = build(window=window, kv_heads=kv_heads, rope_theta=500.0, norm_eps=1e-3)
    save_model(model, tmp_path, tmp_path, "card")
    theirs = MistralForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert theirs.config.sliding_window == window
    ids = tokens(2, 24)
    with torch.no_grad():
        difference = (model(ids) - theirs(ids).logits).abs().max()
    assert float(difference) < 1e-4
    assert float(model(ids).abs().max()) > 1  # logits that a wrong mask or angle would change


def test_the_configuration_says_what_transformers_would_default(tmp_path: Path) -> None:
    from transformers import AutoConfig

    save_model(build(window=7), tmp_path, tmp_path, "card")
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.architectures) == ("mistral", ["MistralForCausalLM"])
    assert (config.rms_norm_eps, config.max_position_embeddings, config.tie_word_embeddings) == (1e-5, 256, False)
    assert (config.sliding_window, config.attention_dropout, config.head_dim) == (7, 0.0, 8)
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)
    assert config.rope_parameters["rope_theta"] == 10000.0


# --- attention
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 4])
def test_grouped_queries_equal_repeated_keys_and_values(kv_heads: int, window: int | None) -> None:
    """Against softmax(QK'/sqrt(E) + mask)V written out, with each key-value head repeated for its queries."""
    used = shape(kv_heads=kv_heads, window=window)
    torch.manual_seed(0)
    attention, x = Attention(used, 0.0).eval(), torch.randn(2, 11, used.hidden)
    cos, sin = rotary(torch.arange(11), used.head_dim, used.rope_theta)
    mask = attention_mask(11, window, None, x.device)
    with torch.no_grad():
        found = attention(x, AttentionContext(cos, sin, mask))
        query, key, value = (
            p(x).view(2, 11, -1, used.head_dim).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        repeats = used.heads // kv_heads
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scores = query @ key.transpose(-1, -2) / math.sqrt(used.head_dim)
        distance = torch.arange(11)[:, None] - torch.arange(11)[None, :]
        hidden = (distance < 0) | (distance >= (window or 11))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        expected = attention.o_proj((weights @ value).transpose(1, 2).reshape(2, 11, -1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def changed_positions(model: MoxinLM, length: int, place: int) -> list[int]:
    """Where the logits change when the token at `place` does."""
    ids = tokens(1, length)
    other = ids.clone()
    other[0, place] = (other[0, place] + 1) % VOCAB
    with torch.no_grad():
        difference = (model(ids) - model(other)).abs().amax(-1)[0]
    return torch.nonzero(difference).flatten().tolist()


@pytest.mark.parametrize(("layers", "window"), [(1, 4), (2, 4), (3, 3), (2, 1)])
def test_a_token_reaches_as_far_as_windows_and_layers_allow(layers: int, window: int) -> None:
    """Each layer carries it window - 1 further; no logit before it, and none beyond that, changes at all."""
    place, length = 5, 20
    found = changed_positions(build(layers=layers, window=window), length, place)
    assert found == list(range(place, min(length, place + layers * (window - 1) + 1)))


def test_without_a_window_a_token_reaches_all_that_follow() -> None:
    assert changed_positions(build(window=None), 12, 3) == list(range(3, 12))
    assert changed_positions(build(window=12), 12, 3) == list(range(3, 12))


@pytest.mark.parametrize("window", [None, 5])
def test_packed_documents_do_not_see_each_other(window: int | None) -> None:
    """With document ids each document's logits are those of the document alone, wherever it stands."""
    model = build(window=window)
    lengths = [7, 1, 12, 4]
    ids = tokens(2, sum(lengths))
    owners = torch.tensor(np.repeat(np.arange(4), lengths), dtype=torch.int32).expand(2, -1)
    with torch.no_grad():
        packed = model(ids, owners)
        alone = torch.cat([model(part) for part in ids.split(lengths, dim=1)], dim=1)
        mixed = model(ids)
    torch.testing.assert_close(packed, alone, atol=2e-4, rtol=1e-4)
    assert float((packed - mixed).abs().max()) > 0.1


def test_masks_are_only_made_when_needed() -> None:
    device = torch.device("cpu")
    assert attention_mask(8, None, None, device) is None
    assert attention_mask(8, 8, None, device) is None
    mask = attention_mask(4, 2, None, device)
    assert mask is not None
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    both = attention_mask(4, 3, torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]), device)
    assert both is not None
    assert both[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert both[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]


def test_rotary_attention_depends_on_distances_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 6, 8)
    scores = []
    for start in (0, 1000):
        cos, sin = rotary(torch.arange(start, start + 6), 8, 10_000.0)
        scores.append(rotate(query, cos, sin) @ rotate(key, cos, sin).transpose(-1, -2))
    torch.testing.assert_close(scores[0], scores[1], atol=1e-3, rtol=1e-3)


# --- loss and gradients
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 10, 25, 100])
def test_the_chunked_loss_is_the_plain_one(chunk: int) -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, VOCAB, (25,))
    labels[::4] = -100
    values, gradients = [], []
    for compute in (
        lambda h, w: F.cross_entropy(h @ w.T, labels, ignore_index=-100, reduction="sum"),
        lambda h, w: chunked_cross_entropy(h, w, labels, chunk),
    ):
        torch.manual_seed(1)
        hidden, weight = torch.randn(25, 16, requires_grad=True), torch.randn(VOCAB, 16, requires_grad=True)
        loss = compute(hidden, weight)
        loss.backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        values.append(loss.detach())
        gradients.append((hidden.grad, weight.grad))
    torch.testing.assert_close(values[0], values[1])
    for plain, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, chunked, atol=1e-5, rtol=1e-5)
    assert float(chunked_cross_entropy(torch.randn(4, 16), torch.randn(VOCAB, 16), torch.full((4,), -100), 2)) == 0


def test_the_loss_leaves_out_what_cannot_be_predicted() -> None:
    """Labels are the next ids within a window, and within a document where its ids are given."""
    model, ids = build(), tokens(2, 10)
    owners = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2], [0] * 10])
    with torch.no_grad():
        loss, count = model.loss_sum(ids)
        assert count == 18
        log_probabilities = model(ids).log_softmax(-1)
        expected = -sum(log_probabilities[b, t, ids[b, t + 1]] for b in range(2) for t in range(9))
        torch.testing.assert_close(loss, torch.as_tensor(expected))
        loss, count = model.loss_sum(ids, owners)
        assert count == 16
        log_probabilities = model(ids, owners).log_softmax(-1)
        kept = [(0, t) for t in (0, 1, 3, 4, 5, 7, 8)] + [(1, t) for t in range(9)]
        expected = -sum(log_probabilities[b, t, ids[b, t + 1]] for b, t in kept)
        torch.testing.assert_close(loss, torch.as_tensor(expected))


def test_dropout_acts_in_training_only() -> None:
    model, ids = build(dropout=0.5), tokens(1, 8)
    plain = build(dropout=0.0)
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))
        model.train()
        assert not torch.equal(model(ids), plain(ids))


# --- the CPU's own kernels
# ------------------------------------------------------------------------------------------------


def double(model: MoxinLM) -> MoxinLM:
    """A copy in float64: it takes PyTorch's own operators (`kernels.fused`), and is exact enough to judge by."""
    copy = MoxinLM(model.shape, model.vocab_size, model.dropout)
    copy.load_state_dict(model.state_dict())
    return copy.double()


@pytest.mark.parametrize("length", [7, 64, 128, 129, 200])
@pytest.mark.parametrize("window", [None, 50, 130])
@pytest.mark.parametrize("documents", [False, True])
def test_loss_and_gradients_of_the_kernels_are_those_of_plain_operators(
    length: int, window: int | None, documents: bool
) -> None:
    """Blocks, their edges, windows and documents across them, against scaled_dot_product_attention and autograd in
    float64.
    """
    model, ids = build(window=window, max_positions=512), tokens(2, length)
    generator = torch.Generator().manual_seed(length)
    owners = (torch.rand(2, length, generator=generator) < 0.05).cumsum(1).int() if documents else None
    results = []
    for used in (double(model).train(), model.train()):
        loss, count = used.loss_sum(ids, owners)
        (loss / count).backward()
        results.append([loss.detach(), *(p.grad for p in used.parameters())])
    for exact, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), exact.double(), atol=2e-5, rtol=2e-4)


def test_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import MistralForCausalLM

    model, ids = build(window=50, max_positions=512), tokens(2, 140)
    save_model(model, tmp_path, tmp_path, "card")
    theirs = MistralForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    theirs(input_ids=ids, labels=ids).loss.backward()
    loss, count = model.train().loss_sum(ids)
    (loss / count).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-3, msg=name)


def test_attention_weights_that_are_not_kept_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for limit in (0, 1 << 30):
        monkeypatch.setattr("stages.lib.modeling.attention.KEEP_BYTES", limit)
        model = build(dropout=0.2, window=60).train()
        loss, _ = model.loss_sum(tokens(2, 150), None, SequenceDropout(1, [4, 5]))
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_dropout_on_weights_is_what_its_mask_says() -> None:
    """One block attention with a known mask, against softmax, mask and product written out; gradients too."""
    torch.manual_seed(0)
    length, heads, groups, width, rate = 150, 4, 2, 8, 0.3
    block_mask = AdditiveBlockMask(length, 40, None)
    counts = [heads * block.size for block in block_mask.blocks]
    kept = partial(SequenceDropout(3, [0, 9]).keep_masks, rate, 1, 0, counts)
    whole = torch.zeros(2, heads, length, length)
    for block, part in zip(block_mask.blocks, kept(), strict=True):
        whole[:, :, block.start : block.stop, block.low : block.stop] = part.view(
            2, heads, block.stop - block.start, -1
        )
    cos, sin = rotary(torch.arange(length), width, 1e4)
    inputs = [
        torch.randn(2, length, n, width, dtype=torch.float64, requires_grad=True) for n in (heads, groups, groups)
    ]
    query, key, value = (x.transpose(1, 2) for x in inputs)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    query, key = (rotate(x, cos.double(), sin.double()) for x in (query, key))
    allowed = attention_mask(length, 40, None, torch.device("cpu"))
    assert allowed is not None
    weights = (query @ key.mT / math.sqrt(width)).masked_fill(~allowed, -torch.inf).softmax(-1) * whole / (1 - rate)
    expected = (weights @ value).transpose(1, 2)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, gradient)
    single = [x.detach().float().requires_grad_() for x in inputs]
    found = block_attention(*single, (cos[:, :4], sin[:, :4]), block_mask, WeightDropout(kept, rate))
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    for one, other in zip(torch.autograd.grad(found, single, gradient.float()), wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-4)


def test_the_loss_of_a_token_that_is_nearly_impossible_is_exact() -> None:
    """Its probability is 0 in float32; loss and gradients are those of PyTorch's own."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    labels = torch.tensor([3, 1, -100, 0, 8, 2])
    hidden[1], weight[1], weight[5] = 0.0, 0.0, 0.0
    hidden[1, 0], weight[1, 0], weight[5, 0] = 30.0, -20.0, 20.0  # a distance of 1,200
    results = []
    for loss_of in (chunked_cross_entropy, lambda h, w, y: F.cross_entropy(h @ w.T, y, reduction="sum")):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(*inputs, labels)
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    assert float(results[0][0].detach()) > 1200
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@given(st.integers(0, 5), st.integers(0, 1 << 40), st.floats(0.01, 0.9), st.integers(1, 5000))
def test_noise_depends_on_its_sequence_alone(seed: int, sequence: int, rate: float, count: int) -> None:
    batch = SequenceDropout(seed, [sequence + 1, sequence]).keep_mask(rate, 2, 1, count)
    alone = SequenceDropout(seed, [sequence]).keep_mask(rate, 2, 1, count)
    assert torch.equal(batch[1], alone[0])
    assert set(batch.unique().tolist()) <= {0.0, 1.0}
    if count > 1000:
        assert float(batch.mean()) == pytest.approx(1 - rate, abs=0.06)
        assert not torch.equal(batch[0], batch[1])
        assert not torch.equal(batch[1], SequenceDropout(seed, [sequence]).keep_mask(rate, 2, 0, count)[0])


def test_noise_is_the_same_everywhere() -> None:
    """A golden value: dropout must not change with a version of numpy, or old runs could not be resumed."""
    assert SequenceDropout(7, [3]).keep_mask(0.5, 1, 0, 12)[0].int().tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1]


def test_fewer_windows_make_fewer_weights() -> None:
    """Work and memory are bounded by the window, not by the square of the length."""
    assert AdditiveBlockMask(4096, 64, None).weights < 4096 * 130
    assert AdditiveBlockMask(4096, None, None).weights < 0.51 * 4096**2


# --- folders
# --------------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in several files, as a large model is written; the tokenizer and the card travel along."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer" / "other.txt").write_text("stays")
    model = build(window=9, rope_theta=77.0)
    for name, size in (("one", "5GB"), ("many", "20KB")):
        monkeypatch.setattr(weight_files, "SHARD_SIZE", size)
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name, tmp_path / "tokenizer", "# card")
        files = {p.name for p in (tmp_path / name).iterdir()}
        assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= files
        assert "other.txt" not in files
        assert ("model.safetensors.index.json" in files) is (name == "many")
        assert read_shape(tmp_path / name) == (model.shape, VOCAB)
        loaded = load_model(tmp_path / name).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    from transformers import MistralForCausalLM

    theirs = MistralForCausalLM.from_pretrained(tmp_path / "many").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens(1, 9)).logits, model(tokens(1, 9)), atol=1e-4, rtol=1e-4)


def test_a_folder_that_transformers_wrote_is_read(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=6, rms_norm_eps=1e-5, max_position_embeddings=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = MistralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(tmp_path)(tokens(2, 20)), theirs(tokens(2, 20)).logits, atol=1e-4, rtol=1e-4
        )


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json of the model cannot be used"):
        load_model(tmp_path)
    save_model(build(), tmp_path, tmp_path, "card")
    config = json.loads((tmp_path / "config.json").read_text())
    for change, says in (
        ({"model_type": "llama"}, r"config\.json: model_type is 'llama', this pipeline trains 'mistral'"),
        ({"num_key_value_heads": 3}, "cannot share 3 key-value heads"),
        ({"num_hidden_layers": 3}, r"the weights do not fit config\.json"),
        ({"hidden_size": 16}, r"the weights do not fit config\.json"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=says) as error:
            load_model(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "rms_norm_eps"}))
    with pytest.raises(InputError, match=r"config\.json of the model has no 'rms_norm_eps'"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"config\.json of the model cannot be used"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"the weights do not fit config\.json"):
        load_model(tmp_path)
