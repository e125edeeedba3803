"""The Slurm launcher's script, and what it makes of the controller's answers. A real cluster:
tests/launch/test_slurm.py.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.launch import array_request, scoped, slurm, slurm_scripts
from flows.launch.array_request import ArrayRequest
from flows.launch.base import Job
from flows.launch.slurm import Site, SlurmHandle, SlurmLauncher
from flows.launch.slurm_arrays import JobArrays
from flows.settings import Settings
from stages.core.errors import ConfigError, ExitClass, InfraError
from stages.core.messages import CodeRef, Lease, StageRequest, StoreAddress
from stages.core.resources import Processes, Resources
from stages.core.task_objects import OVER, FolderObjects, first_part, state_of, work_prefix
from stages.core.workspace import claim
from tests.support.probe_pipeline import wait_for

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "the-id", "AWS_SECRET_ACCESS_KEY": "the-secret"}
STORE = StoreAddress(bucket="b", endpoint="http://127.0.0.1:1")


def job(**resources: Any) -> Job:
    request = StageRequest(
        run_id="run-1",
        node="pretrain_1",
        stage="pretrain",
        revision=1,
        key="a" * 64,
        lease=Lease(key="a" * 64, epoch=3, holder="h"),
        config={},
        inputs={},
        outputs={},
        code=CodeRef(source_digest="0" * 64),
        store=STORE,
    )
    return Job(request, Resources(**resources), "train", Processes.TORCHRUN)


def text(site: Site | None = None, **resources: Any) -> str:
    return slurm.script(job(**resources), site or Site(), Path("/shared/x"), "mark", Path("/shared/scratch"))


def test_a_script_asks_for_the_nodes_resources() -> None:
    lines = text(cpus=4, memory_gib=6.5, gpus=2, nodes=3).splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = {
        "--nodes=3",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--mem=6656M",
        "--gpus-per-node=2",
        "--open-mode=append",
    }
    assert {f"#SBATCH {option}" for option in wanted} <= set(lines)
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command, (
        "sbatch reads no further"
    )


def test_a_site_sets_and_replaces_options() -> None:
    site = Site(options={"partition": "gpu", "mem": "0", "exclusive": ""}, setup="module load cuda")
    script = text(site)
    assert "#SBATCH --partition=gpu\n" in script
    assert "#SBATCH --mem=0\n" in script
    assert "#SBATCH --exclusive\n" in script
    assert "\nmodule load cuda\n" in script


def test_several_processes_are_started_by_torchrun_with_each_nodes_rank() -> None:
    one, many = text(), text(nodes=2, gpus=8)
    assert "torch.distributed.run" not in one
    for part in (
        "--nnodes=2",
        "--nproc-per-node=8",
        "--node-rank=$SLURM_NODEID",
        "--master-addr=$MASTER_ADDR",
        "--max-restarts=0",
    ):
        assert part in many
    assert "-m stages.core.runtime /shared/x.json --secrets /shared/x.secrets.json" in many


@pytest.mark.parametrize(
    "site", [Site(), Site(runtime="pyxis"), Site(runtime="apptainer"), Site(runtime="apptainer", images="/sif")]
)
def test_every_script_is_valid_shell_without_placeholders(site: Site, tmp_path: Path) -> None:
    script = text(site, nodes=2, gpus=1)
    assert "@" not in script.replace("TERM@30", "")
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], check=True)


def test_images_are_run_by_what_the_site_has() -> None:
    from flows.environments import stage_image

    name, _, tag = stage_image("pretrain", "train").reference.partition(":")
    pyxis = text(Site(runtime="pyxis"))
    assert f"--container-image='moxin#pretrain:{tag}'" in pyxis or f"--container-image=moxin#pretrain:{tag}" in pyxis
    assert "--container-mounts=/shared:/shared" in pyxis
    assert f"/sif/pretrain-{tag}.sif" in text(Site(runtime="apptainer", images="/sif"))
    assert f"docker://{name}:{tag}" in text(Site(runtime="apptainer"))
    assert "--nv" in text(Site(runtime="apptainer"), gpus=1)
    assert "--nv" not in text(Site(runtime="apptainer"))


ODD = "it's \"my\" $HOME `id` #1; 100% & Jürgen's"
"""A folder's name with everything that a shell, and sbatch, gives a meaning."""


