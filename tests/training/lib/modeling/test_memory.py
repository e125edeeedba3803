"""The memory formula against PyTorch's own tracker of live tensors, at two widths and two depths.

The steps are of fake tensors, which have shapes and no numbers: what lives at one time is the same, and nothing is
computed. One test runs both kinds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from flows import pretraining_memory
from flows.pretraining_memory import Held
from stages.lib.modeling import decoder, kernels
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.hf_checkpoint import config_json
from stages.lib.modeling.memory import (
    HALF,
    LOGITS,
    Share,
    activations,
    block_parameters,
    copied_parameters,
    share_activations,
    with_copies,
)
from stages.lib.modeling.shape import ModelShape
from stages.lib.modeling.weights import FreshWeights
from stages.lib.training.backends.base import Trainable
from stages.lib.training.backends.fsdp import shard
from stages.lib.training.parallel_dims import ParallelDims
from stages.lib.training.parallel_sizes import ParallelSizes
from stages.pretrain.spec import PretrainConfig

VOCABULARY, ROWS, LENGTH = 2000, 2, 512
Build = Callable[[ModelShape, Any], tuple[torch.nn.Module, Any]]
NARROW = {"hidden": 256, "intermediate": 896, "heads": 4, "kv_heads": 2, "head_dim": 64}
WIDE = {"hidden": 512, "intermediate": 1792, "heads": 8, "kv_heads": 2, "head_dim": 64}
TOLERANCE = 0.10
CPU, POLICY = torch.device("cpu"), MixedPrecisionPolicy()


def shape_of(width: dict[str, int], layers: int) -> ModelShape:
    return ModelShape(layers=layers, **width)


def moxin(shape: ModelShape, policy: Any) -> tuple[torch.nn.Module, Any]:
    model = MoxinLM(shape, VOCABULARY, 0.0, policy)
    model.initialize(0)
    return model, lambda ids: model.loss_sum(ids)[0]


def theirs(shape: ModelShape, policy: Any) -> tuple[torch.nn.Module, Any]:
    from transformers import MistralConfig, MistralForCausalLM

    kept = {
        k: v for k, v in config_json(shape, VOCABULARY, "float32").items() if k not in ("architectures", "model_type")
    }
    model: Any = MistralForCausalLM(MistralConfig(**kept | {"use_cache": False, "attn_implementation": "sdpa"}))
    if policy == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, lambda ids: model(input_ids=ids, labels=ids).loss


def most_bytes(build: Build, shape: ModelShape, policy: Any, autocast: bool, length: int = LENGTH) -> int:
    """The most bytes of tensors alive during a step of two micro-batches after a first one, as PyTorch counts them."""
    torch.set_default_dtype(torch.float32 if autocast else torch.bfloat16)
    try:
        model, loss_of = build(shape, policy)
    finally:
        torch.set_default_dtype(torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(3, VOCABULARY, (ROWS, length))
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        for micro in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = loss_of(ids)
            loss.backward()
            del loss
            if micro == 0:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            tracker.reset_mod_stats()  # of its modules: it counts each once
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def predicted(shape: ModelShape, policy: Any, autocast: bool, chunk: int | None) -> float:
    """States with whole gradients, autocast's copies, activations."""
    states = (4 + 4 + 8 if autocast else 2 + 2 + 4) * shape.parameters(
        VOCABULARY
    )  # AdamW's moments are as wide as the weights
    copies = HALF * copied_parameters(shape, VOCABULARY) if autocast else 0
    found = activations(shape, VOCABULARY, ROWS * LENGTH, policy, autocast=autocast, chunk=chunk)
    return states + with_copies(found, copies, policy)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own operators instead of this project's for processors, and its flash attention."""
    monkeypatch.setattr(decoder, "fused", lambda x: False)
    monkeypatch.setattr(kernels, "fused", lambda x: False)


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "half"])
def test_fake_tensors_are_counted_as_real_ones(autocast: bool) -> None:
    shape = shape_of(NARROW, 2)
    real = most_bytes(moxin, shape, "selective", autocast, length=16)
    with FakeTensorMode():
        assert most_bytes(moxin, shape, "selective", autocast, length=16) == real


