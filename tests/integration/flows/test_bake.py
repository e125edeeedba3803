"""One bake file, two builders: what the classic builder is told is what `docker buildx bake --print` says."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import BuildError

from flows import bake, environments, generated_files, images
from stages.core.errors import ConfigError, InfraError

ENVS = sorted({*generated_files.stages().values(), "control"})


def test_the_bake_file_has_a_target_for_every_stage_and_environment() -> None:
    stages = generated_files.stages()
    body = json.loads(bake.bake_text(stages))
    targets = body["target"]
    assert set(targets) == {*stages, *(f"env-{env}" for env in ENVS), "control"}
    assert body["group"]["default"]["targets"] == [*stages, "control"]
    assert body["group"]["environments"]["targets"] == [f"env-{env}" for env in ENVS]
    for stage, env in stages.items():
        assert targets[stage]["args"]["ENVIRONMENT"] == targets[f"env-{env}"]["tags"][0], "it starts from that image"
    assert set(re.findall(r"\$\{(\w+)\}", json.dumps(targets))) == set(body["variable"])


def all_names() -> dict[str, bake.Target]:
    """The changes that `moxin images labels` prints."""
    return bake.content_names(environments.stage_image(*row) for row in generated_files.stages().items())


def test_content_names_are_those_that_launchers_ask_for() -> None:
    image = environments.stage_image("dedup", "data")
    assert all_names()["dedup"]["tags"] == [image.reference]
    assert all_names()["dedup"]["labels"] == image.labels
    assert all_names()["env-data"]["tags"] == [image.environment]


# What buildx 0.13.1 printed for these two files (`docker buildx bake -f 0.json -f 1.json all --print`, REGISTRY=r).
FIRST = {
    "variable": {"REGISTRY": {"default": "moxin"}, "TAG": {"default": "latest"}, "EMPTY": {"default": ""}},
    "group": {"all": {"targets": ["base", "top"]}},
    "target": {
        "base": {
            "context": ".",
            "dockerfile": "D",
            "args": {"A": "${EMPTY}", "B": "b"},
            "tags": ["${REGISTRY}/base:${TAG}"],
        },
        "top": {
            "context": ".",
            "dockerfile": "T",
            "args": {"FROM": "${REGISTRY}/base:${TAG}"},
            "tags": ["${REGISTRY}/top:1"],
        },
        "other": {"context": ".", "dockerfile": "O"},
    },
}
SECOND = {
    "target": {
        "base": {"context": "/elsewhere", "tags": ["x/base:2"], "args": {"B": "c"}, "labels": {"l": "m"}},
        "top": {"no-cache": True, "labels": {"n": "o"}},
    }
}
PRINTED = {
    "base": {
        "context": "/elsewhere",
        "dockerfile": "D",
        "args": {"A": "", "B": "c"},
        "labels": {"l": "m"},
        "tags": ["x/base:2"],
    },
    "top": {
        "context": ".",
        "dockerfile": "T",
        "args": {"FROM": "r/base:latest"},
        "labels": {"n": "o"},
        "tags": ["r/top:1"],
        "no-cache": True,
    },
}


def written(folder: Path, *bodies: dict[str, Any]) -> list[Path]:
    files = [folder / f"{number}.json" for number in range(len(bodies))]
    for file, body in zip(files, bodies, strict=True):
        file.write_text(json.dumps(body))
    return files


def test_files_are_merged_as_buildx_merges_them(tmp_path: Path) -> None:
    files = written(tmp_path, FIRST, SECOND)
    assert bake.resolve(files, ["all"], {"REGISTRY": "r"}) == PRINTED
    assert list(bake.resolve(files, ["other", "top"], {})) == ["other", "top"]


@pytest.mark.skipif(not bake.has_buildx(), reason="no docker buildx here (Debian 13: docker-buildx)")
def test_both_builders_derive_the_same_plan(tmp_path: Path) -> None:
    context = {"env-data": {"context": str(tmp_path), "args": {"BASE": "b"}, "no-cache": True}}
    files = [bake.BAKE_FILE, *written(tmp_path, {"target": all_names()}, {"target": context})]
    for sources, names in (([*written(tmp_path, FIRST, SECOND)], ["all"]), (files, ["environments", "default"])):
        environ = os.environ | {"REGISTRY": "r"}
        command = [*bake.buildx_command(sources, names), "--print"]
        printed = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path, check=True).stdout
        assert json.loads(printed)["target"] == bake.resolve(sources, names, environ)


def test_names_and_variables_that_no_file_has_are_told(tmp_path: Path) -> None:
    files = written(tmp_path, FIRST)
    with pytest.raises(ConfigError, match=r"0\.json has no target 'tops'; there are: base, top, other"):
        bake.resolve(files, ["tops"], {})
    (file,) = written(tmp_path, {"target": {"a": {"tags": ["${NO}"]}}})
    with pytest.raises(ConfigError, match="uses the variable NO"):
        bake.resolve([file], ["a"], {})


class Daemon:
    """Stands for the Docker API: it keeps what it is asked to build."""

    def __init__(self) -> None:
        self.built: list[dict[str, Any]] = []
        self.images = SimpleNamespace(build=lambda **words: self.built.append(words), prune=lambda filters: None)


def test_without_buildx_the_daemon_builds_the_same_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, lines = Daemon(), []
    monkeypatch.setattr(bake, "has_buildx", lambda: False)
    monkeypatch.delenv("REGISTRY", raising=False)
    files = written(tmp_path, FIRST, SECOND, {"target": {"base": {"network": "none"}}})
    bake.build(daemon, files, ["all"], lines.append)
    assert lines == ["building x/base:2", "building moxin/top:1"]
    base, top = daemon.built
    assert (base["path"], base["dockerfile"], base["tag"]) == ("/elsewhere", "D", "x/base:2")
    assert (base["buildargs"], base["labels"], base["network_mode"]) == ({"A": "", "B": "c"}, {"l": "m"}, "none")
    assert (base["nocache"], top["nocache"]) == (False, True)
    assert top["path"] == str(bake.ROOT / ".")


def test_a_build_that_fails_says_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(**words: Any) -> None:
        raise BuildError("failed", iter([{"stream": "Step 1"}, {"error": "no such file: x"}]))

    daemon = SimpleNamespace(images=SimpleNamespace(build=build))
    with pytest.raises(InfraError, match=r"base could not be built: Step 1 \| no such file: x"):
        bake.build_with_daemon(daemon, written(tmp_path, FIRST), ["base"])
    (tmp_path / "docker").write_text("#!/bin/sh\necho 'ERROR: no such file: y' >&2\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InfraError, match="base could not be built: ERROR: no such file: y"):
        bake.build_with_buildx(written(tmp_path, FIRST), ["base"])


def test_stages_are_built_without_network_from_the_images_of_their_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = Daemon()
    monkeypatch.setattr(bake, "has_buildx", lambda: False)
    image = environments.stage_image("dedup", "data")
    images.build_stages(daemon, [image], lambda line: None, rebuild=True)
    (build,) = daemon.built
    assert build["buildargs"] == {"ENVIRONMENT": image.environment, "STAGE": "dedup"}
    assert (build["tag"], build["labels"], build["network_mode"], build["nocache"]) == (
        image.reference, image.labels, "none", True,
    )  # fmt: skip


def test_the_address_of_an_index_is_not_told_to_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold a password; wheels are fetched before, and a builder keeps its arguments."""
    for name in images.NO_INDEX:
        monkeypatch.setenv(name, "http://me:planted@127.0.0.1:9/simple")
    daemon = Daemon()
    monkeypatch.setattr(bake, "has_buildx", lambda: False)
    monkeypatch.setattr(images, "wheelhouse", lambda env, folder, report: [])
    monkeypatch.setattr(images, "_base", lambda client, report: "sha256:0")
    images.build_environments(daemon, ["data"], tmp_path / "wheels", lambda line: None)
    (build,) = daemon.built
    assert build["buildargs"] == {"ENV": "data", "BASE": images.BASE} | images.NO_INDEX
    assert "planted" not in str(build)


def test_the_context_of_an_environment_holds_its_locks_and_its_wheels_alone(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    context = images.write_context(tmp_path / "context", "data", [wheel])
    files = {path.relative_to(context).as_posix() for path in context.rglob("*") if path.is_file()}
    lock = "containers/data/requirements.lock"
    recipe = {"containers/env.Dockerfile", "containers/install.sh", "containers/cuda.lock"}
    assert files == {*recipe, lock, "wheels/a-1-py3-none-any.whl"}
    assert (context / lock).read_bytes() == (bake.ROOT / lock).read_bytes()
