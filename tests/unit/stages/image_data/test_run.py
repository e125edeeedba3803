"""Image data: scenes that are never in both splits, LLaVA's rows checked one by one, the benchmarks in their own
formats.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import time
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext
from stages.image_data import synthetic
from stages.image_data.questions import MAKERS, RELATIONS, holds
from stages.image_data.run import run
from stages.image_data.scenes import COLORS, draw_scene
from stages.image_data.spec import BenchmarkFiles, ConversationFile, ImageDataConfig
from stages.lib.formats.suites import read_suite
from stages.lib.vision.benchmarks import BENCHMARKS, files_fingerprint, read_questions
from stages.lib.vision.conversations import ImageReader, RowProblem, parse, read_rows
from stages.lib.vision.image_decoding import MAX_BYTES, decode
from tests.support.scenes import data_config, read_jsonl

HANG = 300.0


def digests(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> LocalContext[ImageDataConfig]:
    ctx = LocalContext(tmp_path_factory.mktemp("machine"), data_config(scenes=150, test_scenes=60, test_questions=30))
    run(ctx)
    return ctx


def test_the_same_seed_gives_the_same_bytes(machine: LocalContext[ImageDataConfig], tmp_path: Path) -> None:
    again = LocalContext(tmp_path / "again", machine.config)
    run(again)
    other = LocalContext(tmp_path / "other", machine.config.model_copy(update={"seed": 8}))
    run(other)
    for port in ("train", "suite"):
        assert digests(again.output(port)) == digests(machine.output(port))
    assert digests(other.output("train")) != digests(machine.output("train"))


def test_every_benchmark_has_a_fingerprint_that_one_changed_byte_changes(
    machine: LocalContext[ImageDataConfig], tmp_path: Path
) -> None:
    listed = {d.id: d.fingerprint["default"] for d in read_suite(machine.output("suite")).data_sets}
    assert listed.keys() == BENCHMARKS.keys()
    shutil.copytree(machine.output("suite"), tmp_path / "suite")
    for name, splits in listed.items():
        assert splits == {BENCHMARKS[name].split: files_fingerprint(tmp_path / "suite", name)}
    file = tmp_path / "suite" / "vsr" / "test.jsonl"
    file.write_bytes(file.read_bytes().replace(b"a", b"e", 1))
    assert files_fingerprint(tmp_path / "suite", "vsr") not in listed["vsr"].values()
    archive = next((tmp_path / "suite").glob("gqa-*.zip"))
    with zipfile.ZipFile(archive, "a") as images:
        images.writestr("one-more.png", b"x")
    assert files_fingerprint(tmp_path / "suite", "gqa") not in listed["gqa"].values()


def test_a_third_of_the_image_rows_are_dense_captions(machine: LocalContext[ImageDataConfig]) -> None:
    kinds = machine.stats["rows_by_kind"]
    with_image = sum(count for kind, count in kinds.items() if kind != "text")
    assert kinds["caption"] * 3 == with_image
    assert set(kinds) == {"caption", "text", *MAKERS}
    rows = list(read_rows(machine.output("train")))
    assert len(rows) == machine.stats["rows"]
    assert sum(row.image is None for row in rows) == kinds["text"] > 0


def test_no_layout_is_in_both_splits(machine: LocalContext[ImageDataConfig]) -> None:
    """Known from the rows alone: a caption names every cell, and captions of test scenes are not among those trained
    on.
    """
    trained = {row.turns[1].text for row in read_rows(machine.output("train")) if "Describe" in row.turns[0].text}
    assert len(trained) > 100
    assert trained.isdisjoint(scene.caption() for scene in synthetic.test_scenes(machine.config))


def test_every_answer_is_what_the_picture_shows() -> None:
    """Read back from the pixels: the colour at a box's centre is the colour that the answers are about."""
    rng = random.Random(4)
    for _ in range(60):
        scene = draw_scene(rng, 2, 64)
        image = decode(scene.jpeg())[0]
        assert scene.caption().count("empty") == 4 - len(scene.things)
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= 64
            assert 0 <= y1 < y2 <= 64
            found = image.getpixel(((x1 + x2) // 2, (y1 + 2 * y2) // 3))
            assert (
                min(COLORS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLORS[name], found, strict=True)))
                == thing.color
            )
        for one in scene.things:
            for other in scene.things:
                if one != other:
                    assert sum(holds(one, other, r) for r in RELATIONS) == (one.row == other.row) + (
                        one.column == other.column
                    )
                    assert holds(one, other, "left of") == holds(other, one, "right of")
                    assert holds(one, other, "above") == holds(other, one, "below")


