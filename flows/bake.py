"""docker-bake.json: the one description of how images are built, and the two programs that build from it.

`docker buildx bake` where buildx is installed; elsewhere the Docker daemon's classic builder, for which `resolve` reads
the same files as bake does. Environments are built first: a stage's target names the image that it starts from. Named
contexts would order the two, but need a newer BuildKit than Debian 12 has. Old buildx (0.13) ignores a target's
`network`; environments are installed from wheels in the context (`--no-index`), so that the result is the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from flows.environments import CONTROL, Image, control_image, environment_image, lock_digest
from stages.core.errors import ConfigError, InfraError
from stages.core.files import ROOT

BAKE_FILE = ROOT / "docker-bake.json"
ENVIRONMENTS = "environments"
"""The group of all environments' targets."""
Report = Callable[[str], object]
Target = dict[str, Any]
"""A target as `docker buildx bake --print` shows it: context, dockerfile, args, tags, labels, network, no-cache."""


def bake_text(stages: Mapping[str, str]) -> str:
    """docker-bake.json: one target for each environment and each stage. stages: `{stage: env}`.

    It names no digest, which would make it stale at every edit; `moxin images labels` prints those of the moment.
    """
    envs = sorted({*stages.values(), CONTROL})
    variables = {
        "REGISTRY": "moxin",
        "TAG": "latest",
        "BASE": "python:3.11-slim-bookworm",
        "PIP_INDEX_URL": "",
        "PIP_EXTRA_INDEX_URL": "",
    }
    targets: dict[str, Target] = {}
    for env in envs:
        targets[f"env-{env}"] = {
            "context": ".",
            "dockerfile": "containers/env.Dockerfile",
            "args": {"ENV": env} | {name: f"${{{name}}}" for name in ("BASE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")},
            "tags": [f"${{REGISTRY}}/env-{env}:${{TAG}}"],
        }
    for stage, env in {**stages, CONTROL: CONTROL}.items():
        targets[stage] = {
            "context": ".",
            "dockerfile": "containers/control/Dockerfile" if stage == CONTROL else "containers/stage.Dockerfile",
            "args": {"ENVIRONMENT": f"${{REGISTRY}}/env-{env}:${{TAG}}"}
            | ({} if stage == CONTROL else {"STAGE": stage}),
            "tags": [f"${{REGISTRY}}/{stage}:${{TAG}}"],
        }
    groups = {ENVIRONMENTS: [f"env-{env}" for env in envs], "default": [*stages, CONTROL]}
    body = {
        "variable": {name: {"default": default} for name, default in variables.items()},
        "group": {name: {"targets": names} for name, names in groups.items()},
        "target": targets,
    }
    return json.dumps(body, indent=2) + "\n"


def content_names(images: Iterable[Image]) -> dict[str, Target]:
    """What a second bake file says of images: tags and labels that the code here asks for, and what they start from."""
    targets: dict[str, Target] = {}
    for image in images:
        targets[f"env-{image.env}"] = environment_names(image.env)
        targets[image.stage] = {
            "args": {"ENVIRONMENT": image.environment},
            "tags": [image.reference],
            "labels": image.labels,
        }
    return targets


def environment_names(env: str) -> Target:
    """Tag and labels of an environment's image."""
    return {"tags": [environment_image(env)], "labels": {"moxin.env": env, "moxin.lock": lock_digest(env)}}


def control_names() -> Target:
    """Tag and labels of the control plane's image, and what it starts from."""
    name, environment = control_image()
    labels = {"org.opencontainers.image.licenses": "Apache-2.0"}
    return {"args": {"ENVIRONMENT": environment}, "tags": [name], "labels": labels}


def override_text(targets: Mapping[str, Target]) -> str:
    """A bake file that changes targets of docker-bake.json."""
    return json.dumps({"target": targets}, indent=2) + "\n"


# --- the plan of a build --------------------------------------------------------------------------------------------


