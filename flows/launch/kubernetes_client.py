"""The official client of Kubernetes, for a control plane that asks for weeks: every question has an end."""

from __future__ import annotations

from typing import Any

from stages.core.errors import InfraError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""Between two pieces of an answer. The client has no limit of its own, and a connection that a load balancer has
forgotten, or whose server is gone, says nothing for ever. A log that is quiet for so long is asked for again.
"""


def clients(context: str) -> tuple[Any, Any]:
    """The core and the batch API. context: of the kubeconfig; empty: the current one, or the pod's own account. Raises
    InfraError when no cluster is configured.
    """
    from kubernetes import client, config

    try:
        config.load_kube_config(context=context or None)
    except config.ConfigException:
        try:
            config.load_incluster_config()
        except config.ConfigException as error:
            raise InfraError("no Kubernetes cluster: set KUBECONFIG, or run the worker inside the cluster") from error
    api = patient()
    return client.CoreV1Api(api), client.BatchV1Api(api)


def patient(configuration: Any = None) -> Any:
    """A client whose every request ends. configuration: of the client; None: what was loaded last."""
    from kubernetes import client

    api: Any = client.ApiClient(configuration)
    ask: Any = api.request

    def request(*args: Any, _request_timeout: Any = None, **more: Any) -> Any:
        return ask(*args, _request_timeout=_request_timeout or (CONNECT_SECONDS, ANSWER_SECONDS), **more)

    api.request = request
    return api