def directives(script: str) -> dict[str, str]:
    """Options as sbatch reads them. Its rules (get_argument in Slurm's sbatch): a space ends a word, '#' outside of
    quotes begins a comment, either quote groups until the same one, a backslash takes the next letter as it is,
    everywhere; then `%%` in a path is `%`.
    """
    found = {}
    for line in script.splitlines():
        if not line.startswith("#SBATCH"):
            continue
        word, quote, escaped = "", "", False
        for letter in line[7:].lstrip():
            if escaped:
                word, escaped = word + letter, False
            elif letter == "\\":
                escaped = True
            elif quote:
                word, quote = (word, "") if letter == quote else (word + letter, quote)
            elif letter in "'\"":
                quote = letter
            elif letter.isspace() or letter == "#":
                raise AssertionError(f"sbatch stops within {line}")
            else:
                word += letter
        name, _, value = word.partition("=")
        found[name] = value.replace("%%", "%")
    return found


def test_any_path_reaches_sbatch_and_the_stage_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script runs under bash, with stand-ins for `srun` and `scontrol` that take their words from it; Python writes
    down what it was given.
    """
    home, tools = tmp_path / ODD, tmp_path / "tools"
    home.mkdir()
    tools.mkdir()
    programs = {
        "srun": '#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho 'NodeName=n NodeAddr=127.0.0.1 x'\n",
        ODD: (
            f"#!{sys.executable}\nimport json, os, sys\njson.dump([sys.argv, dict(os.environ)],"
            f" open({str(tmp_path / 'seen')!r}, 'w'))\n"
        ),
    }
    for name, text_ in programs.items():
        (tools / name).write_text(text_)
        (tools / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tools / ODD))
    monkeypatch.setenv("MOXIN_VERL_PYTHON", f"/opt/{ODD}\nsecond line")
    script = slurm.script(job(), Site(options={"comment": "a b'c"}), home / "job", "mark", home / "scratch")
    assert directives(script) | {
        "--output": str(home / "job.out"),
        "--error": str(home / "job.err"),
        "--comment": "a b'c",
    } == directives(script)
    env = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "7", "SLURM_NODEID": "0"}
    subprocess.run(["bash", "-c", script], env=env, check=True)
    words, told = json.loads((tmp_path / "seen").read_text())
    assert words[1:] == [
        "-m",
        "stages.core.runtime",
        str(home / "job.json"),
        "--secrets",
        str(home / "job.secrets.json"),
    ]
    assert told["MOXIN_SCRATCH"] == str(home / "scratch")
    assert told["MOXIN_VERL_PYTHON"] == f"/opt/{ODD}\nsecond line"
    assert (home / "job.exit").read_text() == "0\n"


def test_what_a_script_or_a_mount_cannot_say_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"Slurm's option output = .* holds a line break"):
        slurm.script(job(), Site(), Path("/a\nb/job"), "mark", Path("/scratch"))
    with pytest.raises(ConfigError, match=r"the pyxis runtime cannot mount '/a:b': ':' and ','"):
        slurm.script(job(), Site(runtime="pyxis"), Path("/a:b/job"), "mark", Path("/scratch"))


def test_a_stage_without_an_image_is_told_where_engines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXIN_COLOSSALAI_PYTHON", "/shared/colossalai/bin/python")
    assert "export MOXIN_COLOSSALAI_PYTHON=/shared/colossalai/bin/python\n" in text(Site())
    assert "COLOSSALAI" not in text(Site(runtime="pyxis"))  # the image has its own


def test_a_sites_file_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Site.load().runtime == "none", "the one in the repository"
    path = tmp_path / "site.toml"
    monkeypatch.setenv("MOXIN_SLURM_SITE", str(path))
    with pytest.raises(ConfigError, match=r"no file .*site\.toml: MOXIN_SLURM_SITE must name"):
        Site.load()
    path.write_text('runtime = "podman"')
    with pytest.raises(ConfigError, match=r"site\.toml: runtime = 'podman'"):
        Site.load()
    path.write_text("runtime =")
    with pytest.raises(ConfigError, match=r"site\.toml is not valid TOML"):
        Site.load()


# --- the controller's answers -----------------------------------------------------------------------------------------


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins for Slurm's commands. Each prints its file, and writes down how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "scontrol", "squeue", "scancel"):
        script = folder / name
        script.write_text(
            f'#!/bin/bash\necho "{name} $*" >>{folder}/calls\n[ -f {folder}/{name}.err ] && {{ cat {folder}/{name}.err'
            f" >&2; exit 1; }}\ncat {folder}/{name}.out 2>/dev/null || true\n"
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def state(controller: Path, value: str, code: str = "0:0", reason: str = "None") -> None:
    (controller / "scontrol.out").write_text(
        f"JobId=7 JobName=moxin JobState={value} Reason={reason} ExitCode={code} Restarts=0\n"
    )


def handle(tmp_path: Path, out: str = "", status: str | None = None) -> SlurmHandle:
    base = tmp_path / "job"
    Path(f"{base}.out").write_text(out)
    if status is not None:
        Path(f"{base}.exit").write_text(status)
    return SlurmHandle("7", base, "pretrain_1", 0.01)


@pytest.mark.parametrize(
    ("value", "expected", "message"),
    [
        ("OUT_OF_MEMORY", "oom", "out of memory: raise resources.pretrain_1.memory_gib"),
        ("TIMEOUT", "preempted", "it reached the site's time limit"),
        ("PREEMPTED", "preempted", "preempted by another job"),
        ("NODE_FAIL", "preempted", "a node failed"),
        ("CANCELLED", "preempted", "cancelled in Slurm"),
    ],
)
def test_what_slurm_ended_has_its_class(
    controller: Path, tmp_path: Path, value: str, expected: str, message: str
) -> None:
    state(controller, value, "0:15")
    found = handle(tmp_path)
    assert list(found.events()) == [{"event": "done", "exit": expected, "message": message}]
    assert ExitClass.from_code(found.wait()) == expected


def test_a_job_that_finished_before_it_was_cancelled_is_ok(controller: Path, tmp_path: Path) -> None:
    state(controller, "CANCELLED")
    found = handle(tmp_path, '{"event": "done", "exit": "ok", "message": ""}\n', "0")
    assert [e["exit"] for e in found.events()] == ["ok"]
    assert found.wait() == 0


@pytest.mark.parametrize(
    ("said", "status", "expected"), [("config", "1", "config"), ("preempted", "1", "preempted"), ("ok", "0", "ok")]
)
def test_the_stages_own_word_counts_more_than_torchruns_status(
    controller: Path, tmp_path: Path, said: str, status: str, expected: str
) -> None:
    state(controller, "COMPLETED" if status == "0" else "FAILED", f"{status}:0")
    found = handle(tmp_path, f'{{"event": "done", "exit": "{said}", "message": ""}}\n', status)
    list(found.events())
    assert ExitClass.from_code(found.wait()) == expected


def test_a_job_that_died_without_a_word_is_what_its_status_says(controller: Path, tmp_path: Path) -> None:
    state(controller, "FAILED", "0:9")
    found = handle(tmp_path)
    assert list(found.events()) == []
    assert ExitClass.from_code(found.wait()) is ExitClass.PREEMPTED, "killed from outside"


@pytest.mark.parametrize(("status", "expected"), [("0", "ok"), ("65", "input"), (None, "preempted")])
def test_a_job_that_the_controller_forgot_is_known_by_its_file(
    controller: Path, tmp_path: Path, status: str | None, expected: str
) -> None:
    (controller / "scontrol.err").write_text("slurm_load_jobs error: Invalid job id specified\n")
    found = handle(tmp_path, status=status)
    list(found.events())
    assert ExitClass.from_code(found.wait()) == expected


def test_a_controller_that_is_away_ends_nothing(controller: Path, tmp_path: Path) -> None:
    (controller / "scontrol.err").write_text("slurm_load_jobs error: Unable to contact slurm controller\n")
    assert slurm.job_state("7")[0] == "UNKNOWN"
    events = handle(tmp_path, '{"event": "progress", "done": 1}\n{"event": "checkpoint", "step": 2}\n').events()
    assert next(events)["event"] == "progress"
    (controller / "scontrol.err").unlink()
    state(controller, "COMPLETED")
    assert [e["event"] for e in events] == ["checkpoint"]


def test_lines_are_read_whole_and_the_last_one_even_when_cut_off(tmp_path: Path) -> None:
    tail = slurm._Tail(tmp_path / "out", False)
    assert list(tail.read(False)) == []
    (tmp_path / "out").write_bytes(b'{"event": "progress", "done": 1}\n{"event"')
    assert [e["event"] for e in tail.read(False)] == ["progress"]
    (tmp_path / "out").write_bytes(b'{"event": "progress", "done": 1}\n{"event": "checkpoint", "step": 2}\nlast')
    assert [e["event"] for e in tail.read(True)] == ["checkpoint", "log"]


def launcher(tmp_path: Path) -> SlurmLauncher:
    return SlurmLauncher(
        Settings(tmp_path / "home", STORE, "http://127.0.0.1:9/api", True, False, CREDENTIALS), Site(poll_seconds=0.01)
    )


def test_a_submission_hides_its_secrets(controller: Path, tmp_path: Path) -> None:
    (controller / "sbatch.out").write_text("7;cluster\n")
    found = launcher(tmp_path).start(job())
    assert found.id == "7"
    files = {p.name.partition("-3")[2]: p for p in (tmp_path / "home" / "slurm").iterdir()}
    assert files.keys() == {".json", ".secrets.json", ".sh"}
    assert {p.stat().st_mode & 0o777 for p in files.values()} == {0o600}
    assert "the-secret" in files[".secrets.json"].read_text()
    for shown in (files[".sh"].read_text(), files[".json"].read_text(), (controller / "calls").read_text()):
        assert "the-secret" not in shown
        assert "the-id" not in shown
    state(controller, "COMPLETED")
    list(found.events())
    found.wait()
    assert not list((tmp_path / "home" / "slurm").iterdir()), "removed at the end"


def test_credentials_that_end_are_written_anew_until_the_job_does(
    controller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()

    def session(settings: Settings, request: StageRequest) -> scoped.Session:
        return scoped.Session({"AWS_ACCESS_KEY_ID": f"id-{next(numbers)}"}, time.time() + 0.5)

    monkeypatch.setenv("MOXIN_STS_ROLE", "arn:aws:iam::123456789012:role/stages")
    monkeypatch.setattr(scoped, "session", session)
    (controller / "sbatch.out").write_text("7\n")
    found = launcher(tmp_path).start(job())
    (path,) = (tmp_path / "home" / "slurm").glob("*.secrets.json")

    def number() -> int:
        return int(json.loads(path.read_text())["environment"]["AWS_ACCESS_KEY_ID"].removeprefix("id-"))

    wait_for(lambda: number() >= 2, "two renewals")
    assert path.stat().st_mode & 0o777 == 0o600
    state(controller, "COMPLETED")
    list(found.events())
    found.wait()
    time.sleep(1)
    assert not list((tmp_path / "home" / "slurm").iterdir()), "nothing is written after the end"


def test_what_sbatch_refuses_is_one_line(controller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (controller / "sbatch.err").write_text("sbatch: error: invalid partition specified: gpu\nsbatch: more\n")
    with pytest.raises(InfraError, match=r"^sbatch: sbatch: error: invalid partition specified: gpu$"):
        launcher(tmp_path).start(job())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InfraError, match="no command 'squeue': the slurm launcher runs on a login node"):
        launcher(tmp_path).start(job())


def test_only_a_live_job_is_taken_over(controller: Path, tmp_path: Path) -> None:
    for value, lives in (
        ("RUNNING", True),
        ("PENDING", True),
        ("REQUEUED", True),
        ("COMPLETED", False),
        ("NODE_FAIL", False),
    ):
        state(controller, value)
        assert (launcher(tmp_path).take_over("7", job()) is not None) is lives, value
    (controller / "scontrol.err").write_text("slurm_load_jobs error: Invalid job id specified\n")
    assert launcher(tmp_path).take_over("7", job()) is None


def test_reap_cancels_the_jobs_of_a_run_of_this_installation(controller: Path, tmp_path: Path) -> None:
    found = launcher(tmp_path)
    (controller / "squeue.out").write_text(
        f"7 moxin:{found._installation}:run-1:k:1\n8 moxin:other:run-1:k:1\n9 moxin:{found._installation}:run-2:k:1\n"
    )
    assert found.reap() == [], "they are taken over, not killed"
    assert found.reap("run-1") == ["7"]
    assert (controller / "calls").read_text().splitlines()[-2:] == [
        "scancel --state=PENDING 7",
        "scancel --state=RUNNING --signal=TERM 7",  # a plain one would give it KillWait, whatever it was promised
    ]


def test_what_dead_attempts_left_in_the_shared_folder_goes_at_the_next_start(controller: Path, tmp_path: Path) -> None:
    """Folders in scratch, and the files that jobs were started with, credentials among them: never while a job may
    still use them.
    """
    slurm_launcher = launcher(tmp_path)
    folder = slurm_launcher._folder
    dead, live = folder / "scratch" / "stage-dead", folder / "scratch" / "stage-live"
    for attempt in (dead, live):
        attempt.mkdir(parents=True)
        (attempt / "output").write_bytes(b"x")
    claim(dead).close()
    held = claim(live)
    base = slurm_scripts.base_of(job(), folder)
    old = [Path(f"{base}{suffix}") for suffix in (".json", ".secrets.json", ".sh")]
    new = folder / f"{base.name}1.secrets.json"
    kept = [Path(f"{base}.out")] + [folder / name for name in ("notes.json", "submit.sh", "run-2-3.json", "a-b-1.sh")]
    for path in (*old, new, *kept):
        path.write_text("x")
    for path in (*old, *kept):
        os.utime(path, (time.time() - 7200,) * 2)

    for installation in (slurm_launcher._installation, "another"):
        (controller / "squeue.out").write_text(f"7 moxin:{installation}:run-1:k:1\n")
        slurm_launcher.reap()
        assert dead.is_dir(), "a lock of another node may not be seen here"
        assert all(path.is_file() for path in old), "one that is queued reads them when it starts"
    (controller / "squeue.out").write_text("")
    (controller / "squeue.err").write_text("slurm_load_jobs error: Unable to contact slurm controller\n")
    slurm_launcher.reap()
    assert dead.is_dir(), "nobody can say that no job runs"
    (controller / "squeue.err").unlink()
    slurm_launcher.reap()
    assert not dead.exists()
    assert live.is_dir(), "its process lives"
    assert not any(path.exists() for path in old)
    assert all(path.is_file() for path in kept), "logs, and a user's own files"
    assert new.is_file(), "its job may be about to be submitted"
    held.close()


def test_a_pending_job_is_cancelled_at_once(controller: Path, tmp_path: Path) -> None:
    state(controller, "PENDING", reason="Resources")
    found = handle(tmp_path)
    found._stop(30)
    assert (controller / "calls").read_text().splitlines()[-1] == "scancel 7"


@pytest.mark.parametrize("away", [["scancel"], ["scontrol", "scancel"]])
def test_a_job_is_stopped_once_a_controller_that_is_away_is_back(
    controller: Path, tmp_path: Path, away: list[str]
) -> None:
    """It was asked once: the job then went on to its end, whatever became of its lease, and a second stop did
    nothing.
    """
    state(controller, "PENDING")
    for command in away:
        (controller / f"{command}.err").write_text("Unable to contact slurm controller (connect failure)")
    found = handle(tmp_path)
    found.stop(30)
    tries = lambda: calls(controller, away[0]) if (controller / "calls").exists() else []  # noqa: E731
    wait_for(lambda: len(tries()) > 2 or not _stops(), "more tries than one")
    assert len(tries()) > 2
    for command in away:
        (controller / f"{command}.err").unlink()
    wait_for(lambda: not _stops(), "the end of the thread that stops it")
    assert (controller / "calls").read_text().splitlines()[-1] == "scancel 7"


def test_nobody_goes_on_to_stop_a_job_that_is_over(controller: Path, tmp_path: Path) -> None:
    state(controller, "CANCELLED")
    (controller / "scancel.err").write_text("Job/step already completing or completed")
    handle(tmp_path).stop(30)
    wait_for(lambda: (controller / "calls").exists() and not _stops(), "the end of the thread that stops it")


def test_a_shared_folder_that_is_away_ends_no_stage(controller: Path, tmp_path: Path) -> None:
    """A stale handle of its log was an error of the program: the job was stopped, and a good end lost."""
    found = handle(tmp_path)
    log, request = tmp_path / "job.out", tmp_path / "job.json"
    log.unlink()
    log.mkdir()  # open() fails, and unlink() of the other, by something else than a file that is not there
    request.mkdir()
    state(controller, "RUNNING")
    said = found.events()
    events = list[dict[str, Any]]()
    reader = threading.Thread(target=lambda: events.extend(said), daemon=True)
    reader.start()
    wait_for(lambda: len(calls(controller, "scontrol")) > 2 if (controller / "calls").exists() else False, "looks")
    log.rmdir()
    log.write_text('{"event": "done", "exit": "ok", "message": ""}\n')
    Path(tmp_path / "job.exit").write_text("0")
    state(controller, "COMPLETED")
    wait_for(lambda: not reader.is_alive(), "the job's end")
    assert [event["exit"] for event in events] == ["ok"]
    assert found.wait() == 0


def _stops() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "_stop" in thread.name]


# --- arrays that a stage asks for -------------------------------------------------------------------------------------


MARK = "moxin:mark:run-1:aaaaaaaaaaaaaaaa:3"
"""The comment of `job`'s own submission."""