def resolve(files: Sequence[Path], names: Iterable[str], environ: Mapping[str, str]) -> dict[str, Target]:
    """The targets that names (of targets or groups) stand for, as `docker buildx bake --print` resolves them: a later
    file wins, tables are merged key by key, and a variable's value is the environment's or else its default.

    Raises ConfigError for a name or a variable that no file has.
    """
    targets: dict[str, Target] = {}
    groups: dict[str, list[str]] = {}
    variables: dict[str, str] = {}
    for file in files:
        body = json.loads(file.read_text(encoding="utf-8"))
        variables |= {
            name: environ.get(name, str(row.get("default", ""))) for name, row in body.get("variable", {}).items()
        }
        groups |= {name: row["targets"] for name, row in body.get("group", {}).items()}
        for name, changes in body.get("target", {}).items():
            target = targets.setdefault(name, {})
            for key, value in changes.items():
                target[key] = target.get(key, {}) | value if isinstance(value, dict) else value
    chosen = dict.fromkeys(target for name in names for target in groups.get(name, [name]))
    if unknown := [name for name in chosen if name not in targets]:
        raise ConfigError(f"{files[0].name} has no target '{unknown[0]}'; there are: {', '.join(targets)}")
    return {name: _interpolated(targets[name], variables) for name in chosen}


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolated(item, variables) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_interpolated(item, variables) for item in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ConfigError(f"the bake file uses the variable {match[1]}, which it does not declare")
        return variables[match[1]]

    return re.sub(r"\$\{(\w+)\}", lookup, value)


# --- the two builders -----------------------------------------------------------------------------------------------


def has_buildx() -> bool:
    """Whether `docker buildx` is installed here."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode == 0


def build(client: Any, files: Sequence[Path], names: Sequence[str], report: Report) -> None:
    """Build the named targets, which do not depend on each other, with buildx or else with the classic builder.

    Raises InfraError with the end of the builder's output.
    """
    for target in resolve(files, names, os.environ).values():
        report(f"building {target['tags'][0]}")
    if has_buildx():
        build_with_buildx(files, names)
    else:
        build_with_daemon(client, files, names)


def buildx_command(files: Sequence[Path], names: Sequence[str], *options: str) -> list[str]:
    """The command line of bake. The builder `default` is the daemon's own: it has the images to start from."""
    sources = [word for file in files for word in ("--file", str(file))]
    return ["docker", "buildx", "bake", "--builder", "default", "--progress", "plain", *sources, *options, *names]


def build_with_buildx(files: Sequence[Path], names: Sequence[str]) -> None:
    """Build targets by `docker buildx bake`, in the daemon that the Docker API's client talks to."""
    environ = os.environ | {"BUILDX_BAKE_ENTITLEMENTS_FS": "0"}  # contexts with wheels lie outside this folder
    if "DOCKER_HOST" not in environ:
        environ["DOCKER_CONTEXT"] = "default"
    bake = subprocess.run(
        buildx_command(files, names), capture_output=True, text=True, cwd=ROOT, env=environ, check=False
    )
    if bake.returncode:
        lines = [line for line in bake.stderr.splitlines() if line.strip()]
        raise InfraError(f"{', '.join(names)} could not be built: {' | '.join(lines[-4:])}")


def build_with_daemon(client: Any, files: Sequence[Path], names: Sequence[str]) -> None:
    """Build targets one after the other by the daemon's classic builder, through its API."""
    from docker.errors import APIError, BuildError

    for name, target in resolve(files, names, os.environ).items():
        try:
            client.images.build(
                path=str(ROOT / target["context"]),
                dockerfile=target["dockerfile"],
                tag=target["tags"][0],
                buildargs=target["args"],
                labels=target.get("labels", {}),
                network_mode=target.get("network"),
                nocache=target.get("no-cache", False),
                rm=True,
                forcerm=True,
                timeout=1800,
            )
        except BuildError as error:
            lines = [str(row.get("stream") or row.get("error") or "").strip() for row in error.build_log]
            message = " | ".join([line for line in lines if line][-4:])
            raise InfraError(f"{name} could not be built: {message}") from error
        except (APIError, OSError, TypeError) as error:
            raise InfraError(f"{name} could not be built: {getattr(error, 'explanation', None) or error}") from error
