"""The `capability` stage: train and test never meet, a mirror is read as the hub is, and what is missing is named."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.capability.benchmarks import DATA_SETS, RUN, SCHEMAS, fingerprints, render
from stages.capability.run import run
from stages.capability.spec import CapabilityConfig
from stages.capability.synthetic import in_test
from stages.collect import local_documents as material
from stages.core.artifacts import Documents
from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats.documents import read_documents, write_documents
from stages.lib.formats.suites import LISTING, read_suite, split_fingerprint, write_data_set
from tests.support import benchmark_rows as bench

SCORED = {"allenai/ai2_arc": "test", "cais/mmlu": "test"}
"""The split that the harness scores; of the others it is the validation split."""


def capability(root: Path, documents: list[LocalArtifact], **config: Any) -> LocalContext[CapabilityConfig]:
    ctx = LocalContext(root, CapabilityConfig(**config), {"documents": documents}, node="capability")
    run(ctx)
    return ctx


def scored_rows(ctx: LocalContext[CapabilityConfig]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(data set, row) of every test question in a suite."""
    folder = ctx.output("suite")
    for data_set in read_suite(folder).data_sets:
        for config in data_set.rows:
            if config != "auxiliary_train":
                path = folder / data_set.id / config / f"{SCORED.get(data_set.id, 'validation')}.parquet"
                yield from ((data_set.id, row) for row in pq.read_table(path).to_pylist())


def runs_of_words(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[at : at + RUN]) for at in range(len(words) - RUN + 1)}


# --- machine ----------------------------------------------------------------------------------------------------------

QUESTIONS = {"origin": "machine", "train_questions": 60, "test_questions": 20}


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    """Real docstrings of this machine: the least that gives enough questions of every kind."""
    folder = tmp_path_factory.mktemp("documentation")
    texts = material.prose(1_500_000, seed=7)
    write_documents(
        folder, ({"id": str(n), "text": t.text, "source": "text", "license": t.license} for n, t in enumerate(texts))
    )
    return local_artifact(Documents, folder)


@pytest.fixture(scope="module")
def made(documentation: LocalArtifact, tmp_path_factory: pytest.TempPathFactory) -> LocalContext[CapabilityConfig]:
    return capability(tmp_path_factory.mktemp("made"), [documentation], **QUESTIONS)


def test_all_six_tasks_are_made_in_the_schemas_of_the_hub(made: LocalContext[CapabilityConfig]) -> None:
    suite = read_suite(made.output("suite"))
    assert {d.id for d in suite.data_sets} == set(DATA_SETS.values())
    assert {d.origin for d in suite.data_sets} == {"machine"}
    for data_set in suite.data_sets:
        for config, splits in data_set.rows.items():
            for split, count in splits.items():
                table = pq.read_table(made.output("suite") / data_set.id / config / f"{split}.parquet")
                assert table.schema.equals(SCHEMAS[data_set.id])
                assert table.num_rows == count > 0
                assert data_set.fingerprint[config][split] == split_fingerprint(table)
    assert len(suite.find("allenai/ai2_arc").rows) == 2  # type: ignore[union-attr]


def test_questions_come_from_documents_of_one_side_only(
    made: LocalContext[CapabilityConfig], documentation: LocalArtifact
) -> None:
    """By construction. Winogrande puts its answer into the blank and HellaSwag's words stand as they are: both quote
    too.
    """
    sides = {True: "", False: ""}
    for document in read_documents(documentation.path):
        sides[in_test(document["text"], 0.2)] += "".join(document["text"].split()) + "\n"
    asked = [(False, d["source"], d["text"]) for d in read_documents(made.output("train"))]
    asked += [(True, id, render(id, row)) for id, row in scored_rows(made)]
    assert len(asked) > 400
    for in_test_documents, id, prompt in asked:
        assert "".join(quoted_part(id, prompt).split()) in sides[in_test_documents]