@pytest.fixture(autouse=True)
def in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What lies at a place of the store lies in a folder here."""
    monkeypatch.setattr(array_request, "objects_at", lambda place: FolderObjects(tmp_path / "work"))


def array_job() -> Job:
    plain = job(gpus=2, nodes=3)
    return Job(plain.request.model_copy(update={"config": {"workers": "slurm"}}), plain.resources, "data")


def ask(work: Path, name: str = "sign-1a2b3c4d", tasks: int = 20) -> dict[str, Any]:
    """A stage's event, and the jobs that it speaks of."""
    FolderObjects(work).put(first_part(name), b"{}")
    request = array_job().request
    own = {"store": request.store.model_dump(mode="json"), "prefix": work_prefix(request.stage, request.key)}
    needs = {"tasks": tasks, "cpus": 2, "memory_gib": 1.5}
    return {"event": "array", "place": json.dumps(own), "name": name, **needs}


def over(event: dict[str, Any]) -> str:
    """The name of the answer that a stage waits for."""
    return f"{state_of(event['name'])}{OVER}"


def answered(event: dict[str, Any]) -> Any:
    """The answer that the stage finds; None while there is none."""
    found = array_request.objects_at(event["place"]).get(over(event))
    return None if found is None else json.loads(found[0])


def arrays(work: Path, site: Site | None = None) -> JobArrays:
    return JobArrays(array_job(), site or Site(), work.parent, "mark")