def test_questions_that_guessing_could_answer_are_balanced() -> None:
    rng = random.Random(5)
    scenes = [draw_scene(rng, 2, 64) for _ in range(3000)]
    for type, right in (("pope", "Yes"), ("vsr", "True")):
        answers = [asked.answer for scene in scenes if (asked := MAKERS[type](rng, scene))]
        assert 0.45 < answers.count(right) / len(answers) < 0.55


def test_the_suite_is_in_the_formats_of_the_real_data_sets(machine: LocalContext[ImageDataConfig]) -> None:
    folder = machine.output("suite")
    for name, benchmark in BENCHMARKS.items():
        questions = read_questions(folder, name)
        assert len(questions) == machine.stats["questions"][name] == 30
        reader = ImageReader(folder.glob(f"{name}-[0-9]*.zip"), MAX_BYTES)
        for question in questions:
            assert decode(reader[question.image])[0].size == (32, 32)
            if question.options:
                assert 0 <= question.truth < len(question.options)
        assert benchmark.split
    ocid = {q.group for q in read_questions(folder, "ocid-ref")}
    assert ocid == {"minimum", "medium", "maximum"}
    assert {q.group for q in read_questions(folder, "pope")} == {"adversarial", "popular", "random"}


# --- rows of others
# ----------------------------------------------------------------------------------------------------


def turns(question: str = "<image>\nWhat?", answer: str = "red") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


GOOD: list[dict[str, Any]] = [
    {"id": "a", "image": "coco/1.jpg", "conversations": turns()},
    {"id": "b", "image": "coco/1.jpg", "conversations": [*turns(), *turns("And?", "blue")]},
    {"id": 7, "conversations": turns("Only text?")},
    {"id": "d", "image": "gif/2.gif", "conversations": turns("Where is it? <image>")},
]
LISTS: list[tuple[dict[str, Any], str | None]] = [
    ({"image": ["coco/1.jpg"], "conversations": turns()}, "coco/1.jpg"),
    ({"images": ["coco/1.jpg"], "conversations": turns()}, "coco/1.jpg"),
    ({"images": [], "conversations": turns("Only text?")}, None),
    ({"image": None, "conversations": turns("Only text?")}, None),
]
BAD: list[tuple[Any, str]] = [
    ({"id": "x", "image": "coco/1.jpg", "conversations": turns("No mark")}, "0 <image> marks, 1 images"),
    ({"id": "x", "conversations": turns()}, "1 <image> marks, 0 images"),
    ({"id": "x", "image": "coco/1.jpg", "conversations": turns("<image><image>")}, "2 <image> marks, 1 images"),
    ({"id": "x", "image": "coco/1.jpg", "conversations": turns("<image>" * 5)}, "2+ <image> marks, 1 images"),
    ({"id": "x", "image": ["coco/1.jpg"] * 2, "conversations": turns("<image><image>")}, "more than one image"),
    ({"id": "x", "image": 5, "conversations": turns()}, "image is no name"),
    ({"id": "x", "conversations": []}, "no conversations"),
    ("text", "no conversations"),
    ({"id": "x", "conversations": [{"from": "system", "value": "s"}]}, "a turn without role or text"),
    ({"id": "x", "conversations": [{"from": "human", "value": None}]}, "a turn without role or text"),
    ({"id": "x", "conversations": turns()[:1]}, "ends with a question"),
    ({"id": "x", "conversations": [*turns("q"), *turns("q")[1:]]}, "turns do not alternate"),
    ({"id": "x", "conversations": turns("q", " ")}, "no answer"),
    ({"id": "x", "image": "coco/none.jpg", "conversations": turns()}, "image: missing file"),
    ({"id": "x", "image": "coco/broken.jpg", "conversations": turns()}, "image: truncated"),
    ({"id": "x", "image": "../secret.jpg", "conversations": turns()}, "image: name leads outside its folder"),
    ({"id": "x", "image": "/etc/passwd", "conversations": turns()}, "image: name leads outside its folder"),
    ({"id": "x", "image": "coco", "conversations": turns()}, "image: not a file"),
]


