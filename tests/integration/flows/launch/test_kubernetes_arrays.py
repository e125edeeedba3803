"""Arrays as Indexed Jobs: the objects against the API's own schema, and whole arrays through an API that does what a
Job controller does, but here and now; a real store. No cluster was there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from flows.launch import kubernetes_arrays, kubernetes_manifests
from flows.launch.array_request import ArrayRequest
from flows.launch.base import Job
from flows.launch.kubernetes_arrays import IndexedJobs, index_count
from flows.launch.kubernetes_manifests import Site
from stages.core.errors import InfraError
from stages.core.ledger import Ledger
from stages.core.messages import CodeRef, Lease, StageRequest, StoreAddress
from stages.core.resources import Resources
from stages.core.task_objects import StoreObjects, first_part, work_prefix
from stages.lib.data import job_array
from stages.lib.data.workers import Pool
from tests.support.kubernetes_api import Cluster, against, launcher, read
from tests.support.worker_pool import runs, tasks
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
    assert pod["volumes"][:3] == own["volumes"][:3], "secret, scratch and /tmp"
    assert (pod["securityContext"], container["image"]) == (own["securityContext"], main["image"])
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "1536Mi", "ephemeral-storage": "50Gi"}
    command = container["command"]
    assert command[:3] == ["python", "-m", "stages.lib.data.job_array"]
    assert json.loads(command[3].replace("$$(", "$(")) == json.loads(event()["place"])
    assert command[4:] == ["sign-1a2b3c4d", "$(JOB_COMPLETION_INDEX)", "20", "--secrets", "/secrets/secrets.json"]
    assert {"name": "MOXIN_ARRAYS", "value": "1"} in main["env"]


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
