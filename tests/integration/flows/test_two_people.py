"""Two people, one store, at the same time: each has results of their own, what they share is made once, and no name
moves that the other looks at.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from flows.execute import Execution
from flows.experiments import results
from stages.core.ledger import Ledger
from tests.support.bench import PIPE, Bench, recorder, started
from tests.support.probe_pipeline import InlineLauncher, run_nodes


def _of(bench: Bench, who: str, rate: float) -> Execution:
    folder = bench.folder / who
    folder.mkdir()
    run = Bench(bench.ledger, folder).begin(
        f"train_1.learning_rate={rate}", launcher=InlineLauncher(folder), run_id=who
    )
    run.profile = replace(run.profile, experiment=f"{who}-rate")
    run.names = bench.ledger.node_etags(run.profile.names)
    return run


def test_each_finds_their_own_results_and_nobodys_names_move(
    finished: Bench, ledger: Ledger, threads: ThreadPoolExecutor
) -> None:
    before = ledger.nodes("test")
    ada, bob = _of(finished, "ada", 0.2), _of(finished, "bob", 0.3)
    for done in [threads.submit(run_nodes, run, PIPE) for run in (ada, bob)]:
        done.result()
    assert [sorted(started(run)) for run in (ada, bob)] == [["train_1", "train_2"]] * 2
    assert ledger.nodes("test") == before
    of_ada, of_bob = (results.of_nodes(ledger, PIPE, run.profile) for run in (ada, bob))
    assert [each["train_1"].config["learning_rate"] for each in (of_ada, of_bob)] == [0.2, 0.3]
    differing = [name for name in PIPE.nodes if of_ada[name].key != of_bob[name].key]
    assert differing == ["train_1", "train_2"]


def test_of_two_runs_of_one_profile_the_later_one_is_told_that_the_name_has_moved(
    finished: Bench, ledger: Ledger, tmp_path: Path
) -> None:
    first = finished.begin("train_2.learning_rate=0.2", run_id="first")
    second = finished.begin("train_2.learning_rate=0.3", run_id="second")
    for run in (first, second):
        run.names = ledger.node_etags("test")
    newest = run_nodes(first, PIPE)["train_2"].key
    run_nodes(second, PIPE)
    assert finished.results()["train_2"].key == newest
    assert [text for text in recorder(second).messages("warning") if "run first has given train_2 of test" in text]
    assert not recorder(first).messages("warning")
