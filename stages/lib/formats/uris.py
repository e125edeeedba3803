"""Addresses of raw files, as they may be shown and as they are named. Light: settings are read with it."""

from __future__ import annotations

import re
import urllib.parse

SECRET = re.compile(
    r"x-amz-|x-goog-|x-oss-|x-cos-|awsaccesskeyid|googleaccessid|key-pair-id|policy$|expires$|sig$|s[eprtv]$|spr$|sk[a-z]+$|.*(token|secret|password|signature|credential|api-?_?key|auth(?!or(?!i[sz])))",
    re.IGNORECASE,
)
"""Names of what is secret in a query: presigned addresses of S3, Google, Azure, CloudFront, Aliyun, Tencent; tokens.
An author is none, an authorization is one.
"""


def shown(uri: str) -> str:
    """An address as it may stand in a log, a manifest or a document: without user, password, signatures and tokens."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https", "hf"):
        return uri
    kept = [
        item
        for item in parts.query.split("&")
        if item and not SECRET.match(urllib.parse.unquote(item.partition("=")[0]))
    ]
    host = parts.netloc if parts.scheme == "hf" else parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="&".join(kept), fragment="").geturl()


def named(uri: str) -> str:
    """The last part of an address's path: what its format and packing are told by."""
    return (
        urllib.parse.unquote(urllib.parse.urlsplit(uri).path) if uri.startswith(("http", "hf://", "file:")) else uri
    ).rpartition("/")[2]
