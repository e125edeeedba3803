"""Ports of the local services, each claimed before it is used.

A port is claimed by an abstract Unix socket of its number, which the service inherits and holds for as long as it
lives: two installations that start at the same time, of one user or of two, never choose the same one (a port that is
only looked at is free for both).
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from stages.core.errors import InfraError

Claims = dict[int, socket.socket]
"""The sockets that hold a service's ports, by port."""


def free(port: int) -> bool:
    """Whether a port can be bound on loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def claim(port: int) -> socket.socket | None:
    """Claim a port against other installations on this machine; None where another holds it. Good for as long as the
    socket is open.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0moxin-port-{port}")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            held.close()
            return None  # elsewhere than on Linux there are no such names: the look at the port must do
    return held


def _claim_all(ports: tuple[int, ...]) -> Claims | None:
    """Claim free ports, all or none."""
    claims: Claims = {}
    for port in ports:
        held = claim(port)
        if held is not None and free(port):
            claims[port] = held
            continue
        for taken in (held, *claims.values()):
            if taken is not None:
                taken.close()
        return None
    return claims


def choose(state: dict[str, Any], name: str, first: int, offsets: tuple[int, ...], claims: Claims) -> int:
    """Claim the remembered or preferred port, and those at the offsets from it, or the next ones (below 55,535, for
    gRPC's sake).
    """
    begin = int(state.get(f"{name}_port", first))
    for port in (begin, *range(begin + 1, begin + 2000)):
        candidate = (port, *(port + offset for offset in offsets))
        if port < 55535 and not claims.keys() & set(candidate) and (held := _claim_all(candidate)) is not None:
            claims |= held
            state[f"{name}_port"] = port
            return port
    raise InfraError(f"no free port for {name} between {begin} and {begin + 2000}")
