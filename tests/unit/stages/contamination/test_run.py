"""The `contamination` stage: what was planted is found where it was planted, as a plain definition finds it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.contamination import index, merging, scan, training_texts
from stages.contamination.run import run
from stages.contamination.spec import ContaminationConfig
from stages.core.artifacts import (
    Artifact,
    Conversations,
    Documents,
    EvalSuite,
    ImageConversations,
    Preferences,
    Problems,
)
from stages.core.errors import InputError
from stages.core.testing import LocalContext, local_artifact
from stages.lib.data.decontamination import words
from stages.lib.formats.documents import write_documents
from stages.lib.formats.examples import ConversationWriter, PreferenceWriter, ProblemWriter, assistant, user
from stages.lib.formats.overlap import ItemOverlap, parse_items, parse_overlap
from stages.lib.formats.suites import DataSet, Suite, write_data_set, write_suite
from stages.lib.vision.conversations import Conversation, Turn, write_rows
from tests.support.examples import max_examples

DATA_SET = "some/questions"
RNG = random.Random(7)
VOCABULARY = [f"{a}{b}" for a in "bdgklmnrstvz" for b in ("a", "el", "ik", "or", "umo")]
PLACES = count()


def prose(length: int) -> str:
    return " ".join(RNG.choices(VOCABULARY, k=length))


def suite(folder: Path, items: Sequence[str], split: str = "test", id: str = DATA_SET) -> Any:
    rows = write_data_set(folder, id, {"default": {split: pa.table({"text": pa.array(items, pa.string())})}})
    write_suite(folder, Suite(data_sets=(DataSet(id=id, origin="hub", rows=rows),)))
    return local_artifact(EvalSuite, folder)


def named(node: str, type: type[Artifact], folder: Path) -> Any:
    return replace(local_artifact(type, folder), node=node)


def documents(folder: Path, texts: Sequence[str], node: str = "web") -> Any:
    folder.mkdir(parents=True)
    write_documents(folder, [{"id": f"{node}/{n}", "text": text, "source": "s"} for n, text in enumerate(texts)])
    return named(node, Documents, folder)


def scanned(root: Path, inputs: Mapping[str, Sequence[Any]], **config: Any) -> LocalContext[ContaminationConfig]:
    ctx = LocalContext(root / f"run-{next(PLACES)}", ContaminationConfig(**config), inputs=inputs, node="contamination")
    run(ctx)
    return ctx


def rows(ctx: LocalContext[ContaminationConfig], id: str = DATA_SET) -> dict[int, ItemOverlap]:
    data = (ctx.output("overlap") / "items" / f"{id}.jsonl").read_bytes()
    every = parse_items(data, "it")
    assert [row.item for row in every] == list(range(len(every)))
    return {row.item: row for row in every if row.matches or row.skipped or row.only_common}


def files(ctx: LocalContext[ContaminationConfig]) -> dict[str, bytes]:
    folder = ctx.output("overlap")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what was planted -----------------------------------------------------------------------------------------------

EXACT, SHOUTED, NEAR, PARAPHRASED, ABSENT, SHORT, TOO_SHORT, FOREIGN = range(8)
ITEMS = [prose(60) for _ in range(5)] + [prose(9), prose(3), "Größe ﬁne ½ İx É é Σας " + prose(20)]


def without_every_twentieth(text: str) -> str:
    return " ".join(word if n % 20 else "changed" for n, word in enumerate(text.split()))


def planted() -> list[str]:
    backwards = " ".join(f"{b} and {a}" for a, b in zip(*[iter(ITEMS[PARAPHRASED].split())] * 2, strict=True))
    inside = [
        ITEMS[EXACT],
        ITEMS[SHOUTED].upper().replace(" ", ",\n"),
        without_every_twentieth(ITEMS[NEAR]),
        backwards,
        ITEMS[SHORT],
        ITEMS[TOO_SHORT],
        ITEMS[FOREIGN].upper(),
    ]
    return [f"{prose(200)}. {text} {prose(200)}" for text in inside] + ["", "é" * 3, prose(5000)]


@pytest.mark.parametrize("rule", ["gpt3", "llama2"])
def test_exact_and_near_items_are_found_and_a_paraphrase_is_not(tmp_path: Path, rule: str) -> None:
    texts = planted()
    inputs = {"suites": [suite(tmp_path / "suite", ITEMS)], "documents": [documents(tmp_path / "web", texts)]}
    ctx = scanned(tmp_path, inputs, rule=rule)
    found = rows(ctx)
    places = {item: (row.matches[0].document, row.matches[0].longest) for item, row in found.items() if row.matches}
    expected = {
        EXACT: ("web/0", 60),
        SHOUTED: ("web/1", 60),
        NEAR: ("web/2", 19),
        FOREIGN: ("web/6", len(words(ITEMS[7]))),
    }
    if rule == "gpt3":
        assert places == expected | {SHORT: ("web/4", 9)}
    else:  # a span goes on over what was changed
        assert places == expected | {NEAR: ("web/2", 59)}
    assert {i for i, row in found.items() if row.skipped} == ({TOO_SHORT} if rule == "gpt3" else {SHORT, TOO_SHORT})
    assert found[EXACT].matches[0].fraction == 1.0
    assert found[NEAR].matches[0].spans == ((1, 20), (21, 40), (41, 60))
    assert PARAPHRASED not in found, "no rule of n-grams finds it: README"
    overlap = parse_overlap((ctx.output("overlap") / "overlap.json").read_bytes(), "it")
    assert overlap.splits[0].flagged == {"web": len(places)}
    assert overlap.training[0].bytes == sum(len(t.encode()) for t in texts)
    assert ctx.stats["flagged"] == len(places)


def test_training_data_of_every_kind_is_flagged_by_its_node(tmp_path: Path) -> None:
    items = [prose(40) for _ in range(5)]
    for name in ("chats", "pairs", "problems", "pictures"):
        (tmp_path / name).mkdir()
    halves = [(" ".join(text.split()[:20]), " ".join(text.split()[20:])) for text in items]
    about = {"source": "s", "license": ""}
    with ConversationWriter(tmp_path / "chats") as chats:
        chats.add({"id": "c/1", "messages": [user(halves[1][0]), assistant(halves[1][1])], **about})  # type: ignore[typeddict-item]
    with PreferenceWriter(tmp_path / "pairs") as pairs:
        turns = {"prompt": [user("Well?")], "chosen": [assistant("No.")], "rejected": [assistant(items[2])]}
        pairs.add({"id": "p/1", **turns, **about})  # type: ignore[typeddict-item]
    with ProblemWriter(tmp_path / "problems") as problems:
        problems.add({"id": "q/1", "problem": halves[3][0], "solution": halves[3][1], "answer": "1", **about})  # type: ignore[typeddict-item]
    write_rows(
        tmp_path / "pictures", [Conversation("i/1", "a.jpg", (Turn(True, "<image>\nHm?"), Turn(False, items[4])))]
    )
    inputs = {
        "suites": [suite(tmp_path / "suite", items)],
        "documents": [documents(tmp_path / "web", [items[0], items[4]])],
        "conversations": [named("chats", Conversations, tmp_path / "chats")],
        "preferences": [named("pairs", Preferences, tmp_path / "pairs")],
        "problems": [named("problems", Problems, tmp_path / "problems")],
        "images": [named("pictures", ImageConversations, tmp_path / "pictures")],
    }
    found = {
        i: {m.node: (m.document, m.longest) for m in row.matches} for i, row in rows(scanned(tmp_path, inputs)).items()
    }
    assert found == {
        0: {"web": ("web/0", 40)},
        1: {"chats": ("c/1", 40)},
        2: {"pairs": ("p/1", 40)},
        3: {"problems": ("q/1", 40)},
        4: {"web": ("web/1", 40), "pictures": ("i/1", 40)},
    }


def test_runs_of_many_documents_are_ignored_and_it_is_said_whom_that_clears(tmp_path: Path) -> None:
    phrase, rare = prose(20), prose(20)
    items = [phrase, f"{phrase} {rare}", rare]
    texts = [phrase] * 11 + [f"{phrase} {rare}"] * 3
    inputs = {"suites": [suite(tmp_path / "suite", items)], "documents": [documents(tmp_path / "web", texts)]}
    ctx = scanned(tmp_path, inputs)
    found = rows(ctx)
    assert (found[0].only_common, found[0].matches) == (True, ())
    assert found[1].matches[0].spans == ((8, 40),), "runs that hold a word of the rare half are in three documents"
    assert found[2].matches[0].document == "web/11"
    assert ctx.stats["ignored_runs"] == 8
    assert not rows(scanned(tmp_path, inputs, common=None))[0].only_common
    twice = inputs | {
        "documents": [documents(tmp_path / "a", texts[:7], "a"), documents(tmp_path / "b", texts[7:], "b")]
    }
    assert rows(scanned(tmp_path, twice))[0].only_common, "documents are counted over all nodes"


# --- the same as a plain definition says ------------------------------------------------------------------------------


def plain_runs(items: list[list[str]], texts: list[list[str]], run: int, least: int, common: int | None) -> Any:
    """{item: (covered words, longest run of covered words)} by GPT-3's rule."""

    def holds(text: list[str], gram: tuple[str, ...]) -> bool:
        return any(tuple(text[i : i + len(gram)]) == gram for i in range(len(text)))

    found = {}
    for number, item in enumerate(items):
        if len(item) < least:
            continue
        width = min(run, len(item))
        covered: set[int] = set()
        for at in range(len(item) - width + 1):
            holding = sum(holds(text, tuple(item[at : at + width])) for text in texts)
            if holding and (common is None or holding <= common):
                covered |= set(range(at, at + width))
        if covered:
            found[number] = covered
    return found


