"""Build the images of stages, environments and the control plane (flows/bake.py says by what).

Wheels are fetched here, with this machine's pip configuration, and go into an environment's build context: the build
itself has no network, and nothing of that configuration can stay in a layer. By hand, `docker buildx bake` takes
them from an index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from flows import bake, environments
from flows.bake import BAKE_FILE, Report, Target
from flows.data_files import require_checkout
from flows.environments import CONTROL, Image
from stages.core.errors import ConfigError, InfraError
from stages.core.files import ROOT

BASE = "moxin/base:bookworm"
"""What infra/dev/base_image.sh makes."""
NO_INDEX = {"PIP_INDEX_URL": "", "PIP_EXTRA_INDEX_URL": ""}
"""Arguments of a build that fetches nothing: the address of an index may hold a password, and a builder keeps arguments
beside its intermediate images.
"""


def docker_client() -> Any:
    """The Docker daemon's client. Raises InfraError when there is none to talk to."""
    import docker
    from docker.errors import DockerException

    try:
        client: Any = docker.from_env(timeout=120)
        client.ping()
    except (DockerException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InfraError(
            f"no Docker daemon answers ({reason}): start it, or set DOCKER_HOST; on Debian: infra/dev/docker.sh"
        ) from error
    return client


def exists(client: Any, name: str) -> bool:
    """Whether the daemon has an image."""
    from docker.errors import ImageNotFound

    try:
        client.images.get(name)
    except ImageNotFound:
        return False
    return True


def select(stages: dict[str, str], names: Iterable[str]) -> list[Image]:
    """The images of the named stages, or of all. Raises ConfigError for a name that no stage has."""
    chosen = list(names) or list(stages)
    if unknown := [name for name in chosen if name not in stages]:
        raise ConfigError(f"no stage '{unknown[0]}'; there are: {', '.join(stages)}")
    return [environments.stage_image(name, stages[name]) for name in dict.fromkeys(chosen)]


def build(client: Any, images: Iterable[Image], wheels: Path, report: Report, rebuild: bool = False) -> list[str]:
    """Build the images that the daemon lacks, environments first; returns the names of those built.

    wheels: folder where wheels are kept. rebuild: build all of them, and without the builder's cache.
    """
    chosen = list(images)
    envs = {image.env: image.environment for image in chosen if rebuild or not exists(client, image.environment)}
    stages = [image for image in chosen if rebuild or not exists(client, image.reference)]
    if envs:
        build_environments(client, list(envs), wheels, report, rebuild)
    if stages:
        build_stages(client, stages, report, rebuild)
    return [*envs.values(), *(image.reference for image in stages)]


def build_environments(client: Any, envs: Iterable[str], wheels: Path, report: Report, rebuild: bool = False) -> None:
    """Build environments' images, each from a context with the wheels of its lock, without network."""
    require_checkout("moxin images build")
    base = {"moxin.base": _base(client, report)}
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels, prefix="context-") as folder:  # beside the wheels: they are linked
        changes: dict[str, Target] = {}
        for env in envs:
            names = bake.environment_names(env)
            context = write_context(Path(folder) / env, env, wheelhouse(env, wheels, report))
            changes[f"env-{env}"] = names | {
                "context": str(context), "args": {"BASE": BASE} | NO_INDEX, "labels": names["labels"] | base,
                "network": "none",
            }  # fmt: skip
        _bake(client, changes, list(changes), report, rebuild)


def build_stages(client: Any, images: Iterable[Image], report: Report, rebuild: bool = False) -> None:
    """Build stages' images on those of their environments, which must be there."""
    chosen = list(images)
    _bake(client, bake.content_names(chosen), [image.stage for image in chosen], report, rebuild)


def build_control(client: Any, wheels: Path, report: Report) -> str:
    """Build the image of the control plane's worker, whatever is there already; returns its name."""
    name, environment = environments.control_image()
    if not exists(client, environment):
        build_environments(client, [CONTROL], wheels, report)
    _bake(client, {CONTROL: bake.control_names()}, [CONTROL], report)
    return name


