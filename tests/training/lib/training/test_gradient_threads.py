"""`stages.lib.training.gradient_threads`: threads that share a batch give what one thread gives, each time the same."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.recompute import Policy
from stages.lib.modeling.shape import ModelShape
from stages.lib.modeling.weights import FreshWeights
from stages.lib.training.backends.base import Backend, WindowBatch
from stages.lib.training.backends.factory import make_backend
from stages.lib.training.gradient_threads import GradientThreads
from stages.lib.training.parallel_dims import ParallelDims
from stages.pretrain.spec import PretrainConfig

SHAPE = ModelShape(layers=2, hidden=32, intermediate=48, heads=4, kv_heads=2, head_dim=8, window=20, max_positions=64)

NAMES = [name for name, _ in MoxinLM(SHAPE, 97).named_parameters()]


def backend(threads: int, micro_batch_size: int = 4, recompute: Policy = "none") -> Backend:
    config = PretrainConfig(
        shape=SHAPE, sequence_length=48, tokens=48 * 80, global_batch_size=8, micro_batch_size=micro_batch_size,
        dropout=0.2, precision="fp32",
        warmup_steps=1, threads=threads, recompute=recompute, device="cpu",
    )  # fmt: skip
    with torch.device("meta"):
        model = MoxinLM(SHAPE, 97, 0.2, recompute)
    return make_backend(model, FreshWeights(3, SHAPE.layers), config, ParallelDims(torch.device("cpu")))


def batch(number: int) -> WindowBatch:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, 97, (8, 48), generator=generator)
    documents = (torch.rand(8, 48, generator=generator) < 0.1).cumsum(1).int()
    return WindowBatch(
        ids, documents, torch.arange(number * 8, number * 8 + 8), int((documents[:, 1:] == documents[:, :-1]).sum())
    )


def train(threads: int, micro_batch_size: int = 4, recompute: Policy = "none") -> tuple[list[float], dict[str, Tensor]]:
    """Losses and norms of four steps and a held-out loss, and the weights."""
    used, seen = backend(threads, micro_batch_size, recompute), []
    for number in range(4):
        whole = batch(number)
        update = used.step(whole.split(micro_batch_size), 1e-2, whole.predicted, lambda update: True)
        seen += [update.loss, update.grad_norm]
    seen.append(used.evaluate(batch(9)))
    used.finish_evaluation()
    return seen, {name: tensor.clone() for name in NAMES if (tensor := used.export(name, 0)) is not None}


@pytest.mark.parametrize(
    ("threads", "micro_batch_size", "recompute"),
    [(2, 8, "none"), (3, 8, "none"), (2, 3, "none"), (2, 1, "none"), (2, 8, "full"), (2, 8, "selective")],
)
def test_threads_train_the_model_that_one_thread_trains(threads: int, micro_batch_size: int, recompute: Policy) -> None:
    """With dropout, documents and a held-out loss; whatever is left over when windows do not divide evenly."""
    alone, together = train(1), train(threads, micro_batch_size, recompute)
    assert together[0] == pytest.approx(alone[0], rel=1e-4)
    for name, tensor in together[1].items():
        torch.testing.assert_close(tensor, alone[1][name], atol=2e-4, rtol=1e-3, msg=name)


def test_the_same_threads_give_the_same_bytes() -> None:
    first, again = train(3, 8), train(3, 8)
    assert first[0] == again[0]
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])


def test_an_error_in_one_thread_ends_the_step() -> None:
    weight = torch.nn.Parameter(torch.ones(2))

    def loss_of(piece: int) -> Tensor:
        if piece == 2:
            raise ValueError("piece 2")
        return weight.sum() * piece

    with pytest.raises(ValueError, match="piece 2"):
        GradientThreads(2).gradients(loss_of, [weight], [0, 1, 2, 3], 1.0)


def test_gradients_are_added_to_those_that_are_there() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 5.0)
    total = GradientThreads(2).gradients(lambda piece: weight.sum() * piece, [weight], [1, 2, 3], 0.5)
    assert float(total) == 12.0
    assert weight.grad.tolist() == [8.0, 8.0]


def test_no_gradients_are_held_beside_the_sum_when_the_next_pieces_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process has those of one thread more than `flows.pretraining_memory.on_processors` says."""
    weight = torch.nn.Parameter(torch.ones(2))
    added: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    add = GradientThreads._add

    def loss_of(piece: int) -> Tensor:
        alive.append(sum(one() is not None for one in added[1:]))  # the first ones are the sum
        return (weight * weight).sum() * piece

    def noted(parameters: list[Tensor], gradients: tuple[Tensor, ...]) -> None:
        added.extend(weakref.ref(gradient) for gradient in gradients)
        add(parameters, gradients)

    monkeypatch.setattr(GradientThreads, "_add", staticmethod(noted))
    GradientThreads(1).gradients(loss_of, [weight], [1, 2, 3, 4], 1.0)
    assert (len(added), alive) == (4, [0, 0, 0, 0])