CASES = [(moxin, "none"), (moxin, "selective"), (moxin, "full"), (theirs, "none"), (theirs, "full")]


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "half"])
@pytest.mark.parametrize(("build", "policy"), CASES, ids=[f"{build.__name__}-{policy}" for build, policy in CASES])
def test_a_steps_memory_is_what_the_formula_says(build: Build, policy: str, autocast: bool) -> None:
    """Of this project's model and of transformers' Mistral."""
    for width, layers in ((NARROW, 6), (WIDE, 2)):
        shape = shape_of(width, layers)
        with FakeTensorMode():
            measured = most_bytes(build, shape, policy, autocast)
        formula = predicted(shape, policy, autocast, None)
        assert formula == pytest.approx(measured, rel=TOLERANCE), (layers, measured / 1e6, formula / 1e6)


def test_what_the_torch_engine_leaves_of_the_weights() -> None:
    """FSDP2 over two parts of the batch, each of two tensor parallel processes: the plan's part of each process."""
    config = PretrainConfig(parallel=ParallelSizes(tensor=2, zero=3), precision="fp32")
    shape = shape_of(NARROW, 2)
    with processes(4):
        with torch.device("meta"):
            model = MoxinLM(shape, VOCABULARY)
        blocks = list(model.model.layers)
        shard(Trainable(model, FreshWeights(0, 2), blocks, lambda batch: batch), ParallelDims(CPU, 0, 4, 2), POLICY)
        local = [cast("DTensor", parameter).to_local().numel() for parameter in model.parameters()]
    parts, _ = pretraining_memory.sums(config, 4, shape, VOCABULARY)
    assert 4 * sum(local) == parts["weights"]
    assert parts["masters, moments"] == 2 * parts["weights"]


@contextlib.contextmanager
def processes(count: int) -> Iterator[None]:
    """The first of several processes, whose messages go nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("policy", "vocabulary"),
    [("none", VOCABULARY), ("none", 64), ("selective", 64), ("full", 64)],
    ids=["the loss has most", "none", "selective", "full"],
)
def test_what_a_tensor_parallel_process_has_in_a_pass(policy: Any, vocabulary: int) -> None:
    """One of two that share the matrices of engine `torch`, under autocast, with a head that has the most and one that
    has nothing. No update is counted: DTensor finds out what its result looks like with copies of all states that are
    fake themselves, so that they have no memory, but they look as real as these here.
    """
    shape, tensor, tokens = shape_of(NARROW, 2), 2, ROWS * LENGTH
    with processes(tensor):
        with torch.device("meta"):
            model = MoxinLM(shape, vocabulary, 0.0, policy)
        whole = Trainable(model, FreshWeights(0, 2), list(model.model.layers), lambda batch: batch)
        shard(whole, ParallelDims(CPU, 0, tensor, tensor), POLICY)
        with FakeTensorMode(allow_non_fake_inputs=True), (tracker := MemTracker()):
            model.to_empty(device="cpu")
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss_sum(torch.zeros(ROWS, LENGTH, dtype=torch.int64))[0]
            loss.backward()
    measured = tracker.get_tracker_snapshot("peak")[CPU]["Total"]
    held = Held(PretrainConfig(parallel=ParallelSizes(tensor=tensor)), shape, vocabulary)
    share, logits = Share(shape.layers, tensor), float(LOGITS * tokens / tensor * vocabulary)
    found = share_activations(shape, tokens, policy, True, logits, share)
    formula = 8 * held.parameters + with_copies(found, HALF * copied_parameters(shape, vocabulary, tensor), policy)
    assert formula == pytest.approx(measured, rel=TOLERANCE), (measured / 1e6, formula / 1e6)


def test_logits_of_a_chunk_exist_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LOSS_CHUNK", 128)
    shape = shape_of(NARROW, 2)
    with FakeTensorMode():
        measured = most_bytes(moxin, shape, "full", False)
    formula = predicted(shape, "full", False, 128)
    assert formula == pytest.approx(measured, rel=TOLERANCE)
    assert formula < 0.9 * predicted(shape, "full", False, None)


def test_the_parts_of_the_7b() -> None:
    shape = ModelShape()
    blocks = shape.layers * block_parameters(shape)
    assert blocks + 2 * 32_000 * shape.hidden + shape.hidden == shape.parameters(32_000) == 8_114_180_096
    assert copied_parameters(shape, 32_000) == 8_114_180_096 - 32_000 * 4096 - 73 * 4096