def calls(controller: Path, name: str) -> list[str]:
    """How a command was called, `squeue` for example."""
    return [line for line in (controller / "calls").read_text().splitlines() if line.startswith(f"{name} ")]


@pytest.mark.parametrize("site", [Site(), Site(runtime="pyxis"), Site(runtime="apptainer", images="/sif")])
def test_an_arrays_script(site: Site, tmp_path: Path) -> None:
    """What one task needs, not what the stage has; the stage's image."""
    site = site.model_copy(
        update={
            "array_size": 6,
            "array_limit": 4,
            "options": {"qos": "a"},
            "array_options": {"qos": "b", "time": "1:00:00"},
        }
    )
    event = ask(tmp_path / "work")
    script = slurm_scripts.array_script(
        array_job(),
        site,
        ArrayRequest.checked(event, array_job()),
        Path("/shared"),
        "mark",
    )
    wanted = {
        "--array=0-5%4",
        "--nodes=1",
        "--cpus-per-task=2",
        "--mem=1536M",
        "--qos=b",
        "--time=1:00:00",
        f"--comment={MARK}:sign-1a2b3c4d",
    }
    assert {f"#SBATCH {option}" for option in wanted} <= set(script.splitlines())
    assert "gpus" not in script
    assert "@" not in script
    (line,) = [line for line in script.splitlines() if "job_array" in line]
    words = shlex.split(shlex.split(line.partition("bash -c ")[2])[0])
    begin = words.index("stages.lib.data.job_array")
    assert words[begin + 1 : begin + 5] == [event["place"], event["name"], "$SLURM_ARRAY_TASK_ID", "6"]
    assert words[begin + 5] == "--secrets"
    assert "sign-1a2b3c4d_%a.log\n" in script
    (tmp_path / "array.sh").write_text(script)
    subprocess.run(["bash", "-n", str(tmp_path / "array.sh")], check=True)


