"""The `evaluate` stage against lm-evaluation-harness itself: the same prompts, the same scores, and mistakes in one
line.

The harness is called directly from inside the mirror's folder: `datasets` then finds `allenai/ai2_arc` there, and every
task is as it was shipped. What the stage sets (the path of the mirror, the shots) is thus compared with what it should
not change.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.capability.benchmarks import DATA_SETS, render
from stages.core.artifacts import EvalSuite, Model
from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.evaluate.run import run
from stages.evaluate.spec import EvaluateConfig
from stages.lib.formats import vocabulary
from stages.lib.formats.reports import FILE, Report, Score, parse_report, write_report
from tests.support import benchmark_rows as bench
from tests.support.evaluation import own, scored, values

ROWS = 12
MMLU = [f"mmlu_{subject}" for subject in bench.SUBJECTS]
TASKS = ["arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", *MMLU]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    data = {id: bench.configs(id, ROWS) for id in DATA_SETS.values()}
    data["cais/mmlu"].pop("auxiliary_train")
    bench.write_mirror(folder, data)
    return folder


@pytest.fixture(scope="module")
def loaded(harness: ModuleType, model: Path) -> Any:
    return harness.load(model, EvaluateConfig(threads=1))


def direct(
    index: Any,
    model: Path,
    suite: Path,
    monkeypatch: pytest.MonkeyPatch,
    *tasks: str,
    max_length: int | None = None,
    **given: Any,
) -> Any:
    """What the harness says when a person calls it, with its own defaults, on its own tasks."""
    import lm_eval

    monkeypatch.chdir(suite)
    arguments = {"pretrained": str(model), "dtype": "float32", "max_length": max_length}
    return lm_eval.simple_evaluate(  # type: ignore[operator]
        model="hf",
        model_args=arguments,
        tasks=list(tasks),
        task_manager=index.manager,
        device="cpu",
        batch_size=1,
        bootstrap_iters=1000,
        **given,
    )


def stage(
    root: Path, model: Path, suite: Path, node: str = "evaluate", meta: Any = None, **config: Any
) -> LocalContext[EvaluateConfig]:
    inputs = {"model": [local_artifact(Model, model, meta=meta)], "suites": [local_artifact(EvalSuite, suite)]}
    ctx = LocalContext(root, EvaluateConfig(**{"threads": 1, **config}), inputs, node=node)
    run(ctx)
    return ctx


# --- prompts ----------------------------------------------------------------------------------------------------------


def gold(id: str, row: dict[str, Any]) -> int:
    """The place of the right answer."""
    if id == "allenai/ai2_arc":
        return row["choices"]["label"].index(row["answerKey"])
    return {"Rowan/hellaswag": lambda: int(row["label"]), "allenai/winogrande": lambda: int(row["answer"]) - 1}.get(
        id, lambda: row.get("answer", row.get("label"))
    )()


@pytest.mark.parametrize("task", TASKS)
def test_training_documents_are_the_prompts_of_the_harness(
    task: str, index: Any, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every row that is scored: the context and the continuation of the right answer, joined."""
    monkeypatch.chdir(suite)
    found = next(index.tree(task).leaves()).settings
    id, config = found["dataset_path"], found.get("dataset_name")
    found = index.manager.load([task])["tasks"][task]
    found.set_config("num_fewshot", 0)
    found.build_all_requests(limit=None, rank=0, world_size=1)
    split = "test" if id in ("allenai/ai2_arc", "cais/mmlu") else "validation"
    rows = bench.configs(id, ROWS)[config or "default"][split].to_pylist()
    prompts = {(i.doc_id, i.idx): "".join(i.arguments) for i in found.instances}
    assert len(rows) == len({doc for doc, _ in prompts}) == ROWS
    for number, row in enumerate(rows):
        assert render(id, row) == prompts[number, gold(id, row)]


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "shots", "limit", "max_length"),
    [
        ("arc_easy", 0, None, None),
        ("arc_challenge", 3, None, None),
        ("hellaswag", 0, None, 24),
        ("hellaswag", 2, 5, None),
        ("piqa", 1, 7, 40),
        ("winogrande", 5, None, None),
        ("mmlu", 2, None, None),
        ("mmlu", 0, 4, None),
    ],
)
def test_scores_are_those_of_the_harness(
    harness: ModuleType,
    index: Any,
    model: Path,
    suite: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    shots: int,
    limit: int | None,
    max_length: int | None,
) -> None:
    members = MMLU if task == "mmlu" else [task]
    config = EvaluateConfig(threads=1, batch_size=4, max_length=max_length)
    loaded = harness.load(model, config)
    ours = scored(harness, loaded, index, suite, config, task=task, num_fewshot=shots, limit=limit)
    theirs = direct(index, model, suite, monkeypatch, *members, max_length=max_length, num_fewshot=shots, limit=limit)
    assert ours.n == (limit or ROWS) * len(members)
    assert ours.n_total == ROWS * len(members)
    names = ("acc",) if task in ("mmlu", "winogrande") else ("acc", "acc_norm")
    found = values(ours)
    assert set(found) == {f"{name},none" for name in names}
    for name in names:
        of_members = [theirs["results"][member][f"{name},none"] for member in members]
        assert found[f"{name},none"][0] == pytest.approx(sum(of_members) / len(members), abs=1e-12)
        if len(members) == 1:
            assert found[f"{name},none"][1] == pytest.approx(theirs["results"][task][f"{name}_stderr,none"], abs=1e-12)
    expected = [row for member in members for row in sorted(theirs["samples"][member], key=lambda row: row["doc_id"])]
    for sample, row in zip(ours.samples, expected, strict=True):
        assert sample["requests"] == harness.answers.sample("", row)["requests"]
        assert [s[1] for s in sample["scores"]] == [bool(r[1]) for r in row["filtered_resps"]]
        assert [s[0] for s in sample["scores"]] == pytest.approx([float(r[0]) for r in row["filtered_resps"]], rel=1e-4)
    assert len({round(score, 3) for sample in ours.samples for score, _ in sample["scores"]}) > ours.n, (
        "equal scores would show nothing"
    )


