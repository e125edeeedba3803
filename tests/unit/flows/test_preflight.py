"""What can be known before a run is said before it, one line for each problem, with the setting, its value and what to
do.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from flows import preflight, profiles
from stages.core import preflight as checks
from stages.core.errors import ConfigError, InputError
from stages.core.preflight import PreflightContext
from stages.pipeline import PIPELINE

DIGEST = "a" * 64


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token of the hub, whoever runs the tests."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def lines(profile: str, *overrides: str, node: str | None = None) -> list[str]:
    values = profiles.load(profile, PIPELINE, overrides)
    return [f.line for f in preflight.problems(PIPELINE, values, [node] if node else list(PIPELINE.nodes))]


def test_tiny_has_none() -> None:
    assert lines("tiny") == []


@pytest.mark.parametrize("profile", ["small", "7b"])
def test_a_profile_of_real_data_names_what_is_missing_and_is_not_refused_as_such(profile: str) -> None:
    found = lines(profile, "launchers.tokenizer=process", "launchers.instructions_infinity=process")
    assert any(
        line.startswith("tokenizer.path = /mirror/models/mistral-7b-v0.1/tokenizer.model: no such file: fetch ")
        for line in found
    )
    assert any(
        line.startswith("instructions_infinity.sources.0.revision: BAAI/Infinity-Instruct is not pinned")
        for line in found
    )
    assert any(
        line.startswith("HF_TOKEN: BAAI/Infinity-Instruct is gated, and there is no token: accept the terms")
        for line in found
    )
    assert all(line.count("\n") == 0 for line in found)
    assert "plan_only" not in profiles.ProfileFile.model_fields


def test_files_of_another_machine_are_not_looked_for() -> None:
    assert not any("no such file" in line for line in lines("small", "launcher=slurm"))


@pytest.mark.parametrize(
    ("override", "node", "line"),
    [
        (
            "tokenizer.origin=adopt",
            "tokenizer",
            "tokenizer.path: unset: name a tokenizer.json or tokenizer.model, and its digest in sha256",
        ),
        (
            "collect.origin=listing",
            "collect",
            "collect.text: []: empty: list at least one file, or set origin = 'machine'".replace(": []: ", " = []: "),
        ),
        (
            "collect={origin = 'listing', text = [{uri = 'a.jsonl', format = 'jsonl', source = 's'}]}",
            "collect",
            "collect.text.0.uri = a.jsonl: no address: write file:///.., s3://.., https://.. or hf://..",
        ),
        (
            "collect={origin = 'listing', text = [{uri = 'file:///none/a.jsonl', format = 'jsonl', source = 's'}]}",
            "collect",
            "collect.text.0.uri = file:///none/a.jsonl: no such file: fetch it, or correct the path",
        ),
        (
            "ingest_web.heuristics=refinedweb",
            "ingest_web",
            (
                "ingest_web.language_model: unset: name fastText's lid.176.bin, and its digest in"
                " language_model_sha256; or set language = 'none'"
            ),
        ),
        (
            "ingest_web={heuristics = 'refinedweb', language = 'none', banned_sha256 = {hard = '" + DIGEST + "'}}",
            "ingest_web",
            "ingest_web.banned.hard: unset: name the list, and its digest in banned_sha256",
        ),
        (
            "quality_web.model=/none/q.bin",
            "quality_web",
            "quality_web.model = /none/q.bin: no such file: fetch a fastText classifier, or correct the path",
        ),
        (
            "tokenize_short={weights = [1.0], draw = [[0.0, 1.0]]}",
            "tokenize_short",
            (
                "tokenize_short.weights = [1.0]: 1 entries for 3 inputs: give one for each of dedup_text, quality_web,"
                " dedup_code"
            ),
        ),
        (
            "instructions_tulu.origin=hub",
            "instructions_tulu",
            "instructions_tulu.sources = []: empty: list at least one data set, or set origin = 'machine'",
        ),
        (
            "problems={origin = 'hub', sources = [{data_set = 'a/b', revision = 'main'}]}",
            "problems",
            (
                "problems.sources.0.revision = main: a/b is not pinned: it may change under the same key: set it to a"
                " commit of its page, 40 hexadecimal digits"
            ),
        ),
        (
            "capability={origin = 'hub', benchmarks = ['piqa'], mirror = '/none'}",
            "capability",
            "capability.mirror = /none: has no folder baber/piqa: mirror the data set, or unset mirror",
        ),
        (
            "scenes={origin = 'listing', sources = [{name = 'l', kind = 'instructions', path = '/none/l.json'}]}",
            "scenes",
            "scenes.sources.0.path = /none/l.json: no such file or folder: fetch l's JSON, or correct the path",
        ),
        (
            "image_features={origin = 'weights', siglip_path = '/dev/null', siglip_sha256 = '" + DIGEST + "'}",
            "image_features",
            "image_features.dino_path: unset: name DINOv2 with registers, and its digest in dino_sha256",
        ),
    ],
)
def test_each_kind_is_one_line_with_its_remedy(tmp_path: Path, override: str, node: str, line: str) -> None:
    key, _, value = override.partition("=")
    text = f"node.{key}={value}" if "." not in key else override
    if "." not in key:  # a whole table: as a profile of its own on top of tiny
        folder = tmp_path / "profiles"
        folder.mkdir()
        (folder / "tiny.toml").write_text((profiles.FOLDER / "tiny.toml").read_text(encoding="utf-8"), encoding="utf-8")
        inner = value.strip()[1:-1]
        (folder / "own.toml").write_text(f'extends = "tiny"\n[node]\n{key} = {{ {inner} }}\n', encoding="utf-8")
        values = profiles.load("own", PIPELINE, (), folder)
        assert line in [f.line for f in preflight.problems(PIPELINE, values, [node])]
    else:
        assert line in lines("tiny", text, node=node)


@pytest.mark.parametrize("profile", ["small", "7b"])
@pytest.mark.parametrize(
    "node",
    ["ingest_text", "ingest_web", "instructions_tulu", "preferences_tulu", "problems", "capability", "benchmarks"],
)
def test_what_reads_from_outside_may_reach_it(profile: str, node: str) -> None:
    """A container could not, and a launcher hands the sources' credentials to nobody else."""
    assert not [line for line in lines(profile, node=node) if ".network" in line]
    (found,) = [line for line in lines(profile, f"resources.{node}.network=store", node=node) if ".network" in line]
    assert found.startswith(f"{node}.network = store: it reads ")
    assert found.endswith(f"from outside: set network = 'internet' in [resources.{node}]")


