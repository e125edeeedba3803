"""The package as others install it: a wheel in an environment of its own, started from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from stages.core.files import ROOT

HANG = 600


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves folders behind where it builds."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("flows", "stages", "infra", "containers"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".env", "site.env"):
        (source / "infra" / name).write_text("PASSWORD=secret\n", encoding="utf-8")
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, timeout=HANG, stdout=subprocess.DEVNULL)
    (path,) = folder.glob("moxin-*.tar.gz")
    return path


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Make a wheel of a folder or an sdist."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w"]
    return subprocess.run(
        [*command, str(folder), str(source)], capture_output=True, text=True, check=False, timeout=HANG
    )


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of the sdist: what is not in there is not in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    built = build(sdist, folder)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("moxin-*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; its dependencies are this one's, by a .pth file."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    interpreter = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*command, str(wheel)], check=True, timeout=HANG)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return interpreter


def run(python: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command `moxin` of an environment, from a folder, with a home of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MOXIN_", "PREFECT_", "XDG_"))}
    env |= {"HOME": str(folder.parent), "NO_COLOR": "1", "COLUMNS": "120", **variables}
    command = [str(python.with_name("moxin")), *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=HANG, check=False)


def test_the_wheel_carries_what_is_read_at_run_time_and_no_secret(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "profiles/tiny.toml",
        "profiles/7b.toml",
        "gpu_prices.toml",
        "paper_tables.json",
        "slurm/job.sh",
        "k8s/site.toml",
    ):
        assert f"flows/_data/infra/{name}" in names
    assert "flows/_data/containers/data/requirements.lock" in names
    here = {path for top in ("flows", "stages") for path in (ROOT / top).rglob("*") if path.is_file()}
    tracked = {path.relative_to(ROOT).as_posix() for path in here if "__pycache__" not in path.parts}
    assert tracked <= names, "code, templates, READMEs, py.typed"
    assert not [name for name in names if name.endswith(".env") or "tests/" in name or "__pycache__" in name]


def test_an_sdist_holds_no_secret_and_without_a_folder_of_data_makes_no_wheel(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if name.endswith((".env", ".pyc"))]
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    shutil.rmtree(source / "infra")
    built = build(source, tmp_path / "wheels")
    assert built.returncode != 0
    assert "has no infra: build from a checkout or a whole sdist" in built.stderr


def test_an_installed_moxin_starts_and_plans_from_an_empty_folder(python: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    origin = subprocess.run(
        [str(python), "-c", "import flows, stages; print(flows.__file__, stages.__file__)"],
        cwd=folder, capture_output=True, text=True, check=True, timeout=HANG,
    ).stdout  # fmt: skip
    assert str(ROOT) not in origin
    assert origin.count("site-packages") == 2
    assert "Usage: moxin" in run(python, folder, "--help").stdout
    alone = run(python, folder, "plan", "--profile", "tiny")
    assert alone.returncode == 0, alone.stderr
    assert "as if nothing had run: no object store: start the embedded services with 'moxin up'" in alone.stdout
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        client = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
        )
        client.create_bucket(Bucket="moxin")
        plan = run(python, folder, "plan", "--profile", "tiny", MOXIN_S3_ENDPOINT=address, **keys)
    finally:
        server.stop()
    assert plan.returncode == 0, plan.stderr + plan.stdout
    assert "collect" in plan.stdout
    assert not list(folder.iterdir()), "nothing is written where it runs"


def test_an_installed_moxin_says_in_one_line_what_needs_a_checkout(python: Path, tmp_path: Path) -> None:
    done = run(python, tmp_path, "check")
    assert done.returncode != 0
    assert "'moxin check' needs a checkout of Moxin" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_extra_demo_holds_every_environment(wheel: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (metadata,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "Requires-Dist: prefect" in text
    assert extras["demo"][0] == f"moxin[{','.join(name for name in extras if name not in ('demo', 'dev'))}]"
    assert 'Requires-Dist: moxin[data,eval,post,release,train,vlm]; extra == "demo"' in text
