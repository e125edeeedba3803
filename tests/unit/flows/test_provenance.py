"""What a result says of the environment that ran it: on every launcher, the one that really did."""

from __future__ import annotations

import hashlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from flows import environments
from flows.launch import launcher, process, slurm
from flows.launch.base import Job, with_provenance
from flows.launch.slurm_scripts import Site
from flows.settings import Settings
from stages.core.interpreters import installed_packages, packages_digest
from stages.core.messages import CodeRef, Lease, StageRequest, StoreAddress
from stages.core.resources import Resources
from tests.support.kubernetes_api import Cluster
from tests.support.kubernetes_api import launcher as kubernetes_launcher

LOCKS = environments.FOLDER
STORE = StoreAddress(bucket="b", endpoint="https://s3.example.org")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def job(stage: str = "pretrain", env: str = "train", interpreter: str | None = None, **config: Any) -> Job:
    request = StageRequest(
        run_id="r", node="n", stage=stage, revision=1, key="a" * 64, lease=Lease(key="a" * 64, epoch=1, holder="h"),
        config=config, inputs={}, outputs={}, code=CodeRef(source_digest="0" * 64, git_commit="c"), store=STORE,
    )  # fmt: skip
    return Job(request, Resources(), env, interpreter=interpreter)


def handed_over(by: str, given: Job, home: Path, monkeypatch: pytest.MonkeyPatch) -> CodeRef:
    """The code that the request names as the stage reads it."""
    settings = Settings(home, STORE, "http://127.0.0.1:1/api", True, False, {})
    if by == "process":
        monkeypatch.setattr(process.subprocess, "Popen", lambda *a, **k: None)
        monkeypatch.setattr(process, "ProcessHandle", lambda *a, **k: None)
        launcher(by, settings).start(given)
        (path,) = (home / "requests").glob("*.json")
    elif by == "kubernetes":
        cluster = Cluster()
        kubernetes_launcher(cluster, home).start(given)
        (body,) = cluster.stored.values()
        return StageRequest.model_validate_json(body).code
    else:
        monkeypatch.setattr(slurm, "run", lambda *words: "7")
        slurm.SlurmLauncher(settings, Site(runtime=by.partition("-")[2] or "none")).start(given)  # type: ignore[arg-type]
        (path,) = [p for p in (home / "slurm").glob("*.json") if "secrets" not in p.name]
    return StageRequest.model_validate_json(path.read_text()).code


@pytest.mark.parametrize("by", ["process", "slurm"])
def test_a_stage_without_an_image_ran_in_this_installation(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = handed_over(by, job(engine="torch"), tmp_path, monkeypatch)
    assert (code.lock_digest, code.image, code.engine_lock_digest) == (
        digest(LOCKS / "embedded" / "requirements.lock"),
        None,
        None,
    )
    assert code.git_commit == "c"


@pytest.mark.parametrize("by", ["process", "slurm"])
def test_a_stage_in_an_engines_python_ran_in_that(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = handed_over(by, job(engine="colossalai", interpreter="colossalai"), tmp_path, monkeypatch)
    assert (code.lock_digest, code.engine_lock_digest) == (digest(LOCKS / "colossalai" / "requirements.lock"), None)


@pytest.mark.parametrize("by", ["process", "slurm", "kubernetes", "slurm-pyxis"])
def test_an_engine_beside_a_stage_is_recorded_too(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert handed_over(by, job("grpo", "post", engine="verl"), tmp_path, monkeypatch).engine_lock_digest == digest(
        LOCKS / "verl" / "requirements.lock"
    )


@pytest.mark.parametrize("by", ["slurm-pyxis", "slurm-apptainer", "kubernetes"])
def test_an_images_lock_and_name_are_recorded(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = handed_over(by, job(engine="torch"), tmp_path, monkeypatch)
    assert (code.lock_digest, code.image) == (
        environments.lock_digest("train"),
        environments.stage_image("pretrain", "train").reference,
    )
    assert code.lock_digest != digest(LOCKS / "embedded" / "requirements.lock")


def test_open_instructs_lock_is_upstreams() -> None:
    found = with_provenance(job("sft", "post", engine="open-instruct")).request.code.engine_lock_digest
    assert found == "1417560acfe2873476125dcdb0e5285e9aa82408b1b994792ff9fee8aa2fa725"


def test_what_the_interpreter_has_is_looked_up_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package more or another version is another environment, whatever the lock says."""
    before = packages_digest()
    assert before == packages_digest()
    folder = tmp_path / "added-1.0.dist-info"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    more = packages_digest()
    folder.rename(tmp_path / "added-1.1.dist-info")
    assert len({before, more, packages_digest()}) == 3


def test_packages_are_those_that_their_metadata_names() -> None:
    """Folders' names say the same, without a file being opened."""
    named = {(re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(), one.version) for one in metadata.distributions()}
    assert installed_packages() == named