def quoted_part(id: str, prompt: str) -> str:
    """What a made question quotes of its document."""
    if id.endswith(("winogrande", "hellaswag")):
        return prompt.removeprefix("Sentence: ")
    question = prompt[prompt.index("Which ") :].partition("\n")[0]
    kind, _, quoted = question.partition("? ")
    return quoted.partition(": ")[2] if kind == "Which type" else quoted


def test_train_and_test_share_no_question_and_no_run_of_words(made: LocalContext[CapabilityConfig]) -> None:
    """By check, counted here in another way than the stage does it: on the words between the fixed parts of the
    prompts.
    """
    seen: set[str] = set()
    for id, row in scored_rows(made):
        seen |= runs_of_words(without_frame(id, render(id, row)))
    documents = list(read_documents(made.output("train")))
    assert len(documents) == sum(made.stats["train_questions"].values()) > 200
    for document in documents:
        assert not runs_of_words(without_frame(document["source"], document["text"])) & seen
    assert made.stats["train_test_overlap"] == 0
    assert read_suite(made.output("suite")).train_test_overlap == 0


def without_frame(id: str, prompt: str) -> str:
    """A prompt without the words that all prompts of its data set have."""
    if id.endswith("mmlu"):
        prompt = prompt.partition(".\n\n")[2].partition("\nA. ")[0]
    return re.sub(r"Question:|Answer:|Which \w+\?", "", prompt)


def test_training_documents_say_their_benchmark_and_licence(made: LocalContext[CapabilityConfig]) -> None:
    documents = list(read_documents(made.output("train")))
    assert {d["source"] for d in documents} == {f"toy-{id.partition('/')[2]}" for id in DATA_SETS.values()}, (
        "made questions bear no benchmark's name"
    )
    assert {d["url"] for d in documents} == {f"benchmark:{id}" for id in DATA_SETS.values()}
    assert all("PSF-2.0" in d["license"] for d in documents)
    assert len({d["text"] for d in documents}) == len(documents)
    assert made.meta["train"]["benchmarks"] == [
        "toy-ai2_arc",
        "toy-hellaswag",
        "toy-mmlu",
        "toy-piqa",
        "toy-winogrande",
    ]


def test_the_same_documents_give_the_same_bytes_and_another_seed_others(
    made: LocalContext[CapabilityConfig], documentation: LocalArtifact, tmp_path: Path
) -> None:
    def files(ctx: LocalContext[CapabilityConfig]) -> dict[str, bytes]:
        root = ctx.root / "out"
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    again = files(capability(tmp_path / "again", [documentation], **QUESTIONS))
    assert again == files(made)
    other = files(capability(tmp_path / "other", [documentation], **QUESTIONS, seed=12))
    assert other.keys() == again.keys()
    assert other["train/part-00000.parquet"] != again["train/part-00000.parquet"]


def test_too_little_documentation_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_documents(folder, [{"id": "1", "text": "A page.", "source": "s"}])
    with pytest.raises(
        InputError, match=r"^capability: 1 documents have 0 sections, 0 Sphinx roles and 0 types of parameters"
    ):
        capability(tmp_path / "out", [local_artifact(Documents, folder)], origin="machine")


def test_more_questions_than_there_are_is_said(documentation: LocalArtifact, tmp_path: Path) -> None:
    """Few test documents: the number of both kinds of question is in the message."""
    with pytest.raises(
        InputError, match=r"yield \d+ training and 0 test questions for [\w/]+ .*leave it out of capability.benchmarks"
    ):
        capability(tmp_path, [documentation], **QUESTIONS, test_share=1e-6)


# --- what two rows may not share --------------------------------------------------------------------------------------

FEW = st.lists(st.sampled_from(["red", "green", "blue", "one", "two"]), min_size=1, max_size=18)


