"""Whether a loaded model has all of its weights: transformers draws those that are missing by chance, and prints a
table at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stages.core.errors import InputError


def refuse_incomplete(info: Mapping[str, Any], what: str, may_lack: str = r"(?!)", may_have: str = r"(?!)") -> None:
    """Raise InputError naming a weight that the files lack, that the model has no place for, or that has another shape.

    info: what `from_pretrained(..., output_loading_info=True)` returns second. may_lack, may_have: regular expressions
    of names that are no fault, matched from their beginning.
    """
    faults = {
        "has no weight": [name for name in sorted(info.get("missing_keys", ())) if not re.match(may_lack, name)],
        "has a weight that its configuration has no place for,": [
            n for n in sorted(info.get("unexpected_keys", ())) if not re.match(may_have, n)
        ],
        "has a weight of another shape than its configuration says,": sorted(
            str(row[0]) for row in info.get("mismatched_keys", ())
        ),
    }
    for fault, names in faults.items():
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(
                f"{what} {fault} {names[0]}{more}: nothing is drawn in its place; give the whole folder, with its own"
                " config.json"
            )
