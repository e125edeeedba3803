"""Credentials of the store that do not last as long as a node takes: known when a plan is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from flows.cost import Estimate, duration
from flows.plan import NodePlan
from flows.profiles import Profile

LONGEST_TOKEN = 36 * 3600.0
"""Seconds that a session token of AWS lasts at most (STS, GetSessionToken, DurationSeconds)."""


def expiring(
    plans: Iterable[NodePlan], profile: Profile, estimates: Mapping[str, Estimate], environ: Mapping[str, str]
) -> Iterator[str]:
    """A line for each node that would be given a copy of a session token, and takes longer than the token lasts."""
    if not environ.get("AWS_SESSION_TOKEN"):
        return
    left, until = _left(environ.get("AWS_CREDENTIAL_EXPIRATION", ""))
    for plan in plans:
        name = plan.node.name
        seconds = estimates[name].seconds
        if plan.will_run and seconds > left and not _is_renewed(profile.launchers[name], environ):
            yield (
                f"{name} takes {duration(seconds)}, and it would be given a copy of a session token that lasts {until}"
                " (AWS_SESSION_TOKEN): give its jobs an identity of their own (docs/how_to/train_for_weeks.md)"
            )


def _left(expiration: str) -> tuple[float, str]:
    """How long a token lasts, in seconds and in words. Tools that export credentials say when it ends."""
    try:
        end = datetime.fromisoformat(expiration.replace("Z", "+00:00"))
    except ValueError:
        return LONGEST_TOKEN, f"{LONGEST_TOKEN / 3600:.0f} h at most"
    left = (end if end.tzinfo else end.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return left, f"until {expiration}"


def _is_renewed(launcher: str, environ: Mapping[str, str]) -> bool:
    """Whether jobs of a launcher know the store by credentials that are renewed: where they run, or by the launcher."""
    if environ.get("MOXIN_STS_ROLE") and launcher != "process":
        return True
    if launcher == "kubernetes":
        from flows.launch import kubernetes_manifests

        return bool(kubernetes_manifests.Site.load().service_account)
    if launcher == "slurm":
        from flows.launch import slurm_scripts

        return slurm_scripts.Site.load().identity == "files"
    return False
