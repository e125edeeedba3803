"""Arrays as Indexed Jobs: the objects against the API's own schema, and whole arrays through an API that does what a
Job controller does, but here and now; a real store. No cluster was there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from flows.launch import array_request, kubernetes_arrays, kubernetes_manifests
from flows.launch.array_request import ArrayRequest
from flows.launch.base import Job
from flows.launch.kubernetes_arrays import IndexedJobs, index_count
from flows.launch.kubernetes_manifests import Site
from stages.core.errors import InfraError
from stages.core.events import Events
from stages.core.ledger import Ledger
from stages.core.messages import CodeRef, Lease, Secrets, StageRequest, StoreAddress
from stages.core.resources import Resources
from stages.core.task_objects import StoreObjects, first_part, work_prefix
from stages.lib.data import job_array
from stages.lib.data.workers import Pool
from tests.support.kubernetes_api import Cluster, against, launcher, read
from tests.support.paths import ROOT
from tests.support.pool_tasks import runs, tasks
from tests.support.stored_dedup import (
    Attempts,
    at_work,
    by_processes,
    corpus,
    machine,
    request,
    run_here,
    same,
    sources,
)
from tests.support.worker_tasks import square

KEY = "a" * 64
STORE = StoreAddress(bucket="b", endpoint="https://s3.example.org")


def job(store: StoreAddress = STORE) -> Job:
    request = StageRequest(
        run_id="run-1", node="tokenize_capability_long", stage="tokenize", revision=1, key=KEY,
        lease=Lease(key=KEY, epoch=9999, holder="h"), config={"workers": "kubernetes"}, inputs={}, outputs={},
        code=CodeRef(source_digest="0" * 64), store=store,
    )  # fmt: skip
    return Job(request, Resources(cpus=8, memory_gib=64, scratch_gib=50), "data")


def event(store: StoreAddress = STORE, name: str = "sign-1a2b3c4d", tasks: int = 20) -> dict[str, Any]:
    place = {"store": store.model_dump(mode="json"), "prefix": work_prefix("tokenize", KEY), "scratch": "/$(HOME)"}
    return {"event": "array", "place": json.dumps(place), "name": name, "tasks": tasks, "cpus": 2, "memory_gib": 1.5}


# --- the object -------------------------------------------------------------------------------------------------------


def array(site: Site) -> dict[str, Any]:
    return kubernetes_manifests.array_job(job(), site, ArrayRequest.checked(event(), job()), "mark", "uid-1")


@pytest.mark.parametrize("site", [Site(), Site(array_size=6, array_limit=4, node_selector={"disk": "ssd"})])
def test_an_array_agrees_with_the_apis_schema(site: Site) -> None:
    body = array(site)
    assert against(body, "V1Job", "job") == []
    spec, count = body["spec"], min(20, site.array_size)
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", count)
    assert spec["parallelism"] == (site.array_limit or count)
    assert spec["backoffLimitPerIndex"] == kubernetes_manifests.TRIES
    assert "backoffLimit" not in spec, "it would end all at the first failure"
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "Ignore", "a disrupted pod is replaced"
    assert len(f"{body['metadata']['name']}-99999") <= 63, "the host name of a pod"
    assert body["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": kubernetes_manifests.name_of(job()), "uid": "uid-1"}
    ]


def test_a_pod_of_an_array_has_the_stages_image_and_secret_and_what_one_task_needs() -> None:
    body, stage = array(Site()), kubernetes_manifests.batch_job(job(), Site(), "mark")
    pod, own = (found["spec"]["template"]["spec"] for found in (body, stage))
    (container,), (main,) = pod["containers"], own["containers"]
    assert [pod["volumes"][n] for n in (0, 2)] == [own["volumes"][n] for n in (0, 2)], "secret and /tmp"
    assert pod["volumes"][1] == {"name": "scratch", "emptyDir": {"sizeLimit": "12.5Gi"}}
    assert (pod["securityContext"], container["image"]) == (own["securityContext"], main["image"])
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "1536Mi", "ephemeral-storage": "12.5Gi"}
    command = container["command"]
    assert command[:3] == ["python", "-m", "stages.lib.data.job_array"]
    assert json.loads(command[3].replace("$$(", "$(")) == json.loads(event()["place"])
    assert command[4:] == ["sign-1a2b3c4d", "$(JOB_COMPLETION_INDEX)", "20", "--secrets", "/secrets/secrets.json"]
    assert {"name": "MOXIN_ARRAYS", "value": "1"} in main["env"]


@pytest.mark.parametrize(
    ("scratch", "cpus", "share"),
    [(8000, 2, "2000Gi"), (8000, 0.5, "500Gi"), (12, 1, "10Gi"), (4, 1, "4Gi"), (50, 32, "50Gi")],
)
def test_a_pod_of_an_array_asks_for_its_part_of_the_stages_disk(scratch: float, cpus: float, share: str) -> None:
    """Each pod of a thousand asked for all of it: no node had so much twice."""
    stage = replace(job(), resources=job().resources.model_copy(update={"scratch_gib": scratch}))
    request = ArrayRequest.checked(event() | {"cpus": cpus}, stage)
    body = kubernetes_manifests.array_job(stage, Site(), request, "mark", "uid-1")
    (container,) = body["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["ephemeral-storage"] == share


@pytest.mark.parametrize(("text", "count"), [("", 0), ("3", 1), ("1,3-5,7", 5), ("0-99", 100)])
def test_failed_indexes_are_counted(text: str, count: int) -> None:
    assert index_count(text) == count


# --- whole arrays -----------------------------------------------------------------------------------------------------


class Controller(Cluster):
    """Runs the indexes of a Job when it is made, but for one that is lost in the first array."""

    def __init__(self, lost: int | None = None) -> None:
        super().__init__()
        self.lost, self.ended = lost, dict[str, dict[str, Any]]()

    def create_namespaced_job(self, namespace: str, body: dict[str, Any]) -> Any:
        answer = self._make(namespace, body)
        assert against(body, "V1Job", "job") == []
        command = body["spec"]["template"]["spec"]["containers"][0]["command"]
        place, name, _, count, *_ = (word.replace("$$(", "$(") for word in command[3:])
        failed = []
        for index in range(body["spec"]["completions"]):
            if index == self.lost:
                self.lost = None
                failed.append(index)
                continue
            try:
                job_array.main([place, name, str(index), count])
            except Exception:
                failed.append(index)
        kind = "Failed" if failed else "Complete"
        self.ended[body["metadata"]["name"]] = {
            "succeeded": int(count) - len(failed), "failedIndexes": ",".join(map(str, failed)),
            "conditions": [{"type": kind, "status": "True", "reason": "FailedIndexes" if failed else ""}],
        }  # fmt: skip
        return answer

    def read_namespaced_job_status(self, name: str, namespace: str) -> Any:
        if name not in self.ended:
            raise ApiException(status=404, reason="Not Found")
        return read("V1Job", status=self.ended[name])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_array, "SECONDS", 0.01)
    monkeypatch.setattr(kubernetes_arrays, "POLL_SECONDS", 0.01)


def test_tasks_as_an_indexed_job_give_the_same_results_and_a_lost_index_costs_its_shards(
    ledger: Ledger, tmp_path: Path
) -> None:
    controller, said = Controller(lost=1), list[str]()
    address = ledger.store.address
    arrays = IndexedJobs(job(address), Site(array_size=3), "mark", controller, controller, "uid-1")

    def ask(place: str, name: str, count: int) -> None:
        needs = {"tasks": count, "cpus": 1, "memory_gib": 1}
        said.extend(e["message"] for e in arrays.submit({"event": "array", "place": place, "name": name, **needs}))

    found = {}
    for workers in (1, "kubernetes"):
        (tmp_path / str(workers)).mkdir()
        objects = StoreObjects(ledger.store, work_prefix("tokenize", KEY), tmp_path / str(workers))
        with Pool(objects, workers, ask) as pool:  # type: ignore[arg-type]
            pool.prefix = f"{workers}-"
            results = pool.map("squares", square, tasks(tmp_path / f"log-{workers}"))
        found[workers] = [(r.value, r.file("value").sha256) for r in results]
    assert found[1] == found["kubernetes"]
    assert runs(tmp_path / "log-kubernetes") == [1] * 5
    assert [message.partition(": ")[2][:22] for message in said] == ["5 shards in 3 indexes ", "2 shards in 2 indexes "]
    arrays.cancel()
    assert {name for name, _ in controller.deleted} == controller.ended.keys(), "each Job goes when it is over"


class Pods(Cluster):
    """Runs each index as a process of another machine, which has the store, its command, and a file of secrets. One of
    the first array is killed in the middle of a shard.
    """

    def __init__(self, ledger: Ledger, key: str, folder: Path) -> None:
        super().__init__()
        self.attempts, self.folder, self.killed = Attempts(ledger, key), folder, ""
        self.running: dict[str, list[subprocess.Popen[bytes]]] = {}
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        credentials = Secrets(environment={name: os.environ[name] for name in names})
        (folder / "secrets.json").write_text(credentials.model_dump_json())

    def create_namespaced_job(self, namespace: str, body: dict[str, Any]) -> Any:
        answer, container = self._make(namespace, body), body["spec"]["template"]["spec"]["containers"][0]
        words = [word.replace("$$(", "$(") for word in container["command"]]
        words = [str(self.folder / "secrets.json") if word == "/secrets/secrets.json" else word for word in words]
        self.running[body["metadata"]["name"]] = [
            self._start([sys.executable, *words[1:]], index) for index in range(body["spec"]["completions"])
        ]
        return answer

    def _start(self, command: list[str], index: int) -> subprocess.Popen[bytes]:
        environment = machine(self.folder / f"pod-{index}", PYTHONPATH=str(ROOT))
        command = [str(index) if word == "$(JOB_COMPLETION_INDEX)" else word for word in command]
        with open(self.folder / f"pod-{index}.log", "ab") as log:
            return subprocess.Popen(command, env=environment, cwd=self.folder / f"pod-{index}", stdout=log, stderr=log)

    def read_namespaced_job_status(self, name: str, namespace: str) -> Any:
        if not self.killed:
            self._kill("000001")
        codes = [process.poll() for process in self.running[name]]
        if None in codes:
            return read("V1Job", status={"active": codes.count(None)})
        failed = [index for index, code in enumerate(codes) if code]
        kind = "Failed" if failed else "Complete"
        status = {"succeeded": codes.count(0), "failedIndexes": ",".join(map(str, failed))}
        return read("V1Job", status=status | {"conditions": [{"type": kind, "status": "True", "reason": ""}]})

    def _kill(self, task: str) -> None:
        process = at_work(self.folder / "pod-1" / "scratch", "sign").get(task)
        if process is not None and task not in self.attempts.receipts("sign"):
            os.kill(process, signal.SIGKILL)
            self.killed = task


class Asking(Events):
    """The events of a stage, whose launcher hears of arrays at once."""

    def __init__(self, path: Path, arrays: IndexedJobs) -> None:
        super().__init__(os.open(path, os.O_WRONLY | os.O_CREAT))
        self.arrays, self.said = arrays, list[str]()

    def emit(self, event: str, **fields: Any) -> None:
        super().emit(event, **fields)
        if event == "array":
            self.said += [line["message"] for line in self.arrays.submit({"event": event, **fields})]


def test_a_stage_by_indexed_jobs_over_the_store_alone_gives_the_digest_of_processes(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOXIN_ARRAYS", "1")
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "stage"))
    inputs = sources(ledger, tmp_path, corpus()[:4])
    wanted = by_processes(ledger, inputs, tmp_path)
    asked = request(ledger, inputs, KEY, recipe="dclm", workers="kubernetes")
    pods = Pods(ledger, KEY, tmp_path)
    stage = Job(asked, Resources(cpus=1, memory_gib=1), "data")
    arrays = IndexedJobs(stage, Site(array_size=2), "mark", pods, pods, "uid-1")
    events = Asking(tmp_path / "events.jsonl", arrays)
    with pods.attempts as attempts:
        run_here(asked, events)
    same(ledger, KEY, wanted)
    assert pods.killed, "no index was killed in the middle of a shard"
    steps = [message.rpartition("(")[2].partition("-")[0] for message in events.said]
    assert steps == ["sign", "sign", "spill", "keep"], "the shards of the killed index are asked for again"
    assert attempts.several() <= {f"sign/{pods.killed}"}


def test_an_array_that_cannot_be_made_the_stage_hears(ledger: Ledger) -> None:
    cluster, address = Cluster(), ledger.store.address
    cluster.fail = "Job"
    asked = event(address)
    request = ArrayRequest.checked(asked, job(address))
    request.objects.put(first_part(request.name), b"{}")
    arrays = IndexedJobs(job(address), Site(), "mark", cluster, cluster, "uid-1")
    (warning,) = arrays.submit(asked)
    assert warning["message"] == "no array for 20 shards: Kubernetes cannot create an array: 403 Forbidden"
    assert not request.awaited()
    assert list(arrays.submit(asked)) == [], "answered before"


def test_a_store_that_is_away_ends_no_stage_that_asks_for_an_array(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks again by itself."""
    cluster, address = Cluster(), ledger.store.address
    asked = event(address)
    request = ArrayRequest.checked(asked, job(address))
    request.objects.put(first_part(request.name), b"{}")
    arrays = IndexedJobs(job(address), Site(), "mark", cluster, cluster, "uid-1")

    def away(place: str) -> StoreObjects:
        raise InfraError("the store does not answer")

    there = array_request.objects_at
    monkeypatch.setattr(array_request, "objects_at", away)
    (warning,) = arrays.submit(asked)
    assert warning["message"] == "no array for 20 shards: the store does not answer"
    cluster.fail = "Job"
    monkeypatch.setattr(array_request, "objects_at", there)
    (warning,) = arrays.submit(asked)
    assert warning["message"].endswith("403 Forbidden")


