"""A gate on loopback before a server: connections pass, or meet a server that hangs, answers 503, or is gone.

It looks at no message, so that HTTP and web sockets pass alike.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Gate:
    """Passes connections on to a port of this machine. `close` says what every connection, old or new, meets from then
    on: "hang", "503" or "gone".
    """

    def __init__(self, target: int) -> None:
        self._target, self._mode = target, "pass"
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.turned_away = 0
        """Messages of clients that met a closed gate."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self, mode: str) -> None:
        self._mode = mode
        if mode == "gone":
            for item in [self._listener, *self._sockets]:
                with contextlib.suppress(OSError):
                    item.shutdown(socket.SHUT_RDWR)
                item.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            threading.Thread(target=self._answers, args=(server, client), daemon=True).start()
            while data := client.recv(1 << 16):
                if self._mode == "pass":
                    server.sendall(data)
                    continue
                self.turned_away += 1
                if self._mode == "503":
                    client.sendall(REFUSAL)
                    break
        if self._mode != "hang":
            for item in (client, server):
                with contextlib.suppress(OSError):
                    item.shutdown(socket.SHUT_RDWR)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if self._mode == "pass":
                    client.sendall(data)


@contextmanager
def gate_before(target: int) -> Iterator[Gate]:
    """A gate before a port, for as long as the block lasts."""
    gate = Gate(target)
    try:
        yield gate
    finally:
        gate.close("gone")