@pytest.mark.parametrize(("row", "image"), LISTS)
def test_a_list_of_one_image_is_that_image(row: dict[str, Any], image: str | None) -> None:
    assert parse(row).image == image


def jpeg(size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, format="JPEG")
    return out.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with images, a zip with a GIF, and a real benchmark in miniature."""
    root = tmp_path / "source"
    (root / "images" / "coco").mkdir(parents=True)
    (root / "images" / "coco" / "1.jpg").write_bytes(jpeg(mode="CMYK"))
    (root / "images" / "coco" / "broken.jpg").write_bytes(jpeg((400, 300))[:-900])
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    out = io.BytesIO()
    frames = [Image.new("RGB", (9, 9), color).quantize(4) for color in ((200, 0, 0), (0, 0, 200))]
    frames[0].save(out, format="GIF", save_all=True, append_images=frames[1:])
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        archive.writestr("gif/2.gif", out.getvalue())
    (root / "vsr").mkdir()
    rows = [
        {
            "image": "1.jpg",
            "caption": "The cat is under the table.",
            "label": 1,
            "relation": "under",
            "subj": "cat",
            "obj": "table",
        }
    ]
    (root / "vsr" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "vsr" / "1.jpg").write_bytes(jpeg())
    return root


def listing(source: Path, rows: list[Any] | str, **changes: Any) -> ImageDataConfig:
    text = rows if isinstance(rows, str) else json.dumps(rows)
    (source / "chat.json").write_text(text, encoding="utf-8")
    file = ConversationFile(
        name="mix",
        kind="instructions",
        path=str(source / "chat.json"),
        images=(str(source / "images"), str(source / "more.zip")),
    )
    vsr = BenchmarkFiles(folder=str(source / "vsr"), images=(str(source / "vsr"),))
    values: dict[str, Any] = {"sources": (file,), "benchmarks": {"vsr": vsr}, "max_unusable": 1.0}
    return ImageDataConfig(**(values | changes))


def test_rows_of_others_are_taken_over_with_their_images(source: Path, tmp_path: Path) -> None:
    ctx = LocalContext(tmp_path / "run", listing(source, GOOD))
    run(ctx)
    rows = list(read_rows(ctx.output("train")))
    assert [row.image for row in rows] == ["mix/coco/1.jpg", "mix/coco/1.jpg", None, "mix/gif/2.gif"]
    assert rows[1].turns[2].text == "And?"
    assert rows[2].id == "7"
    reader = ImageReader(ctx.output("train").glob("*.zip"), MAX_BYTES)
    assert sorted(reader) == ["mix/coco/1.jpg", "mix/gif/2.gif"]
    assert ctx.stats["left_out"] == {}
    assert ctx.stats["image_remarks"] == {"CMYK": 1, "palette": 1, "animated: first frame": 1}
    assert ctx.stats["questions"] == {"vsr": 1}


def test_bad_rows_are_counted_by_reason_and_the_rest_is_kept(source: Path, tmp_path: Path) -> None:
    ctx = LocalContext(tmp_path / "run", listing(source, [*GOOD, *(row for row, _ in BAD)]))
    run(ctx)
    assert ctx.stats["rows"] == len(GOOD)
    assert ctx.stats["left_out"] == dict(Counter(reason for _, reason in BAD))
    assert ctx.stats["first_left_out"]["0 <image> marks, 1 images"] == f"mix, row {len(GOOD) + 1}"
    assert any("image: truncated" in line for line in ctx.logs)


def test_a_smaller_run_takes_each_nth_row(source: Path, tmp_path: Path) -> None:
    config = listing(source, GOOD)
    fewer = config.model_copy(update={"sources": (config.sources[0].model_copy(update={"every": 3}),)})
    ctx = LocalContext(tmp_path / "run", fewer)
    run(ctx)
    assert [row.image for row in read_rows(ctx.output("train"))] == ["mix/coco/1.jpg", "mix/gif/2.gif"]


@pytest.mark.parametrize(("row", "reason"), [(row, reason) for row, reason in BAD if not reason.startswith("image: ")])
def test_a_row_has_its_reason(row: Any, reason: str) -> None:
    with pytest.raises(RowProblem) as caught:
        parse(row)
    assert str(caught.value) == reason


def test_too_many_bad_rows_end_the_stage_in_one_line(source: Path, tmp_path: Path) -> None:
    config = listing(source, [*GOOD, BAD[13][0], BAD[0][0]], max_unusable=0.1)
    with pytest.raises(
        InputError,
        match=(
            r"2 of 6 rows cannot be used: .*missing file \(first: mix, row 5 \(coco/none\.jpg\)\).*raise"
            r" test\.max_unusable"
        ),
    ) as caught:
        run(LocalContext(tmp_path / "run", config))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="none of 1 rows can be used"):
        run(LocalContext(tmp_path / "none", listing(source, [BAD[0][0]])))


# --- by tasks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(source: Path, monkeypatch: pytest.MonkeyPatch) -> ImageDataConfig:
    """Six images and a bad one, in parts of two images at most: named again later on, in another part."""
    for number in range(5):
        (source / "images" / "coco" / f"{number + 2}.jpg").write_bytes(jpeg((40 + number, 30)))
    rows = [{"id": "", "image": f"coco/{n}.jpg", "conversations": turns()} for n in (1, 2, "broken", 3, 4, "broken", 2)]
    rows += [*GOOD, *({"id": "", "image": f"coco/{n}.jpg", "conversations": turns()} for n in (5, 6, 1))]
    size = (source / "images" / "coco" / "1.jpg").stat().st_size
    monkeypatch.setattr("stages.image_data.images.ZIP_BYTES", 2 * size)
    return listing(source, rows)


@pytest.mark.slow  # processes of their own
def test_parts_hold_what_one_has_and_two_workers_the_same_bytes(several: ImageDataConfig, tmp_path: Path) -> None:
    one, two = LocalContext(tmp_path / "one", several), LocalContext(tmp_path / "two", several)
    run(one)
    two.config = several.model_copy(update={"workers": 2})
    run(two)
    for port in ("train", "suite"):
        assert digests(one.output(port)) == digests(two.output(port))
    assert one.stats == two.stats
    assert len(list(one.output("train").glob("*.zip"))) > 2
    rows = list(read_rows(one.output("train")))
    reader = ImageReader(one.output("train").glob("*.zip"), MAX_BYTES)
    assert {row.image for row in rows} - {None} == set(reader)
    assert len(reader) == sum(len(zipfile.ZipFile(path).namelist()) for path in one.output("train").glob("*.zip"))
    assert one.stats["left_out"] == {"image: truncated": 2}
    assert one.stats["first_left_out"] == {"image: truncated": "mix, row 3 (coco/broken.jpg)"}
    assert one.stats["images"] == len(reader) == 7
    (dataset,) = read_suite(one.output("suite")).data_sets
    assert dataset.fingerprint["default"] == {"zeroshot-test": files_fingerprint(one.output("suite"), "vsr")}


def test_scenes_are_drawn_by_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which each needs nothing of the others."""
    monkeypatch.setattr("stages.image_data.synthetic.SCENES_A_PART", 10)
    ctx = LocalContext(tmp_path / "run", data_config())
    run(ctx)
    rows = list(read_rows(ctx.output("train")))
    assert ctx.stats["images"] == len({row.image for row in rows} - {None}) == 24
    assert len({row.id for row in rows}) == len(rows) == ctx.stats["rows"] == 24 * 3 + 4
    (tmp_path / "alone").mkdir()
    synthetic.draw(tmp_path / "alone", data_config().model_dump(mode="json"), 20, 24)
    for alone, name in (("part-00000.jsonl", "part-00002.jsonl"), ("images-00000.zip", "images-00002.zip")):
        assert (tmp_path / "alone" / alone).read_bytes() == (ctx.output("train") / name).read_bytes()


