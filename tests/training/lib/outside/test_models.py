"""Models of others: what fits is described as it is, what does not fit is told in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.core.errors import InputError
from stages.lib.formats import chat_template, vocabulary
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.outside import models
from tests.support import outside_model


def test_a_model_is_described_by_its_own_files(tmp_path: Path) -> None:
    folder, target = outside_model.write(tmp_path / "model"), tmp_path / "written"
    target.mkdir()
    prepared = models.prepare_model(folder, target)
    assert prepared.facets == {
        "architecture": "MistralForCausalLM", "vocab_size": 260, "context_length": 512, "dtype": "bfloat16",
        "chat_template_digest": "none", "tokenizer_digest": vocabulary.digest(target),
    }  # fmt: skip
    assert prepared.license == "apache-2.0"
    assert prepared.meta["parameters"] == outside_model.SHAPE.parameters(260)
    assert "pytorch_model.bin" not in prepared.files
    # as this pipeline's own: nothing is put before a text
    assert (
        vocabulary.load(target).encode("ab").ids == outside_model.tokenizer().encode("ab", add_special_tokens=False).ids
    )
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    tuned = models.prepare_model(folder, target)
    assert tuned.facets["chat_template_digest"] == chat_template.digest("{{ messages }}")
    assert tuned.files[chat_template.FILE].read_text() == "{{ messages }}"


def test_the_promised_weights_are_those_of_this_pipelines_decoder() -> None:
    with torch.device("meta"):
        decoder = MoxinLM(outside_model.SHAPE, 260)
    promised = dict(models.expected(outside_model.SHAPE, 260))
    assert {name: tuple(weight.shape) for name, weight in decoder.named_parameters()} == promised


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: outside_model.write(folder, pieces=261), r"wrong tokenizer: tokenizer\.json has 261 entries"),
        (lambda folder: outside_model.write(folder, model_type="llama"), "model_type is 'llama'"),
        (lambda folder: outside_model.write(folder, num_hidden_layers=2), r"there is no model\.layers\.1\.self_attn"),
        (lambda folder: outside_model.write(folder, intermediate_size=24), r"has the shape \[16, 8\], not \[24, 8\]"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"^there is no tokenizer\.json$"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"^there is no model\.safetensors$"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), r"model\.safetensors is damaged"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    folder, target = outside_model.write(tmp_path / "model"), tmp_path / "written"
    target.mkdir()
    spoil(folder)
    with pytest.raises(InputError, match=says):
        models.prepare_model(folder, target)


def test_of_a_repository_only_the_model_is_fetched() -> None:
    names = ["config.json", "tokenizer.json", "pytorch_model.bin", "consolidated.safetensors", "img/a.png", "README.md"]
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", models.INDEX]
    assert models.needed([*names, *parts]) == sorted(["README.md", "config.json", "tokenizer.json", *parts])
    assert "model.safetensors" in models.needed([*names, "model.safetensors"])