def test_a_container_that_keeps_variables_out_is_given_them() -> None:
    script = text(Site(runtime="apptainer"))
    assert "export APPTAINERENV_MOXIN_SCRATCH=/shared/scratch\n" in script
    assert "APPTAINERENV" not in text(Site(runtime="pyxis"))


def test_an_array_is_submitted_once_whoever_follows_it(controller: Path, tmp_path: Path) -> None:
    (controller / "sbatch.out").write_text("12\n")
    event, work = ask(tmp_path / "work"), tmp_path / "work"
    (said,) = arrays(work).submit(event)
    assert said["message"] == "Slurm array 12: 20 shards in 20 jobs (sign-1a2b3c4d)"
    list(arrays(work).submit(event))
    assert len(calls(controller, "sbatch")) == 1
    follower = arrays(work)
    assert [len(list(follower.submit(event))) for _ in range(2)] == [1, 0], "asked for again, lest its event was lost"
    base = tmp_path / f"pretrain_1-{'a' * 16}-3-sign-1a2b3c4d"
    assert calls(controller, "sbatch")[0].endswith(f"--parsable --requeue --export=NONE {base}.sh")
    Path(f"{base}.job").unlink()  # it died before it could write that down
    (controller / "squeue.out").write_text(f"12 {MARK}:sign-1a2b3c4d\n12 {MARK}:sign-1a2b3c4d\n")
    (said,) = arrays(work).submit(event)
    assert said["message"].startswith("Slurm array 12:")
    assert len(calls(controller, "sbatch")) == 1
    objects = FolderObjects(work)
    objects.put(over(event), b"{}")
    assert list(arrays(work).submit(event)) == [], "answered before"
    objects.delete([first_part(event["name"]), over(event)])
    assert list(arrays(work).submit(event)) == [], "all done, and cleared away"


