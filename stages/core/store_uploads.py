"""Uploads in parts that nobody has completed: their parts take room in the store, and are in no listing of objects."""

# a part of Store, in a file of its own
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from stages.core.store import Store


@dataclass(frozen=True)
class Upload:
    """An upload that was begun and not completed. started: seconds since the epoch, by the store's clock."""

    key: str
    id: str
    started: float


def unfinished(store: Store, prefix: str = "") -> Iterator[Upload]:
    """Uploads under a prefix that nobody has completed, in key order."""
    cut = len(store.address.prefix)
    query: dict[str, str] = {"Bucket": store.address.bucket, "Prefix": store.address.prefix + prefix}
    while True:
        page = store._patiently(prefix, lambda: store._client.list_multipart_uploads(**query))
        for row in page.get("Uploads", ()):
            yield Upload(row["Key"][cut:], row["UploadId"], row["Initiated"].timestamp())
        if not page.get("IsTruncated"):
            return
        query["KeyMarker"], query["UploadIdMarker"] = page["NextKeyMarker"], page["NextUploadIdMarker"]


def stored_bytes(store: Store, upload: Upload) -> int:
    """Bytes of the parts that an upload has stored (of the first thousand); 0 where it is over."""
    page = _unless_over(store, upload, store._client.list_parts)
    return sum(int(part["Size"]) for part in page.get("Parts", ())) if page else 0


def abort(store: Store, upload: Upload) -> None:
    """Remove the parts of an upload. One that was completed meanwhile is an object, and stays."""
    _unless_over(store, upload, store._client.abort_multipart_upload)


def _unless_over(store: Store, upload: Upload, call: Callable[..., Any]) -> Any:
    """The answer to a call about an upload; None where it was completed or given up meanwhile."""

    def ask() -> Any:
        try:
            return call(Bucket=store.address.bucket, Key=store.address.prefix + upload.key, UploadId=upload.id)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchUpload":
                return None
            raise

    return store._patiently(upload.key, ask)
