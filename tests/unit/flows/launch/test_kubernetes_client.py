"""A server that takes a question and never answers, as a connection does that a load balancer has forgotten."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from kubernetes import client
from urllib3.exceptions import HTTPError

from flows.launch import kubernetes_client as module
from flows.launch.kubernetes import KubernetesHandle

SILENT = b""
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b'2026-01-01T00:00:00.000000000Z {"event": "progress", "done": 1}\n'


class Server:
    """Takes connections on loopback, sends each the same beginning of an answer, and leaves it open."""

    def __init__(self) -> None:
        self.answer, self.connections = SILENT, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                connection.recv(65536)
                connection.sendall(self.answer)
            except OSError:
                return

    def close(self) -> None:
        for one in (self._listener, *self.connections):
            one.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    one = Server()
    yield one
    one.close()


def core(server: Server) -> client.CoreV1Api:
    return client.CoreV1Api(module.patient(client.Configuration(host=server.address)))


@pytest.mark.timeout(60)
def test_a_question_that_nobody_answers_ends(server: Server) -> None:
    """The official client waits for ever: a node stayed `running` for good."""
    with pytest.raises(HTTPError):
        core(server).list_namespaced_pod("moxin")


@pytest.mark.timeout(60)
def test_a_log_that_says_nothing_more_is_left_and_asked_for_again(server: Server) -> None:
    """The lines before the silence count."""
    server.answer = BEGUN + b"%x\r\n%s\r\n" % (len(LINE), LINE)
    handle = KubernetesHandle(core(server), None, "moxin", "job", "node")
    assert [event["done"] for event in handle._log("pod")] == [1]
    assert list(handle._log("pod")) == [], "read before"
    assert len(server.connections) == 2


@pytest.mark.timeout(60)
def test_a_limit_that_a_caller_sets_stands(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 600.0)
    with pytest.raises(HTTPError):
        core(server).list_namespaced_pod("moxin", _request_timeout=0.2)
