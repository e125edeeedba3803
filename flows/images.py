"""Build, list and verify images through the Docker engine's own API: nothing but the engine is needed, no buildx.

Wheels are fetched here, with this machine's pip configuration, and go into the build context: the build itself has no network,
and nothing of that configuration can stay in a layer. With a registry, `docker buildx bake` does the same from an index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from flows import environments
from flows.environments import ROOT, Image
from stages.core.contracts import ConfigError, InfraError

BASE = "moxin/base:bookworm"
"""What infra/dev/base_image.sh makes."""
Say = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """An image as `moxin images list` shows it."""

    image: str
    state: str
    mib: int
    own_kib: int
    layers: int


def engine() -> Any:
    """The Docker engine's client. Raises InfraError when there is none to talk to."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except (DockerException, OSError) as error:
        raise InfraError(f"no Docker engine answers ({_line(error)}): start it, or set DOCKER_HOST; on Debian: infra/dev/docker.sh") from error
    return client


# --- building -------------------------------------------------------------------------------------------------------


def build(client: Any, wanted: Iterable[Image], wheels: Path, say: Say, again: bool = False) -> list[str]:
    """Build the images that are not there yet, environments first; returns the names of those built. `again`: all, from nothing."""
    made: list[str] = []
    images = list(wanted)
    base_digest = _base(client, say)
    for env, name in dict.fromkeys((image.env, image.environment) for image in images):
        if again or not _there(client, name):
            build_environment(client, env, name, wheels, base_digest, say, again)
            made.append(name)
    for image in images:
        if again or not _there(client, image.reference):
            build_stage(client, image, say, again)
            made.append(image.reference)
    if made:
        client.images.prune(filters={"label": "moxin.intermediate=1"})
    return made


def build_stage(client: Any, image: Image, say: Say, again: bool = False) -> None:
    """Build a stage's image on its environment's."""
    say(f"building {image.reference}")
    sources = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "stages").rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    context = _context([*sources, "containers/stage.Dockerfile"])
    arguments = {"ENVIRONMENT": image.environment, "STAGE": image.stage}
    _build(client, context, "containers/stage.Dockerfile", image.reference, arguments, image.labels, again)


def build_control(client: Any, wheels: Path, say: Say) -> str:
    """Build the image of the control plane's worker, whatever is there already; returns its name."""
    name, environment = environments.control_image()
    if not _there(client, environment):
        build_environment(client, environments.CONTROL, environment, wheels, _base(client, say), say)
    say(f"building {name}")
    files = ["LICENSE", "README.md", "docker-bake.json", "prefect.toml", "prefect.yaml", "pyproject.toml"]
    for folder in ("containers", "flows", "infra", "stages"):
        files += [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / folder).rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    labels = {"org.opencontainers.image.licenses": "Apache-2.0"}
    _build(client, _context(files), "containers/control/Dockerfile", name, {"ENVIRONMENT": environment}, labels)
    return name


def build_environment(client: Any, env: str, name: str, wheels: Path, base: str, say: Say, again: bool = False) -> None:
    """Build an environment's image on the base with that id."""
    say(f"building {name}")
    paths = ["containers/install.sh", "containers/env.Dockerfile", f"containers/{env}/requirements.lock"]
    labels = {"moxin.env": env, "moxin.lock": environments.lock_digest(env), "moxin.base": base}
    _build(client, _context(paths, wheelhouse(env, wheels, say)), "containers/env.Dockerfile", name, {"BASE": BASE, "ENV": env}, labels, again)


def _base(client: Any, say: Say) -> str:
    """Make sure of the base image; its id."""
    if not _there(client, BASE):
        say("making the base image (infra/dev/base_image.sh)")
        done = subprocess.run([str(ROOT / "infra" / "dev" / "base_image.sh")], capture_output=True, text=True, check=False)
        if done.returncode:
            raise InfraError(f"infra/dev/base_image.sh failed: {done.stderr.strip().splitlines()[-1:] or 'no message'}")
    return str(client.images.get(BASE).id)


def _there(client: Any, name: str) -> bool:
    from docker.errors import ImageNotFound

    try:
        client.images.get(name)
    except ImageNotFound:
        return False
    return True


