"""Raw files by bucket and key: `s3://` addresses, read with the credentials of sources."""

from __future__ import annotations

import re
import time
from typing import Any

from stages.core.errors import InfraError, InputError
from stages.lib.formats import remote, source_credentials
from stages.lib.formats.remote import BUSY, Answer, Break, Promise


class S3:
    """An object by bucket and key."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._bucket, _, self._key = uri.removeprefix("s3://").partition(
            "/"
        )  # a key may hold anything, '?' and '#' too
        self._client = source_credentials.s3_client()

    def open(self, start: int, tag: str | None) -> Answer:
        from botocore.exceptions import ClientError

        options = {"Range": f"bytes={start}-"} if start else {}
        try:
            response = self._client.get_object(Bucket=self._bucket, Key=self._key, **options)
        except ClientError as error:
            raise client_error(error, f"raw file {self._uri}") from error
        begins, size = 0, response.get("ContentLength")
        if match := re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.get("ContentRange") or ""):
            begins, size = int(match[1]), int(match[3])
        return Answer(response["Body"], begins, Promise(size, response.get("ETag")))


def client_error(error: Any, what: str) -> Exception:
    """What a `ClientError` of boto3 means: InputError for what no repetition mends, `Break` for what another try may,
    InfraError for the rest.
    """
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in ("404", "NoSuchKey", "NoSuchBucket"):
        return InputError(f"{what} is not there")
    if code in (
        "AccessDenied",
        "AllAccessDisabled",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "403",
        "401",
    ):
        return InputError(
            f"{what} is refused ({code}): the keys of sources may not read it, or have run out;"
            f" {source_credentials.REMEDY}"
        )
    if status and status < 500 and status not in BUSY and code != "SlowDown":
        return InfraError(f"{what} cannot be read: {error}")
    return Break(str(error))


def object_uris(prefix: str) -> list[str]:
    """The addresses of all objects under `s3://bucket/prefix/`, by name. Raises InputError when there is none."""
    from botocore.exceptions import ClientError

    bucket, _, key = prefix.removeprefix("s3://").rstrip("/").partition("/")
    pages = source_credentials.s3_client().get_paginator("list_objects_v2")
    for pause in (*remote.PAUSES, None):
        try:
            with remote.transport():
                try:
                    listing = list(pages.paginate(Bucket=bucket, Prefix=f"{key}/" if key else ""))
                except ClientError as error:
                    raise client_error(error, prefix) from error
        except Break as broken:
            if pause is None:
                raise InfraError(f"{prefix} cannot be listed: {broken}") from broken
            time.sleep(pause)
            continue
        keys = sorted(entry["Key"] for page in listing for entry in page.get("Contents", ()))
        uris = [f"s3://{bucket}/{key}" for key in keys if not key.endswith("/")]
        if not uris:
            raise InputError(f"there is no object under {prefix}")
        return uris
    raise AssertionError
