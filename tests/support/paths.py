"""Where the repository's own files are, from any depth of tests/."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
DATA = ROOT / "tests" / "data"
"""Facts of upstream's programs, locks of their environments, golden values."""
PROBES = ROOT / "tests" / "probes"
"""Small stages that only tests know: found as `stages.probe_*`."""
