"""Locks of the environments, names and labels of images, the bake file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows import derived, environments, images
from stages.core import bundle
from stages.core.contracts import ConfigError
from stages.core.keys import ROOT, source_digest

ENVS = sorted(set(derived.stages().values()))


@pytest.mark.parametrize("env", ENVS)
def test_a_lock_agrees_with_the_embedded_one_and_holds_no_control_plane(env: str) -> None:
    embedded = environments.read_lock(environments.EMBEDDED_LOCK)
    lock = environments.read_lock(environments.FOLDER / env / "requirements.lock")
    assert lock.items() <= embedded.items()
    assert {"pydantic", "boto3"} <= lock.keys(), "the runtime needs them"
    assert not {"prefect", "docker", "kubernetes", "pytest", "typer-slim", "ruff"} & lock.keys()


def test_the_control_planes_lock_holds_no_stages_libraries() -> None:
    lock = environments.read_lock(environments.FOLDER / "control" / "requirements.lock")
    assert {"prefect", "docker", "kubernetes", "boto3", "asyncpg"} <= lock.keys()
    assert not {"torch", "transformers", "datasets", "pyarrow", "numba"} & lock.keys()


def test_the_closure_follows_extras_and_markers() -> None:
    lock = environments.read_lock(environments.EMBEDDED_LOCK)
    plain = environments.closure([Requirement("lm-eval")], lock)
    with_math = environments.closure([Requirement("lm-eval[math]")], lock)
    assert "antlr4-python3-runtime==4.11.0" not in plain
    assert "antlr4-python3-runtime==4.11.0" in with_math
    assert with_math == sorted(with_math, key=lambda line: line.partition("==")[0].lower().replace("_", "-"))


def test_a_requirement_outside_the_embedded_lock_is_named() -> None:
    with pytest.raises(ConfigError, match=r"requirements\.in needs flask-nowhere, which containers/embedded/requirements\.lock has not"):
        environments.closure([Requirement("flask-nowhere")], environments.read_lock(environments.EMBEDDED_LOCK))


def test_an_environment_without_a_folder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no environment 'nowhere': containers/nowhere/requirements\.in is missing"):
        environments.lock_text("nowhere")


def test_a_package_that_a_lock_lacks_is_named_with_the_file_to_add_it_to() -> None:
    assert environments.missing({"quality": "train"})[0] == "stage quality imports fasttext: add fasttext-numpy2-wheel to containers/train/requirements.in"
    assert environments.missing({"quality": "data"}) == []


def test_what_is_installed_beside_the_lock_by_those_who_want_it_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "packages_distributions", lambda: {"ray": ["ray"], "numpy": ["numpy"]})
    assert environments.missing({"dedup": "data"}) == []


def test_a_stages_files_are_core_and_what_its_digest_covers() -> None:
    names = [p.relative_to(ROOT).as_posix() for p in bundle.stage_files("pretrain")]
    assert {"stages/__init__.py", "stages/core/runtime.py", "stages/pretrain/run.py", "stages/modeling/decoder.py"} <= set(names)
    assert not [n for n in names if n.startswith(("stages/dedup", "stages/pipeline")) or n.endswith((".md", "testing.py", "bundle.py"))]


def test_the_bundle_runs_without_the_rest_of_the_repository(tmp_path: Path) -> None:
    import subprocess
    import sys

    bundle.bundle("collect", tmp_path)
    program = "import stages.core.runtime as r; import stages.collect.run; print(r.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))


def test_an_image_is_named_by_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    image = environments.stage_image("dedup", "data")
    assert re.fullmatch(r"moxin/dedup:[0-9a-f]{16}", image.reference)
    assert image.environment.startswith("moxin/env-data:")
    assert image.labels["moxin.source"] == source_digest("dedup")
    assert image.labels["moxin.contract"] == bundle.contract_digest()
    assert image.labels["moxin.lock"] == environments.lock_digest("data")
    environments.stage_image.cache_clear()
    monkeypatch.setenv("MOXIN_REGISTRY", "registry.example.org/moxin/")
    assert environments.stage_image("dedup", "data").reference == f"registry.example.org/{image.reference}"
    environments.stage_image.cache_clear()
    monkeypatch.setattr(environments, "content_digest", lambda stage: "other")
    assert environments.stage_image("dedup", "data").reference.rpartition(":")[2] != image.reference.rpartition(":")[2]
    environments.stage_image.cache_clear()


def test_the_bake_file_has_a_target_for_every_stage_and_environment() -> None:
    bake = json.loads(environments.bake_text(derived.stages()))
    targets, stages = bake["target"], derived.stages()
    assert set(targets) == set(stages) | {f"env-{env}" for env in (*ENVS, "control")} | {"control"}
    assert bake["group"]["default"]["targets"] == [*stages, "control"]
    for stage, env in stages.items():
        assert targets[stage]["contexts"] == {"environment": f"target:env-{env}"}
        assert targets[stage]["args"] == {"ENVIRONMENT": "environment", "STAGE": stage}
    used = set(re.findall(r"\$\{(\w+)\}", json.dumps(targets)))
    assert used == set(bake["variable"])
    labels = json.loads(environments.bake_labels(stages))["target"]
    assert labels["dedup"]["labels"] == environments.stage_image("dedup", "data").labels
    assert labels.keys() == targets.keys() - {"control", "env-control"}, "those have no content of a stage to be named by"


def test_the_dockerfiles_end_without_root_and_without_build_tools() -> None:
    env = (environments.FOLDER / "env.Dockerfile").read_text()
    final = env.rpartition("FROM ${BASE}")[2]
    assert "USER 65532:65532" in final
    assert "COPY containers" not in final, "neither lock nor wheels stay"
    assert "RUN pip" not in env
    stage = (environments.FOLDER / "stage.Dockerfile").read_text()
    assert "USER" not in stage.rpartition("FROM")[2]


def test_wheels_are_matched_to_the_lock_with_or_without_a_local_version(tmp_path: Path) -> None:
    for name in ("torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl", "Some_Name-1.0-py3-none-any.whl", "other-2-py3-none-any.whl", "x.whl"):
        (tmp_path / name).touch()
    found = images._wheels(tmp_path, {"torch": "2.13.0", "some-name": "1.0", "other": "3"})
    assert {name: path.name[:5] for name, path in found.items()} == {"torch": "torch", "some-name": "Some_"}


def test_labels_that_differ_are_told() -> None:
    image = environments.stage_image("dedup", "data")
    assert images.mismatches(image.labels, image) == []
    (line,) = images.mismatches(image.labels | {"moxin.source": "0" * 64}, image)
    assert line == f"moxin.source is {'0' * 16}, not {image.labels['moxin.source'][:16]}"
    with pytest.raises(ConfigError, match="no stage 'dedupe'; there are: collect"):
        images.select(derived.stages(), ["dedupe"])


def test_a_build_context_is_the_same_whoever_makes_it(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    one, two = (images._context(["containers/install.sh"], [wheel]) for _ in range(2))
    assert one.read_bytes() == two.read_bytes()
    one.unlink(), two.unlink()
