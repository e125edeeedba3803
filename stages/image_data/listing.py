"""Conversations and benchmarks that somebody else made: each row and image is checked, and counted by reason.

Steps of tasks: `list` reads a source's JSON once and cuts it into parts, by the bytes of the images that they are the
first to name; `look` decodes those images; `keep` writes the rows whose images can be used. The same for benchmarks.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.core.reading import open_file
from stages.image_data.images import PROBLEMS, SUMS, Share, image_source, look, read_json_file
from stages.image_data.spec import BenchmarkFiles, ConversationFile, ImageDataConfig
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.compression import Damaged, lines_of, text_of
from stages.lib.vision.benchmarks import BENCHMARKS, file_sums, fingerprint, read_questions
from stages.lib.vision.conversations import ROWS_A_PART, Conversation, RowProblem, parse, write_rows


@dataclass
class Counts:
    """What was found, what was left out and why, with the first row of each reason; `add` adds those of a task."""

    rows: int = 0
    images: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def drop(self, reason: str, place: str) -> None:
        """Count a row that is left out."""
        self.dropped[reason] += 1
        self.first.setdefault(reason, place)

    def add(self, value: Mapping[str, Any]) -> None:
        """Add the numbers of a task that comes after those before."""
        self.rows += value.get("rows", 0)
        self.images += value.get("images", 0)
        for name in ("kinds", "dropped", "remarks"):
            getattr(self, name).update(value.get(name, {}))
        self.first = value.get("first", {}) | self.first


# --- rows -------------------------------------------------------------------------------------------------------------


def write_train(ctx: Context[ImageDataConfig], pool: Pool) -> Counts:
    """Every usable row and its image, in the order of the sources."""
    counts, parts, images = Counts(), 0, 0
    sources = [file for file in ctx.config.sources if file.kind in ctx.config.train_on]
    asked = [{"file": file.model_dump(mode="json"), "where": f"{ctx.node}.sources, {file.name}"} for file in sources]
    listed = pool.map("list", list_rows, asked, ctx.progress)
    looks, cuts = [], []
    for file, task, result in zip(sources, asked, listed, strict=True):
        counts.add(result.value)
        cuts.append(range(len(looks), len(looks) + len(result.value["elsewhere"])))
        looks += [
            _look(result.file(_names(part)), file.images, f"{file.name}/", "images", task["where"])
            for part in range(len(cuts[-1]))
        ]
    looked = pool.map("look", look, looks, ctx.progress)
    tasks = []
    for file, cut, result in zip(sources, cuts, listed, strict=True):
        for part, elsewhere in enumerate(result.value["elsewhere"]):
            whose = [looked[cut[other]] for other in (*elsewhere, part)]
            problems = [one.file(PROBLEMS).value() for one in whose if one.value["problems"]]
            tasks.append({"rows": result.file(_rows(part)).value(), "problems": problems, "name": file.name})
    for result in pool.map("keep", keep, tasks, ctx.progress):
        counts.add(result.value)
        for entry in result.files:
            ctx.link("train", f"part-{parts:05d}.jsonl", entry)
            parts += 1
    for result in looked:
        counts.add(result.value)
        for entry in _zips(result):
            ctx.link("train", f"images-{images:05d}.zip", entry)
            images += 1
    return counts


def _look(names: FileEntry, places: Sequence[str], prefix: str, stem: str, where: str) -> dict[str, Any]:
    return {"names": names.value(), "places": list(places), "prefix": prefix, "stem": stem, "where": where}


def _zips(result: Result) -> list[FileEntry]:
    return [entry for entry in result.files if entry.path.endswith(".zip")]


def _rows(part: int) -> str:
    return f"rows-{part:05d}.jsonl"


def _names(part: int) -> str:
    return f"names-{part:05d}.json"


def list_rows(folder: Path, file: dict[str, Any], where: str) -> dict[str, Any]:
    """Task: the rows of a source that are in order, cut into parts, with the images that each is the first to name."""
    source, counts = ConversationFile.model_validate(file), Counts()
    share = Share(image_source(source.images, where), ROWS_A_PART)
    stream, part = None, -1
    try:
        for number, row in islice(enumerate(_read_json(source, where), 1), 0, None, source.every):
            counts.rows += 1
            place = f"{source.name}, row {number}"
            try:
                parsed = parse(row)
                line = json.dumps([number, parsed.row()], ensure_ascii=False).encode()
            except RowProblem as problem:
                counts.drop(str(problem), place)
                continue
            except UnicodeEncodeError:
                counts.drop("half a surrogate pair in its text", place)
                continue
            if (here := share.add(parsed.image)) != part:
                if stream is not None:
                    stream.close()
                stream, part = open(folder / _rows(here), "wb"), here  # noqa: SIM115
            assert stream is not None
            stream.write(line + b"\n")
    finally:
        if stream is not None:
            stream.close()
    _write_names(folder, share)
    elsewhere = [sorted(parts) for parts in share.elsewhere]
    return {"rows": counts.rows, "dropped": counts.dropped, "first": counts.first, "elsewhere": elsewhere}


def _write_names(folder: Path, share: Share) -> None:
    for part, names in enumerate(share.names):
        (folder / _names(part)).write_text(json.dumps(names), encoding="utf-8")


def _read_json(file: ConversationFile, where: str) -> Iterator[Any]:
    """The rows of a JSON list or of JSON lines. Raises InputError."""
    path = Path(file.path)
    try:
        first = next(lines_of(path), "")
        if first.startswith("["):
            yield from json.loads(text_of(path))
        else:
            yield from map(json.loads, lines_of(path))
    except (OSError, ValueError, RecursionError, Damaged) as error:
        raise InputError(f"{where}: {path.name} cannot be read: {' '.join(str(error).split())}") from error


def keep(folder: Path, rows: dict[str, Any], problems: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Task: write the rows of a part whose images can be used. problems: of the parts that have looked at them."""
    known: dict[str, str] = {}
    for entry in problems:
        known |= read_json_file(entry)
    counts = Counts()
    with open_file(FileEntry.model_validate(rows)) as stream:
        counts.kinds[name] += write_rows(folder, _usable(stream, name, known, counts))
    return {"kinds": +counts.kinds, "dropped": counts.dropped, "first": counts.first}


