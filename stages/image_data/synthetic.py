"""Rendered scenes as training rows and as the seven benchmarks, in the real ones' formats. No layout is in both."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.core.context import Context
from stages.image_data.questions import MAKERS, POPE_KINDS, WEIGHTS, Asked, pope
from stages.image_data.scenes import Scene, scenes
from stages.image_data.spec import ImageDataConfig
from stages.lib.data.workers import Pool
from stages.lib.vision.benchmarks import OCID_TAKES, files_fingerprint
from stages.lib.vision.conversations import IMAGE, Conversation, ImageWriter, Turn, write_rows
from stages.lib.vision.prompts import short_answer

CAPTION = "\nDescribe the image."
SCENES_A_PART = 5_000
"""What one task draws."""
Picked = list[tuple[int, Scene, Asked]]


def test_scenes(config: ImageDataConfig) -> list[Scene]:
    """The suite's scenes."""
    rng = random.Random(f"{config.seed} test scenes")
    source = scenes(rng, config.grid, config.size)
    return [next(source) for _ in range(config.test_scenes)]


def write_train(ctx: Context[ImageDataConfig], pool: Pool) -> tuple[Counter[str], int]:
    """All training rows and their images; how many rows of each type, and images."""
    config, kinds, images, zips = ctx.config, Counter[str](), 0, 0
    settings = config.model_dump(mode="json", exclude={"workers"})
    starts = range(0, config.scenes, SCENES_A_PART)
    tasks = [{"config": settings, "start": n, "end": min(config.scenes, n + SCENES_A_PART)} for n in starts]
    for part, result in enumerate(pool.map("draw", draw, tasks, ctx.progress)):
        kinds.update(result.value["kinds"])
        images += result.value["images"]
        for entry in result.files:
            if entry.path.endswith(".zip"):
                ctx.link("train", f"images-{zips:05d}.zip", entry)
                zips += 1
            else:
                ctx.link("train", f"part-{part:05d}.jsonl", entry)
    return kinds, images


