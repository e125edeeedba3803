"""What is caught of the client's errors."""

from typing import Any

class OpenApiException(Exception): ...

class ApiException(OpenApiException):
    status: int
    reason: str
    body: Any
    headers: Any
    def __init__(self, status: int | None = ..., reason: str | None = ..., http_resp: Any = ...) -> None: ...

def __getattr__(name: str) -> Any: ...
