"""Install the locked environment into the Python that runs this: `make setup` does, in .venv.

    python -m venv .venv && .venv/bin/python containers/embedded/install.py

Packages come by uv, which pip brings first, or by pip alone where uv cannot be had or fails; each is checked against
its hash in requirements.lock. uv is told what pip's configuration says of indexes and certificates. torch comes by pip,
which knows of wheels that lie on this machine, and may be any build of the locked version; NVIDIA's libraries
(cuda.lock) follow where the build asks for them. Runs before anything is installed: only the standard library.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK, TORCH, CUDA = HERE / "requirements.lock", HERE / "torch.lock", HERE.parent / "cuda.lock"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
}
"""Settings of pip, and the variables by which uv takes them."""
SOURCE_ALONE = "pycosat is built from source, and fasttext for Python 3.13"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_SIZE = 200
"""MB of a CPU build of torch, about (2.13.0 for Linux: 191)."""


def run(*command: str) -> None:
    """Run a command that shows its own progress. Exits when it fails."""
    if status := subprocess.run(command, check=False).returncode:
        sys.exit(f"{Path(command[0]).name} ended with status {status}: {' '.join(command[1:])[:200]}")


def uv_environment(listing: str, env: Mapping[str, str]) -> dict[str, str]:
    """The variables for uv that say what pip's configuration says. listing: what `pip config list` printed, which has
    PIP_* variables as `:env:`. What uv is told in its own variables stays.
    """
    settings = dict(re.findall(r"^([^=\s]+)=(.*)$", listing, re.MULTILINE))
    told = {}
    for name, variable in UV_NAMES.items():
        sections = (section for section in (":env:", "install", "global") if f"{section}.{name}" in settings)
        if section := next(sections, None):
            values = str(ast.literal_eval(settings[f"{section}.{name}"])).split()
            told[variable] = ("," if variable == "UV_FIND_LINKS" else " ").join(values)
    if "UV_INDEX" in told:
        told["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # any index may have the locked version, as for pip
    return told | {name: env[name] for name in told if env.get(name)}


def install(uv: str | None, *arguments: str) -> None:
    """Install by uv, with what pip is configured to use; by pip where there is no uv or it fails."""
    if uv:
        listing = subprocess.run([*PIP, "config", "list"], stdout=subprocess.PIPE, text=True, check=False).stdout
        command = [uv, "pip", "install", "--python", sys.executable, *arguments]
        if not subprocess.run(
            command, env={**os.environ, **uv_environment(listing, os.environ)}, check=False
        ).returncode:
            return
        print("uv could not install this: pip tries, which takes longer", flush=True)
    run(*PIP, "install", *arguments)


def uv_program() -> str | None:
    """uv: this environment's, brought by pip in the locked version, or the user's own. None where it cannot be had."""
    program = Path(sys.executable).with_name("uv")
    if not program.exists():
        row = re.search(r"^uv==(?:.*\\\n)*.*\n", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write(row[0] if row else "uv\n")
            file.flush()
            command = [*PIP, "install", "--quiet", "--only-binary=:all:", "--no-deps", "-r", file.name]
            if subprocess.run(command, check=False).returncode:
                print("uv cannot be had here: pip installs all, which takes longer")
                return shutil.which("uv")
    return str(program)


def size_of(lock: Path) -> tuple[int, int]:
    """Number of packages and MB to download, which a lock's second line states."""
    stated = re.search(r"^# (\d+) packages, (\d+) MB$", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return (int(stated[1]), int(stated[2])) if stated else (0, 0)


def torch_needs_cuda() -> bool:
    """Whether the build of torch that pip would take, or has taken, asks for NVIDIA's libraries."""
    command = [
        *PIP,
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--report",
        "-",
        "-r",
        str(TORCH),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"pip knows of no {TORCH.read_text(encoding='utf-8').split()[-1]} for this Python and machine")
    (torch,) = json.loads(done.stdout)["install"]
    return any(row.startswith("nvidia-") for row in torch["metadata"].get("requires_dist", []))


def compiler_is_missing() -> bool:
    """Whether the compiler that this Python's extensions are built with is not here, nor any other C compiler."""
    names = [*str(sysconfig.get_config_var("CC") or "").split()[:1], "cc", "gcc", "clang"]
    return not any(shutil.which(name) for name in names)


def announce(cuda: bool) -> None:
    """Say what is downloaded unless it lies in a cache, and how it could be less; what is missing to build packages."""
    (count, size), (libraries, cuda_size) = size_of(LOCK), size_of(CUDA)
    total = size + (cuda_size if cuda else CPU_SIZE)
    build = f"a CUDA build of torch with {libraries} libraries" if cuda else "a CPU build of torch"
    print(f"installing {count} packages and {build}: {total / 1000:.1f} GB to download, unless cached", flush=True)
    if cuda:
        saved = (cuda_size - CPU_SIZE) / 1000
        print(f"no GPU here? PIP_EXTRA_INDEX_URL={CPU_INDEX} make setup   takes a CPU build and saves {saved:.1f} GB")
    if compiler_is_missing():
        print(f"no C compiler here: {SOURCE_ALONE}; on Debian: apt-get install gcc g++ python3-dev")


def main() -> None:
    """Install, and check that everything fits together."""
    uv, cuda = uv_program(), torch_needs_cuda()
    announce(cuda)
    checked = ["--no-deps", "--require-hashes", "-r"]
    install(uv, *checked, str(LOCK))
    run(*PIP, "install", "--no-deps", "--no-compile", "-r", str(TORCH))
    if cuda:
        install(uv, *checked, str(CUDA))
    install(uv, "--no-deps", "--no-build-isolation", "-e", str(HERE.parents[1]))
    check = [uv, "pip", "check", "--python", sys.executable] if uv else [*PIP, "check"]
    if subprocess.run(check, check=False).returncode:
        sys.exit(
            "the locks do not fit pyproject.toml: after a change of dependencies run 'make lock', then 'make setup'"
        )


if __name__ == "__main__":
    main()
