"""The environments of containers/<env>/ and the images made of them: locks, digests, names, the bake file. No engine here.

A lock is derived: the closure of requirements.in in the embedded lock, so that a stage runs the same versions in its image
and as a process. An image is named by its content: equal tag, equal code.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stages.core import bundle
from stages.core.contracts import ConfigError
from stages.core.keys import canonical_json, imported_names, sha256, source_digest, source_files

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "containers"
EMBEDDED_LOCK = FOLDER / "embedded" / "requirements.lock"
CONTROL = "control"
"""The environment of the worker: the control plane without any stage's libraries."""
_LINE = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)")


@dataclass(frozen=True)
class Image:
    """A stage's image: where it is, and what must be in it."""

    stage: str
    env: str
    reference: str
    environment: str
    labels: dict[str, str]


def registry() -> str:
    """What image names begin with: MOXIN_REGISTRY (`host/project`), else `moxin`, which lies on this machine only."""
    return os.environ.get("MOXIN_REGISTRY", "moxin").rstrip("/")


# --- locks ----------------------------------------------------------------------------------------------------------


def read_lock(path: Path) -> dict[str, str]:
    """A lock's lines `name==version`, by normalized name. Raises ConfigError when there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{path.relative_to(ROOT)} is missing: run 'moxin check --write'") from None
    return {canonicalize_name(m[1]): line.strip() for line in lines if (m := _LINE.match(line))}


def requirements(env: str) -> list[Requirement]:
    """What requirements.in of an environment asks for."""
    path = FOLDER / env / "requirements.in"
    if not path.is_file():
        raise ConfigError(f"no environment '{env}': containers/{env}/requirements.in is missing")
    rows = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(row) for row in rows if row]


def closure(wanted: Iterable[Requirement], lock: dict[str, str]) -> list[str]:
    """The lines of `lock` that `wanted` needs, directly or through others, as the installed packages state it.

    Raises ConfigError naming a requirement that the lock has not.
    """
    found: dict[str, str] = {}
    queue = [(requirement, "requirements.in") for requirement in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        requirement, asker = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name not in lock:
            raise ConfigError(f"{asker} needs {requirement.name}, which containers/embedded/requirements.lock has not: add it there")
        found[name] = lock[name]
        try:
            stated = distribution(name).requires or []
        except PackageNotFoundError:
            raise ConfigError(f"{requirement.name} is in the lock but not installed: run 'make setup'") from None
        for inner in map(Requirement, stated):
            markers = [{"extra": extra} for extra in (extras or {""})]
            if inner.marker is None or any(inner.marker.evaluate(values) for values in markers):
                queue.append((inner, requirement.name))
    return [found[name] for name in sorted(found)]


def lock_text(env: str) -> str:
    """What containers/<env>/requirements.lock should hold."""
    head = f"# Derived by `moxin check --write`: the closure of containers/{env}/requirements.in in the embedded lock. Do not edit."
    return "\n".join([head, *closure(requirements(env), read_lock(EMBEDDED_LOCK))]) + "\n"


def missing(stages: dict[str, str]) -> list[str]:
    """Packages that a stage imports and the lock of its environment has not, one line each. stages: `{stage: env}`."""
    owners = packages_distributions()
    found = []
    for stage, env in stages.items():
        lock = read_lock(FOLDER / env / "requirements.lock")
        files = [*bundle.core_files(), *source_files(stage)]
        names = {name.partition(".")[0] for path in files for name in imported_names(path.read_bytes())}
        for name in sorted(names & owners.keys()):
            if not any(canonicalize_name(owner) in lock for owner in owners[name]) and name not in ("stages", "flows"):
                found.append(f"stage {stage} imports {name}: add {owners[name][0]} to containers/{env}/requirements.in")
    return found


# --- identity -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def lock_digest(env: str) -> str:
    """Digest of the environment: its lock, and how its image is made of it."""
    files = [FOLDER / env / "requirements.lock", FOLDER / "env.Dockerfile", FOLDER / "install.sh"]
    if not files[0].is_file():
        raise ConfigError(f"no environment '{env}': containers/{env}/requirements.lock is missing")
    return sha256(canonical_json([[p.name, sha256(p.read_bytes())] for p in files]))


def environment_image(env: str) -> str:
    """Name of the image of an environment."""
    return f"{registry()}/env-{env}:{lock_digest(env)[:16]}"


def content_digest(stage: str) -> str:
    """Digest of all that the stage's layer holds: `source_digest` and `contract_digest` name its two halves."""
    files = bundle.stage_files(stage)
    return sha256(canonical_json([[p.relative_to(ROOT).as_posix(), sha256(p.read_bytes())] for p in files]))