def plain_spans(items: list[list[str]], texts: list[list[str]], run: int, skips: int) -> Any:
    """{item: (covered words, longest span)} by Llama 2's rule."""
    exact = min(10, run)
    found: dict[int, tuple[set[int], int]] = {}
    for number, item in enumerate(items):
        for text in texts:
            for at in range(len(item)):
                for place in range(len(text)):
                    same, last = [], 0
                    for i, (a, b) in enumerate(zip(item[at:], text[place:], strict=False)):
                        if a == b:
                            same.append(i)
                            last = i + 1
                        elif i < exact or i + 1 - len(same) > skips:
                            break
                    if last >= run and same[:exact] == list(range(exact)):
                        covered, longest = found.get(number, (set(), 0))
                        found[number] = (covered | {at + i for i in same if i < last}, max(longest, last))
    return found


SENTENCES = st.lists(
    st.lists(st.sampled_from(["a", "B", "é", "ß", "+"]), max_size=9).map(" ".join), min_size=1, max_size=6
)


@max_examples(25)
@given(SENTENCES, SENTENCES, st.sampled_from([None, 1, 2]), st.integers(0, 2))
def test_random_texts_give_what_the_definitions_say(
    tmp_path_factory: pytest.TempPathFactory, items: list[str], texts: list[str], common: int | None, skips: int
) -> None:
    root = tmp_path_factory.mktemp("random")
    inputs = {"suites": [suite(root / "suite", items)], "documents": [documents(root / "web", texts)]}
    split, read = [words(item) for item in items], [words(text) for text in texts]
    ctx = scanned(root, inputs, run=4, min_words=2, common=common)
    found = {
        i: {p for low, high in r.matches[0].spans for p in range(low, high)} for i, r in rows(ctx).items() if r.matches
    }
    assert found == plain_runs(split, read, 4, 2, common)
    ctx = scanned(root, inputs, rule="llama2", run=4, skips=skips)
    spans = {
        i: ({p for low, high in r.matches[0].spans for p in range(low, high)}, r.matches[0].longest)
        for i, r in rows(ctx).items()
        if r.matches
    }
    assert spans == plain_spans(split, read, 4, skips)