def test_shots_change_the_prompt_and_are_worked_examples(
    harness: ModuleType, loaded: Any, index: Any, suite: Path
) -> None:
    config = EvaluateConfig(threads=1)
    samples = {
        shots: scored(harness, loaded, index, suite, config, task="arc_easy", num_fewshot=shots, limit=2).samples
        for shots in (0, 3)
    }
    for bare, worked in zip(samples[0], samples[3], strict=True):
        assert worked["requests"][0][0].endswith(bare["requests"][0][0])
        assert worked["requests"][0][0].count("\nAnswer:") >= 4
        assert bare["target"] == worked["target"]


@pytest.mark.parametrize("max_length", [16, 24, 28, 512])
def test_requests_that_lose_their_beginning_are_counted(
    harness: ModuleType, index: Any, model: Path, suite: Path, max_length: int
) -> None:
    config = EvaluateConfig(threads=1, max_length=max_length)
    loaded = harness.load(model, config)
    given: list[int] = []
    encode = loaded.lm._encode_pair

    def watched(context: str, continuation: str) -> Any:
        one, two = encode(context, continuation)
        given.append(len(one) + len(two))
        return one, two

    loaded.lm._encode_pair = watched
    found = scored(harness, loaded, index, suite, config, task="piqa")
    assert len(given) == 2 * ROWS
    assert found.truncated == sum(length > max_length + 1 for length in given)
    assert (found.truncated > 0) == (max_length < 512)


# --- any other task of the harness
# ---------------------------------------------------------------------------------------


def given_task(text: str, folder: Path) -> Any:
    """An index that knows one more task, of a definition as the harness's own are written."""
    from stages.evaluate.tasks import TaskIndex, TaskManager

    (folder / "given.yaml").write_text(text)
    found = TaskIndex()
    found.manager = TaskManager(include_defaults=False, include_path=[str(folder)])
    return found


