"""The environments of containers/<env>/ and the images made of them: locks, digests, names. No Docker daemon
here.

The locks are made by `make lock` from the extras of pyproject.toml, all together, so that a stage runs the same
versions in its image and as a process. An image is named by its content: equal tag, equal code.
"""

from __future__ import annotations

import ast
import os
import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, cast

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flows.data_files import DATA
from stages.core import bundle
from stages.core.errors import ConfigError
from stages.core.files import ROOT
from stages.core.keys import canonical_json, sha256, source_digest, source_files

FOLDER = DATA / "containers"
EMBEDDED = "embedded"
"""The environment of `make demo`: everything, and what tests need."""
CONTROL = "control"
"""The environment of the worker: the control plane without any stage's libraries."""
_LINE = re.compile(r"^([A-Za-z0-9._-]+)==[^#\n]+")


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


def names() -> list[str]:
    """Every environment that has a lock made from pyproject.toml: the stages', the worker's, and the demo's, in
    which `release` is too.
    """
    extras = project()["project"]["optional-dependencies"]
    return [EMBEDDED, CONTROL, *(name for name in extras if name not in ("demo", "dev", "release"))]


@lru_cache(maxsize=1)
def project() -> dict[str, Any]:
    """What pyproject.toml says. Raises ConfigError outside a checkout, where there is none."""
    try:
        return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            "pyproject.toml is missing: this needs a checkout of Moxin, not an installed package"
        ) from None


def declared(env: str) -> list[str]:
    """The requirements of an environment, as pyproject.toml states them: an extra's; of `control` the package's own;
    of `embedded` all of them. Raises ConfigError for an environment that has no extra.
    """
    tables = project()["project"]
    if env == CONTROL:
        return tables["dependencies"]
    extras = tables["optional-dependencies"]
    if env == EMBEDDED:
        rows = [*tables["dependencies"], *(row for extra in extras.values() for row in extra)]
        return sorted({row for row in rows if not row.startswith("moxin[")})
    if env not in extras:
        raise ConfigError(f"no environment '{env}': pyproject.toml has no extra of that name")
    return extras[env]


def made_from(env: str) -> str:
    """What the lock of an environment says of its origin: a digest of all that decides on it."""
    inputs = [declared(env), project()["project"]["requires-python"], project()["tool"]["uv"]]
    return f"asked {sha256(canonical_json(inputs))[:16]}"


def lock_files(env: str) -> list[Path]:
    """The files that together lock an environment: with torch, its version and the libraries of its CUDA build, too."""
    folder = FOLDER / env
    if not (folder / "requirements.lock").is_file():
        raise ConfigError(f"no environment '{env}': containers/{env}/requirements.lock is missing")
    torch = folder / "torch.lock"
    return [folder / "requirements.lock", *([torch, FOLDER / "cuda.lock"] if torch.is_file() else [])]


def read_lock_file(path: Path) -> dict[str, str]:
    """A lock's lines `name==version; marker` without hashes, by normalized name."""
    rows = (_LINE.match(row) for row in path.read_text(encoding="utf-8").splitlines())
    return {canonicalize_name(row[1]): row[0].rstrip("\\ ") for row in rows if row}


def read_lock(env: str) -> dict[str, str]:
    """What an environment holds on this machine, as `{name: "name==version"}`, torch included and CUDA's libraries not.

    Raises ConfigError when the environment has no lock.
    """
    rows = [row for path in lock_files(env) if path.name != "cuda.lock" for row in read_lock_file(path).values()]
    held = [row for row in map(Requirement, rows) if row.marker is None or row.marker.evaluate()]
    return {canonicalize_name(row.name): f"{row.name}{row.specifier}" for row in held}


def locked_requirements(env: str) -> dict[str, str]:
    """What an environment's image may hold, as `{name: "name==version --hash=... --hash=..."}`; torch without.

    Without markers, and whatever the Python here: the base may have any Python 3.11 (Debian 12: 3.11.2).
    """
    paths = [path for path in lock_files(env) if path.name != "cuda.lock"]
    needed = {name for path in paths for name, row in read_lock_file(path).items() if _for_a_base(Requirement(row))}
    rows = {name: row for path in paths for name, row in _hashed_rows(path.read_text(encoding="utf-8")).items()}
    return {name: re.sub(r"\s*;.*?(?=\s--hash=|$)", "", rows[name]) for name in rows if name in needed}


