"""Asking the Hugging Face hub through its own libraries: again where it is busy, and with one line for what no
repetition mends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from stages.core.errors import InfraError, InputError
from stages.core.store_errors import retry_after
from stages.lib.formats.remote import BUSY, LONGEST_PAUSE, PAUSES

T = TypeVar("T")


def call_hub(uri: str, question: Callable[[], T]) -> T:
    """Ask the hub, again where it is busy or cannot be reached. Raises InputError for what no repetition mends,
    InfraError for the rest.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import LocalEntryNotFoundError

    for pause in (*PAUSES, None):
        try:
            return question()
        except Exception as raised:  # the errors of datasets, huggingface_hub and httpx share no base class
            # "not in the local cache either" hides why the hub gave none: no connection, 429, 5xx
            hidden = raised.__cause__ if isinstance(raised, LocalEntryNotFoundError) else None
            error = hidden if isinstance(hidden, Exception) else raised
            response = getattr(error, "response", None)
            status = getattr(response, "status_code", None)
            line = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            if status in (401, 403) or "gated" in line.lower():
                todo = "ask for access with the account of HF_TOKEN" if get_token() else "set HF_TOKEN where moxin runs"
                raise InputError(
                    f"{uri} is refused: {line}; accept its terms on its page on the hub, and {todo}"
                ) from error
            if isinstance(error, ValueError | FileNotFoundError) or (status is not None and status not in BUSY):
                raise InputError(
                    f"{uri} cannot be used: {line.partition(': ')[2]}"
                ) from error  # no such data set, configuration, revision
            if pause is None:
                raise InfraError(f"{uri} cannot be read: {line}") from error
            wished = retry_after(response.headers.get("Retry-After")) if response is not None else None
            time.sleep(min(wished if wished is not None else pause, LONGEST_PAUSE))
    raise AssertionError
