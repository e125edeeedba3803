"""The parts of `pretrain`'s memory by formula: what each way to share the work leaves of the 7B."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.pretraining_memory import Held, on_processors, stage_layers, sums
from stages.lib.modeling.shape import ModelShape
from stages.lib.training.parallel_sizes import ParallelSizes
from stages.pretrain.spec import PretrainConfig

SHAPE, VOCABULARY, PROCESSES = ModelShape(), 32_000, 64
COUNT = SHAPE.parameters(VOCABULARY)


def parts(processes: int = PROCESSES, **sizes: Any) -> dict[str, float]:
    config = PretrainConfig(engine="colossalai", device="cuda", parallel=ParallelSizes(**sizes))
    return sums(config, processes, SHAPE, VOCABULARY)[0]


@given(st.integers(1, 80), st.integers(1, 16))
def test_every_block_is_in_one_stage_and_the_last_ones_in_the_middle_are_fuller(layers: int, stages: int) -> None:
    each = stage_layers(layers, stages)
    assert (sum(each), len(each)) == (layers, stages)
    assert max(each) - min(each) <= 1


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_all_processes_of_a_part_have_the_model_once_and_what_is_not_cut_as_often_as_there_are(
    tensor: int, pipeline: int
) -> None:
    config = PretrainConfig(
        engine="colossalai", precision="bf16", parallel=ParallelSizes(tensor=tensor, pipeline=pipeline, zero=0)
    )
    held = [Held(config, SHAPE, VOCABULARY, stage).parameters for stage in range(pipeline)]
    norms, vocabularies = (2 * SHAPE.layers + 1) * SHAPE.hidden, 2 * VOCABULARY * SHAPE.hidden
    assert tensor * sum(held) == COUNT + (tensor - 1) * (norms + vocabularies)


def test_zero_0_has_all_in_each_process_and_a_bucket_of_all_gradients() -> None:
    found = parts(zero=0)
    assert (found["weights"], found["gradients"], found["masters, moments"]) == (2 * COUNT, 2 * COUNT, 12 * COUNT)
    assert 2 * COUNT < found["buffers"] <= 4 * COUNT


def test_zero_within_tensor_and_pipeline_cuts_over_the_parts_of_the_batch() -> None:
    found = parts(tensor=4, pipeline=2, zero=1)
    assert found["masters, moments"] == pytest.approx(found["weights"] * 6 / (PROCESSES / 8))
    assert found["weights"] == pytest.approx(2 * COUNT / 8, rel=0.2)  # the vocabulary is not cut


def test_the_first_stage_of_a_pipeline_holds_as_many_micro_batches_as_there_are_stages() -> None:
    one, four = parts(zero=0), parts(pipeline=4, zero=0)
    assert four["activations"] == pytest.approx(one["activations"], rel=0.25)  # a quarter of the blocks, four times
    assert four["weights"] < 0.3 * one["weights"]


def test_gemini_cuts_everything_and_a_small_model_is_whole() -> None:
    found = parts(zero=3)
    assert (found["weights"], found["gradients"]) == (2 * COUNT / PROCESSES, 2 * COUNT / PROCESSES)
    assert found["masters, moments"] == 12 * COUNT / PROCESSES
    tiny = ModelShape(layers=2, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8)
    config = PretrainConfig(engine="colossalai", device="cuda", parallel=ParallelSizes(zero=3), shape=tiny)
    assert sums(config, 2, tiny, 400)[0]["weights"] == 2 * tiny.parameters(400)


@pytest.mark.parametrize(
    ("threads", "batch", "micro", "gradients", "rows"),
    [(1, 8, 2, 1, 2), (2, 8, 2, 3, 2), (2, 2, 2, 2, 2), (4, 8, 2, 5, 4), (4, 3, 2, 3, 3)],
    ids=["one", "two", "a batch at a time", "more threads than a micro-batch has rows", "than the batch has"],
)
def test_each_thread_of_a_lone_process_has_gradients_beside_their_sum(
    threads: int, batch: int, micro: int, gradients: int, rows: int
) -> None:
    config = PretrainConfig(
        device="cpu", precision="fp32", threads=threads, global_batch_size=batch, micro_batch_size=micro
    )
    found = on_processors(config, 1, SHAPE, VOCABULARY)[0]
    alone = sums(config.model_copy(update={"micro_batch_size": rows}), 1, SHAPE, VOCABULARY)[0]
    assert found == alone | {"gradients": gradients * 4 * COUNT}
    assert on_processors(config, batch, SHAPE, VOCABULARY) == sums(config, batch, SHAPE, VOCABULARY)