def draw(folder: Path, config: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    """Task: the rows and images of the scenes [start, end)."""
    kinds: Counter[str] = Counter()
    settings = ImageDataConfig.model_validate(config)
    with ImageWriter(folder) as writer:
        write_rows(folder, (row for kind, row in _rows(settings, start, end, writer) if not kinds.update([kind])))
    return {"kinds": kinds, "images": len(writer.names)}


def _rows(config: ImageDataConfig, start: int, end: int, writer: ImageWriter) -> Iterator[tuple[str, Conversation]]:
    """(type, row) of some scenes; their images go to the writer. No layout of the suite is among them."""
    rng = random.Random(f"{config.seed} train{f' from {start}' if start else ''}")
    avoid = frozenset[object](scene.layout for scene in test_scenes(config))
    source = scenes(rng, config.grid, config.size, avoid)
    for number in range(start, end):
        scene = next(source)
        name = f"scenes/{number:06d}.jpg"
        writer.add(name, scene.jpeg())
        asked = [("caption", CAPTION, scene.caption()), *_asked(rng, scene, config.rows_per_scene - 1)]
        for index, (type, prompt, answer) in enumerate(asked):
            yield (
                type,
                Conversation(
                    f"{number:06d}-{index}", name, (Turn(True, f"{IMAGE}\n{prompt.strip()}"), Turn(False, answer))
                ),
            )
    texts = round(config.text_share * config.scenes * config.rows_per_scene)
    for number in range(texts * start // config.scenes, texts * end // config.scenes):
        scene = next(source)
        text_question = next((a for _ in range(100) if (a := MAKERS["gqa"](rng, scene)) is not None), None)
        if text_question is not None:
            question = f"{scene.sentence()} {short_answer(text_question.question).strip()}"
            yield (
                "text",
                Conversation(f"text-{number:06d}", None, (Turn(True, question), Turn(False, text_question.answer))),
            )


def _asked(rng: random.Random, scene: Scene, count: int) -> Iterator[tuple[str, str, str]]:
    """(type, prompt, answer) of questions about a scene; types that the scene does not allow are drawn again."""
    types, weights, posed, tries = list(WEIGHTS), list(WEIGHTS.values()), 0, 0
    while posed < count and tries < 50 * count:
        tries += 1
        type = rng.choices(types, weights)[0]
        asked = MAKERS[type](rng, scene)
        if asked is not None:
            posed += 1
            yield type, asked.prompt(type), asked.answer


# --- the suite
# ---------------------------------------------------------------------------------------------------------


def write_suite(ctx: Context[ImageDataConfig], pool: Pool) -> dict[str, tuple[int, str]]:
    """Write all seven benchmarks; how many questions each has, and its fingerprint."""
    settings, suite = ctx.config.model_dump(mode="json", exclude={"workers"}), {}
    tasks = [{"config": settings, "name": name} for name in WRITERS]
    for name, result in zip(WRITERS, pool.map("draw-suite", draw_benchmark, tasks, ctx.progress), strict=True):
        suite[name] = (result.value["questions"], result.value["fingerprint"])
        for entry in result.files:
            ctx.link("suite", entry.path, entry)
    return suite


def draw_benchmark(folder: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    """Task: one benchmark, about the suite's scenes."""
    settings = ImageDataConfig.model_validate(config)
    (folder / name).mkdir()
    with ImageWriter(folder, name) as writer:
        rng = random.Random(f"{settings.seed} {name}")
        count = WRITERS[name](folder / name, rng, test_scenes(settings), settings.test_questions, writer)
    return {"questions": count, "fingerprint": files_fingerprint(folder, name)}


def _pick(
    rng: random.Random, suite_scenes: list[Scene], count: int, make: Callable[[random.Random, Scene], Asked | None]
) -> Picked:
    """Questions of one type, about scenes in turn; none twice about one scene."""
    picked: Picked = []
    seen: set[tuple[int, str]] = set()
    for round_ in range(20):
        for number, scene in enumerate(suite_scenes):
            if len(picked) == count:
                return picked
            asked = make(rng, scene) if (round_, number) not in seen else None
            if asked is not None and (number, asked.question) not in seen:
                seen.add((number, asked.question))
                picked.append((number, scene, asked))
    return picked


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _dump_lines(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def _gqa(folder: Path, rng: random.Random, suite_scenes: list[Scene], count: int, images: ImageWriter) -> int:
    out = {}
    for index, (number, scene, asked) in enumerate(_pick(rng, suite_scenes, count, MAKERS["gqa"])):
        images.add(f"n{number}.jpg", scene.jpeg())
        out[str(index)] = {
            "imageId": f"n{number}", "question": asked.question, "answer": asked.answer, "fullAnswer": asked.answer,
            "isBalanced": True, "entailed": [], "equivalent": [str(index)], "semanticStr": "",
        }  # fmt: skip
    _dump(folder / "testdev_balanced_questions.json", out)
    return len(out)


def _vizwiz(folder: Path, rng: random.Random, suite_scenes: list[Scene], count: int, images: ImageWriter) -> int:
    out = []
    for number, scene, asked in _pick(rng, suite_scenes, count, MAKERS["vizwiz"]):
        name = f"VizWiz_val_{number:08d}.jpg"
        images.add(name, scene.jpeg())
        answers = [{"answer": asked.answer, "answer_confidence": "yes"} for _ in range(10)]
        kind = "other" if asked.facts["answerable"] else "unanswerable"
        out.append({"image": name, "question": asked.question, "answers": answers, "answer_type": kind, **asked.facts})
    _dump(folder / "val.json", out)
    return len(out)


def _refcoco(folder: Path, rng: random.Random, suite_scenes: list[Scene], count: int, images: ImageWriter) -> int:
    pictures, annotations = [], []
    for index, (number, scene, asked) in enumerate(_pick(rng, suite_scenes, count, MAKERS["refcoco"])):
        name = f"COCO_train2014_{number:012d}.jpg"
        images.add(name, scene.jpeg())
        x1, y1, x2, y2 = asked.facts["box"]
        size = {"height": scene.size, "width": scene.size}
        pictures.append(
            {
                "id": index,
                "original_id": number,
                "file_name": name,
                "caption": asked.question,
                "dataset_name": "refcoco+",
                **size,
            }
        )
        area = (x2 - x1) * (y2 - y1)
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0, "category_id": 1}
        annotations.append({"id": index, "image_id": index, "original_id": number, **box})
    _dump(folder / "finetune_refcoco+_val.json", {"images": pictures, "annotations": annotations, "categories": []})
    return len(pictures)


def _ocid(folder: Path, rng: random.Random, suite_scenes: list[Scene], count: int, images: ImageWriter) -> int:
    out = {}
    for index, (number, scene, asked) in enumerate(_pick(rng, suite_scenes, count, MAKERS["ocid"])):
        path = f"scenes/seq{number:04d}/rgb/result.jpg"
        images.add(path, scene.jpeg())
        take = OCID_TAKES[min(len(scene.things) - 2, 2)]  # two, three, four things: minimum, medium, maximum clutter
        out[str(index)] = {
            "scene_path": path,
            "sentence": asked.question,
            "bbox": json.dumps(list(asked.facts["box"])),
            "take_id": take,
        }
    _dump(folder / "val_expressions.json", out)
    return len(out)


def _vsr(folder: Path, rng: random.Random, suite_scenes: list[Scene], count: int, images: ImageWriter) -> int:
    out = []
    for number, scene, asked in _pick(rng, suite_scenes, count, MAKERS["vsr"]):
        name = f"{number:012d}.jpg"
        images.add(name, scene.jpeg())
        out.append({"image": name, "caption": asked.question, **asked.facts})
    _dump_lines(folder / "test.jsonl", out)
    return len(out)


def _pope(folder: Path, rng: random.Random, suite_scenes: list[Scene], count: int, images: ImageWriter) -> int:
    total = 0
    for kind in POPE_KINDS:

        def make(rng: random.Random, scene: Scene, kind: str = kind) -> Asked | None:
            return pope(rng, scene, kind)

        out = []
        for index, (number, scene, asked) in enumerate(_pick(rng, suite_scenes, count // len(POPE_KINDS), make), 1):
            name = f"COCO_val2014_{number:012d}.jpg"
            images.add(name, scene.jpeg())
            out.append({"question_id": index, "image": name, "text": asked.question, "label": asked.facts["label"]})
        _dump_lines(folder / f"coco_pope_{kind}.json", out)
        total += len(out)
    return total


def _tally(folder: Path, rng: random.Random, suite_scenes: list[Scene], count: int, images: ImageWriter) -> int:
    out = []
    for index, (number, scene, asked) in enumerate(_pick(rng, suite_scenes, count, MAKERS["tallyqa"])):
        name = f"VG_100K/{number}.jpg"
        images.add(name, scene.jpeg())
        row = {
            "image": name,
            "image_id": number,
            "question_id": index,
            "question": asked.question,
            "data_source": "machine",
        }
        out.append({**row, "answer": asked.facts["answer"], "issimple": asked.facts["simple"]})
    _dump(folder / "test.json", out)
    return len(out)


WRITERS: Mapping[str, Callable[[Path, random.Random, list[Scene], int, ImageWriter], int]] = {
    "gqa": _gqa, "vizwiz": _vizwiz, "refcoco+": _refcoco, "ocid-ref": _ocid, "vsr": _vsr, "pope": _pope,
    "tally-qa": _tally,
}  # fmt: skip
