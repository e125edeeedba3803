"""`moxin rehearse --profile 7b` on this machine: the two-node Slurm cluster of infra/dev, no GPU, no network.

    SLURM_CONF=/var/lib/moxin-slurm/slurm.conf python -m benchmarks.rehearse_7b [--select +pretrain_1] [--set ...]

What stands in: a hub and a web site on loopback for the sources, which answer as theirs do, in their schemas and
layouts, with generated text, each at a commit; a SentencePiece model and a fastText classifier that are trained here,
as what is at /mirror is not to be had; processors for GPUs. Real are the launcher, Colossal-AI (with gloo) in its own
environment, the clients of hub and site, and all that the profile sets else. An installation of its own (MOXIN_HOME,
or else .moxin/benchmark); the page is below it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import fasttext
import sentencepiece

from benchmarks.orchestration import machine
from stages.core.files import ROOT
from stages.quality.fasttext_scorer import NEGATIVE, POSITIVE
from tests.support import colossal
from tests.support.hub_sets import card, repositories
from tests.support.loopback_hub import TOKEN, Hub, Repository, SiteFile, jsonl, parquet
from tests.support.raw_pages import prose

DOCUMENTS = 300
VOCABULARY = 500
TEXT, CODE = "gmongaras/SlimPajama-627B_Reupload", "bigcode/the-stack"


def code(number: int) -> str:
    """A program that keeps every rule."""
    rng = random.Random(number)
    names = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(8)]
    return "".join(
        f"def {name}(value):\n    total = value + {rng.randint(1, 999)}\n    return total\n" for name in names
    )


def sources() -> tuple[dict[str, Repository], dict[str, SiteFile]]:
    """The data sets of the hub, and the files of the pool's site, each with documents that a corpus can be made of."""
    sets = dict(repositories())
    meta = {"redpajama_set_name": "RedPajamaC4"}
    text = [{"text": prose(n), "meta": meta, "__index_level_0__": n} for n in range(DOCUMENTS)]
    splits = {split: f"data/{split}-*" for split in ("train", "validation", "test")}
    sets[TEXT] = Repository(
        sets[TEXT].commit,
        {"README.md": card({"default": splits})}
        | {f"data/{split}-00000-of-00001.parquet": parquet(text if split == "train" else text[:2]) for split in splits},
    )
    rows = [
        {"content": code(n), "size": len(code(n)), "lang": "Python", "ext": "py", "hexsha": f"{n:040x}"}
        | {"max_stars_repo_licenses": ["MIT"], "max_stars_repo_name": f"owner/{n}", "max_stars_repo_path": f"{n}.py"}
        for n in range(DOCUMENTS)
    ]
    sets[CODE] = Repository(
        sets[CODE].commit,
        {
            "README.md": card({"default": {"train": "data/*/train-*"}}, "other"),
            "data/python/train-00000-of-00001.parquet": parquet(rows),
        },
        gated=True,
    )
    pages = [
        {
            "text": prose(10_000 + n),
            "url": f"https://site-{n}.example.org/{n}",
            "metadata": {"WARC-Target-URI": f"https://site-{n}.example.org/{n}"},
        }
        for n in range(DOCUMENTS)
    ]
    names = [f"contrib/pool/{n}.jsonl" for n in range(3)]
    files = {name: SiteFile(jsonl(pages[n::3])) for n, name in enumerate(names)}
    files["list.txt"] = SiteFile("".join(f"s3://commoncrawl/{name}\n" for name in names).encode())
    return sets, files


def models(folder: Path) -> tuple[Path, Path]:
    """A tokenizer and a classifier, as small as they come."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus, labelled = folder / "corpus.txt", folder / "labelled.txt"
    corpus.write_text("\n".join(prose(n) + "\n" + code(n) for n in range(40)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=VOCABULARY,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    lines = [
        f"{label} {prose(n + add).replace(chr(10), ' ')}"
        for label, add in ((POSITIVE, 0), (NEGATIVE, 10_000))
        for n in range(60)
    ]
    labelled.write_text("\n".join(lines), encoding="utf-8")
    fasttext.train_supervised(str(labelled), dim=8, epoch=3, bucket=2000, wordNgrams=2, verbose=0).save_model(
        str(folder / "quality.bin")
    )
    return folder / "tokenizer.model", folder / "quality.bin"


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--select", default="+pretrain_1")
    parser.add_argument("--level", default="wiring")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    home = Path(os.environ.setdefault("MOXIN_HOME", str(ROOT / ".moxin" / "benchmark")))
    for line in machine():
        print(line)
    tokenizer, classifier = models(home / "stand-ins")
    sets, files = sources()
    with Hub(sets, files) as hub:
        web = (
            f'[{{uri="{hub.site}/list.txt",listed=true,rewrite={{"s3://commoncrawl/"="{hub.site}/"}},format="jsonl",'
            'source="dclm"}]'
        )
        text = f'[{{uri="hf://{TEXT}@{sets[TEXT].commit}",format="hf",source="slimpajama"}}]'
        settings = [
            f"collect.text={text}",
            f"collect.web={web}",
            'ingest_web.language="none"',
            f'quality_web.model="{classifier}"',
            f'quality_web.model_sha256="{digest(classifier)}"',
            f'tokenizer.path="{tokenizer}"',
            f'tokenizer.sha256="{digest(tokenizer)}"',
            f"tokenizer.vocab_size={VOCABULARY}",
            *given.set,
        ]
        command = [sys.executable, "-m", "flows.cli", "rehearse", "--profile", "7b", "--processors"]
        command += ["--level", given.level, "--select", given.select]
        command += [part for setting in settings for part in ("--set", setting)]
        environment = hub.environment(home / "hf", TOKEN) | {"MOXIN_COLOSSALAI_PYTHON": str(colossal.python())}
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        print(f"- exit {done.returncode}, {time.monotonic() - started:,.0f} s")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"- processor time of the command, without services and jobs: {used.ru_utime + used.ru_stime:.0f} s")
        if hub.strange:
            print(f"- asked of the hub and not served: {hub.strange}")


if __name__ == "__main__":
    main()
