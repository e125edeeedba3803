"""The parent as an engine sees it: what its weights are is read from their header."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.core.errors import InputError
from stages.lib.engines.checkpoint_conversion import prepare_parent


def model(folder: Path, dtype: torch.dtype) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"resid_pdrop": 0.5, "use_cache": True}))
    save_file({"b": torch.zeros(2, dtype=dtype), "a": torch.ones(3, dtype=dtype)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_engine_is_told_the_type_of_the_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    prepare_parent(model(tmp_path / "parent", dtype), tmp_path / "seen", dropout=0.25)
    config = json.loads((tmp_path / "seen/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert (config["resid_pdrop"], config["attention_dropout"], config["use_cache"]) == (0.25, 0.25, False)


def test_what_holds_no_weights_is_named(tmp_path: Path) -> None:
    file = model(tmp_path / "parent", torch.float32) / "model.safetensors"
    for number, data in enumerate((b"", file.read_bytes()[:-1], b"\2\0\0\0\0\0\0\0{}")):
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"^model\.safetensors holds no weights to go on from: "):
            prepare_parent(tmp_path / "parent", tmp_path / str(number))
    save_file({"a": torch.ones(3, dtype=torch.int8)}, file)
    with pytest.raises(InputError, match="to go on from: 'I8'"):
        prepare_parent(tmp_path / "parent", tmp_path / "whole numbers")
