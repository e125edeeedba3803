"""What the slurm launcher hands to `sbatch`: scripts made of the site's settings and infra/slurm/*.sh. They hold no
secret: `scontrol show job` and the spool directory show them.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flows import environments
from flows.data_files import DATA
from flows.launch.array_request import ArrayRequest
from flows.launch.base import Job, engine_pythons, load_site, public_environment, torchrun
from stages.core.errors import ConfigError
from stages.core.files import ROOT
from stages.core.resources import Processes

FOLDER = DATA / "infra" / "slurm"


class Site(BaseModel):
    """What a site's administrators decide: infra/slurm/site.toml, or the file that MOXIN_SLURM_SITE names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(
        default="", description="folder shared with the compute nodes; empty: slurm/ in the state folder"
    )
    options: dict[str, str] = Field(
        default_factory=dict, description="options of sbatch: partition, account, qos, time, constraint, ..."
    )
    array_options: dict[str, str] = Field(
        default_factory=dict, description="options of sbatch for arrays alone, before `options`"
    )
    array_size: int = Field(
        default=1000,
        gt=0,
        description="jobs in an array at most (MaxArraySize of slurm.conf less one); more tasks share them",
    )
    array_limit: int = Field(
        default=0, ge=0, description="jobs of an array that run at the same time; 0: as many as Slurm lets"
    )
    runtime: Literal["none", "pyxis", "apptainer"] = Field(
        default="none", description="what runs images; none: this environment's Python"
    )
    images: str = Field(
        default="", description="apptainer: folder of <stage>-<tag>.sif files; else images come from the registry"
    )
    setup: str = Field(default="", description="shell lines before the job, such as 'module load cuda'")
    identity: Literal["copied", "files"] = Field(
        default="copied",
        description=(
            "whose credentials of the store a job uses: copies of the control plane's, or (files) what the AWS"
            " variables that name files and roles say on its own node, else the node's instance profile"
        ),
    )
    poll_seconds: float = Field(default=10, gt=0, description="between two looks at the controller")

    @classmethod
    def load(cls) -> Site:
        """Read the site's file. Raises ConfigError naming file and key."""
        return load_site(cls, "MOXIN_SLURM_SITE", FOLDER / "site.toml", "site")


def uses_arrays(job: Job) -> bool:
    """Whether a stage will request for arrays (`stages/lib/data/job_array.py`)."""
    return job.request.config.get("workers") == "slurm"


def base_of(job: Job, folder: Path) -> Path:
    """What the names of a job's files begin with. folder: the launcher's own."""
    return folder / f"{job.request.node}-{job.request.key[:16]}-{job.request.lease.epoch}"


def comment(job: Job, installation: str) -> str:
    """What tells a job of ours in the queue; those of its arrays begin with it."""
    request = job.request
    return f"moxin:{installation}:{request.run_id}:{request.key[:16]}:{request.lease.epoch}"


