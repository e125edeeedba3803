"""What the slurm launcher hands to `sbatch`: scripts made of the site's settings and infra/slurm/*.sh. They hold no secret:
`scontrol show job` and the spool directory show them."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flows import environments
from flows.launch.base import Job, engine_pythons, load_site, public_environment, torchrun
from flows.settings import ROOT

FOLDER = ROOT / "infra" / "slurm"


class Site(BaseModel):
    """What a site's administrators decide: infra/slurm/site.toml, or the file that MOXIN_SLURM_SITE names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(default="", description="folder shared with the compute nodes; empty: slurm/ in the state folder")
    options: dict[str, str] = Field(default_factory=dict, description="options of sbatch: partition, account, qos, time, constraint, ...")
    array_options: dict[str, str] = Field(default_factory=dict, description="options of sbatch for arrays alone, before `options`")
    array_size: int = Field(default=1000, gt=0, description="jobs in an array at most (MaxArraySize of slurm.conf less one); more tasks share them")
    array_limit: int = Field(default=0, ge=0, description="jobs of an array that run at the same time; 0: as many as Slurm lets")
    runtime: Literal["none", "pyxis", "apptainer"] = Field(default="none", description="what runs images; none: this environment's Python")
    images: str = Field(default="", description="apptainer: folder of <stage>-<tag>.sif files; else images come from the registry")
    setup: str = Field(default="", description="shell lines before the job, such as 'module load cuda'")
    poll_seconds: float = Field(default=10, gt=0, description="between two looks at the controller")

    @classmethod
    def load(cls) -> Site:
        """Read the site's file. Raises ConfigError naming file and key."""
        return load_site(cls, "MOXIN_SLURM_SITE", FOLDER / "site.toml", "site")


def wants_arrays(job: Job) -> bool:
    """Whether a stage will ask for arrays (`stages/data/arrays.py`)."""
    return job.request.config.get("workers") == "slurm"


def comment(job: Job, mark: str) -> str:
    """What tells a job of ours in the queue; those of its arrays begin with it."""
    request = job.request
    return f"moxin:{mark}:{request.run_id}:{request.key[:16]}:{request.lease.epoch}"


