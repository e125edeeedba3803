"""A way from a container to the embedded object store, which listens on loopback only.

The control plane listens on the address that the Docker daemon's bridge has on this machine, which no other machine
reaches, and passes every connection on to the store for as long as it lives. The store asks for its keys as always.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit

from stages.core.errors import InfraError

_CHUNK = 1 << 16


class Relay:
    """Listens on `address` at a free port and passes connections on to `endpoint`. Raises InfraError on failure."""

    def __init__(self, address: str, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._target = (str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80))
        try:
            self._listener = socket.create_server((address, 0), backlog=128)
        except OSError as error:
            raise InfraError(
                f"cannot listen on {address} for containers to reach {endpoint} ({error.strerror}): is the Docker"
                " daemon on another machine? then use an object store that it can reach (MOXIN_S3_ENDPOINT)"
            ) from error
        self.endpoint = f"{parts.scheme}://{address}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True, name="store-relay").start()

    def close(self) -> None:
        """Listen no more. Connections that stand go on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts; closing alone would not
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target, timeout=10)
        except OSError:  # the client sees a connection that closes, and tries again as it would with the store itself
            near.close()
            return
        far.settimeout(None)
        other = threading.Thread(target=_pump, args=(far, near), daemon=True)
        other.start()
        _pump(near, far)
        other.join()
        near.close()
        far.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the source ends; then tell the sink that no more comes."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