def _for_a_base(requirement: Requirement) -> bool:
    """Whether some Python 3.11 needs it."""
    pythons = [{"python_version": "3.11", "python_full_version": f"3.11.{patch}"} for patch in range(20)]
    return requirement.marker is None or any(requirement.marker.evaluate(dict(python)) for python in pythons)


def cuda_requirements() -> dict[str, str]:
    """The libraries that a CUDA build of torch needs beside an environment, in the same form."""
    return _hashed_rows((FOLDER / "cuda.lock").read_text(encoding="utf-8"))


def _hashed_rows(text: str) -> dict[str, str]:
    """Rows of a requirements file, continuation lines joined, by normalized name."""
    rows = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return {canonicalize_name(row[1]): row.string for row in map(_LINE.match, rows) if row}


def stale_locks() -> list[str]:
    """Locks that are not what pyproject.toml asks for, or disagree with the embedded one: one line each. No network."""
    problems: list[str] = []
    embedded = read_lock(EMBEDDED)
    for env in names():
        path = FOLDER / env / "requirements.lock"
        lock = read_lock(env) if path.is_file() else {}
        if made_from(env) not in (path.read_text(encoding="utf-8").partition("\n")[0] if lock else ""):
            problems.append(f"containers/{env}/requirements.lock is older than pyproject.toml: run 'make lock'")
            continue
        for requirement in map(Requirement, declared(env)):
            version = lock.get(canonicalize_name(requirement.name), "").partition("==")[2]
            if not requirement.specifier.contains(version or "0", prereleases=True):
                problems.append(f"containers/{env}/requirements.lock has not {requirement}: run 'make lock'")
        if others := sorted(lock[name] for name in lock if lock[name] != embedded.get(name)):
            problems.append(f"containers/{env}/requirements.lock has {', '.join(others)}, the embedded one has not")
    return problems


def missing(stages: dict[str, str]) -> list[str]:
    """Packages that a stage imports and the lock of its environment has not, one line each. stages: `{stage: env}`."""
    owners = packages_distributions()
    lines: list[str] = []
    for stage, env in stages.items():
        lock = read_lock(env)
        files = [*bundle.core_files(), *source_files(stage)]
        imports = {name.partition(".")[0] for path in files for name in imported_names(path.read_bytes())}
        for name in sorted(imports & owners.keys() - {"stages", "flows"}):
            if not any(canonicalize_name(owner) in lock for owner in owners[name]):
                lines.append(f"stage {stage} imports {name}: add {owners[name][0]} to extra '{env}' in pyproject.toml")
    return lines


@lru_cache(maxsize=1024)
def imported_names(source: bytes) -> frozenset[str]:
    """Dotted names that a source imports, of modules or of what is in them. Cached: stages share most modules."""
    names: set[str] = set()
    queue: list[ast.AST] = [ast.parse(source)]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for block in (
            "body",
            "orelse",
            "handlers",
            "finalbody",
            "cases",
        ):  # statements hold no others; expressions, most of a tree, none
            inner = getattr(node, block, ())
            if isinstance(inner, list):
                queue.extend(cast("list[ast.AST]", inner))
    return frozenset(names)


# --- identity -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def lock_digest(env: str) -> str:
    """Digest of the environment: its lock, and how its image is made of it."""
    files = [*lock_files(env), FOLDER / "env.Dockerfile", FOLDER / "install.sh"]
    return sha256(canonical_json([[p.name, sha256(p.read_bytes())] for p in files]))


@lru_cache(maxsize=16)
def engine_lock_digest(engine: str) -> str | None:
    """Digest of the lock of an engine's own Python (containers/<engine>); None for what has none, such as TRL."""
    lock, recipe = FOLDER / engine / "requirements.lock", FOLDER / engine / "Dockerfile"
    if lock.is_file():
        return sha256(lock.read_bytes())
    pinned = (
        re.search(r"^ARG LOCK_SHA256=([0-9a-f]{64})$", recipe.read_text(encoding="utf-8"), re.MULTILINE)
        if recipe.is_file()
        else None
    )
    return pinned[1] if pinned else None


def installation_lock_digest() -> str | None:
    """Digest of the lock that this installation was made from (`make setup`); None without one."""
    lock = FOLDER / EMBEDDED / "requirements.lock"
    return sha256(lock.read_bytes()) if lock.is_file() else None


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
