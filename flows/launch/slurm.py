"""Run a stage as a Slurm job: `sbatch` with the node's resources, events read from the job's output file.

A job outlives this process. Its number is in the ledger's record of the attempt, so that a flow that comes back follows the
same job (`adopt`) instead of starting another. A requeued job keeps its number, its request and its epoch, and resumes from
its own checkpoint. Request, secrets and output lie in a folder that login and compute nodes share (Site.folder).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows import environments
from flows.launch.base import Job, engine_pythons, event_of, public_environment, secrets_of, torchrun
from flows.settings import ROOT, Settings
from stages.core.contracts import ConfigError, ExitClass, InfraError
from stages.core.keys import sha256

TEMPLATE = ROOT / "infra" / "slurm" / "job.sh"
ENDS: dict[str, tuple[ExitClass, str]] = {
    "OUT_OF_MEMORY": (ExitClass.OOM, "out of memory: raise resources.{node}.memory_gib"),
    "TIMEOUT": (ExitClass.PREEMPTED, "it reached the site's time limit"),
    "DEADLINE": (ExitClass.PREEMPTED, "it reached its deadline"),
    "PREEMPTED": (ExitClass.PREEMPTED, "preempted by another job"),
    "NODE_FAIL": (ExitClass.PREEMPTED, "a node failed"),
    "BOOT_FAIL": (ExitClass.PREEMPTED, "a node did not boot"),
    "CANCELLED": (ExitClass.PREEMPTED, "cancelled in Slurm"),
    "REVOKED": (ExitClass.PREEMPTED, "revoked by the federation"),
}
"""States of squeue(1), "JOB STATE CODES", in which Slurm itself ended a job, and what they mean here."""
_OVER = {*ENDS, "COMPLETED", "FAILED"}
_GONE = "GONE"


class Site(BaseModel):
    """What a site's administrators decide: infra/slurm/site.toml, or the file that MOXIN_SLURM_SITE names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(default="", description="folder shared with the compute nodes; empty: slurm/ in the state folder")
    options: dict[str, str] = Field(default_factory=dict, description="options of sbatch: partition, account, qos, time, constraint, ...")
    runtime: Literal["none", "pyxis", "apptainer"] = Field(default="none", description="what runs images; none: this environment's Python")
    images: str = Field(default="", description="apptainer: folder of <stage>-<tag>.sif files; else images come from the registry")
    setup: str = Field(default="", description="shell lines before the job, such as 'module load cuda'")
    poll_seconds: float = Field(default=10, gt=0, description="between two looks at the controller")

    @classmethod
    def load(cls) -> Site:
        """Read the site's file. Raises ConfigError naming file and key."""
        path = Path(os.environ.get("MOXIN_SLURM_SITE") or ROOT / "infra" / "slurm" / "site.toml")
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ConfigError(f"no file {path}: MOXIN_SLURM_SITE must name the site's settings") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path.name} is not valid TOML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{path.name}: {'.'.join(map(str, first['loc']))} = {first.get('input')!r}: {first['msg']}") from error


# --- the job's script -----------------------------------------------------------------------------------------------