def _options(job: Job, installation: str) -> dict[str, str]:
    resources = job.resources
    values = {
        "job-name": f"moxin-{job.request.node}",
        "comment": comment(job, installation),
        "nodes": str(resources.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(max(1, round(resources.cpus))),
        "mem": f"{max(1, round(resources.memory_gib * 1024))}M",
        "open-mode": "append",
    }
    return values | ({"gpus-per-node": str(resources.gpus)} if resources.gpus else {})


def _directive(name: str, value: str) -> str:
    """A line of options as sbatch reads it: a space ends a word, quotes of both kinds group, a backslash escapes even
    between them.

    Raises ConfigError for a line break, which nothing can carry.
    """
    if "\n" in value or "\r" in value:
        raise ConfigError(
            f"Slurm's option {name} = {value!r} holds a line break, which a batch script cannot say: choose another"
            " path or value"
        )
    if not value:
        return f"#SBATCH --{name}"
    plain = re.fullmatch(r"[\w@%+=:,./~-]+", value, re.ASCII)
    return f"#SBATCH --{name}=" + (value if plain else '"' + re.sub(r'([\\"])', r"\\\1", value) + '"')


def _escaped(path: Path | str) -> str:
    """A path where sbatch would replace `%j` and the like."""
    return str(path).replace("%", "%%")


def options(job: Job, site: Site, base: Path, installation: str) -> dict[str, str]:
    """Options of sbatch for a job; the site's own win."""
    specific = {"output": f"{_escaped(base)}.out", "error": f"{_escaped(base)}.err"}
    specific["signal"] = f"TERM@{job.resources.grace_seconds}"  # before the time limit; up to a minute earlier
    return _options(job, installation) | specific | site.options


def _python(site: Site) -> str:
    return shlex.quote(sys.executable if site.runtime == "none" else "python")


def python_command(job: Job, site: Site, base: Path) -> str:
    """The command of each node's one task, as shell text; $SLURM_NODEID and $MASTER_* are the task's.

    Its input is no pipe: srun gives one that ends at once, which to a stage means that its launcher has died.
    """
    launcher = torchrun(job, "--node-rank=$SLURM_NODEID", "--master-addr=$MASTER_ADDR", "--master-port=$MASTER_PORT")
    files = [shlex.quote(f"{base}.json"), "--secrets", shlex.quote(f"{base}.secrets.json")]
    return " ".join([_python(site), *launcher, "-m", "stages.core.runtime", *files, "</dev/null"])


def image_of(job: Job, site: Site) -> str | None:
    """Name of the image that a job runs in; None where the site runs none."""
    return None if site.runtime == "none" else environments.stage_image(job.request.stage, job.env).reference


def runtime_options(job: Job, site: Site, folder: Path) -> tuple[str, str]:
    """What the site's container runtime puts on srun's command line, and before the command."""
    image = image_of(job, site)
    if image is None:
        return "", ""
    if re.search(r"[:,\n]", str(folder)):
        raise ConfigError(
            f"the {site.runtime} runtime cannot mount {str(folder)!r}: ':' and ',' stand between folders there; choose"
            " another path"
        )
    if site.runtime == "pyxis":  # NVIDIA's plugin: Enroot takes registry#image
        host, _, path = image.partition("/")
        return (
            (
                f"--container-image={shlex.quote(f'{host}#{path}')}"
                f" --container-mounts={shlex.quote(f'{folder}:{folder}')}"
                " --no-container-mount-home"
            ),
            "",
        )
    name, _, tag = image.rpartition("/")[2].partition(":")
    source = f"{site.images}/{name}-{tag}.sif" if site.images else f"docker://{image}"
    gpu = " --nv" if job.resources.gpus else ""
    binds = f'--bind {shlex.quote(str(folder))} --bind "$MOXIN_SCRATCH"'
    return "", f"apptainer exec --containall --no-home{gpu} {binds} {shlex.quote(source)} "


def _environment(job: Job, site: Site, scratch: Path) -> dict[str, str]:
    values = public_environment(job) | {"MOXIN_SCRATCH": str(scratch)}
    if uses_arrays(job):
        values["MOXIN_ARRAYS"] = "1"
    if site.runtime == "none":
        return values | {"PYTHONPATH": str(ROOT)} | engine_pythons()
    values["NUMBA_CACHE_DIR"] = str(
        scratch.parent / "numba"
    )  # an image has no place that lasts: every element would compile
    if site.runtime == "apptainer":  # --containall keeps all other variables out (apptainer exec --help)
        values |= {f"APPTAINERENV_{name}": value for name, value in values.items()}
    return values


def _render(
    template: str,
    job: Job,
    site: Site,
    folder: Path,
    scratch: Path,
    command: str,
    slurm_options: dict[str, str],
    **values: str,
) -> str:
    srun, before = runtime_options(job, site, folder)
    values |= {
        "OPTIONS": "\n".join(_directive(name, value) for name, value in slurm_options.items()),
        "ENVIRONMENT": "\n".join(
            f"export {name}={shlex.quote(value)}" for name, value in sorted(_environment(job, site, scratch).items())
        ),
        "SETUP": site.setup,
        "SRUN": srun,
        "COMMAND": shlex.quote(before + "exec " * (not before) + command),
    }
    text = (FOLDER / template).read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], text)


def script(job: Job, site: Site, base: Path, installation: str, scratch: Path) -> str:
    """The batch script of a stage."""
    slurm_options, end = options(job, site, base, installation), shlex.quote(f"{base}.exit")
    return _render("job.sh", job, site, base.parent, scratch, python_command(job, site, base), slurm_options, EXIT=end)


def array_base(job: Job, folder: Path, request: ArrayRequest) -> Path:
    """What the names of an array's files begin with. folder: the launcher's own."""
    return Path(f"{base_of(job, folder)}-{request.name}")


def array_script(job: Job, site: Site, request: ArrayRequest, folder: Path, installation: str) -> str:
    """The batch script of an array. `folder`: the launcher's own."""
    element_resources = {
        "cpus": request.cpus,
        "memory_gib": request.memory_gib,
        "gpus": 0,
        "nodes": 1,
        "nproc_per_node": 1,
    }
    element = replace(job, resources=job.resources.model_copy(update=element_resources), processes=Processes.SINGLE)
    count = min(request.tasks, site.array_size)
    specific = {
        "job-name": f"moxin-{job.request.node}-{request.name}",
        "comment": f"{comment(job, installation)}:{request.name}",
        "array": f"0-{count - 1}" + (f"%{site.array_limit}" if site.array_limit else ""),
        "output": f"{_escaped(array_base(job, folder, request))}_%a.log",
    }
    secrets = shlex.quote(f"{base_of(job, folder)}.secrets.json")
    command = (
        f"{_python(site)} -m stages.lib.data.job_array {shlex.quote(request.place)} {shlex.quote(request.name)}"
        f' "$SLURM_ARRAY_TASK_ID" {count} --secrets {secrets} </dev/null'
    )
    slurm_options = _options(element, installation) | specific | site.options | site.array_options
    return _render("array.sh", element, site, folder, folder / "scratch", command, slurm_options)