def test_equal_hashes_are_no_match(tmp_path: Path) -> None:
    """Texts that differ under one hash, in the table and in what is scanned: their words decide."""
    two = index.read_words(["a b c d", "e f g h"])
    alike = two._replace(hashes=index.read_only(np.zeros(8, np.uint64)))
    assert len(index.make_table(alike, 4, 4, None).hashes) == 2
    one = index.read_words(["a b c d"])
    forged = one._replace(hashes=index.read_only(two.hashes[4:].copy()))
    arrays = {"words": forged, "runs": index.make_table(forged, 4, 4, None), "short": index.make_table(forged, 2, 2, 1)}
    for name, each in arrays.items():
        index.save(tmp_path, name, each)
    scanner = scan.Scanner(scan.load_index({path.name: path for path in tmp_path.iterdir()}), (4, 2), 4, None)
    scanner.add(["x", "y"], pa.array(["z e f g h", "a b c d"], pa.large_string()))
    assert scanner.tally[1] == 1, "the hash of 'e f g h' is in the table, its text is not"
    assert not scanner.docs.any()


# --- how the work is done changes nothing -----------------------------------------------------------------------------


@pytest.mark.slow  # processes of their own
def test_neither_workers_nor_the_cut_of_the_files_change_the_result(tmp_path: Path) -> None:
    questions = suite(tmp_path / "suite", ITEMS)
    texts = planted()
    whole = documents(tmp_path / "whole", texts)
    (tmp_path / "cut").mkdir()
    table = pq.read_table(tmp_path / "whole" / "part-00000.parquet")
    for n, (low, high) in enumerate([(0, 3), (3, 4), (4, len(texts))]):
        pq.write_table(table.slice(low, high - low), tmp_path / "cut" / f"part-{n:05d}.parquet", row_group_size=2)
    cut = named("web", Documents, tmp_path / "cut")
    cut = replace(cut, manifest=cut.manifest.model_copy(update={"digest": whole.manifest.digest}))
    for rule in ("gpt3", "llama2"):
        one = scanned(tmp_path, {"suites": [questions], "documents": [whole]}, rule=rule)
        other = scanned(tmp_path, {"suites": [questions], "documents": [cut]}, rule=rule)
        assert files(one) == files(other)
    two = scanned(tmp_path, {"suites": [questions], "documents": [cut]}, rule="llama2", workers=2)
    assert files(two) == files(other)