def test_what_a_package_ships_needs_no_way_out() -> None:
    """HumanEval of the profile tiny: the package lies wherever the stage is installed."""
    assert not [line for line in lines("tiny", node="benchmarks") if ".network" in line]


def test_files_of_this_machine_need_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    listed = f"collect.text=[{{uri = 'file://{tmp_path}/a.jsonl', format = 'jsonl', source = 's'}}]"
    assert not [
        line for line in lines("tiny", "collect.origin=listing", listed, node="ingest_text") if ".network" in line
    ]


def test_a_file_that_is_another_is_named_with_both_digests_and_an_undeclared_one_with_its_own(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"pieces")
    found = hashlib.sha256(b"pieces").hexdigest()
    base = ("tokenizer.origin=adopt", f"tokenizer.path={file}")
    assert lines("tiny", *base, node="tokenizer") == [
        f"tokenizer.sha256: unset: what the file holds would not be part of the key: set it to {found}"
    ]
    assert lines("tiny", *base, f"tokenizer.sha256={DIGEST}", node="tokenizer") == [
        f"tokenizer.path = {file}: its SHA-256 is {found}, sha256 declares {DIGEST}: fetch the file again, or correct"
        " the digest"
    ]
    assert lines("tiny", *base, f"tokenizer.sha256={found}", node="tokenizer") == []
    assert (
        lines(
            "tiny",
            "tokenizer.origin=adopt",
            f"tokenizer.path={tmp_path}",
            f"tokenizer.sha256={found}",
            node="tokenizer",
        )
        == []
    ), "a model's folder"
    with pytest.raises(InputError, match=f"tokenizer.path = .*: its SHA-256 is {found}, not {DIGEST}"):
        checks.require_digest("tokenizer.path", file, DIGEST)


