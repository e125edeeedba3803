"""Programs that wait to be run: written and read back, damage named."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.lib.formats.completions import (
    Candidate,
    CodeTask,
    Completions,
    read_candidates,
    read_completions,
    write_completions,
)
from stages.lib.formats.reports import EvaluatedModel, Harness
from tests.support.hostile_names import ABSOLUTE, PARENT

TASK = CodeTask(
    suite="table_6", task="humaneval", k=(1,), headline="pass@1", n_total=2, num_fewshot=0, repeats=2,
    data_set="openai/openai_humaneval", split="test", task_version="1.0",
)  # fmt: skip
LISTING = Completions(
    model=EvaluatedModel(node="dpo_tulu", digest="0" * 64, parameters=1, dtype="float32", trained_on=()),
    harness=Harness(name="lm-evaluation-harness", version="0.4.13"),
    seed=1,
    tasks=(TASK,),
)
ROWS = [
    Candidate(doc=0, id="HumanEval/0", programs=("a = 1\n", "a = 'é\u2028'\n"), test="assert a"),
    Candidate(doc=1, id="HumanEval/1", programs=("", "pass"), test="pass"),
]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_completions(tmp_path, LISTING, [ROWS])
    assert read_completions(tmp_path) == LISTING
    assert list(read_candidates(tmp_path, TASK)) == ROWS


def test_a_file_that_is_cut_names_file_and_line(tmp_path: Path) -> None:
    write_completions(tmp_path, LISTING, [ROWS])
    path = tmp_path / TASK.file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"table_6\.humaneval\.jsonl, line 2"):
        list(read_candidates(tmp_path, TASK))


def test_a_missing_listing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"completions\.json cannot be read"):
        read_completions(tmp_path)


@pytest.mark.parametrize("name", [*ABSOLUTE, *PARENT])
def test_a_task_whose_name_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Its file is named by suite and task; whoever made the artifact chose both."""
    task = TASK.model_copy(update={"suite": f"{name}/x", "task": "y"})
    with pytest.raises(InputError, match="is no path inside a folder"):
        write_completions(tmp_path / "in", LISTING.model_copy(update={"tasks": (task,)}), [ROWS])
    with pytest.raises(InputError, match="is no path inside a folder"):
        list(read_candidates(tmp_path / "in", task))
    assert list(tmp_path.iterdir()) == []
