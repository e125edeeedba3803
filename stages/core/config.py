"""The configuration of a stage: a frozen pydantic model whose fields decide the result, but for those marked
`Operational`.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

T = TypeVar("T")


class _OperationalMarker:
    """Marks a configuration field that cannot change the result, and so is no part of the key."""


OPERATIONAL = _OperationalMarker()
Operational = Annotated[T, OPERATIONAL]
"""`workers: Operational[int]`: how the work is done, not what comes out. Never part of a key."""


class StageConfig(BaseModel):
    """Base of every stage's configuration: frozen, unknown keys refused, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result, as JSON values, for the key."""
        return self.model_dump(mode="json", exclude=self.operational())

    @classmethod
    def operational(cls) -> set[str]:
        """Names of the fields that cannot change the result."""
        return {name for name, info in cls.model_fields.items() if any(m is OPERATIONAL for m in info.metadata)}

    def halved(self, name: str) -> Self | None:
        """This configuration with an operational count at half or less: its largest such divisor, so that what it
        shared out evenly it still does. None: the count is 1, or no smaller one is allowed.
        """
        count = getattr(self, name)
        lower = next((n for n in range(count // 2, 0, -1) if count % n == 0), None)
        return None if lower is None else self.operated(**{name: lower})

    def operated(self, **values: Any) -> Self | None:
        """This configuration with other operational values, and so with the same key. None: the values do not go with
        the others.
        """
        if wrong := sorted(values.keys() - self.operational()):
            raise ValueError(f"{', '.join(wrong)}: would change the result")
        try:
            return type(self).model_validate({**self.model_dump(), **values})
        except ValidationError:
            return None