def test_a_large_file_is_read_only_when_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "QUICK_BYTES", 3)
    file = tmp_path / "model.bin"
    file.write_bytes(b"large")
    assert list(checks.model_file("model", str(file), DIGEST, "it", PreflightContext())) == []
    (problem,) = checks.model_file("model", str(file), DIGEST, "it", PreflightContext(deep=True))
    assert "model_sha256 declares" in problem.line("n")


def test_a_model_enters_the_key_by_what_it_holds_not_by_where_it_lies() -> None:
    for node, path, digest in (
        ("tokenizer", "path", "sha256"),
        ("quality_web", "model", "model_sha256"),
        ("ingest_web", "language_model", "language_model_sha256"),
        ("image_features", "dino_path", "dino_sha256"),
    ):
        config = profiles.load("tiny", PIPELINE, (f"{node}.{path}=/a", f"{node}.{digest}={DIGEST}")).configs[node]
        moved = profiles.load("tiny", PIPELINE, (f"{node}.{path}=/b", f"{node}.{digest}={DIGEST}")).configs[node]
        other = profiles.load("tiny", PIPELINE, (f"{node}.{path}=/a", f"{node}.{digest}={'b' * 64}")).configs[node]
        assert config.identity() == moved.identity() != other.identity()


def test_a_token_of_the_hub_is_found_where_its_library_keeps_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gated = "{sources = [{data_set = 'BAAI/Infinity-Instruct'}]}"
    assert not checks.token(), gated
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "token").write_text("hf_x", encoding="utf-8")
    assert checks.token()
    assert not any(line.startswith("HF_TOKEN") for line in lines("small"))


def test_phases_that_draw_the_same_documents_without_saying_so_are_named() -> None:
    values = profiles.load("7b", PIPELINE)
    draws = [values.configs[name].draw for name in ("tokenize_short", "tokenize_long")]
    assert all(a[1] <= b[0] for a, b in zip(*draws, strict=True)), "disjoint, source by source"
    assert values.configs["tokenize_capability"].draw[1][0] >= draws[1][0][1]
    folder = profiles.FOLDER
    assert {f.stem for f in folder.glob("*.toml")} >= {"tiny", "small", "7b"}


def test_overlapping_phases(tmp_path: Path) -> None:
    text = (profiles.FOLDER / "tiny.toml").read_text(encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(
        "\n".join(line for line in text.splitlines() if not line.startswith("draw")), encoding="utf-8"
    )
    values = profiles.load("tiny", PIPELINE, (), tmp_path)
    found = [f.line for f in preflight.problems(PIPELINE, values, ["tokenize_long"])]
    assert (
        found[0]
        == "tokenize_long.draw.0 = [0, 1]: tokenize_short draws [0, 1) of dedup_text too: give the phases ranges that"
        " do not overlap"
    )
    assert len(found) == 3
    declared = profiles.load(
        "tiny",
        PIPELINE,
        tuple(f"{n}.draw=[[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]" for n in ("tokenize_short", "tokenize_long")),
        tmp_path,
    )
    assert not [
        f
        for f in preflight.problems(PIPELINE, declared, ["tokenize_long"])
        if f.node == "tokenize_long" and "tokenize_short" in f.line
    ]


def test_cards_and_engines_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_VERL_PYTHON", raising=False)
    found = lines("small", "grpo_deepscaler.engine=verl")
    assert any(
        line.startswith(
            "MOXIN_VERL_PYTHON: engine 'verl' is not installed on this machine: install it (containers/verl)"
        )
        for line in found
    )
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        assert sum("this machine has none" in line for line in found) == 1


def test_a_run_with_problems_is_refused_with_all_of_them() -> None:
    values = profiles.load("tiny", PIPELINE, ("tokenizer.origin=adopt", "quality_web.model=/none/q.bin"))
    with pytest.raises(ConfigError) as refused:
        preflight.refuse(preflight.problems(PIPELINE, values, ["tokenizer", "quality_web"]))
    first, *rest = str(refused.value).splitlines()
    assert first == "2 problems will stop this run:"
    assert [line.split(":")[0].strip() for line in rest] == ["quality_web.model = /none/q.bin", "tokenizer.path"]
    preflight.refuse([])
