"""`stages.lib.modeling.weights`: weights by parts are those of the whole, and a process needs memory for its part."""

from __future__ import annotations

import json
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stages.core.errors import InputError
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.hf_checkpoint import load_model, save_model
from stages.lib.modeling.shape import ModelShape
from stages.lib.modeling.weights import BLOCK_ROWS, FreshWeights, StoredWeights, whole
from stages.lib.training.backends.factory import make_backend
from stages.lib.training.export import export
from stages.lib.training.parallel_dims import distributed
from stages.lib.training.parallel_sizes import ParallelSizes
from stages.pretrain.spec import PretrainConfig
from tests.support.decoders import VOCAB, build, shape
from tests.support.distributed import run_processes

LARGE = ModelShape(layers=17, hidden=512, intermediate=1376, heads=8, kv_heads=2, head_dim=64, max_positions=64)
ENTRIES = 3000
MIB = 1 << 20


@given(st.integers(1, 200), st.integers(1, 20), st.data())
@settings(max_examples=40, deadline=None)
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


def private_bytes() -> int:
    """Resident memory that no other process can share."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * resource.getpagesize()


class PeakPrivate:
    """The most private memory, looked at again and again by a thread."""

    def __init__(self) -> None:
        self._most, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self._most = max(self._most, private_bytes())

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._most


def _start_and_export(ctx: Any) -> None:
    """Begin a training with stored or fresh weights and write the model again; what memory of its own the process grew
    by goes to a file (pages of mapped files are the machine's, and shared). A small model goes before: what it needs,
    libraries need.
    """
    with distributed(ctx, torch.device("cpu"), 2) as dims:
        for size, folder, port in ((shape(), None, "small"), (LARGE, ctx.config, "model")):
            before, peak = private_bytes(), PeakPrivate()
            config = PretrainConfig(
                shape=size, sequence_length=64, tokens=64 * 8, global_batch_size=4, precision="fp32", warmup_steps=0,
                dropout=0.0, parallel=ParallelSizes(tensor=2), device="cpu",
            )  # fmt: skip
            with torch.device("meta"):
                model = MoxinLM(size, ENTRIES)
            shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            weights = FreshWeights(4, size.layers) if folder is None else StoredWeights(folder).require(model)
            backend = make_backend(model, weights, config, dims)
            export(ctx, port, dims, shapes, backend.export)
            grown = peak.stop() - before
        (ctx.root / "grown.json").write_text(json.dumps(grown))


def test_no_process_has_the_model_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From fresh weights to files, and from these to files again: 191 MiB of weights over four processes, two of which
    share each matrix.
    """
    monkeypatch.setattr("stages.lib.modeling.weight_files.SHARD_SIZE", 60 * MIB)
    bytes_ = 4 * LARGE.parameters(ENTRIES)
    assert bytes_ > 190 * MIB
    _, outcome = run_processes(_start_and_export, tmp_path / "fresh", 4, None, {})
    assert outcome == "done"
    folder = tmp_path / "fresh/rank-0/out/model"
    assert len(list(folder.glob("*.safetensors"))) == 4
    _, outcome = run_processes(_start_and_export, tmp_path / "stored", 4, folder, {})
    assert outcome == "done"
    grown = {
        (name, rank): json.loads((tmp_path / name / f"rank-{rank}/grown.json").read_text()) // MIB
        for name in ("fresh", "stored")
        for rank in range(4)
    }

    assert max(grown.values()) < 191 // 4 + 60, grown
    again, draw = tmp_path / "stored/rank-0/out/model", FreshWeights(4, LARGE.layers)
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    stored = StoredWeights(again)
    for name, size in stored.shapes().items():
        assert torch.equal(stored(name, size, whole(size)), draw(name, size, whole(size))), name


def test_a_model_that_begins_in_one_process_is_the_same(tmp_path: Path) -> None:
    model = MoxinLM(shape(), VOCAB)
    model.initialize(4)
    draw = FreshWeights(4, shape().layers)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, draw(name, parameter.shape, whole(parameter.shape))), name
    save_model(model, tmp_path, tmp_path, "card")
    loaded = load_model(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