def _usable(lines: Iterable[bytes], name: str, known: Mapping[str, str], counts: Counts) -> Iterator[Conversation]:
    for line in lines:
        number, value = json.loads(line)
        row = parse(value)
        if row.image is not None and row.image in known:
            counts.drop(f"image: {known[row.image]}", f"{name}, row {number} ({row.image})")
        else:
            yield Conversation(row.id, None if row.image is None else f"{name}/{row.image}", row.turns)


def judge(ctx: Context[ImageDataConfig], counts: Counts) -> None:
    """Refuse data of which too much is unusable: such a data set is not the one that was meant."""
    dropped, total = counts.dropped.total(), counts.rows
    if not total or dropped == total:
        raise InputError(f"{ctx.node}: none of {total} rows can be used{_reasons(counts)}")
    if dropped > ctx.config.max_unusable * total:
        raise InputError(
            f"{ctx.node}: {dropped} of {total} rows cannot be used{_reasons(counts)}; mend them, or raise "
            f"{ctx.node}.max_unusable (now {ctx.config.max_unusable})"
        )


def _reasons(counts: Counts) -> str:
    if not counts.dropped:
        return ""
    parts = [f"{number} {reason} (first: {counts.first[reason]})" for reason, number in counts.dropped.most_common()]
    return ": " + "; ".join(parts)


# --- benchmarks -------------------------------------------------------------------------------------------------------


def write_suite(ctx: Context[ImageDataConfig], pool: Pool) -> dict[str, tuple[int, str]]:
    """All benchmarks, in the order of Table 8; how many questions each has, and its fingerprint. All of their images
    must be usable: scores of fewer questions do not compare.
    """
    given = ctx.config.benchmarks
    chosen = [(one.name, given[one.name]) for one in BENCHMARKS.values() if one.name in given]
    tasks = [
        {"name": name, "files": files.model_dump(mode="json"), "where": f"{ctx.node}.benchmarks.{name}"}
        for name, files in chosen
    ]
    listed = pool.map("list-questions", list_questions, tasks, ctx.progress)
    looks, owners = [], []
    for (name, files), task, result in zip(chosen, tasks, listed, strict=True):
        for part in range(result.value["parts"]):
            looks.append(_look(result.file(_names(part)), files.images, "", name, task["where"]))
            owners.append(name)
    looked = pool.map("look-questions", look, looks, ctx.progress)
    for task, result in zip(looks, looked, strict=True):
        if result.value["problems"]:
            image, problem = next(iter(read_json_file(result.file(PROBLEMS).value()).items()))
            raise InputError(f"{task['where']}: image {image} cannot be used: {problem}")
    suite = {}
    for (name, _), result in zip(chosen, listed, strict=True):
        mine = [one for one, owner in zip(looked, owners, strict=True) if owner == name]
        for entry in result.files:
            if entry.path.startswith(f"{name}/"):
                ctx.link("suite", entry.path, entry)
        for number, entry in enumerate(entry for one in mine for entry in _zips(one)):
            ctx.link("suite", f"{name}-{number:05d}.zip", entry)
        sums = _sums(result.value["sums"], [one.file(SUMS) for one in mine])
        suite[name] = (result.value["questions"], fingerprint(sums))
    return suite


def _sums(files: Sequence[str], images: Iterable[FileEntry]) -> Iterator[str]:
    yield from files
    for entry in images:
        with open_file(entry) as stream:
            yield from (line.decode() for line in stream)


def list_questions(folder: Path, name: str, files: dict[str, Any], where: str) -> dict[str, Any]:
    """Task: copy one benchmark's own files, and cut the list of its images into parts."""
    given = BenchmarkFiles.model_validate(files)
    (folder / name).mkdir()
    for file in BENCHMARKS[name].files:
        origin = Path(given.folder) / file
        if not origin.is_file():
            raise ConfigError(f"{where}: there is no {file} in {given.folder!r}")
        shutil.copyfile(origin, folder / name / file)
    questions = read_questions(folder, name)
    share = Share(image_source(given.images, where), ROWS_A_PART)
    for question in questions:
        share.add(question.image)
    _write_names(folder, share)
    return {"questions": len(questions), "parts": len(share.names), "sums": list(file_sums(folder, name))}
