"""What can go wrong with the object store, as errors that a user can act on, and what its answers mean."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Generator
from contextlib import contextmanager

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError

from stages.core.errors import ConfigError, InfraError, InputError
from stages.core.messages import StoreAddress, on_loopback

TRANSIENT = frozenset(
    {
        "SlowDown",
        "RequestTimeout",
        "InternalError",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BadDigest",
        "IncompleteBody",
        "MalformedXML",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
"""Codes of answers that ask for patience, whatever their status: botocore's own list of transient and throttling
errors, and those of a request whose bytes changed on their way.
"""


FULL = frozenset({"XMinioStorageFull", "InsufficientStorage", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded"})
"""Codes of answers of a store that has no room left: MinIO's (HTTP 507), Ceph's (403, of a bucket or a user)."""

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
"""Codes of answers to credentials that were good for a time, which is over."""


AT_ONCE = frozenset({"ConditionalRequestConflict", "OperationAborted"})
"""Codes of answers (HTTP 409) to a write that met another one of the same object, whose condition was not looked at: S3
says to ask again.
"""


class Conflict(Exception):
    """A conditional write lost: the object exists already, or is no longer the one that was read."""


class Unavailable(InfraError):
    """The store cannot be reached, or says that it cannot answer now. It may later."""

    after = 0.0
    """Seconds that the store asked to be left alone for (Retry-After)."""


class Closed(Unavailable):
    """Nothing listens at the store's port of this machine: it is down, or about to come up."""


class Expired(Unavailable):
    """The credentials were good, and are no longer: whoever hands them out may have new ones."""


class Damaged(InputError):
    """An object is lost, or holds other bytes than its manifest says. `key` is its name, `sha256` that of what is
    there.
    """

    def __init__(self, message: str, key: str, sha256: str | None = None) -> None:
        self.key, self.sha256 = key, sha256
        super().__init__(message)

    def __reduce__(self) -> tuple[type[Damaged], tuple[str, str, str | None]]:
        return Damaged, (str(self), self.key, self.sha256)  # workers hand it over


def object_name(address: StoreAddress, key: str) -> str:
    """The full name of an object, for messages."""
    return f"s3://{address.bucket}/{address.prefix}{key}"


@contextmanager
def client_errors(address: StoreAddress, key: str) -> Generator[None]:
    """Turn what the S3 client raises into ConfigError, InfraError, Unavailable, Damaged or Conflict."""
    try:
        yield
    except NoCredentialsError as error:
        raise ConfigError(
            "no credentials for the object store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run 'moxin up'"
        ) from error
    except (ClientError, BotoCoreError, Boto3Error) as error:
        answer = error if isinstance(error, ClientError) else error.__context__  # an upload's error wraps the answer
        if isinstance(answer, ClientError):
            raise _answer_error(address, key, answer) from error
        if isinstance(error, FlexibleChecksumError):
            raise Unavailable(
                f"the object store at {_server(address)} sent bytes of {object_name(address, key)} that are not those"
                " of their checksum"
            ) from error
        kind = InfraError if isinstance(error, ParamValidationError | PartialCredentialsError) else Unavailable
        kind = Closed if _closed(address, error) else kind
        raise kind(
            f"the object store at {_server(address)} cannot be reached ({type(error).__name__}): is it up? try"
            " 'moxin up'"
        ) from error
    except (ResponseParserError, ValueError) as error:
        if not _of_an_answer(error):
            raise
        raise Unavailable(
            f"the answer of the object store at {_server(address)} about {object_name(address, key)} cannot be read"
            f" ({type(error).__name__}): bytes of it changed on their way, or it is no S3 store"
        ) from error


def _of_an_answer(error: BaseException) -> bool:
    """Whether the client raised it while it read an answer: what the store answers may be no XML, or have no date."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "botocore.parsers":
            return True
        trace = trace.tb_next
    return False


def _closed(address: StoreAddress, error: BaseException) -> bool:
    """Whether a connection to this machine was refused. botocore's error has the reason in its chain alone."""
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, ConnectionRefusedError):
        reason = reason.__cause__ or reason.__context__
    return reason is not None and on_loopback(address.endpoint)


def _server(address: StoreAddress) -> str:
    return address.endpoint or f"AWS S3 in {address.region}"


def _answer_error(address: StoreAddress, key: str, error: ClientError) -> Exception:
    """What an answer of the store other than success means."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
    name = object_name(address, key)
    if code in AT_ONCE:
        return Unavailable(f"the object store at {_server(address)} is at work on {name} for another ({code})")
    if status in (409, 412) or code == "PreconditionFailed":
        return Conflict(name)
    if code in EXPIRED:
        return Expired(
            f"the credentials for the object store at {_server(address)} have expired ({code}): they are read anew,"
            " from the same file, role or profile"
        )
    if code in FULL or status == 507:
        return Unavailable(
            f"the object store at {_server(address)} has no room left for {name}: {code} (HTTP {status})"
        )
    if status == 403:
        hint = "check the credentials, and with 'moxin status' that the store there is yours"
        if code == "RequestTimeTooSkewed":
            hint = "the clock of this machine is wrong"
        return ConfigError(f"the object store at {_server(address)} refuses access to {name} ({code}): {hint}")
    if code == "NoSuchUpload":  # a store that was restarted has forgotten a transfer in parts: it begins anew
        return Unavailable(f"the object store forgot an unfinished upload of {name}")
    if code == "NoSuchBucket":
        return InfraError(f"the object store has no bucket '{address.bucket}'")
    if status == 404:
        return Damaged(f"{name} is not in the store (HTTP 404)", key)
    message = f"the object store failed on {name}: {code} (HTTP {status})"
    if not (status >= 500 or status in (408, 429) or code in TRANSIENT):
        return InfraError(message)
    later = Unavailable(message)
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    later.after = retry_after(headers.get("retry-after")) or 0.0
    return later


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date (RFC 9110, 10.2.3); None where it says neither."""
    if not value:
        return None
    if (number := value.strip()).isascii() and number.isdigit():
        return float(number)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