def options(job: Job, site: Site, base: Path, mark: str) -> dict[str, str]:
    """Options of sbatch for a job; the site's own win."""
    resources = job.resources
    found = {
        "job-name": f"moxin-{job.request.node}",
        "comment": f"moxin:{mark}:{job.request.run_id}:{job.request.key[:16]}:{job.request.lease.epoch}",
        "nodes": str(resources.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(max(1, round(resources.cpus))),
        "mem": f"{max(1, round(resources.memory_gib * 1024))}M",
        "output": f"{base}.out",
        "error": f"{base}.err",
        "open-mode": "append",
        "signal": "TERM@60",  # a minute before the time limit: enough for a last checkpoint
    }
    if resources.gpus:
        found["gpus-per-node"] = str(resources.gpus)
    return found | site.options


def python_command(job: Job, site: Site, base: Path) -> str:
    """The command of each node's one task, as shell text; $SLURM_NODEID and $MASTER_* are the task's.

    Its input is no pipe: srun gives one that ends at once, which to a stage means that its launcher has died.
    """
    python = shlex.quote(sys.executable if site.runtime == "none" else "python")
    spread = torchrun(job, "--node-rank=$SLURM_NODEID", "--master-addr=$MASTER_ADDR", "--master-port=$MASTER_PORT")
    files = [shlex.quote(f"{base}.json"), "--secrets", shlex.quote(f"{base}.secrets.json")]
    return " ".join([python, *spread, "-m", "stages.core.runtime", *files, "</dev/null"])


def runtime_options(job: Job, site: Site, folder: Path) -> tuple[str, str]:
    """What the site's container runtime puts on srun's command line, and before the command."""
    image = environments.stage_image(job.request.stage, job.env).reference
    if site.runtime == "pyxis":  # NVIDIA's plugin: Enroot takes registry#image
        host, _, path = image.partition("/")
        mounts = f"{folder}:{folder}"
        return f"--container-image={shlex.quote(f'{host}#{path}')} --container-mounts={shlex.quote(mounts)} --no-container-mount-home", ""
    if site.runtime == "apptainer":
        name, _, tag = image.rpartition("/")[2].partition(":")
        source = f"{site.images}/{name}-{tag}.sif" if site.images else f"docker://{image}"
        gpu = " --nv" if job.resources.gpus else ""
        return "", f"apptainer exec --containall --no-home{gpu} --bind {shlex.quote(str(folder))} --bind $MOXIN_SCRATCH {shlex.quote(source)} "
    return "", ""


def script(job: Job, site: Site, base: Path, mark: str, scratch: Path) -> str:
    """The whole batch script. It holds no secret: `scontrol show job` and the spool directory show it."""
    public = public_environment(job) | {"MOXIN_SCRATCH": str(scratch)}
    if site.runtime == "none":
        public |= {"PYTHONPATH": str(ROOT)} | engine_pythons()
    srun, before = runtime_options(job, site, base.parent)
    values = {
        "OPTIONS": "\n".join(f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in options(job, site, base, mark).items()),
        "ENVIRONMENT": "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(public.items())),
        "SETUP": site.setup,
        "EXIT": shlex.quote(f"{base}.exit"),
        "SRUN": srun,
        "COMMAND": shlex.quote(before + "exec " * (not before) + python_command(job, site, base)),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], text)


# --- a job ----------------------------------------------------------------------------------------------------------


class SlurmHandle:
    """A job in the queue, running or over."""

    def __init__(self, number: str, base: Path, node: str, poll: float) -> None:
        self._number, self._base, self._node, self._poll = number, base, node, poll
        self._state: tuple[str, int] | None = None
        self._done: dict[str, Any] = {}
        self._stopping = False

    @property
    def id(self) -> str:
        return self._number

    def events(self) -> Iterator[dict[str, Any]]:
        tails = [_Tail(Path(f"{self._base}.out"), False), _Tail(Path(f"{self._base}.err"), True)]
        looked, told = 0.0, ""
        while True:
            over = self._state is not None
            for tail in tails:
                for event in tail.read(everything=over):
                    if event["event"] == "done":
                        self._done = event
                    yield event
            if over:
                break
            if time.monotonic() - looked >= self._poll or Path(f"{self._base}.exit").exists():
                looked = time.monotonic()
                state, code, reason = look(self._number)
                if f"{state} {reason}" != told and state == "PENDING":
                    yield {"event": "log", "level": "info", "message": f"Slurm job {self._number} is pending ({reason})"}
                told = f"{state} {reason}"
                if state in _OVER or state == _GONE:
                    self._state = (state, code)
                    continue
            time.sleep(min(0.5, self._poll))
        if self._state and self._state[0] in ENDS and self._done.get("exit") != ExitClass.OK:
            exit_class, message = ENDS[self._state[0]]
            yield {"event": "done", "exit": exit_class, "message": message.format(node=self._node)}

    def wait(self) -> int:
        while self._state is None:
            state, code, _ = look(self._number)
            if state in _OVER or state == _GONE:
                self._state = (state, code)
            else:
                time.sleep(self._poll)
        state, code = self._state
        for suffix in (".json", ".secrets.json", ".sh"):
            Path(f"{self._base}{suffix}").unlink(missing_ok=True)
        return self._status(state, code)

    def _status(self, state: str, code: int) -> int:
        """The exit status that carries the class. torchrun ends with 1 whatever its workers ended with: the event says more."""
        if state in ENDS and self._done.get("exit") != ExitClass.OK:
            return ENDS[state][0].code
        with contextlib.suppress(OSError, ValueError):
            code = int(Path(f"{self._base}.exit").read_text())
        if state == _GONE and not Path(f"{self._base}.exit").exists():
            return ExitClass.PREEMPTED.code
        said = self._done.get("exit")
        if code and said and said != ExitClass.OK:
            return ExitClass(said).code
        return code

    def stop(self, grace: float) -> None:
        if self._state is not None or self._stopping:
            return
        self._stopping = True
        threading.Thread(target=self._stop, args=(grace,), daemon=True).start()

    def _stop(self, grace: float) -> None:
        with contextlib.suppress(InfraError):
            if look(self._number)[0] == "RUNNING":
                run("scancel", "--signal=TERM", self._number)  # to the steps: the script lives on to write the status
                deadline = time.monotonic() + grace
                while time.monotonic() < deadline and self._state is None:
                    time.sleep(0.2)
            if self._state is None:
                run("scancel", self._number)