def test_a_killed_attempt_is_taken_up(
    several: ImageDataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends, without a word to anybody, when two parts are done: they are not looked at again."""
    whole, ctx = LocalContext(tmp_path / "whole", several), LocalContext(tmp_path / "run", several)
    run(whole)
    receipts = ctx.root / "tasks"
    process = os.fork()
    if not process:
        monkeypatch.setattr("stages.image_data.images.decode", partial(_die_after, receipts / "look/000001.json", []))
        with contextlib.suppress(BaseException):
            run(ctx)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    done = {path: path.stat().st_mtime_ns for path in receipts.glob("*/*.json")}
    assert {path.parent.name for path in done} == {"list", "look"}
    run(ctx)
    assert all(path.stat().st_mtime_ns == when for path, when in done.items()), "what was done was done again"
    assert digests(ctx.output("train")) == digests(whole.output("train"))


def _die_after(receipt: Path, seen: list[bytes], data: bytes) -> Any:
    """Decode four images, which are two parts at least; at the fifth wait for their receipt, which another thread
    writes, and end.
    """
    seen.append(data)
    if len(seen) <= 4:
        return decode(data)
    until = time.monotonic() + HANG
    while not receipt.exists() and time.monotonic() < until:
        time.sleep(0.01)
    os._exit(9)


def test_two_sources_of_one_name_are_refused() -> None:
    file = ConversationFile(name="mix", kind="captions", path="a.json")
    with pytest.raises(ValueError, match="two sources are called 'mix'"):
        ImageDataConfig(sources=(file, file))


def test_half_a_surrogate_pair_is_counted(source: Path, tmp_path: Path) -> None:
    """It cannot be written as UTF-8: the stage broke there."""
    ctx = LocalContext(tmp_path / "run", listing(source, [*GOOD, {"conversations": turns("What?", "\ud800")}]))
    run(ctx)
    assert ctx.stats["left_out"] == {"half a surrogate pair in its text": 1}


@pytest.mark.parametrize("text", ["[{", '{"id": 1}\n{"', "[" * 100_000])
def test_a_damaged_file_is_named(source: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"test\.sources, mix: chat\.json cannot be read"):
        run(LocalContext(tmp_path / "run", listing(source, text)))


def test_json_lines_are_read_like_a_list(source: Path, tmp_path: Path) -> None:
    ctx = LocalContext(tmp_path / "run", listing(source, "\n".join(json.dumps(row) for row in GOOD)))
    run(ctx)
    assert ctx.stats["rows"] == len(GOOD)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sources": ()}, ConfigError, r"test\.sources lists no file of the kinds to train on \(instructions\)"),
        ({"train_on": ("captions",)}, ConfigError, r"kinds to train on \(captions\)"),
        ({"benchmarks": {}}, ConfigError, r"test\.benchmarks is empty"),
        (
            {"benchmarks": {"gqa": BenchmarkFiles(folder="/nowhere", images=("/nowhere",))}},
            ConfigError,
            "there is no testdev_balanced_questions",
        ),
    ],
)
def test_what_is_not_set_is_named(
    source: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(LocalContext(tmp_path / "run", listing(source, GOOD, **changes)))


def test_a_benchmark_with_a_missing_image_or_in_another_format_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "vsr" / "1.jpg").unlink()
    with pytest.raises(InputError, match=r"test\.benchmarks\.vsr: image 1\.jpg cannot be used: missing file"):
        run(LocalContext(tmp_path / "a", listing(source, GOOD)))
    (source / "vsr" / "test.jsonl").write_text('{"image": "1.jpg", "caption": "x"}\n')
    with pytest.raises(InputError, match=r"benchmark vsr: test\.jsonl is not in the data set's format: no 'label'"):
        run(LocalContext(tmp_path / "b", listing(source, GOOD)))


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", b"\0" * (MAX_BYTES + 1))
        archive.writestr("small.jpg", jpeg())
    reader = ImageReader([tmp_path / "images.zip"], MAX_BYTES)
    assert decode(reader["small.jpg"])[0].size == (40, 30)
    with pytest.raises(KeyError, match="bomb"):
        reader["bomb.jpg"]
    (tmp_path / "no.zip").write_bytes(b"text")
    with pytest.raises(InputError, match=r"no\.zip is no zip file"):
        ImageReader([tmp_path / "no.zip"], MAX_BYTES)


def test_boxes_of_ocid_and_refcoco_are_corners(machine: LocalContext[ImageDataConfig]) -> None:
    folder = machine.output("suite")
    raw = json.loads((folder / "refcoco+" / "finetune_refcoco+_val.json").read_text())
    first = read_questions(folder, "refcoco+")[0]
    x, y, width, height = raw["annotations"][0]["bbox"]
    assert first.truth == (x, y, x + width, y + height)
    assert first.size == (32, 32)
    assert read_jsonl(folder / "vsr" / "test.jsonl")[0]["label"] in (0, 1)
