"""Start the Prefect server without its second page, so that no page of its may ask an outside host, and so that a
locked database is waited for here.

Prefect 3.8.8 offers its V2 page at `/ui-settings` whatever its settings say, and that page reports to an analytics
service. Here its bundle is not mounted, its address is a 404, and every answer carries a policy that a browser keeps
to: this machine, nothing else.

SQLite refuses a transaction that read before another one wrote; the server rolls it back and answers 503, and a client
tries again or ends a run for it. Here such a request is carried out again before anybody hears of it.

Runs that nobody works on any more are closed now and then (`flows/lost_runs.py`): Prefect ends those whose heartbeats
stop, and never sees one that did not come to its first.

    python -m flows.prefect_server server start --port 4200      (the arguments of `prefect`)
"""

from __future__ import annotations

import asyncio
import os
import random
import runpy
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from flows.local_services.processes import HOME

_HERE = " ".join(f"{scheme}://{host}:*" for scheme in ("http", "ws") for host in ("127.0.0.1", "localhost"))
POLICY = (
    f"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob: {_HERE}; form-action"
    " 'self'; base-uri 'self'"
)
"""Content-Security-Policy: the page's own scripts are inline, and make code; what they fetch comes from this machine.
"""

PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds before a request whose transaction was refused is carried out again; after the last, 503 is the answer."""
LOOK_SECONDS = 30.0
"""Between two looks at the runs."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ServerMiddleware:
    """ASGI middleware around the whole server."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on; the V2 page's are answered here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] == "/v2" or scope["path"].startswith("/v2/"):
            headers = [(b"content-type", b"text/plain"), (b"content-security-policy", POLICY.encode())]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": b"there is no such page"})
            return

        replay = _Replay(receive)
        for pause in PAUSES:
            if await self._answered(scope, replay.again(), send):
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # those that were refused together come apart
        await self._answered(scope, replay.again(), send, last=True)

    async def _answered(self, scope: Message, receive: Receive, send: Send, last: bool = False) -> bool:
        """Let the server answer; False when it answered 503, which is passed on the last time alone."""
        refused = False

        async def guarded(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] == 503
                headers = [*message.get("headers", ()), (b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": headers}
            if last or not refused:
                await send(message)

        try:
            await self.app(dict(scope), receive, guarded)
        except Exception:  # what was answered with 503 is raised as well, for the server's log
            if last or not refused:
                raise
        return not refused


class _Replay:
    """The messages of a request, to be received again from the first on."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._body: list[Message] = []

    def again(self) -> Receive:
        """What gives the body's messages that came already, then those that still come."""
        at = 0

        async def receive() -> Message:
            nonlocal at
            if at == len(self._body):
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._body.append(message)
            at += 1
            return self._body[at - 1]

        return receive


def guarding(make: Callable[..., Any]) -> Callable[..., Any]:
    """What makes the server's application, with the guard around it.

    Prefect asks for the application again for each action of an automation, and gets the one that runs: no middleware
    can be added then.
    """

    def create_app(*arguments: Any, **options: Any) -> Any:
        app = make(*arguments, **options)
        if not any(middleware.cls is ServerMiddleware for middleware in app.user_middleware):
            app.add_middleware(ServerMiddleware)
        return app

    return create_app


def close_lost_runs(folder: Path, seconds: float = LOOK_SECONDS) -> None:
    """Close lost runs for as long as this process lives, and say so in its log. folder: the installation's."""
    from flows.local_services import lifecycle

    while True:
        time.sleep(seconds)
        try:
            lines = lifecycle.close_lost_runs(folder)
        except Exception as error:  # it is tried again: nobody waits for it, and the server serves without it
            lines = [f"runs that may be lost could not be looked for: {type(error).__name__}: {error}"]
        for line in lines:
            print(line, flush=True)


def main() -> None:
    """Change what this module says of Prefect, then run its own command."""
    import prefect
    from prefect.server.api import server

    prefect.__ui_v2_static_path__ = Path("/nonexistent")  # what is not there is neither mounted nor offered
    server.create_app = guarding(server.create_app)
    if folder := os.environ.get(HOME):
        threading.Thread(target=close_lost_runs, args=(Path(folder),), daemon=True).start()
    sys.argv = ["prefect", *sys.argv[1:]]
    runpy.run_module("prefect", run_name="__main__")


if __name__ == "__main__":
    main()
