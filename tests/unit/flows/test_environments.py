"""Locks of the environments, names and labels of images."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from flows import environments, generated_files, image_checks, images
from stages.core import bundle
from stages.core.errors import ConfigError
from stages.core.files import ROOT
from stages.core.keys import source_digest

ENVS = sorted(set(generated_files.stages().values()))


@pytest.mark.parametrize("env", ENVS)
def test_a_lock_agrees_with_the_embedded_one_and_holds_no_control_plane(env: str) -> None:
    embedded, lock = environments.read_lock("embedded"), environments.read_lock(env)
    assert lock.items() <= embedded.items()
    assert {"pydantic", "boto3"} <= lock.keys(), "the runtime needs them"
    assert not {"prefect", "docker", "kubernetes", "pytest", "ruff"} & lock.keys()


def test_the_control_planes_lock_holds_no_stages_libraries() -> None:
    lock = environments.read_lock("control")
    assert {"prefect", "docker", "kubernetes", "boto3", "asyncpg"} <= lock.keys()
    assert not {"torch", "transformers", "datasets", "pyarrow", "numba"} & lock.keys()


def test_extras_of_a_requirement_are_locked_with_it() -> None:
    assert environments.read_lock("eval")["antlr4-python3-runtime"] == "antlr4-python3-runtime==4.11.0", "lm-eval[math]"
    assert "antlr4-python3-runtime" not in environments.read_lock("data")


def test_every_package_but_torch_is_locked_with_hashes() -> None:
    for env in environments.names():
        rows = environments.locked_requirements(env)
        assert [name for name, row in rows.items() if "--hash=sha256:" not in row] == ["torch"] * ("torch" in rows)
    cuda = environments.cuda_requirements()
    assert {"triton", "nvidia-nccl-cu13"} <= cuda.keys()
    assert all("--hash=sha256:" in row for row in cuda.values())


def test_wheels_are_fetched_for_the_python_of_any_base_and_not_for_this_one() -> None:
    rows = environments.locked_requirements("control")
    assert re.match(r"async-timeout==[\d.]+ --hash=sha256:", rows["async-timeout"]), "Debian 12 has Python 3.11.2"
    assert "pendulum" in rows
    assert "whenever" not in rows, "for Python 3.13 alone"
    assert not [row for row in rows.values() if ";" in row], "pip leaves out what its own Python does not need"


def test_the_locks_are_for_every_python_that_the_classifiers_name() -> None:
    tables = environments.project()["project"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(tables["classifiers"]))
    assert versions == ["3.11", "3.12", "3.13"]
    rows = [row for path in environments.lock_files("embedded") for row in environments.read_lock_file(path).values()]
    for version in versions:
        assert version in SpecifierSet(tables["requires-python"])
        where = {"python_version": version, "python_full_version": f"{version}.4"}
        held = [row for row in map(Requirement, rows) if row.marker is None or row.marker.evaluate(where)]
        assert len({canonicalize_name(row.name) for row in held}) == len(held), "one version of each"


def test_a_lock_that_is_not_what_pyproject_asks_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environments.stale_locks() == []
    project = copy.deepcopy(environments.project())
    project["project"]["optional-dependencies"]["train"].append("flask-nowhere>=1")
    monkeypatch.setattr(environments, "project", lambda: project)
    stale = "requirements.lock is older than pyproject.toml: run 'make lock'"
    assert environments.stale_locks() == [f"containers/embedded/{stale}", f"containers/train/{stale}"]


def test_a_lock_that_was_edited_by_hand_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    read = environments.read_lock
    monkeypatch.setattr(
        environments, "read_lock", lambda env: read(env) | ({"ray": "ray==2.0.0"} if env == "data" else {})
    )
    assert environments.stale_locks() == [
        "containers/data/requirements.lock has not ray==2.60.0: run 'make lock'",
        "containers/data/requirements.lock has ray==2.0.0, the embedded one has not",
    ]


def test_an_environment_without_an_extra_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no environment 'nowhere': pyproject\.toml has no extra of that name"):
        environments.declared("nowhere")
    with pytest.raises(
        ConfigError, match=r"no environment 'nowhere': containers/nowhere/requirements\.lock is missing"
    ):
        environments.read_lock("nowhere")


def test_a_package_that_a_lock_lacks_is_named_with_the_extra_to_add_it_to() -> None:
    assert (
        environments.missing({"quality": "train"})[0]
        == "stage quality imports fasttext: add fasttext-numpy2-wheel to extra 'train' in pyproject.toml"
    )
    assert environments.missing({"quality": "data"}) == []


def test_what_is_installed_beside_the_lock_by_those_who_want_it_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "packages_distributions", lambda: {"ray": ["ray"], "numpy": ["numpy"]})
    assert environments.missing({"dedup": "data"}) == []


def test_a_stages_files_are_core_and_what_its_digest_covers() -> None:
    names = [p.relative_to(ROOT).as_posix() for p in bundle.stage_files("pretrain")]
    assert {
        "stages/__init__.py",
        "stages/core/runtime.py",
        "stages/pretrain/run.py",
        "stages/lib/modeling/decoder.py",
    } <= set(names)
    assert not [
        n
        for n in names
        if n.startswith(("stages/dedup", "stages/pipeline")) or n.endswith((".md", "testing.py", "bundle.py"))
    ]


@pytest.mark.slow  # a process of its own
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


def test_the_dockerfiles_end_without_root_and_without_build_tools() -> None:
    env = (environments.FOLDER / "env.Dockerfile").read_text()
    final = env.rpartition("FROM ${BASE}")[2]
    assert "USER 65532:65532" in final
    assert "COPY containers" not in final, "neither lock nor wheels stay"
    assert "RUN pip" not in env
    stage = (environments.FOLDER / "stage.Dockerfile").read_text()
    assert "USER" not in stage.rpartition("FROM")[2]


def test_wheels_are_matched_to_the_lock_with_or_without_a_local_version(tmp_path: Path) -> None:
    for name in (
        "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl",
        "Some_Name-1.0-py3-none-any.whl",
        "other-2-py3-none-any.whl",
        "x.whl",
    ):
        (tmp_path / name).touch()
    found = images._locked_wheels(tmp_path, {"torch": "2.13.0", "some-name": "1.0", "other": "3"})
    assert {name: path.name[:5] for name, path in found.items()} == {"torch": "torch", "some-name": "Some_"}


def test_labels_that_differ_are_told() -> None:
    image = environments.stage_image("dedup", "data")
    assert image_checks.mismatches(image.labels, image) == []
    (line,) = image_checks.mismatches(image.labels | {"moxin.source": "0" * 64}, image)
    assert line == f"moxin.source is {'0' * 16}, not {image.labels['moxin.source'][:16]}"
    with pytest.raises(ConfigError, match="no stage 'dedupe'; there are: collect"):
        images.select(generated_files.stages(), ["dedupe"])


def test_imports_are_found_in_every_kind_of_block() -> None:
    source = b"""
import a
if x:
    import b.c
elif y:
    from d import e
else:
    import f
try:
    import g
except ImportError:
    import h
else:
    import i
finally:
    import j
for _ in x:
    import k
while x:
    with y:
        import l
match x:
    case 1:
        import m
class C:
    async def method(self):
        async with x:
            def inner():
                import n
"""
    found = environments.imported_names(source)
    assert found == {"a", "b.c", "d", "d.e", *"fghijklmn"}
