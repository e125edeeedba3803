"""What a launcher is told of the code that made a request."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flows import stage_job


def test_an_installed_package_does_not_take_the_commit_of_the_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
        "commit",
        "--quiet",
        "--allow-empty",
        "-m",
        "theirs",
    )
    for command in (("init", "--quiet"), commit):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, timeout=60)
    monkeypatch.setattr(stage_job, "ROOT", tmp_path)
    assert len(stage_job.git_commit() or "") == 40
    monkeypatch.setattr(stage_job, "IN_CHECKOUT", False)
    assert stage_job.git_commit() is None
