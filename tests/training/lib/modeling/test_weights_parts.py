"""`stages.lib.modeling.weights`: weights by parts are those of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stages.core.errors import InputError
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.hf_checkpoint import load_model, save_model
from stages.lib.modeling.weights import BLOCK_ROWS, FreshWeights, StoredWeights, whole
from tests.support.decoders import VOCAB, build, shape
from tests.support.examples import max_examples


@given(st.integers(1, 200), st.integers(1, 20), st.data())
@max_examples(40)
def test_a_part_of_fresh_weights_is_that_part_of_the_whole(rows: int, columns: int, data: st.DataObject) -> None:
    draw, cuts = FreshWeights(5, 3), []
    for length in (rows, columns):
        start, stop = sorted((data.draw(st.integers(0, length)), data.draw(st.integers(0, length))))
        cuts.append(slice(start, stop))
    size = (rows, columns)
    assert torch.equal(draw("a", size, tuple(cuts)), draw("a", size, whole(size))[tuple(cuts)])


def test_fresh_weights_follow_from_seed_and_name_and_no_block_is_like_another() -> None:
    size = (3 * BLOCK_ROWS, 8)
    drawn = [FreshWeights(seed, 2)(name, size, whole(size)) for seed, name in ((1, "a"), (1, "b"), (2, "a"))]
    blocks = [block for tensor in drawn for block in tensor.split(BLOCK_ROWS)]
    assert len({tuple(block.flatten().tolist()) for block in blocks}) == len(blocks) == 9


def test_stored_weights_are_read_from_any_file_of_the_folder(tmp_path: Path) -> None:
    whole_model = build()
    state = whole_model.state_dict()
    names = sorted(state)
    for number, chosen in enumerate((names[::2], names[1::2])):
        save_file({name: state[name].bfloat16() for name in chosen}, tmp_path / f"model-{number}.safetensors")
    stored = StoredWeights(tmp_path).require(whole_model)
    part = (slice(3, 9), slice(1, 5))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(stored(name, state[name].shape, part), state[name][part].bfloat16().float())
    assert stored(name, state[name].shape, (slice(9, 9), slice(1, 5))).shape == (0, 4)


def test_files_that_hold_other_weights_are_refused(tmp_path: Path) -> None:
    state = build().state_dict()
    file = tmp_path / "model.safetensors"
    odd: list[tuple[dict[str, Any], str]] = [
        ({**state, "more": torch.ones(2)}, "it has no place for more"),
        ({name: value for name, value in state.items() if name != "lm_head.weight"}, r"there is no lm_head\.weight"),
        ({**state, "lm_head.weight": torch.ones(2)}, rf"lm_head\.weight has the shape \[2\], not \[{VOCAB}, "),
    ]
    for held, message in odd:
        save_file(held, file)
        with pytest.raises(InputError, match=message):
            StoredWeights(tmp_path).require(build())
    save_file(dict(state), file)
    save_file({"lm_head.weight": state["lm_head.weight"]}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors holds the weight lm_head\.weight, and so does another"):
        StoredWeights(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"other\.safetensors is damaged"):
        StoredWeights(tmp_path)


def test_a_model_that_begins_in_one_process_is_the_same(tmp_path: Path) -> None:
    model = MoxinLM(shape(), VOCAB)
    model.initialize(4)
    draw = FreshWeights(4, shape().layers)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, draw(name, parameter.shape, whole(parameter.shape))), name
    save_model(model, tmp_path, tmp_path, "card")
    loaded = load_model(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