def wheelhouse(env: str, folder: Path, say: Say) -> list[Path]:
    """The wheels of an environment's lock, and pip's own; what is missing in `folder` is fetched or built there first."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = environments.read_lock(environments.FOLDER / env / "requirements.lock")
    wanted = {name: line.partition("==")[2] for name, line in lock.items()} | {"pip": version("pip")}
    if missing := [f"{name}=={wanted[name]}" for name in sorted(wanted.keys() - _wheels(folder, wanted).keys())]:
        say(f"fetching {len(missing)} wheels")
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *missing]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InfraError(f"pip could not get the wheels of environment '{env}': {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found = _wheels(folder, wanted)
    if absent := sorted(wanted.keys() - found.keys()):
        raise InfraError(f"pip made no wheel of {', '.join(absent)} (environment '{env}')")
    return [found[name] for name in sorted(found)]


def _wheels(folder: Path, wanted: dict[str, str]) -> dict[str, Path]:
    """The wheels in a folder that a lock asks for. A local version (torch's +cpu) satisfies a lock without one, as for pip."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, number, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if wanted.get(canonicalize_name(name)) in (str(number), number.public):
            found[canonicalize_name(name)] = path
    return found


def _context(paths: Iterable[str], wheels: Iterable[Path] = ()) -> Path:
    """A build context as a tar file, with nothing in it that could differ between machines; the caller removes it."""
    descriptor, name = tempfile.mkstemp(suffix=".tar", prefix="moxin-context-")
    with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as archive:
        for path, arcname in [*((ROOT / p, p) for p in paths), *((w, f"wheels/{w.name}") for w in wheels)]:
            info = tarfile.TarInfo(arcname)
            info.size, info.mode = path.stat().st_size, 0o644
            with open(path, "rb") as stream:
                archive.addfile(info, stream)
    return Path(name)


def _build(
    client: Any, context: Path, dockerfile: str, tag: str, arguments: dict[str, str], labels: dict[str, str], again: bool = False
) -> None:
    from docker.errors import APIError, BuildError

    try:
        with open(context, "rb") as stream:
            client.images.build(
                fileobj=stream, custom_context=True, dockerfile=dockerfile, tag=tag, buildargs=arguments, labels=labels,
                rm=True, forcerm=True, nocache=again, network_mode="none", timeout=1800,
            )  # fmt: skip
    except BuildError as error:
        lines = [str(row.get("stream") or row.get("error") or "").strip() for row in error.build_log]
        raise InfraError(f"{tag} could not be built: {' | '.join([line for line in lines if line][-4:])}") from error
    except APIError as error:
        raise InfraError(f"{tag} could not be built: {_line(error)}") from error
    finally:
        context.unlink()


# --- looking --------------------------------------------------------------------------------------------------------


def rows(client: Any, wanted: Iterable[Image]) -> list[Row]:
    """Every image that the pipeline asks for: whether it is there, its size, and what it adds to its environment."""
    found = []
    for image in wanted:
        if not _there(client, image.reference):
            found.append(Row(image.reference, "missing", 0, 0, 0))
            continue
        attributes = client.images.get(image.reference).attrs
        below = client.images.get(image.environment).attrs["Size"] if _there(client, image.environment) else attributes["Size"]
        problems = mismatches(attributes["Config"]["Labels"] or {}, image)
        size, layers = int(attributes["Size"]), len(attributes["RootFS"]["Layers"])
        found.append(Row(image.reference, "; ".join(problems) or "ok", size >> 20, (size - int(below)) >> 10, layers))
    return found


def mismatches(labels: dict[str, str], image: Image) -> list[str]:
    """Where an image's labels differ from what the code here asks for."""
    return [f"{name} is {labels.get(name, 'absent')[:16]}, not {value[:16]}" for name, value in image.labels.items() if labels.get(name) != value]


def verify(client: Any, wanted: Iterable[Image]) -> list[str]:
    """Start every image once, without network and with a read-only root, and compare it with what lies here; the problems."""
    problems = []
    for image in wanted:
        if not _there(client, image.reference):
            problems.append(f"{image.reference} is not there: run 'moxin images build'")
            continue
        attributes = client.images.get(image.reference).attrs
        problems += [f"{image.reference}: {line}" for line in mismatches(attributes["Config"]["Labels"] or {}, image)]
        if (user := attributes["Config"]["User"]).split(":")[0] in ("", "0", "root"):
            problems.append(f"{image.reference} runs as '{user or 'root'}'")
        problems += [f"{image.reference}: {line}" for line in _inside(client, image)]
    return problems


_PROBE = """
import hashlib, importlib, json, pathlib, shutil, sys
root = pathlib.Path("/app")
files = sorted(p for p in root.rglob("*") if p.is_file())
rows = [[p.relative_to(root).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest()] for p in files]
importlib.import_module(f"stages.{sys.argv[1]}.run")
print(json.dumps({"files": rows, "tools": [t for t in ("cc", "gcc", "pip", "make") if shutil.which(t)]}))
"""


def _inside(client: Any, image: Image) -> list[str]:
    """What is wrong inside an image: other files than here, imports that fail, tools that do not belong there."""
    from docker.errors import ContainerError

    try:
        output = client.containers.run(
            image.reference, ["-c", _PROBE, image.stage], entrypoint=["python"], network_mode="none", read_only=True,
            remove=True, tmpfs={"/tmp": "", "/scratch": "uid=65532"}, cap_drop=["ALL"], security_opt=["no-new-privileges"],
        )  # fmt: skip
    except ContainerError as error:
        lines = str(error).strip().splitlines()
        return [f"its stage cannot be imported: {lines[-1]}"]
    said = json.loads(output)
    digest = environments.sha256(environments.canonical_json(said["files"]))
    found = [] if digest == environments.content_digest(image.stage) else ["its files are not those that lie here"]
    return found + [f"it has {tool}" for tool in said["tools"]]


def _line(error: BaseException) -> str:
    return (str(getattr(error, "explanation", "") or error).strip().splitlines() or [type(error).__name__])[0]


def select(stages: dict[str, str], names: Iterable[str]) -> list[Image]:
    """The images of the named stages, or of all. Raises ConfigError for a name that no stage has."""
    chosen = list(names) or list(stages)
    if unknown := [name for name in chosen if name not in stages]:
        raise ConfigError(f"no stage '{unknown[0]}'; there are: {', '.join(stages)}")
    return [environments.stage_image(name, stages[name]) for name in dict.fromkeys(chosen)]