def _options(job: Job, mark: str) -> dict[str, str]:
    resources = job.resources
    found = {
        "job-name": f"moxin-{job.request.node}",
        "comment": comment(job, mark),
        "nodes": str(resources.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(max(1, round(resources.cpus))),
        "mem": f"{max(1, round(resources.memory_gib * 1024))}M",
        "open-mode": "append",
    }
    return found | ({"gpus-per-node": str(resources.gpus)} if resources.gpus else {})


def options(job: Job, site: Site, base: Path, mark: str) -> dict[str, str]:
    """Options of sbatch for a job; the site's own win."""
    own = {"output": f"{base}.out", "error": f"{base}.err"}
    own["signal"] = "TERM@60"  # a minute before the time limit: enough for a last checkpoint
    return _options(job, mark) | own | site.options


def _python(site: Site) -> str:
    return shlex.quote(sys.executable if site.runtime == "none" else "python")


def python_command(job: Job, site: Site, base: Path) -> str:
    """The command of each node's one task, as shell text; $SLURM_NODEID and $MASTER_* are the task's.

    Its input is no pipe: srun gives one that ends at once, which to a stage means that its launcher has died.
    """
    spread = torchrun(job, "--node-rank=$SLURM_NODEID", "--master-addr=$MASTER_ADDR", "--master-port=$MASTER_PORT")
    files = [shlex.quote(f"{base}.json"), "--secrets", shlex.quote(f"{base}.secrets.json")]
    return " ".join([_python(site), *spread, "-m", "stages.core.runtime", *files, "</dev/null"])


def runtime_options(job: Job, site: Site, folder: Path) -> tuple[str, str]:
    """What the site's container runtime puts on srun's command line, and before the command."""
    image = environments.stage_image(job.request.stage, job.env).reference
    work = job.request.config.get("work")
    folders = [str(folder), *([str(work)] if work and not Path(work).is_relative_to(folder) else [])]
    if site.runtime == "pyxis":  # NVIDIA's plugin: Enroot takes registry#image
        host, _, path = image.partition("/")
        mounts = ",".join(f"{name}:{name}" for name in folders)
        return f"--container-image={shlex.quote(f'{host}#{path}')} --container-mounts={shlex.quote(mounts)} --no-container-mount-home", ""
    if site.runtime == "apptainer":
        name, _, tag = image.rpartition("/")[2].partition(":")
        source = f"{site.images}/{name}-{tag}.sif" if site.images else f"docker://{image}"
        gpu = " --nv" if job.resources.gpus else ""
        binds = "".join(f" --bind {shlex.quote(name)}" for name in folders)
        return "", f"apptainer exec --containall --no-home{gpu}{binds} --bind $MOXIN_SCRATCH {shlex.quote(source)} "
    return "", ""


def _environment(job: Job, site: Site, scratch: Path) -> dict[str, str]:
    found = public_environment(job) | {"MOXIN_SCRATCH": str(scratch)}
    if wants_arrays(job):
        found["MOXIN_ARRAYS"] = "1"
    if site.runtime == "none":
        return found | {"PYTHONPATH": str(ROOT)} | engine_pythons()
    found["NUMBA_CACHE_DIR"] = str(scratch.parent / "numba")  # an image has no place that lasts: every element would compile
    if site.runtime == "apptainer":  # --containall keeps all other variables out (apptainer exec --help)
        found |= {f"APPTAINERENV_{name}": value for name, value in found.items()}
    return found


def _filled(template: str, job: Job, site: Site, folder: Path, scratch: Path, command: str, wanted: dict[str, str], **values: str) -> str:
    srun, before = runtime_options(job, site, folder)
    values |= {
        "OPTIONS": "\n".join(f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in wanted.items()),
        "ENVIRONMENT": "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(_environment(job, site, scratch).items())),
        "SETUP": site.setup,
        "SRUN": srun,
        "COMMAND": shlex.quote(before + "exec " * (not before) + command),
    }
    text = (FOLDER / template).read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], text)


def script(job: Job, site: Site, base: Path, mark: str, scratch: Path) -> str:
    """The batch script of a stage."""
    wanted = options(job, site, base, mark)
    return _filled("job.sh", job, site, base.parent, scratch, python_command(job, site, base), wanted, EXIT=shlex.quote(f"{base}.exit"))


class Ask(BaseModel):
    """What a stage's event "array" says: the file of its jobs, how many those are, and what one of them needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: str
    tasks: int = Field(gt=0)
    cpus: float = Field(gt=0)
    memory_gib: float = Field(gt=0)


def array_script(job: Job, site: Site, ask: Ask, folder: Path, mark: str) -> str:
    """The batch script of an array. `folder`: the launcher's own."""
    path = Path(ask.jobs)
    need = {"cpus": ask.cpus, "memory_gib": ask.memory_gib, "gpus": 0, "nodes": 1, "processes": 1}
    one = replace(job, resources=job.resources.model_copy(update=need))
    count = min(ask.tasks, site.array_size)
    own = {
        "job-name": f"moxin-{job.request.node}-{path.stem}",
        "comment": f"{comment(job, mark)}:{path.stem}",
        "array": f"0-{count - 1}" + (f"%{site.array_limit}" if site.array_limit else ""),
        "output": f"{path.with_suffix('')}_%a.log",
    }
    command = f'{_python(site)} -m stages.data.arrays {shlex.quote(ask.jobs)} "$SLURM_ARRAY_TASK_ID" {count} </dev/null'
    wanted = _options(one, mark) | own | site.options | site.array_options
    return _filled("array.sh", one, site, folder, folder / "scratch", command, wanted)
