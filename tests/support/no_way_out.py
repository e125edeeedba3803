"""What a machine without a network can do: services, a run, its pages and its report. A program for a namespace.

    unshare --net python -m tests.support.no_way_out FOLDER

FOLDER gets the installation and a picture of the run's page. Exit status 0: all of it worked.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

from flows.local_services import object_store
from tests.support.browser import open_browser
from tests.support.installation import SMALL, Installation, sets, wait_for
from tests.support.prefect_pages import logged_in

GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 0x1
"""SIOCGIFFLAGS, SIOCSIFFLAGS and IFF_UP of netdevice(7)."""
ELSEWHERE = ("192.0.2.1", 443)
"""An address for documentation (RFC 5737): with a network it is not answered, without one it cannot be asked."""
LOGS = "(t => t.includes('Completed') && !t.includes('Waiting for logs'))(document.body.innerText)"
"""Whether the page of a run that has ended shows its state and its log."""
REQUEST = struct.Struct("16sh14x")
"""`struct ifreq`: the interface's name and its flags."""


def loopback_up() -> None:
    """Switch on the loopback interface, which a new namespace has switched off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, GET_FLAGS, REQUEST.pack(b"lo", 0))
        fcntl.ioctl(any_socket, SET_FLAGS, REQUEST.pack(b"lo", REQUEST.unpack(answer)[1] | UP))


def ports_of_its_own(home: Path) -> None:
    """Let the installation prefer ports that no other of this machine has: in another namespace they look free, and
    SeaweedFS has sockets in /tmp that are named by their numbers.
    """
    first = 40_000 + 4 * (os.getpid() % 3_000)
    home.mkdir()
    remembered = {f"{name}_port": first + number for number, name in enumerate(object_store.PORTS)}
    (home / "services.json").write_text(json.dumps(remembered), encoding="utf-8")


def unreachable() -> bool:
    """Whether nothing but this machine can be asked."""
    names = {name for _, name in socket.if_nameindex()}
    with socket.socket() as outward:
        return names == {"lo"} and outward.connect_ex(ELSEWHERE) == errno.ENETUNREACH


def main() -> None:
    folder = Path(sys.argv[1])
    loopback_up()
    if not unreachable():
        sys.exit("this is no namespace without a way out")
    installation = Installation(folder / "home")
    ports_of_its_own(installation.home)
    try:
        installation.moxin("up")
        done = installation.json("run", "--select", "+pretrain_1", *sets(SMALL))
        assert {row["state"] for row in done["nodes"]} == {"done"}, done
        report = folder / "report.html"
        installation.moxin("report", "--output", str(report))
        (run,) = installation.prefect("POST", "/flow_runs/filter", {})
        with open_browser(folder / "profile") as browser:
            address = logged_in(installation, browser)
            browser.open(f"{address}/runs/flow-run/{run['id']}")
            wait_for(lambda: browser.script(f"return {LOGS}"), "the logs on the run's page")
            browser.picture(folder / "run.png")
            browser.open(report.as_uri())
            wait_for(lambda: browser.script("return document.querySelectorAll('table').length > 3"), "the report")
    finally:
        installation.moxin("down")


if __name__ == "__main__":
    os.environ["no_proxy"] = "*"
    main()