def _bake(client: Any, changes: Mapping[str, Target], names: list[str], report: Report, rebuild: bool = False) -> None:
    """Build targets of docker-bake.json with changes of the moment, and remove what a classic builder leaves."""
    require_checkout("moxin images build")
    offline: Target = {"network": "none"} | ({"no-cache": True} if rebuild else {})
    with tempfile.TemporaryDirectory() as folder:
        override = Path(folder) / "override.json"
        override.write_text(bake.override_text({name: offline | changes[name] for name in names}), encoding="utf-8")
        bake.build(client, [BAKE_FILE, override], names, report)
    client.images.prune(filters={"label": "moxin.intermediate=1"})


def write_context(folder: Path, env: str, wheels: Iterable[Path]) -> Path:
    """Fill a folder with what env.Dockerfile copies: locks, the script that installs them, and their wheels."""
    files = [ROOT / "containers" / name for name in ("env.Dockerfile", "install.sh", "cuda.lock")]
    for path in {*files, *environments.lock_files(env)}:
        copied = folder / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    (folder / "wheels").mkdir()
    for wheel in wheels:
        os.link(wheel, folder / "wheels" / wheel.name)
    return folder


def _base(client: Any, report: Report) -> str:
    """The id of the base image, which is made where it is missing."""
    if not exists(client, BASE):
        report("making the base image (infra/dev/base_image.sh)")
        script = subprocess.run(
            [str(ROOT / "infra" / "dev" / "base_image.sh")], capture_output=True, text=True, check=False
        )
        if script.returncode:
            raise InfraError(
                f"infra/dev/base_image.sh failed: {(script.stderr.strip().splitlines() or ['no message'])[-1]}"
            )
    return str(client.images.get(BASE).id)


def wheelhouse(env: str, folder: Path, report: Report) -> list[Path]:
    """The wheels of an environment's lock, and pip's own; those missing in `folder` are fetched or built first."""
    folder.mkdir(parents=True, exist_ok=True)
    requirements = {"pip": f"pip=={version('pip')}"} | environments.locked_requirements(env)
    wheels = _fetch(requirements, folder, report)
    torch = wheels.get("torch")
    if torch is not None and parse_wheel_filename(torch.name)[1].local != "cpu":
        wheels |= _fetch(environments.cuda_requirements(), folder, report)
    return [wheels[name] for name in sorted(wheels)]


def _fetch(requirements: dict[str, str], folder: Path, report: Report) -> dict[str, Path]:
    """The wheels of these requirements, by name. pip brings what is missing, and checks the hashes that it has."""
    versions = {name: requirement.split("==")[1].split()[0] for name, requirement in requirements.items()}
    missing = sorted(versions.keys() - _locked_wheels(folder, versions).keys())
    if missing:
        report(f"fetching {len(missing)} wheels")
    for hashed in (True, False):
        lines = [requirements[name] for name in missing if ("--hash=" in requirements[name]) is hashed]
        if not lines:
            continue
        listing = folder / "missing.txt"
        listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
        pip = subprocess.run([*command, "-r", str(listing)], capture_output=True, text=True, check=False)
        listing.unlink()
        if pip.returncode:
            raise InfraError(f"pip could not get the wheels: {(pip.stderr.strip().splitlines() or ['no message'])[-1]}")
    wheels = _locked_wheels(folder, versions)
    if absent := sorted(versions.keys() - wheels.keys()):
        raise InfraError(f"pip made no wheel of {', '.join(absent)}")
    return wheels


def _locked_wheels(folder: Path, locked: dict[str, str]) -> dict[str, Path]:
    """The wheels in a folder that a lock asks for. A local version (torch's +cpu) satisfies a lock without one, as for
    pip.
    """
    wheels: dict[str, Path] = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, number, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if locked.get(canonicalize_name(name)) in (str(number), number.public):
            wheels[canonicalize_name(name)] = path
    return wheels
