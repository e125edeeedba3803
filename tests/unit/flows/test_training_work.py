"""How much work a training is, by its configuration and its inputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows import training_work
from flows.scale import expected


def test_rows_that_are_read_are_those_that_there_are_and_no_more_than_are_taken() -> None:
    inputs = {"conversations": [expected({"rows": 70}), expected({"rows": 30})], "parent": [expected({"rows": 9})]}
    for most, rows in ((None, 100), (60, 60), (200, 100)):
        assert training_work.rows_of(SimpleNamespace(max_rows=most), inputs) == rows
    assert training_work.rows_of(SimpleNamespace(), {}) == 0


def test_steps_of_an_epoch_are_begun_ones_and_none_where_rows_are_not_known() -> None:
    config = SimpleNamespace(global_batch_size=8, epochs=2)
    assert training_work.steps_of(config, 17) == 6
    assert training_work.steps_of(config, 0) == 0


def test_a_heldout_loss_is_a_third_of_training_on_its_windows() -> None:
    config = SimpleNamespace(eval_every=4, eval_windows=6, steps=10, sequence_length=50)
    assert training_work.heldout_tokens(config) == pytest.approx(3 * 6 * 50 / 3)
    assert training_work.heldout_tokens(SimpleNamespace(steps=10)) == 0


def test_each_step_of_a_reinforcement_has_the_responses_of_its_phase() -> None:
    phases = (SimpleNamespace(steps=2, num_generations=4), SimpleNamespace(steps=1, num_generations=8))
    config = SimpleNamespace(context_phases=phases, prompts_per_step=3)
    assert [training_work.responses_of(config, step) for step in (1, 2, 3, 4)] == [12, 12, 24, 0]
    assert training_work.responses_of(SimpleNamespace(steps=3), 1) == 0


def test_a_suite_that_is_made_here_asks_what_its_settings_say() -> None:
    made, hub = SimpleNamespace(origin="machine", test_questions=50), SimpleNamespace(origin="hub", test_questions=50)
    one = SimpleNamespace(origin="machine")
    mirror = SimpleNamespace(data_sets={"a/b": one, "c/d": SimpleNamespace(origin="hub")}, questions=80)
    configs = {"made": made, "hub": hub, "mirror": mirror}

    def asked(**wires: tuple[str, ...]) -> int:
        sources = {
            port: [SimpleNamespace(node=SimpleNamespace(name=name)) for name in names] for port, names in wires.items()
        }
        plan: Any = SimpleNamespace(node=SimpleNamespace(wires=sources))
        profile: Any = SimpleNamespace(configs=configs)
        return training_work.questions_of(plan, profile)

    assert asked(suites=("made", "mirror")) == 80
    assert asked(suites=("hub",)) == 0
    assert asked(suite=("made",)) == 50
    assert asked() == 0
