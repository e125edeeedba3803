"""The seven visual benchmarks of Table 8, read from the data sets' own files, and put to the model as Prismatic puts
them.

| benchmark | file, as its authors publish it | scored |
| --- | --- | --- |
| GQA | testdev_balanced_questions.json | exact match after punctuation and case |
| VizWiz | val.json | VQA accuracy over ten answers |
| RefCOCO+ | finetune_refcoco+_val.json (MDETR's; the original `refs(unc).p` is a pickle: not read) | IoU >= 0.5 |
| OCID-Ref | val_expressions.json | IoU >= 0.25 |
| VSR | test.jsonl (zero-shot split) | likelier of True, False |
| POPE | coco_pope_{adversarial,popular,random}.json | likelier of Yes, No; mean of the three |
| TallyQA | test.json | likeliest letter of sixteen |

A suite on disk: `<benchmark>/<its files>`, `<benchmark>-NNNNN.zip` with the images under the names that the files use,
and `suite.json` (`stages.lib.formats.suites`).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stages.core.errors import InputError
from stages.core.json_text import parsed_json
from stages.lib.formats.compression import Damaged, lines_of, text_of
from stages.lib.vision import prompts

Name = Literal["gqa", "vizwiz", "refcoco+", "ocid-ref", "vsr", "pope", "tally-qa"]
POPE_KINDS = ("adversarial", "popular", "random")
OCID_CLUTTER = ("minimum", "medium", "maximum")
OCID_TAKES = (9, 16, 20)
"""Last `take_id` of each degree of clutter: free, touching, stacked (OCID's own split)."""


@dataclass(frozen=True)
class Question:
    """One question. options: what the model chooses from by likelihood; none: it writes its answer."""

    id: str
    image: str
    asked: str = field(metadata={"doc": "the question in the data set's words"})
    prompt: str
    truth: Any
    options: tuple[str, ...] = ()
    group: str = ""
    size: tuple[int, int] | None = None
    """Width and height that a box in pixels refers to; None: those of the image."""


@dataclass(frozen=True)
class Benchmark:
    """One data set: its files, and how they are read."""

    name: Name
    column: str
    files: tuple[str, ...]
    split: str
    data_set: str
    total: int
    read: Callable[[Path], Iterator[Question]]
    metric: str
    by_group: bool = False
    """Whether the score is the mean of the groups' scores (POPE), not of all questions."""


def _json(path: Path) -> Any:
    try:
        return parsed_json(text_of(path))
    except (OSError, ValueError, Damaged) as error:
        raise InputError(f"{path.parent.name}/{path.name} cannot be read: {' '.join(str(error).split())}") from error


def _lines(path: Path) -> Iterator[Any]:
    try:
        yield from map(parsed_json, lines_of(path))
    except (OSError, ValueError, Damaged) as error:
        raise InputError(f"{path.parent.name}/{path.name} cannot be read: {' '.join(str(error).split())}") from error


def _gqa(folder: Path) -> Iterator[Question]:
    for id, row in _json(folder / "testdev_balanced_questions.json").items():
        yield Question(
            id, f"{row['imageId']}.jpg", row["question"], prompts.short_answer(row["question"]), str(row["answer"])
        )


def _vizwiz(folder: Path) -> Iterator[Question]:
    for number, row in enumerate(_json(folder / "val.json")):
        truth = tuple(str(answer["answer"]) for answer in row["answers"])
        group = "answerable" if int(row["answerable"]) else "unanswerable"
        yield Question(
            str(number), row["image"], row["question"], prompts.uncertain(row["question"]), truth, group=group
        )


def _refcoco(folder: Path) -> Iterator[Question]:
    value = _json(folder / "finetune_refcoco+_val.json")
    boxes = {row["image_id"]: row["bbox"] for row in value["annotations"]}
    for row in value[
        "images"
    ]:  # one entry an expression; MDETR numbers them anew and keeps COCO's number as original_id
        x, y, width, height = boxes[row["id"]]
        size = (int(row["width"]), int(row["height"]))
        truth = (x, y, x + width, y + height)
        yield Question(
            str(row["id"]), row["file_name"], row["caption"], prompts.region(row["caption"]), truth, size=size
        )


def _ocid(folder: Path) -> Iterator[Question]:
    for id, row in _json(folder / "val_expressions.json").items():
        take = int(row["take_id"])
        if not 0 <= take <= OCID_TAKES[-1]:
            raise ValueError(f"take_id {take} is not in 0 to {OCID_TAKES[-1]}")
        group = OCID_CLUTTER[bisect.bisect_left(OCID_TAKES, take)]
        truth = tuple(json.loads(row["bbox"]) if isinstance(row["bbox"], str) else row["bbox"])
        yield Question(id, row["scene_path"], row["sentence"], prompts.region(row["sentence"]), truth, group=group)


def _vsr(folder: Path) -> Iterator[Question]:
    for number, row in enumerate(_lines(folder / "test.jsonl")):
        prompt = prompts.true_or_false(row["caption"])
        yield Question(
            str(number),
            row["image"],
            row["caption"],
            prompt,
            1 - int(row["label"]),
            ("True", "False"),
            row.get("relation", ""),
        )


def _pope(folder: Path) -> Iterator[Question]:
    for kind in POPE_KINDS:
        for row in _lines(folder / f"coco_pope_{kind}.json"):
            truth = ("yes", "no").index(row["label"])
            prompt = prompts.short_answer(row["text"])
            yield Question(
                f"{kind}-{row['question_id']}", row["image"], row["text"], prompt, truth, ("Yes", "No"), kind
            )


def _tally(folder: Path) -> Iterator[Question]:
    for row in _json(folder / "test.json"):
        truth, group = int(row["answer"]), "simple" if row["issimple"] else "complex"
        if not 0 <= truth < prompts.COUNTS:
            raise ValueError(f"answer {truth} is not in 0 to {prompts.COUNTS - 1}")
        prompt = prompts.counting(row["question"])
        yield Question(
            str(row["question_id"]), row["image"], row["question"], prompt, truth, tuple(prompts.letters()), group
        )


BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "gqa", "GQA", ("testdev_balanced_questions.json",), "testdev_balanced", "GQA", 12_578, _gqa, "exact_match"
        ),
        Benchmark("vizwiz", "VizWiz", ("val.json",), "val", "VizWiz-VQA", 4_319, _vizwiz, "vqa_accuracy"),
        Benchmark(
            "refcoco+", "RefCOCO+", ("finetune_refcoco+_val.json",), "val", "RefCOCO+", 10_758, _refcoco, "iou_0.5"
        ),
        Benchmark("ocid-ref", "OCID-Ref", ("val_expressions.json",), "val", "OCID-Ref", 18_342, _ocid, "iou_0.25"),
        Benchmark("vsr", "VSR", ("test.jsonl",), "zeroshot-test", "cambridgeltl/vsr_zeroshot", 1_222, _vsr, "acc"),
        Benchmark(
            "pope",
            "POPE",
            tuple(f"coco_pope_{kind}.json" for kind in POPE_KINDS),
            "coco val",
            "POPE",
            8_910,
            _pope,
            "acc",
            True,
        ),
        Benchmark("tally-qa", "TallyQA", ("test.json",), "test", "TallyQA", 38_589, _tally, "acc"),
    )
}
"""In the order of Table 8. total: questions of the real split (GQA, VSR, VizWiz, POPE: asserted by vlm-evaluation; the
others from the data sets' papers).
"""