def test_results_of_tasks_that_outlive_an_attempt_are_of_these_items_alone(tmp_path: Path) -> None:
    web = documents(tmp_path / "web", [ITEMS[0], ITEMS[1]])
    first = {"suites": [suite(tmp_path / "first", ITEMS[:1])], "documents": [web]}
    second = {"suites": [suite(tmp_path / "second", ITEMS[1:3])], "documents": [web]}
    for inputs in (first, second, first):
        ctx = LocalContext(tmp_path / "again", ContaminationConfig(), inputs=inputs, node="contamination")
        shutil.rmtree(ctx.output("overlap"))
        run(ctx)
        assert files(ctx) == files(scanned(tmp_path, inputs))


def test_a_document_with_more_matches_than_there_is_room_for(tmp_path: Path) -> None:
    item = " ".join(f"w{n}" for n in range(6000))
    inputs = {
        "suites": [suite(tmp_path / "suite", [item])],
        "documents": [documents(tmp_path / "web", ["x", item, "y"])],
    }
    match = rows(scanned(tmp_path, inputs))[0].matches[0]
    assert (match.longest, match.document) == (6000, "web/1")


def test_two_suites_with_the_same_items_count_them_once(tmp_path: Path) -> None:
    web = documents(tmp_path / "web", planted())
    one, same = suite(tmp_path / "one", ITEMS), suite(tmp_path / "same", ITEMS)
    ctx = scanned(tmp_path, {"suites": [one, same], "documents": [web]})
    assert ctx.stats["items"] == len(ITEMS)
    other = suite(tmp_path / "other", ITEMS[:3])
    with pytest.raises(InputError, match="two suites hold different items as some/questions/default/test"):
        scanned(tmp_path, {"suites": [one, other], "documents": [web]})


# --- bad input ------------------------------------------------------------------------------------------------------


def test_damaged_training_data_is_one_line(tmp_path: Path) -> None:
    questions = suite(tmp_path / "suite", ITEMS)
    web = documents(tmp_path / "web", planted())
    path = tmp_path / "web" / "part-00000.parquet"
    good = path.read_bytes()
    middle = bytearray(good)
    middle[len(good) // 3 : len(good) // 3 + 40] = bytes(40)
    for damaged in (good[: len(good) // 2], bytes(middle), b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"^training data of web: part-00000.parquet cannot be read: ") as error:
            scanned(tmp_path, {"suites": [questions], "documents": [web]})
        assert "\n" not in str(error.value)
        assert str(error.value).endswith("run web again")


def test_nothing_to_look_for_is_said(tmp_path: Path) -> None:
    web = documents(tmp_path / "web", planted())
    with pytest.raises(InputError, match="the suites hold no item outside of train, auxiliary_train, dev"):
        scanned(tmp_path, {"suites": [suite(tmp_path / "suite", ITEMS, split="train")], "documents": [web]})
    blank = suite(tmp_path / "blank", ["", "…", "a"])
    ctx = scanned(tmp_path, {"suites": [blank], "documents": [web]})
    assert (ctx.stats["items"], ctx.stats["skipped"], ctx.stats["flagged"]) == (3, 3, 0)
    none = documents(tmp_path / "none", [])
    assert scanned(tmp_path, {"suites": [blank], "documents": [none]}).stats["bytes"] == 0


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="min_words = 20 is more than a run has"):
        ContaminationConfig(min_words=20)
    with pytest.raises(ValidationError, match="workers must be 1 or more"):
        ContaminationConfig(workers=0)
    assert ContaminationConfig(rule="llama2").length == 11


def test_spans_of_covered_words() -> None:
    assert merging.spans_of(np.array([1, 1, 0, 1], bool)) == [(0, 2), (3, 4)]
    assert merging.spans_of(np.zeros(0, bool)) == []


def test_texts_of_a_shard_come_with_their_ids(tmp_path: Path) -> None:
    web = documents(tmp_path / "web", ["a", "b"])
    (task,) = training_texts.tasks_of("documents", "web", web.entries())
    (batch,) = training_texts.read_texts("documents", json.loads(json.dumps(task)))
    assert (batch[0], batch[1].to_pylist()) == (["web/0", "web/1"], ["a", "b"])
