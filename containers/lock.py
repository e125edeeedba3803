"""Make the locks of all environments anew from pyproject.toml: `make lock`, which needs a package index.

uv resolves once for every environment together, so that a package has one version everywhere; versions that are locked
already stay, unless they are named: `make lock UPGRADE="ray numpy"`, or `UPGRADE=all`. Written are, per environment,
requirements.lock with hashes and torch.lock without (containers/README.md says why), and cuda.lock for all.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from flows import environments

CUDA = re.compile(r"^(nvidia-|cuda-|triton==)")
"""Packages that a CUDA build of torch brings and a CPU build does not."""
_WHERE = "platform_python_implementation == 'CPython' and sys_platform == 'linux'"
_EVERYWHERE = (
    f" ; (platform_machine == 'aarch64' or platform_machine == 'x86_64') and {_WHERE}",
    f" and ((platform_machine == 'aarch64' and {_WHERE}) or (platform_machine == 'x86_64' and {_WHERE}))",
)
"""Markers that uv writes for [tool.uv] environments: true wherever the locks are for, so that they say nothing."""


def uv(*arguments: str, folder: Path) -> str:
    """Run uv in a folder; its output. Exits with uv's message when it fails."""
    program = Path(sys.executable).with_name("uv")
    done = subprocess.run([str(program), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"uv {arguments[0]} failed:\n{done.stderr}")
    return done.stdout


def write_project(folder: Path, constraints: list[str]) -> None:
    """A project that asks for the same as pyproject.toml, with each environment as a group of its own: uv exports an
    extra only together with the project's dependencies, which no stage's image should hold.
    """
    project = environments.project()
    lines = ["[project]", 'name = "moxin"', f"version = {json.dumps(project['project']['version'])}"]
    lines += [f"requires-python = {json.dumps(project['project']['requires-python'])}", "[dependency-groups]"]
    lines += [f"{env} = {json.dumps(environments.declared(env))}" for env in environments.names()]
    lines += ["[tool.uv]", "default-groups = []"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in project["tool"]["uv"].items()]
    lines += [f"constraint-dependencies = {json.dumps(constraints)}"]
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pins(folder: Path, upgrade: list[str]) -> list[str]:
    """`name==version; marker` of everything, with versions that are locked already kept where they still fit."""
    kept = folder / "pins.txt"
    locks = [*sorted(environments.FOLDER.glob("embedded/*.lock")), environments.FOLDER / "cuda.lock"]
    known = {name: line for path in locks if path.is_file() for name, line in environments.read_lock_file(path).items()}
    kept.write_text("\n".join(known.values()) + "\n", encoding="utf-8")
    chosen = ["--upgrade"] if upgrade == ["all"] else [f"--upgrade-package={name}" for name in upgrade]
    groups = [f"--group={env}" for env in environments.names()]
    uv("pip", "compile", "--universal", "--quiet", "--no-annotate", "--no-header", "-o", "pins.txt", *groups, *chosen,
       folder=folder)  # fmt: skip
    return [line for line in kept.read_text(encoding="utf-8").splitlines() if line]


def blocks(text: str) -> dict[str, str]:
    """A requirements file with hashes, as `{name: its lines}`."""
    for marker in _EVERYWHERE:
        text = text.replace(marker, "")
    rows = re.findall(r"^([A-Za-z0-9._-]+)(==(?:.*\\\n)*.*\n)", text, re.MULTILINE)
    return {canonicalize_name(name): f"{name}{rest}" for name, rest in rows}


def megabytes(names: set[str], packages: dict[str, dict[str, Any]]) -> int:
    """What these packages weigh on the way, in MB: for each the wheel for Python 3.11 on x86-64, else its sources."""
    fits = re.compile(r"-(?:cp311-cp311|cp3\d+-abi3|(?:py2\.)?py3\d*-none|cp311-none)-(?:.*x86_64|any)\.whl$")
    total = 0
    for name in names:
        wheels = [wheel for wheel in packages[name].get("wheels", []) if fits.search(wheel["url"])]
        total += (wheels[0] if wheels else packages[name].get("sdist", {})).get("size", 0)
    return round(total / 1e6)


def main(upgrade: list[str]) -> None:
    """Resolve, and write every lock."""
    with tempfile.TemporaryDirectory(prefix="moxin-lock-") as name:
        folder = Path(name)
        write_project(folder, [])
        write_project(folder, pins(folder, upgrade))
        uv("lock", "--quiet", folder=folder)
        packages = {p["name"]: p for p in tomllib.loads((folder / "uv.lock").read_text(encoding="utf-8"))["package"]}
        cuda: dict[str, str] = {}
        for env in environments.names():
            export = ("export", "--frozen", "--no-header", "--no-annotate", "--no-emit-project", f"--only-group={env}")
            lines = blocks(uv(*export, folder=folder))
            cuda |= {name: lines.pop(name) for name in sorted(lines) if CUDA.match(lines[name])}
            torch = lines.pop("torch", None)
            write(environments.FOLDER / env / "requirements.lock", env, lines, megabytes(set(lines), packages))
            path = environments.FOLDER / env / "torch.lock"
            if torch:
                head = (
                    "# `make lock`. Without a hash, so that a CPU build or another CUDA's fits: containers/README.md."
                )
                path.write_text(f"{head}\n{torch.partition(' ')[0]}\n", encoding="utf-8")
            else:
                path.unlink(missing_ok=True)
        write(environments.FOLDER / "cuda.lock", "embedded", cuda, megabytes({*cuda, "torch"}, packages))


def write(path: Path, env: str, lines: dict[str, str], size: int) -> None:
    """A lock with its head: what it was made from, and how much it downloads."""
    head = [f"# `make lock`, from pyproject.toml. {environments.made_from(env)}", f"# {len(lines)} packages, {size} MB"]
    path.write_text("\n".join(head) + "\n" + "".join(lines[name] for name in sorted(lines)), encoding="utf-8")
    print(f"{path.relative_to(environments.ROOT)}: {len(lines)} packages, {size} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
