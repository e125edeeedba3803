"""What Slurm's controller is asked, and what its answers mean."""

from __future__ import annotations

import re
import subprocess
from collections import Counter

from stages.core.errors import ExitClass, InfraError

TERMINATIONS: dict[str, tuple[ExitClass, str]] = {
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
FINISHED = {*TERMINATIONS, "COMPLETED", "FAILED"}
GONE = "GONE"


def job_state(number: str) -> tuple[str, int, str]:
    """A job's state, exit status and reason, as the controller has them. A job that it forgot is `GONE`.

    A controller that is away for a moment is no end: the job is then `UNKNOWN`.
    """
    try:
        text = run("scontrol", "--oneliner", "show", "job", number)
    except InfraError as error:
        return (GONE, 0, "") if "Invalid job id" in str(error) else ("UNKNOWN", 0, str(error))
    fields = _fields(text)
    code, _, signal = fields.get("ExitCode", "0:0").partition(":")
    return (
        fields.get("JobState", "UNKNOWN"),
        int(code) or (128 + int(signal) if int(signal or 0) else 0),
        fields.get("Reason", ""),
    )


def array_states(number: str) -> tuple[Counter[str], str] | None:
    """How many elements of an array are in each state, and why one is pending; None when the controller does not
    answer.

    It forgets elements some minutes after their end: none at all means that all are over.
    """
    try:
        lines = run("scontrol", "--oneliner", "show", "job", number).splitlines()
    except InfraError as error:
        return (Counter(), "") if "Invalid job id" in str(error) else None
    rows = [fields for line in lines if "JobState" in (fields := _fields(line))]
    reason = next((row.get("Reason", "") for row in rows if row["JobState"] == "PENDING"), "")
    return Counter(row["JobState"] for row in rows), reason


def queued_jobs(prefix: str) -> dict[str, str]:
    """This user's jobs whose comment begins so: {number (of an array: of the whole): comment}."""
    rows = (line.partition(" ") for line in run("squeue", "--me", "--noheader", "--format=%F %k").splitlines())
    return {number: comment.strip() for number, _, comment in rows if comment.startswith(prefix)}


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", line))


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
