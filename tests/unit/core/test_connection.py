"""The client of the store: how it reads what an answer says of times."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from botocore.exceptions import PartialCredentialsError
from botocore.utils import parse_timestamp

from stages.core import connection
from stages.core.messages import StoreAddress
from tests.support.faulty_store import client_error


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-30T21:05:09.123Z", "2026-11-30T21:05:09Z", "2026-11-30T22:05:09+01:00",
        "Mon, 30 Nov 2026 21:05:09 GMT", "Mon, 30 Nov 2026 22:05:09 +0100",
        "1796072709", "20261130T210509Z", 1796072709,
    ],
)  # fmt: skip
def test_times_are_those_that_botocore_reads(text: str | int) -> None:
    at = connection._time(text)
    assert at == parse_timestamp(text)
    assert at.replace(microsecond=0) == datetime(2026, 11, 30, 21, 5, 9, tzinfo=UTC)


def test_what_is_no_time_is_told_as_botocore_does() -> None:
    for text in ("", "yesterday", "2026-13-45"):
        with pytest.raises(ValueError, match="Invalid timestamp"):
            connection._time(text)


def test_credentials_that_cannot_be_read_at_the_moment_are_read_at_the_next_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their file is being written anew: a heartbeat that met it ended without a word, and its lease ran out."""
    monkeypatch.setattr(connection, "PAUSES", (0.0, 0.0))
    clients: list[Exception | None] = [PartialCredentialsError(provider="file", cred_var="key"), None]

    def client(address: StoreAddress, retries: int) -> object:
        if error := clients.pop(0):
            raise error
        return "new"

    there = connection.Connection(StoreAddress(bucket="b"), client="old", patience=60)
    there._given = False
    monkeypatch.setattr(connection, "_client", client)

    def ask() -> object:
        if there._client == "old":
            raise client_error("ExpiredToken", 400)
        return there._client

    assert there._patiently("a/key", ask) == "new"
    assert not clients


def test_a_client_reads_times_so_and_says_no_more_than_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a")
    client = connection._client(StoreAddress(bucket="b", endpoint="http://127.0.0.1:9"))
    assert client.meta.config.user_agent.startswith("moxin Botocore/")
    parser = client._endpoint._response_parser_factory.create_parser("rest-xml")
    assert parser._timestamp_parser is connection._time