GENERATIVE = """
task: written_piqa
dataset_path: baber/piqa
validation_split: validation
output_type: generate_until
doc_to_text: "Goal: {{goal}}\\nAnswer:"
doc_to_target: "{{[sol1, sol2][label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
repeats: 1
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "the (\\\\w+)"}, {function: take_first}]
  - name: flexible-extract
    filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def test_a_filtered_generative_task_is_scored_as_the_harness_does(
    harness: ModuleType, model: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GSM8K and its like have no filter called "none", and answers that are texts, not log-likelihoods."""
    index = given_task(GENERATIVE, tmp_path)
    config = EvaluateConfig(threads=1, batch_size=4)
    ours = scored(harness, harness.load(model, config), index, suite, config, task="written_piqa")
    theirs = direct(index, model, suite, monkeypatch, "written_piqa")
    results = theirs["results"]["written_piqa"]
    found = values(ours)
    assert set(found) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    for name, (value, error) in found.items():
        metric, _, chosen = name.partition(",")
        assert value == results[name]
        assert error == results[f"{metric}_stderr,{chosen}"]
    assert (ours.n, ours.truncated) == (ROWS, 0)
    assert {(row["doc_id"], row["filter"], tuple(row["scores"])) for row in ours.samples} == {
        (row["doc_id"], row["filter"], tuple(row["filtered_resps"])) for row in theirs["samples"]["written_piqa"]
    }
    assert all(isinstance(text, str) for row in ours.samples for text in row["scores"])
    json.dumps(ours.samples)


