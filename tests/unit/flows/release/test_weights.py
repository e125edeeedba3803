"""Weights split as the hub has them: the same bytes in other files, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flows.release import weights
from stages.core.errors import InputError

TENSORS = {
    f"model.layers.{layer}.mlp.{part}.weight": np.full((8, 16), 10 * layer + number, np.float32)
    for layer in range(12)
    for number, part in enumerate(("up", "down"))
} | {"half": np.arange(9, dtype=np.float16), "flags": np.array([True, False, True])}


def made(folder: Path, **parts: dict[str, np.ndarray]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, tensors in parts.items():
        save_file(tensors, folder / f"{name}.safetensors", {"format": "pt"})
    return sorted(folder.glob("*.safetensors"))


def placed(tmp_path: Path, sources: list[Path], most: int) -> tuple[weights.Weights, Path]:
    target = tmp_path / "target"
    target.mkdir()
    return weights.lay_out(sources, target, most), target


def test_a_file_that_is_too_large_is_split_into_shards_with_an_index(tmp_path: Path) -> None:
    laid, target = placed(tmp_path, made(tmp_path / "in", weights=TENSORS), 2048)
    assert laid.split_anew
    assert len(laid.files) == 7
    assert laid.files[0] == "model-00001-of-00007.safetensors"
    back = {name: value for file in laid.files for name, value in load_file(target / file).items()}
    assert back.keys() == TENSORS.keys()
    assert all(np.array_equal(back[name], TENSORS[name]) and back[name].dtype == TENSORS[name].dtype for name in back)
    index = json.loads((target / weights.INDEX).read_text())
    assert index["weight_map"] == {name: file for file in laid.files for name in load_file(target / file)}
    assert index["metadata"]["total_size"] == laid.size == sum(value.nbytes for value in TENSORS.values())
    assert all(sum(v.nbytes for v in load_file(target / file).values()) <= 2048 for file in laid.files)
    assert (laid.tensors, laid.parameters) == (26, 24 * 128 + 12)
    assert laid.dtypes == ("BOOL", "F16", "F32")


def test_layers_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    laid, target = placed(tmp_path, made(tmp_path / "in", weights=TENSORS), 2048)
    order = [int(name.split(".")[2]) for file in laid.files for name in sorted(load_file(target / file), key=_layer)
             if "layers" in name]  # fmt: skip
    assert order == sorted(order)


def _layer(name: str) -> int:
    return int(name.split(".")[2]) if "layers" in name else -1


def test_a_tensor_above_the_limit_has_a_shard_of_its_own(tmp_path: Path) -> None:
    tensors = {"a": np.zeros(10, np.float32), "b": np.zeros(1000, np.float32), "c": np.zeros(10, np.float32)}
    laid, target = placed(tmp_path, made(tmp_path / "in", model=tensors), 100)
    assert sorted(list(load_file(target / file)) for file in laid.files) == [["a", "c"], ["b"]]


def test_a_split_as_the_hub_has_it_stays_as_it_is(tmp_path: Path) -> None:
    parts = {"model-00001-of-00002": {"a": np.ones(4)}, "model-00002-of-00002": {"b": np.ones(4)}}
    sources = made(tmp_path / "in", **parts)
    before = {path.name: path.read_bytes() for path in sources}
    laid, target = placed(tmp_path, sources, 32)
    assert not laid.split_anew
    assert {path.name: path.read_bytes() for path in target.glob("*.safetensors")} == before
    assert json.loads((target / weights.INDEX).read_text())["weight_map"] == {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("names", [("weights",), ("model-00001-of-00003", "model-00002-of-00003"), ("a", "b")])
def test_other_names_than_the_hubs_become_one_file(tmp_path: Path, names: tuple[str, ...]) -> None:
    laid, target = placed(tmp_path, made(tmp_path / "in", **{n: {f"t_{n}": np.ones(3)} for n in names}), 10_000)
    assert (laid.files, laid.split_anew) == (("model.safetensors",), True)
    assert set(load_file(target / "model.safetensors")) == {f"t_{name}" for name in names}
    assert not (target / weights.INDEX).exists()


def test_what_is_damaged_is_refused_naming_the_file(tmp_path: Path) -> None:
    (source,) = made(tmp_path / "in", model=TENSORS)
    whole = source.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for data, message in (
        (b"", "no safetensors file"),
        (whole[:40], "no safetensors file"),
        (whole[:-1], "its header tells of"),
        (whole + b"x", "its header tells of"),
        (whole[:8] + b"{" * length + whole[8 + length :], "its header cannot be read"),
        (whole.replace(b'"F32"', b'"F64"'), "does not lie where its header says"),
        (whole.replace(b'"F32"', b'"F99"'), "unknown type F99"),
        (whole.replace(b"[8,16]", b"[8,17]"), "does not lie where its header says"),
    ):
        source.write_bytes(data)
        with pytest.raises(InputError, match=message) as caught:
            weights.read_header(source)
        assert str(caught.value).startswith("model.safetensors")


def test_a_tensor_in_two_files_and_no_weights_at_all_are_refused(tmp_path: Path) -> None:
    sources = made(tmp_path / "in", a={"same": np.ones(2)}, b={"same": np.ones(2)})
    with pytest.raises(InputError, match=r"tensor same is in b\.safetensors and in a\.safetensors"):
        placed(tmp_path, sources, 10_000)
    with pytest.raises(InputError, match="no weights in safetensors"):
        weights.lay_out([], tmp_path)


@pytest.mark.slow  # PyTorch and transformers
def test_transformers_loads_the_shards_with_equal_logits(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "in")
    (source,) = (tmp_path / "in").glob("*.safetensors")
    laid, target = placed(tmp_path, [source], 4000)
    assert len(laid.files) > 3
    (target / "config.json").write_bytes((tmp_path / "in" / "config.json").read_bytes())
    again = AutoModelForCausalLM.from_pretrained(target, local_files_only=True).eval()
    assert type(again) is MistralForCausalLM
    ids = torch.randint(48, (2, 9))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    assert laid.parameters == model.num_parameters()
