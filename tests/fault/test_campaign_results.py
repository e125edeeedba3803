"""A campaign is told trial by trial, goes on where it was interrupted, and ends in a table."""

from __future__ import annotations

from pathlib import Path

from tests.support.campaign_results import Hit, Results, Trial, table

STOPPED = Trial(1, "ranks", [Hit("SIGTERM", "torchrun", 0.43, "train_1")], 1, 1, 20.04, 30.0, parts={"itself": 7.0})
BROKEN = Trial(2, "process", [Hit("SIGKILL", "stage", 0.1, ""), Hit("SIGKILL", "store", 0.2, "")], problem="curves\nx")
OVER = Trial(3, "process")


def test_the_line_of_a_trial_says_what_was_hit_when_and_what_came_of_it() -> None:
    assert str(STOPPED) == (
        "trial 1 (ranks): SIGTERM torchrun at 43% (train_1); 1 runs, 1 resumed, recovered in 20.0 s (itself 7.0); ok"
    )
    assert str(BROKEN).endswith("SIGKILL stage at 10%, SIGKILL store at 20%; 1 runs, 0 resumed; FAILED: curves")
    assert "it was over before" in str(OVER)


def test_what_ended_well_is_not_made_again_by_the_same_code(tmp_path: Path) -> None:
    path, calls = tmp_path / "folder" / "results.jsonl", list[int]()

    def make(trial: Trial) -> Trial:
        calls.append(trial.seed)
        return trial

    for version, expected in (("one", [1, 2]), ("one", [2]), ("two", [1, 2])):
        results = Results(path, version)
        calls.clear()
        assert [results.of(trial.seed, lambda trial=trial: make(trial)) for trial in (STOPPED, BROKEN)] == [
            (STOPPED, 1 in expected),
            (BROKEN, True),
        ]
        assert calls == expected
        assert results.trials == [STOPPED, BROKEN]
    assert Results(None, "one").of(1, lambda: OVER) == (OVER, True), "without a file nothing is kept"


def test_the_table_has_a_row_for_each_target() -> None:
    faster = Trial(4, "ranks", [Hit("SIGKILL", "torchrun", 0.5, "train_2")], recovery=10.0)
    assert table([STOPPED, BROKEN, OVER, faster]).splitlines()[2:] == [
        "| nothing | 1 | 0 | 0 |  |  |",
        "| stage | 1 | 1 | 0 |  |  |",
        "| store | 1 | 1 | 0 |  |  |",
        "| torchrun | 2 | 0 | 2 | 15.0 | 20.0 |",
        "| all | 4 | 1 | 2 | 15.0 | 20.0 |",
    ]