def test_a_written_answer_counts_with_the_room_it_may_take(
    harness: ModuleType, model: Path, suite: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(threads=1, max_length=20)
    index = given_task(GENERATIVE, tmp_path)
    assert scored(harness, harness.load(model, config), index, suite, config, task="written_piqa").truncated > 0


def test_a_task_without_a_number_is_said(harness: ModuleType) -> None:
    with pytest.raises(
        ConfigError, match=r"^task 'x' gives no number that could be reported, only alias, seen,none: leave it out$"
    ):
        list(harness._metrics({"results": {"x": {"alias": "x", "seen,none": "text"}}, "higher_is_better": {}}, "x"))


def test_a_piece_that_spans_question_and_answer_is_scored_and_told(
    harness: ModuleType, model: Path, suite: Path, tmp_path: Path
) -> None:
    """An adopted vocabulary may have 'Answer: A' as one piece: the harness then finds the answer without a token, and
    fails an assertion.
    """
    wide = tmp_path / "wide"
    shutil.copytree(model, wide)
    value = json.loads((wide / vocabulary.FILE).read_text(encoding="utf-8"))
    vocab, merges = value["model"]["vocab"], value["model"]["merges"]
    last = vocabulary.load(model).encode("Answer:", add_special_tokens=False).tokens[-1]
    spare = [
        piece
        for piece in vocab
        if len(piece) > 1 and not piece.startswith("<") and piece not in {part for pair in merges for part in pair}
    ]
    for letter in "ABCD":
        pairs = [(vocabulary.SPACE, letter), (last, vocabulary.SPACE + letter)]
        for pair in pairs:
            if (piece := "".join(pair)) not in vocab:
                vocab[piece] = vocab.pop(old := spare.pop())  # the embedding keeps its size
                value["model"]["merges"] = merges = [m for m in merges if "".join(m) != old]
                merges.append(list(pair))
    (wide / vocabulary.FILE).write_text(json.dumps(value), encoding="utf-8")
    ids = [len(vocabulary.load(wide).encode(text, add_special_tokens=False).ids) for text in ("Answer:", "Answer: A")]
    assert ids[0] == ids[1], "the answer must have no token of its own, or nothing is tested"
    ctx = stage(tmp_path / "out", wide, suite, suites=[own("s", {"task": "mmlu", "limit": 3})])
    (score,) = report_of(ctx).results
    assert (
        "24 answers were encoded apart from their questions" in score.note
    )  # two subjects, three questions, four letters
    assert not score.comparable_to_paper


# --- the stage --------------------------------------------------------------------------------------------------------


SMALL = [
    own("zero", {"task": "piqa", "metric": "acc_norm"}, {"task": "winogrande"}),
    own("few", {"task": "mmlu", "num_fewshot": 2, "limit": 5}),
]


@pytest.fixture(scope="module")
def evaluated(
    harness: ModuleType, model: Path, suite: Path, tmp_path_factory: pytest.TempPathFactory
) -> LocalContext[EvaluateConfig]:
    return stage(
        tmp_path_factory.mktemp("evaluated"), model, suite, meta={"benchmarks": ["piqa", "mmlu"]}, suites=SMALL
    )


def report_of(ctx: LocalContext[EvaluateConfig]) -> Report:
    return parse_report((ctx.output("report") / FILE).read_bytes(), "here")


def test_a_report_says_what_was_scored_and_how(evaluated: LocalContext[EvaluateConfig]) -> None:
    report = report_of(evaluated)
    rows = {(s.suite, s.task, s.metric): s for s in report.results}
    assert set(rows) == {
        ("zero", "piqa", "acc"),
        ("zero", "piqa", "acc_norm"),
        ("zero", "winogrande", "acc"),
        ("few", "mmlu", "acc"),
    }
    assert [key[1:] for key, s in rows.items() if s.headline] == [
        ("piqa", "acc_norm"),
        ("winogrande", "acc"),
        ("mmlu", "acc"),
    ]
    assert {s.task: s.in_domain for s in report.results} == {"piqa": True, "winogrande": False, "mmlu": True}
    mmlu = rows["few", "mmlu", "acc"]
    assert (mmlu.n, mmlu.n_total, mmlu.num_fewshot, mmlu.split, mmlu.data_set) == (10, 24, 2, "test", "cais/mmlu")
    no_table = "the suite repeats no table of the paper"
    assert (mmlu.comparable_to_paper, mmlu.note) == (
        False, f"10 of 24 documents; 2 of 57 tasks of the group; {no_table}",
    )  # fmt: skip
    assert rows["zero", "piqa", "acc"].note == no_table
    assert {(s.table, s.column) for s in report.results} == {(None, None)}  # suites of one's own
    zero, few = report.aggregates
    assert zero.value == pytest.approx(
        (rows["zero", "piqa", "acc_norm"].value + rows["zero", "winogrande", "acc"].value) / 2
    )
    assert zero.stderr == pytest.approx(
        math.hypot(*(s.stderr or 0 for s in report.results if s.suite == "zero" and s.headline)) / 2
    )
    assert (few.value, few.tasks) == (mmlu.value, 1)
    assert report.model.trained_on == ("piqa", "mmlu")
    assert evaluated.stats["comparable_to_paper"] is False


def test_samples_hold_every_question(evaluated: LocalContext[EvaluateConfig]) -> None:
    folder = evaluated.output("report") / "samples"
    counts = {p.name: len(p.read_text().splitlines()) for p in folder.iterdir()}
    assert counts == {"zero.piqa.jsonl": ROWS, "zero.winogrande.jsonl": ROWS, "few.mmlu.jsonl": 10}
    rows = [json.loads(line) for line in (folder / "zero.piqa.jsonl").read_text().splitlines()]
    right = sum(row["acc"] for row in rows) / len(rows)
    assert right == pytest.approx(
        next(s.value for s in report_of(evaluated).results if (s.task, s.metric) == ("piqa", "acc"))
    )


def test_the_same_model_gives_the_same_bytes(
    evaluated: LocalContext[EvaluateConfig], model: Path, suite: Path, tmp_path: Path
) -> None:
    again = stage(tmp_path, model, suite, meta={"benchmarks": ["piqa", "mmlu"]}, suites=SMALL)
    for path in sorted(p for p in evaluated.output("report").rglob("*") if p.is_file()):
        assert path.read_bytes() == (again.output("report") / path.relative_to(evaluated.output("report"))).read_bytes()


def test_scores_on_made_questions_are_not_comparable(harness: ModuleType, model: Path, tmp_path: Path) -> None:
    bench.write_mirror(tmp_path / "suite", {"baber/piqa": bench.configs("baber/piqa", 4)}, origin="machine")
    report = report_of(stage(tmp_path / "out", model, tmp_path / "suite", suites=[own("s", {"task": "piqa"})]))
    assert {s.comparable_to_paper for s in report.results} == {False}
    assert all(s.note.startswith("the data set was made from this run's own documents; ") for s in report.results)
    assert {s.toy for s in report.results} == {True}


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_an_unknown_task_gets_the_nearest_name(
    harness: ModuleType, model: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.evaluate.tasks import TaskIndex

    monkeypatch.setattr(TaskIndex, "everything", lambda self: self.manager)  # all 13,000 names: 12 CPU seconds
    message = (
        r"^evaluate\.suites\.mine: lm-evaluation-harness [\d.]+ has no task 'hellaswags'; did you mean 'hellaswag'\?$"
    )
    with pytest.raises(ConfigError, match=message):
        stage(tmp_path, model, suite, suites=[own("mine", {"task": "piqa"}, {"task": "hellaswags"})])


@pytest.mark.parametrize(
    ("held", "task", "message"),
    [
        (
            "baber/piqa",
            "winogrande",
            (
                "task winogrande needs data set allenai/winogrande, configuration winogrande_xl, which no suite"
                " holds; they have baber/piqa"
            ),
        ),
        ("baber/piqa", "mmlu", "task mmlu needs data set cais/mmlu, configuration "),
        (
            "allenai/ai2_arc",
            "arc_challenge",
            ("task arc_challenge needs data set allenai/ai2_arc, configuration ARC-Challenge, which no suite holds"),
        ),
    ],
)
def test_a_missing_data_set_is_named(
    harness: ModuleType, model: Path, tmp_path: Path, held: str, task: str, message: str
) -> None:
    data = bench.configs(held, 3)
    data.pop("ARC-Challenge", None)
    bench.write_mirror(tmp_path / "suite", {held: data})
    with pytest.raises(InputError) as error:
        stage(tmp_path / "out", model, tmp_path / "suite", suites=[own("s", {"task": task})])
    assert str(error.value).startswith(f"evaluate.suites.s: {message}")


def test_an_answer_longer_than_the_context_is_said(
    harness: ModuleType, model: Path, suite: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"^evaluate\.suites\.s: a context of 4 tokens cannot hold an answer of \d+: raise max_length"
    ):
        stage(tmp_path, model, suite, suites=[own("s", {"task": "piqa"})], max_length=4)


def test_a_folder_that_is_no_model_is_one_line(harness: ModuleType, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(InputError, match=r"^the model folder cannot be loaded: ") as error:
        stage(tmp_path / "out", tmp_path / "model", suite, suites=[own("s", {"task": "piqa"})])
    assert "\n" not in str(error.value)


def test_a_head_that_is_missing_is_not_drawn(harness: ModuleType, model: Path, suite: Path, tmp_path: Path) -> None:
    """transformers would draw it by chance, and print a table."""
    shutil.copytree(model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"^the model folder has no weight lm_head\.weight: nothing is drawn in its place"
    ):
        stage(tmp_path / "out", tmp_path / "model", suite, suites=[own("s", {"task": "piqa"})])


def test_a_gpu_that_is_not_there_is_said(harness: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device = 'cuda', but this machine has no GPU"):
        harness.load(model, EvaluateConfig(device="cuda"))


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_survives_the_disk(evaluated: LocalContext[EvaluateConfig], tmp_path: Path) -> None:
    report = report_of(evaluated)
    write_report(tmp_path, report)
    assert parse_report((tmp_path / FILE).read_bytes(), "there") == report
    assert all(isinstance(score, Score) for score in report.results)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"schema_version": 2, "extra": 2}', b"\xff"])
def test_a_damaged_report_is_named(damage: bytes) -> None:
    with pytest.raises(InputError, match=r"^object x is no evaluation report of version 2: "):
        parse_report(damage, "object x")


def test_the_default_suites_are_the_papers() -> None:
    assert [(suite.name, suite.table) for suite in EvaluateConfig().suites] == [
        ("table_2", "table_2"),
        ("table_3", "table_3"),
    ]
    assert all(entry.limit is None for suite in EvaluateConfig().suites for entry in suite.tasks)