class _Tail:
    """Reads a growing file line by line."""

    def __init__(self, path: Path, plain: bool) -> None:
        self._path, self._plain, self._offset = path, plain, 0

    def read(self, everything: bool) -> Iterator[dict[str, Any]]:
        """Events of the whole lines that are new; at the end also of a last line that was cut off."""
        try:
            with open(self._path, "rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except FileNotFoundError:
            return
        if not everything:
            data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in data.splitlines():
            yield event_of(line.decode("utf-8", "replace"), self._plain)


class SlurmLauncher:
    """Starts stages as Slurm jobs."""

    name: ClassVar[str] = "slurm"
    detached: ClassVar[bool] = True

    def __init__(self, settings: Settings, site: Site | None = None) -> None:
        self._settings = settings
        self._site = site or Site.load()
        self._folder = Path(self._site.folder or settings.home / "slurm")
        self._mark = sha256(str(settings.home).encode())[:12]

    def _base(self, job: Job) -> Path:
        return self._folder / f"{job.request.node}-{job.request.key[:16]}-{job.request.lease.epoch}"

    def start(self, job: Job) -> SlurmHandle:
        base = self._base(job)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for suffix in (".out", ".err", ".exit"):
                Path(f"{base}{suffix}").unlink(missing_ok=True)
            _write(Path(f"{base}.json"), job.request.model_dump_json())
            _write(Path(f"{base}.secrets.json"), secrets_of(job, self._settings.store_environment()).model_dump_json())
            _write(Path(f"{base}.sh"), script(job, self._site, base, self._mark, self._folder / "scratch"))
        except OSError as error:
            raise InfraError(f"cannot write {error.filename}: {error.strerror}") from error
        number = run("sbatch", "--parsable", "--requeue", "--export=NONE", f"{base}.sh").strip().partition(";")[0]
        return SlurmHandle(number, base, job.request.node, self._site.poll_seconds)

    def adopt(self, id: str, job: Job) -> SlurmHandle | None:
        """Follow a job that another control plane started; None when it is over or unknown."""
        with contextlib.suppress(InfraError):
            state, _, _ = look(id)
            if state not in _OVER and state != _GONE:
                return SlurmHandle(id, self._base(job), job.request.node, self._site.poll_seconds)
        return None

    def reap(self, run_id: str | None = None) -> list[str]:
        if run_id is None:  # what a dead control plane left is adopted, not killed
            return []
        rows = (line.partition(" ") for line in run("squeue", "--me", "--noheader", "--format=%i %k").splitlines())
        found = [number for number, _, comment in rows if comment.startswith(f"moxin:{self._mark}:{run_id}:")]
        if found:
            run("scancel", *found)
        return found


def look(number: str) -> tuple[str, int, str]:
    """A job's state, exit status and reason, as the controller has them. A job that it forgot is `GONE`.

    A controller that is away for a moment is no end: the job is then `UNKNOWN`.
    """
    try:
        text = run("scontrol", "--oneliner", "show", "job", number)
    except InfraError as error:
        return (_GONE, 0, "") if "Invalid job id" in str(error) else ("UNKNOWN", 0, str(error))
    fields = dict(re.findall(r"(\w+)=(\S*)", text))
    code, _, signal = fields.get("ExitCode", "0:0").partition(":")
    return fields.get("JobState", "UNKNOWN"), int(code) or (128 + int(signal) if int(signal or 0) else 0), fields.get("Reason", "")


def run(*command: str) -> str:
    """Output of one of Slurm's commands. Raises InfraError with its first line of complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise InfraError(f"no command '{command[0]}': the slurm launcher runs on a login node") from None
    except subprocess.TimeoutExpired:
        raise InfraError(f"{command[0]} did not answer within 60 s") from None
    if done.returncode:
        raise InfraError(f"{command[0]}: {(done.stderr.strip() or 'no message').splitlines()[0]}")
    return done.stdout


def _write(path: Path, text: str) -> None:
    """Write a file that only this user reads."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)