def test_an_array_goes_with_its_stage_and_one_that_is_there_is_followed(ledger: Ledger) -> None:
    cluster, address = Cluster(), ledger.store.address
    asked = event(address)
    request = ArrayRequest.checked(asked, job(address))
    request.objects.put(first_part(request.name), b"{}")
    made = [IndexedJobs(job(address), Site(), "mark", cluster, cluster, "uid-1") for _ in range(2)]
    for arrays in made:  # the second one is another control plane's
        (said,) = arrays.submit(asked)
        assert said["message"].startswith("Kubernetes job moxin-tokenize-capabilit")
    assert len(cluster.made) == 1
    for arrays in made:
        arrays.cancel()
    name = cluster.made[0]["metadata"]["name"]
    assert cluster.deleted == [(name, "Background")] * 2
    with pytest.raises(InfraError, match="is not its own work"):
        list(made[0].submit(asked | {"place": json.dumps({"folder": "/etc"})}))


def test_a_stages_event_goes_to_the_launcher_alone(tmp_path: Path) -> None:
    cluster = Cluster()
    foreign = {**event(), "place": json.dumps({"folder": "/etc"})}
    cluster.log = json.dumps(foreign).encode() + b"\n"
    handle = launcher(cluster, tmp_path).start(replace(job(), resources=Resources()))
    with pytest.raises(InfraError, match="is not its own work"):
        list(handle.events())