def read_questions(folder: Path, name: str) -> list[Question]:
    """All questions of one benchmark. Raises InputError when its files are missing or are not in its format."""
    benchmark = BENCHMARKS[name]
    for file in benchmark.files:
        if not (folder / name / file).is_file():
            raise InputError(f"benchmark {name}: there is no {name}/{file} in the suite")
    try:
        questions = list(benchmark.read(folder / name))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        text = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"benchmark {name}: {', '.join(benchmark.files)} is not in the data set's format: {text}"
        ) from error
    if not questions:
        raise InputError(f"benchmark {name}: its files hold no question")
    return questions


def files_fingerprint(folder: Path, name: str) -> str:
    """SHA-256 of one benchmark of a suite: its files, and the images in its zip files by name, in order."""
    return fingerprint(itertools.chain(file_sums(folder, name), _image_sums(folder, name)))


def fingerprint(sums: Iterable[str]) -> str:
    """The same, from a line for each file and image, in that order: its name and SHA-256."""
    digest = hashlib.sha256()
    for line in sums:
        digest.update(line.encode())
    return digest.hexdigest()


def file_sums(folder: Path, name: str) -> Iterator[str]:
    """The lines of a benchmark's own files."""
    for file in BENCHMARKS[name].files:
        yield f"{file} {hashlib.sha256((folder / name / file).read_bytes()).hexdigest()}\n"


def _image_sums(folder: Path, name: str) -> Iterator[str]:
    for archive in sorted(folder.glob(f"{name}-[0-9]*.zip")):
        with zipfile.ZipFile(archive) as images:
            for image in images.namelist():
                yield f"{image} {hashlib.sha256(images.read(image)).hexdigest()}\n"