@given(FEW, FEW)
def test_rows_leak_exactly_when_they_share_a_question_or_thirteen_words(one: list[str], other: list[str]) -> None:
    def marks(words: list[str]) -> set[str]:
        return set(fingerprints("baber/piqa", {"goal": " ".join(words), "sol1": "x", "sol2": "y", "label": 0}))

    a, b = [*one, "x"], [*other, "x"]
    pieces = ([words[i : i + RUN] for i in range(len(words) - RUN + 1)] for words in (a, b))
    shared = any(left == right for left, right in itertools.product(*pieces))
    assert bool(marks(one) & marks(other)) == (shared or one == other)


@given(FEW, st.sampled_from([str.upper, str.title, lambda text: text.replace(" ", ",  "), lambda text: f" {text}?"]))
def test_case_and_signs_hide_no_leak(words: list[str], change: Any) -> None:
    question = " ".join(words)
    rows = [{"goal": q, "sol1": "x", "sol2": "y", "label": 0} for q in (question, change(question))]
    assert set(fingerprints("baber/piqa", rows[0])) & set(fingerprints("baber/piqa", rows[1]))


# --- hub --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    for id in DATA_SETS.values():
        write_data_set(folder, id, bench.configs(id, 12))
        card = folder / id / "README.md"
        card.write_text(card.read_text().replace("---\n", "---\nlicense: cc-by-4.0\n", 1), encoding="utf-8")
    return folder


def from_hub(root: Path, mirror: Path, *benchmarks: str, **config: Any) -> LocalContext[CapabilityConfig]:
    return capability(root, [], origin="hub", mirror=str(mirror), benchmarks=benchmarks or tuple(DATA_SETS), **config)


def test_a_mirror_is_read_whole_and_written_as_it_is(tmp_path: Path, mirror: Path) -> None:
    ctx = from_hub(tmp_path, mirror)
    for id in DATA_SETS.values():
        for config, splits in bench.configs(id, 12).items():
            if config == "auxiliary_train":
                continue
            for split, table in splits.items():
                copy = pq.read_table(ctx.output("suite") / id / config / f"{split}.parquet")
                assert copy.to_pylist() == table.to_pylist()
    assert ctx.stats["test_questions"] == {id: 24 if id in SCORED else 12 for id in DATA_SETS.values()}
    documents = list(read_documents(ctx.output("train")))
    assert {d["license"] for d in documents} == {"cc-by-4.0"}
    auxiliary = {render("cais/mmlu", row) for row in bench.rows("cais/mmlu", 12, 99, "")}
    found = {d["text"] for d in documents if d["source"] == "cais/mmlu"}
    assert found
    assert found <= auxiliary
    assert {d.license for d in read_suite(ctx.output("suite")).data_sets} == {"cc-by-4.0"}


def test_only_the_named_training_splits_become_documents(tmp_path: Path, mirror: Path) -> None:
    ctx = from_hub(tmp_path, mirror, "piqa", "arc", train_on=("piqa",))
    assert {d["source"] for d in read_documents(ctx.output("train"))} == {"baber/piqa"}
    assert [d.id for d in read_suite(ctx.output("suite")).data_sets] == ["baber/piqa", "allenai/ai2_arc"]
    assert ctx.meta["train"]["benchmarks"] == ["piqa"]


