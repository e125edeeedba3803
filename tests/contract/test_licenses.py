"""docs/licenses.md says of every package what the package says of itself."""

from __future__ import annotations

from containers import sbom
from flows import environments
from tests.support.paths import ROOT

CUDA = ROOT / "containers" / "cuda.lock"


def test_the_page_has_the_license_of_every_package_that_is_installed_from_the_lock() -> None:
    known, stated = sbom.installed(), sbom.stated_licenses(sbom.PAGE.read_text(encoding="utf-8"))
    locked = {
        name
        for lock in environments.lock_files(environments.EMBEDDED)
        for name in sbom.environments.read_lock_file(lock)
    }
    here = {name: sbom.license_of(known[name].metadata) for name in locked & known.keys()}
    assert len(here) > 200
    libraries = environments.read_lock_file(CUDA).keys()  # a CUDA build's, which the page may leave out
    assert {n: stated.get(n, here[n] if n in libraries else "") for n in here} == here, "run 'make licenses'"
    assert stated.keys() <= locked, "no package that has gone"
