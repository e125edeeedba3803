"""Small data sets in the schemas, file layouts and splits of those that `small` and `7b` name (their cards on the hub,
2026-11).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from flows import profiles
from stages.capability.benchmarks import SCHEMAS
from stages.pipeline import PIPELINE
from tests.support.benchmark_rows import configs
from tests.support.loopback_hub import Repository, jsonl, parquet

COUNT = 24
TURN = pa.struct([("content", pa.string()), ("role", pa.string())])
SHARE = pa.struct([("from", pa.string()), ("value", pa.string())])
TEXT = (
    "The text of document {n} is long enough to be kept, and it says that the number of this document is {n} and no"
    " other."
)
THOUGHT = (
    "<|begin_of_thought|>\n\nIt is"
    " {n}.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n\\boxed{{{n}}}\n\n<|end_of_solution|>"
)


def card(configurations: dict[str, dict[str, str]], license: str = "odc-by") -> bytes:
    """A data set card that names the files of each configuration and split."""
    lines = ["---", f"license: {license}", "configs:"]
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    return "\n".join([*lines, "---", "# A data set", ""]).encode()


def slimpajama(names: tuple[str, ...]) -> dict[str, bytes]:
    """text, meta: {redpajama_set_name}; training, validation and test files."""
    schema = pa.schema(
        [
            ("text", pa.string()),
            ("meta", pa.struct([("redpajama_set_name", pa.string())])),
            ("__index_level_0__", pa.int64()),
        ]
    )
    sets = ("RedPajamaCommonCrawl", "RedPajamaC4", "RedPajamaGithub")
    made = {
        name: parquet(
            [
                {"text": TEXT.format(n=f"{i}-{n}"), "meta": {"redpajama_set_name": sets[n % 3]}, "__index_level_0__": n}
                for n in range(COUNT)
            ],
            schema,
        )
        for i, name in enumerate(names)
    }
    return {
        "README.md": card({"default": {split: f"data/{split}-*" for split in ("train", "validation", "test")}}),
        **made,
    }


def stack(json_lines: bool) -> dict[str, bytes]:
    """the-stack-smol-xl: data/<language>/data.json; the-stack: data/<language>/train-*.parquet."""
    files: dict[str, bytes] = {}
    for language in ("ada", "python", "zig"):
        numbers = {"avg_line_length": 20.5, "max_line_length": 80, "alphanum_fraction": 0.6}
        rows: list[dict[str, Any]] = []
        for n in range(COUNT):
            code = {
                "content": f"def {language}_{n}():\n    return {n} + 1\n",
                "size": 40,
                "lang": language.title(),
                **numbers,
            }
            if json_lines:
                rows.append(code | {"licenses": ["MIT"], "repository_name": f"o/r{n}", "path": f"src/{n}.py"})
            else:
                counts = {f"max_{kind}_{what}": None for kind in ("stars", "issues", "forks") for what in ("count",)}
                heads = {
                    f"max_{kind}_repo_{what}": f"{what}{n}"
                    for kind in ("stars", "issues", "forks")
                    for what in ("path", "name", "head_hexsha")
                }
                licenses: dict[str, Any] = {
                    f"max_{kind}_repo_licenses": ["MIT", "Apache-2.0"] for kind in ("stars", "issues", "forks")
                }
                rows.append(code | heads | counts | licenses | {"hexsha": f"{n:040x}", "ext": "py"})
        name = f"data/{language}/data.json" if json_lines else f"data/{language}/train-00000-of-00001.parquet"
        files[name] = jsonl(rows) if json_lines else parquet(rows)
    return {
        "README.md": card({"default": {"train": "data/*/data.json" if json_lines else "data/*/train-*"}}, "other"),
        **files,
    }


def turns(n: int) -> list[dict[str, str]]:
    return [{"content": f"What is the number {n}?", "role": "user"}, {"content": f"It is {n}.", "role": "assistant"}]


def shared(n: int, answer: str = "It is {n}.") -> list[dict[str, str]]:
    return [
        {"from": "human" if answer == "It is {n}." else "user", "value": f"Say {n}."},
        {"from": "gpt" if answer == "It is {n}." else "assistant", "value": answer.format(n=n)},
    ]


def tulu() -> dict[str, bytes]:
    schema = pa.schema([("id", pa.string()), ("messages", pa.list_(TURN)), ("source", pa.string())])
    rows = [
        {"id": f"flan_{n}", "messages": turns(n), "source": "ai2-adapt-dev/flan_v2_converted"} for n in range(COUNT)
    ]
    halves = {f"data/train-0000{k}-of-00002.parquet": parquet(rows[k::2], schema) for k in range(2)}
    return {"README.md": card({"default": {"train": "data/train-*"}}), **halves}


def preferences() -> dict[str, bytes]:
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("source", pa.string()),
            ("prompt", pa.string()),
            ("chosen", pa.list_(TURN)),
            ("chosen_rating", pa.float64()),
            ("chosen_model", pa.string()),
            ("rejected", pa.list_(TURN)),
            ("rejected_rating", pa.float64()),
            ("rejected_model", pa.string()),
        ]
    )
    rows = [
        {
            "id": f"p{n}",
            "source": "ultrafeedback",
            "prompt": f"What is the number {n}?",
            "chosen": turns(n),
            "chosen_rating": 4.5,
            "chosen_model": "a",
            "rejected": [turns(n)[0], {"content": "No idea.", "role": "assistant"}],
            "rejected_rating": 1.0,
            "rejected_model": "b",
        }
        for n in range(COUNT)
    ]
    return {
        "README.md": card({"default": {"train": "data/train-*"}}),
        "data/train-00000-of-00001.parquet": parquet(rows, schema),
    }


def infinity() -> dict[str, bytes]:
    """Configurations in folders; label is a table of lists; the two sets have different columns."""
    label = {
        "ability_en": ["arithmetic"],
        "ability_zh": ["算术"],
        "cate_ability_en": ["maths"],
        "cate_ability_zh": ["数学"],
    }
    seven = [
        {"id": n, "conversations": shared(n), "label": label, "langdetect": "en", "source": "flan", "reward": None}
        for n in range(COUNT)
    ]
    chat = [
        {"id": str(n), "conversations": shared(n), "label": label, "langdetect": "en", "source": "subjective"}
        for n in range(COUNT)
    ]
    names = {"7M": seven, "Gen": chat}
    return {
        "README.md": card({name: {"train": f"{name}/*"} for name in names}, "cc-by-sa-4.0"),
        **{f"{name}/train-00000-of-00001.parquet": parquet(rows) for name, rows in names.items()},
    }


def thoughts() -> dict[str, bytes]:
    rows = [
        {"system": "Your role as an assistant involves thinking.", "conversations": shared(n, THOUGHT)}
        for n in range(COUNT)
    ]
    return {
        "README.md": card(
            {"default": {"train": "data/train-*"}, "metadata": {"train": "metadata/train-*"}}, "apache-2.0"
        ),
        "data/train-00000-of-00006.parquet": parquet(rows),
        "metadata/train-00000-of-00012.parquet": parquet([{"problem": "x", "domain": "math"}]),
    }


def open_r1() -> dict[str, bytes]:
    def row(n: int) -> dict[str, Any]:
        traces = [f"<think>\nNo.\n</think>\n\n\\boxed{{{n + 1}}}", f"<think>\nIt is {n}.\n</think>\n\n\\boxed{{{n}}}"]
        judged = {
            "is_reasoning_complete": [True, True],
            "correctness_math_verify": [False, True],
            "correctness_llama": None,
            "finish_reasons": None,
            "correctness_count": 1,
        }
        return {
            "problem": f"What is {n} + 0?",
            "solution": f"It is {n}.",
            "answer": str(n),
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "source": "olympiads",
            "uuid": f"u{n}",
            "generations": traces,
            "messages": turns(n),
            **judged,
        }

    parts = {"default": "data", "extended": "extended"}
    files = {
        f"{folder}/train-00000-of-00010.parquet": parquet([row(n + 100 * k) for n in range(COUNT)])
        for k, folder in enumerate(parts.values())
    }
    return {
        "README.md": card({name: {"train": f"{folder}/train-*"} for name, folder in parts.items()}, "apache-2.0"),
        **files,
    }


def deepscaler() -> dict[str, bytes]:
    """One JSON list."""
    import json

    rows = [
        {
            "problem": f"The sum of {n} and 17 times {n + 2} is sought by number {n}.",
            "answer": str(n + 17 * (n + 2)),
            "solution": f"It is \\boxed{{{n + 17 * (n + 2)}}}.",
        }
        for n in range(COUNT)
    ]
    return {"README.md": b"---\nlicense: mit\n---\n", "deepscaler.json": json.dumps(rows).encode()}


def gsm8k() -> dict[str, bytes]:
    rows = [
        {
            "question": f"Anna has {n} apples and buys {n + 3} more at shop {n}. How many has she?",
            "answer": f"She has {n} + {n + 3} = <<{n}+{n + 3}={2 * n + 3}>>{2 * n + 3} apples.\n#### {2 * n + 3}",
        }
        for n in range(COUNT)
    ]
    names = {"main": rows, "socratic": rows}
    files = {
        f"{name}/{split}-00000-of-00001.parquet": parquet(of)
        for name, of in names.items()
        for split in ("train", "test")
    }
    return {
        "README.md": card({name: {split: f"{name}/{split}-*" for split in ("train", "test")} for name in names}, "mit"),
        **files,
    }


def benchmark(id: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for config, splits in configs(id, 12).items():
        folder = "data" if config == "default" else config
        for split, table in splits.items():
            rows = table.to_pylist()
            if config == "auxiliary_train":  # rows of MMLU's training split are nested under 'train'
                files[f"{folder}/{split}-00000-of-00001.parquet"] = parquet(
                    [{"train": row} for row in rows], pa.schema([("train", pa.struct(list(SCHEMAS[id])))])
                )
            else:
                files[f"{folder}/{split}-00000-of-00001.parquet"] = parquet(rows, SCHEMAS[id])
    names = {
        config: {split: f"{'data' if config == 'default' else config}/{split}-*" for split in splits}
        for config, splits in configs(id, 12).items()
    }
    return {"README.md": card(names, "mit"), **files}


FILES = {
    "DKYoon/SlimPajama-6B": lambda: slimpajama(
        (
            "data/train-00000-of-00048-ab2b35705f029d94.parquet",
            "data/train-00001-of-00048-83a4febc101dcba6.parquet",
            "data/validation-00000-of-00001-a.parquet",
            "data/test-00000-of-00001-b.parquet",
        )
    ),
    "gmongaras/SlimPajama-627B_Reupload": lambda: slimpajama(
        (
            "data/train-00000-of-00250.parquet",
            "data/validation-00000-of-00030.parquet",
            "data/test-00000-of-00030.parquet",
        )
    ),
    "bigcode/the-stack-smol-xl": lambda: stack(True),
    "bigcode/the-stack": lambda: stack(False),
    "allenai/tulu-3-sft-mixture": tulu,
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": preferences,
    "BAAI/Infinity-Instruct": infinity,
    "open-thoughts/OpenThoughts-114k": thoughts,
    "open-r1/OpenR1-Math-220k": open_r1,
    "agentica-org/DeepScaleR-Preview-Dataset": deepscaler,
    "openai/gsm8k": gsm8k,
    **{id: lambda id=id: benchmark(id) for id in SCHEMAS},
}
GATED = {"BAAI/Infinity-Instruct", "bigcode/the-stack"}


def pins() -> dict[str, str]:
    """The commit at which `small` and `7b` name each data set; one of our own where they name none."""
    found: dict[str, str] = {}
    for profile in (profiles.load(name, PIPELINE) for name in ("small", "7b")):
        for config in profile.configs.values():
            for source in getattr(config, "sources", ()):
                if hasattr(source, "data_set"):
                    found[source.data_set] = source.revision or "f" * 40
            found |= dict(getattr(config, "revisions", {}))
            for port in ("text", "web", "code"):
                for file in getattr(config, port, ()) if hasattr(config, "mirrored") else ():
                    if file.uri.startswith("hf://"):
                        name, _, commit = file.uri.removeprefix("hf://").partition("@")
                        found[name] = commit or "f" * 40
    return found


def repositories() -> dict[str, Repository]:
    """Every data set of the hub that `small` and `7b` name."""
    return {name: Repository(commit, FILES[name](), gated=name in GATED) for name, commit in pins().items()}