def test_an_array_whose_folder_is_away_is_asked_for_again(controller: Path, tmp_path: Path) -> None:
    (controller / "sbatch.out").write_text("12\n")
    event, found = ask(tmp_path / "work"), arrays(tmp_path / "work")
    blocked = tmp_path / f"pretrain_1-{'a' * 16}-3-sign-1a2b3c4d.job"
    blocked.mkdir()
    (said,) = found.submit(event)
    assert said["message"] == f"no array for 20 shards: cannot use {blocked}: Is a directory"
    assert answered(event) is None, "the stage asks again"
    blocked.rmdir()
    (said,) = found.submit(event)
    assert said["message"].startswith("Slurm array 12:")


def test_a_new_array_ends_those_that_nobody_waits_for(controller: Path, tmp_path: Path) -> None:
    (controller / "sbatch.out").write_text("13\n")
    (controller / "squeue.out").write_text(f"12 {MARK}:sign-1a2b3c4d\n9 {MARK}\n8 moxin:mark:run-1:another:3:sign-x\n")
    list(arrays(tmp_path / "work").submit(ask(tmp_path / "work", "keep-00000000")))
    assert calls(controller, "scancel") == ["scancel 12"]


def test_the_stage_is_told_when_all_elements_are_over(controller: Path, tmp_path: Path) -> None:
    (controller / "sbatch.out").write_text("12\n")
    found, event = arrays(tmp_path / "work"), ask(tmp_path / "work")
    assert list(found.poll()) == []
    list(found.submit(event))
    (controller / "scontrol.err").write_text("slurm_load_jobs error: Unable to contact slurm controller\n")
    assert list(found.poll()) == []
    (controller / "scontrol.err").unlink()
    row = "JobId={} ArrayJobId=12 ArrayTaskId={} JobName=m JobState={} Reason={} ExitCode=0:0\n".format
    (controller / "scontrol.out").write_text(row(12, "1-5", "PENDING", "Resources"))
    assert [e["message"] for e in found.poll()] == ["Slurm array 12 is pending (Resources)"]
    assert list(found.poll()) == [], "said once"
    (controller / "scontrol.out").write_text(row(13, 0, "COMPLETED", "None") + row(14, 1, "RUNNING", "None"))
    assert list(found.poll()) == []
    assert answered(event) is None
    (controller / "scontrol.out").write_text(row(13, 0, "COMPLETED", "None") + row(14, 1, "OUT_OF_MEMORY", "None"))
    list(found.poll())
    assert answered(event) == {"states": {"COMPLETED": 1, "OUT_OF_MEMORY": 1}}


