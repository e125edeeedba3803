"""`stages.lib.modeling.weight_files`: the bytes of safetensors' own files, whatever order the weights come in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import MistralForCausalLM

from stages.lib.modeling import weight_files
from stages.lib.modeling.hf_checkpoint import config_json, load_model, save_beside
from stages.lib.modeling.weight_files import WeightFile, split, total_bytes, write_index
from tests.support.decoders import VOCAB, build, shape, tokens


def test_a_file_has_the_bytes_of_the_formats_own_library(tmp_path: Path) -> None:
    state = {"b.10": torch.randn(3, 5), "b.9": torch.randn(7), "a": torch.randn(2, 2, 2), "empty": torch.empty(0, 4)}
    save_file(state, tmp_path / "theirs", metadata={"format": "pt"})
    with WeightFile(tmp_path / "ours", {name: tensor.shape for name, tensor in state.items()}) as file:
        for name in reversed(list(state)):
            file.put(name, state[name])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_weight_that_is_missing_or_of_another_shape_is_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="no weight came for b, and 0 more"),
        WeightFile(tmp_path / "a", {"a": (2,), "b": (2,)}) as file,
    ):
        file.put("a", torch.ones(2))
    with pytest.raises(ValueError, match="a is torch"), WeightFile(tmp_path / "b", {"a": (2,)}) as file:
        file.put("a", torch.ones(3))


@pytest.mark.parametrize("size", ["5GB", 20_000])
def test_the_split_is_the_hubs_and_transformers_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | str
) -> None:
    monkeypatch.setattr(weight_files, "SHARD_SIZE", size)
    model = build()
    state = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    files = split(shapes)
    assert files == split_torch_state_dict_into_shards(state, max_shard_size=size).filename_to_tensors
    assert (len(files) > 2) == (size != "5GB")
    for file, names in files.items():
        with WeightFile(tmp_path / file, {name: shapes[name] for name in names}) as made:
            for name in names:
                made.put(name, state[name])
    write_index(files, total_bytes(shapes), tmp_path)
    save_beside(tmp_path, config_json(shape(), VOCAB, "float32"), tmp_path, "card")
    theirs = MistralForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in state.items())
    assert all(torch.equal(load_model(tmp_path).state_dict()[name], tensor) for name, tensor in state.items())
    assert theirs(tokens(1, 4)).logits.shape == (1, 4, VOCAB)