@lru_cache(maxsize=64)
def stage_image(stage: str, env: str) -> Image:
    """The image of a stage with the code that lies here."""
    recipe = sha256((FOLDER / "stage.Dockerfile").read_bytes())
    tag = sha256(canonical_json([content_digest(stage), lock_digest(env), recipe]))[:16]
    labels = {
        "moxin.stage": stage,
        "moxin.env": env,
        "moxin.contract": bundle.contract_digest(),
        "moxin.source": source_digest(stage),
        "moxin.lock": lock_digest(env),
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    return Image(stage, env, f"{registry()}/{stage}:{tag}", environment_image(env), labels)


def control_image() -> tuple[str, str]:
    """Name of the image of the control plane's worker, and of its environment."""
    return f"{registry()}/control:latest", environment_image(CONTROL)


# --- bake -----------------------------------------------------------------------------------------------------------


def bake_text(stages: dict[str, str]) -> str:
    """docker-bake.json: one target for each environment and each stage. stages: `{stage: env}`.

    It names no digest, which would make it stale at every edit; `moxin images labels` prints those of the moment.
    """
    envs = sorted({*stages.values(), CONTROL})
    variables: dict[str, dict[str, str]] = {
        "REGISTRY": {"default": "moxin"},
        "TAG": {"default": "latest"},
        "BASE": {"default": "python:3.11-slim-bookworm"},
        "PIP_INDEX_URL": {"default": ""},
        "PIP_EXTRA_INDEX_URL": {"default": ""},
    }
    targets: dict[str, dict[str, object]] = {}
    for env in envs:
        targets[f"env-{env}"] = {
            "context": ".",
            "dockerfile": "containers/env.Dockerfile",
            "args": {"ENV": env} | {name: f"${{{name}}}" for name in ("BASE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")},
            "tags": [f"${{REGISTRY}}/env-{env}:${{TAG}}"],
        }
    for stage, env in stages.items():
        targets[stage] = {
            "context": ".",
            "contexts": {"environment": f"target:env-{env}"},
            "dockerfile": "containers/stage.Dockerfile",
            "args": {"ENVIRONMENT": "environment", "STAGE": stage},
            "tags": [f"${{REGISTRY}}/{stage}:${{TAG}}"],
        }
    targets[CONTROL] = {
        "context": ".",
        "contexts": {"environment": f"target:env-{CONTROL}"},
        "dockerfile": "containers/control/Dockerfile",
        "args": {"ENVIRONMENT": "environment"},
        "tags": [f"${{REGISTRY}}/{CONTROL}:${{TAG}}"],
    }
    body = {"variable": variables, "group": {"default": {"targets": [*stages, CONTROL]}}, "target": targets}
    return json.dumps(body, indent=2) + "\n"


def bake_labels(stages: dict[str, str]) -> str:
    """A second bake file: the tags and labels that the code here asks for."""
    targets: dict[str, dict[str, object]] = {}
    for stage, env in stages.items():
        image = stage_image(stage, env)
        targets[f"env-{env}"] = {"tags": [image.environment], "labels": {"moxin.env": env, "moxin.lock": lock_digest(env)}}
        targets[stage] = {"tags": [image.reference], "labels": image.labels}
    return json.dumps({"target": targets}, indent=2) + "\n"