def test_a_store_that_is_away_ends_no_array_and_no_stage(
    controller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage was stopped when its array's end could not be told at once."""
    (controller / "sbatch.out").write_text("12\n")
    found, event = arrays(tmp_path / "work"), ask(tmp_path / "work")
    list(found.submit(event))
    (controller / "scontrol.err").write_text("slurm_load_jobs error: Invalid job id specified\n")

    def away(place: str) -> FolderObjects:
        raise InfraError("the store does not answer")

    there = array_request.objects_at
    monkeypatch.setattr(array_request, "objects_at", away)
    assert list(found.poll()) == []
    (said,) = found.submit(event)
    assert said["message"] == "no array for 20 shards: the store does not answer"
    monkeypatch.setattr(array_request, "objects_at", there)
    assert answered(event) is None
    list(found.poll())
    assert answered(event) == {"states": {}}


def test_an_array_that_the_controller_forgot_is_over(controller: Path, tmp_path: Path) -> None:
    (controller / "sbatch.out").write_text("12\n")
    found, event = arrays(tmp_path / "work"), ask(tmp_path / "work")
    list(found.submit(event))
    (controller / "scontrol.err").write_text("slurm_load_jobs error: Invalid job id specified\n")
    list(found.poll())
    assert answered(event) == {"states": {}}


def test_what_sbatch_refuses_of_an_array_the_stage_hears(controller: Path, tmp_path: Path) -> None:
    (controller / "sbatch.err").write_text("sbatch: error: Invalid job array specification\n")
    event = ask(tmp_path / "work")
    (said,) = arrays(tmp_path / "work").submit(event)
    assert said["level"] == "warning"
    assert answered(event)["error"] == "sbatch: sbatch: error: Invalid job array specification"


def test_an_array_of_other_work_is_refused(controller: Path, tmp_path: Path) -> None:
    event = ask(tmp_path / "work")
    request = array_job().request
    address = request.store.model_dump(mode="json")
    own = {"store": address, "prefix": f"work/{request.stage}/{request.key}/", "scratch": "/tmp"}
    for place in (
        {"folder": "/etc"},
        {"folder": f"{tmp_path}/work"},
        own | {"prefix": "manifests/"},
        own | {"store": address | {"bucket": "another"}},
        {},
        [],
    ):
        with pytest.raises(InfraError, match="is not its own work"):
            list(arrays(tmp_path / "work").submit({**event, "place": json.dumps(place)}))
    ArrayRequest.checked({**event, "place": json.dumps(own)}, array_job())
    for change in ({"tasks": 0}, {"name": "../x-00000000"}):
        with pytest.raises(InfraError, match="in terms that are not known"):
            list(arrays(tmp_path / "work").submit({**event, **change}))


def test_a_stages_end_is_its_arrays_end(controller: Path, tmp_path: Path) -> None:
    """The event goes to the launcher alone; what is left in the queue is cancelled, whoever submitted it."""
    (controller / "sbatch.out").write_text("12\n")
    state(controller, "RUNNING")
    base, work = tmp_path / "job", tmp_path / "work"
    Path(f"{base}.out").write_text(json.dumps(ask(work, "sign-00000000")) + "\n" + json.dumps(ask(work)) + "\n")
    found = SlurmHandle("7", base, "pretrain_1", 0.01, arrays(work))
    events = found.events()
    assert next(events)["message"].startswith("Slurm array 12: 20 shards in 20 jobs (sign-1a2b3c4d)"), (
        "the last one asked for"
    )
    assert len(calls(controller, "sbatch")) == 1
    (controller / "squeue.out").write_text(f"12 {MARK}:sign-1a2b3c4d\n")
    state(controller, "FAILED", "65:0")
    assert [e["event"] for e in events] == []
    assert found.wait() == 65
    assert calls(controller, "scancel") == ["scancel 12"]


def test_an_attempt_ends_what_earlier_ones_left(controller: Path, tmp_path: Path) -> None:
    """A job that sbatch submitted without saying so held its machines until its first checkpoint was refused."""
    (controller / "sbatch.out").write_text("20\n")
    found = launcher(tmp_path)
    rows = [
        f"12 moxin:{found._installation}:run-0:{'a' * 16}:2:sign-1",
        f"13 moxin:{found._installation}:run-0:{'a' * 16}:2",
        f"14 moxin:{found._installation}:run-0:{'b' * 16}:2:sign-1",
    ]
    (controller / "squeue.out").write_text("\n".join(rows) + "\n")
    found.start(array_job())
    assert calls(controller, "scancel") == ["scancel 12 13"]
    assert "export MOXIN_ARRAYS=1\n" in next((tmp_path / "home" / "slurm").glob("*.sh")).read_text()
