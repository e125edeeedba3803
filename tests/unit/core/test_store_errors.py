"""What a server says of the time to wait."""

from __future__ import annotations

import email.utils
import time

import pytest
from botocore.exceptions import ClientError

from stages.core.messages import StoreAddress
from stages.core.store_errors import Conflict, Unavailable, client_errors, retry_after
from tests.support.faulty_store import client_error

LATER = email.utils.formatdate(time.time() + 3600, usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("7", 7.0), (" 7 ", 7.0), ("soon", None), ("-1", None), ("²", None), ("1.5", None)],
)
def test_a_header_that_says_no_time_is_none(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_a_date_is_a_time_from_now() -> None:
    assert 3000 < (retry_after(LATER) or 0) <= 3600
    assert retry_after("Mon, 01 Jan 2024 00:00:00 GMT") == 0
    assert retry_after("Mon, 01 Jan 99999 00:00:00 GMT") is None


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("ConditionalRequestConflict", 409, Unavailable),
        ("OperationAborted", 409, Unavailable),
        ("PreconditionFailed", 412, Conflict),
        ("412", 412, Conflict),
        ("BucketAlreadyExists", 409, Conflict),
    ],
)
def test_a_write_that_met_another_one_is_asked_again_and_one_that_lost_is_not(
    code: str, status: int, error: type[Exception]
) -> None:
    with pytest.raises(error), client_errors(StoreAddress(bucket="b"), "a/key"):
        raise client_error(code, status)


def test_a_store_that_names_a_date_is_left_alone_until_then() -> None:
    answer = {
        "Error": {"Code": "SlowDown"},
        "ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": LATER}},
    }
    with pytest.raises(Unavailable) as caught, client_errors(StoreAddress(bucket="b"), "a/key"):
        raise ClientError(answer, "GetObject")  # type: ignore[arg-type]
    assert caught.value.after > 3000