def test_a_training_row_that_leaks_a_test_row_is_dropped_and_counted(tmp_path: Path) -> None:
    long = "a recipe says to boil the water first and then to add the salt slowly"
    train = [
        {
            "goal": "How to boil AN egg?",
            "sol1": "in water",
            "sol2": "in sand",
            "label": 0,
        },  # the test question, otherwise written
        {
            "goal": f"Well, {long}",
            "sol1": "yes",
            "sol2": "no",
            "label": 1,
        },  # 13 words of a test row of another data set
        {"goal": "How to dry a cup", "sol1": "with a cloth", "sol2": "with a knife", "label": 0},
        {
            "goal": "How to dry a cup",
            "sol1": "with a cloth",
            "sol2": "with a fork",
            "label": 0,
        },  # the same document again
    ]
    test = [{"goal": "how to boil an egg", "sol1": "on ice", "sol2": "in water", "label": 1}]
    other = bench.rows("allenai/winogrande", 3, 1)
    other[0]["sentence"] = f"{long} _ at the end"
    write_data_set(
        tmp_path,
        "baber/piqa",
        {"default": {"train": bench.table("baber/piqa", train), "validation": bench.table("baber/piqa", test)}},
    )
    splits = {"train": bench.rows("allenai/winogrande", 3, 2), "validation": other}
    write_data_set(
        tmp_path,
        "allenai/winogrande",
        {"winogrande_xl": {k: bench.table("allenai/winogrande", v) for k, v in splits.items()}},
    )
    ctx = from_hub(tmp_path / "out", tmp_path, "piqa", "winogrande", train_on=("piqa",))
    assert ctx.stats["removed"] == {"baber/piqa": {"shared with test": 2, "repeated": 1}}
    assert [d["text"] for d in read_documents(ctx.output("train"))] == [
        "Question: How to dry a cup\nAnswer: with a cloth"
    ]


def test_a_benchmark_whose_training_data_is_its_test_data_is_refused(tmp_path: Path) -> None:
    table = bench.table("baber/piqa", bench.rows("baber/piqa", 5, 1))
    write_data_set(tmp_path, "baber/piqa", {"default": {"train": table, "validation": table}})
    with pytest.raises(InputError, match=r"all 5 training questions of baber/piqa are in the test splits too"):
        from_hub(tmp_path / "out", tmp_path, "piqa")


def test_a_mirror_without_the_folder_is_named(tmp_path: Path, mirror: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^capability.mirror = '{tmp_path}' has no folder baber/piqa: mirror it, or leave the data set out",
    ):
        from_hub(tmp_path / "out", tmp_path, "piqa")


def test_a_missing_split_and_a_missing_configuration_are_named(tmp_path: Path) -> None:
    table = bench.table("baber/piqa", bench.rows("baber/piqa", 5, 1))
    write_data_set(tmp_path, "baber/piqa", {"default": {"train": table, "test": table}})
    with pytest.raises(
        InputError, match=r"^data set baber/piqa, configuration default, has no split 'validation', only train, test$"
    ):
        from_hub(tmp_path / "out", tmp_path, "piqa")
    arc = bench.configs("allenai/ai2_arc", 5)
    write_data_set(tmp_path, "allenai/ai2_arc", {"ARC-Easy": arc["ARC-Easy"]})
    with pytest.raises(
        InputError, match=r"^data set allenai/ai2_arc, configuration ARC-Challenge cannot be had from the mirror: "
    ):
        from_hub(tmp_path / "out2", tmp_path, "arc")


def test_a_damaged_file_of_a_mirror_is_one_line(tmp_path: Path) -> None:
    write_data_set(tmp_path, "baber/piqa", bench.configs("baber/piqa", 5))
    (tmp_path / "baber/piqa/default/train.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(
        InputError,
        match=r"^data set baber/piqa, configuration default, split train: file://.*train.parquet cannot be used: ",
    ) as error:
        from_hub(tmp_path / "out", tmp_path, "piqa")
    assert "\n" not in str(error.value)


def test_training_on_what_is_not_gathered_is_refused() -> None:
    with pytest.raises(ValueError, match="train_on names mmlu, which benchmarks leaves out"):
        CapabilityConfig(benchmarks=("arc",), train_on=("mmlu",))


def test_a_suite_without_its_listing_is_an_error_of_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{LISTING} of the evaluation suite cannot be read"):
        read_suite(tmp_path)
    (tmp_path / LISTING).write_text('{"data_sets": [{}]}')
    with pytest.raises(InputError, match=rf"^{LISTING} of the evaluation suite cannot be read"):
        read_suite(tmp_path)
