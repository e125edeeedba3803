"""What a server says of the time to wait."""

from __future__ import annotations

import email.utils
import time

import pytest
from botocore.exceptions import ClientError

from stages.core.messages import StoreAddress
from stages.core.store_errors import Unavailable, client_errors, retry_after

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


def test_a_store_that_names_a_date_is_left_alone_until_then() -> None:
    answer = {
        "Error": {"Code": "SlowDown"},
        "ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": LATER}},
    }
    with pytest.raises(Unavailable) as caught, client_errors(StoreAddress(bucket="b"), "a/key"):
        raise ClientError(answer, "GetObject")  # type: ignore[arg-type]
    assert caught.value.after > 3000
