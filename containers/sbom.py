"""What Moxin is made of: a bill of materials for each lock, an audit against known weaknesses, the licenses.

    make sbom       CycloneDX JSON of every lock in sbom/: names, versions, hashes, and licenses where they are known
    make audit      every lock against the database of PyPI or OSV, by pip-audit; says what could not be reached
    make licenses   docs/licenses.md from the metadata of what is installed

cyclonedx-bom and pip-audit are no dependencies of Moxin: uv runs each in an environment of its own, at these versions.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageMetadata, distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from flows import environments
from stages.core.files import ROOT, write_atomically

CYCLONEDX, AUDIT = "cyclonedx-bom==7.3.0", "pip-audit==2.10.0"
PAGE = ROOT / "docs" / "licenses.md"
BEGIN, END = "<!-- licenses -->", "<!-- /licenses -->"
NOT_STATED = "not stated"
WIDTH = 140
_WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
"""What the classifiers of packages say (PyPI's list of classifiers), as SPDX has it; "BSD" leaves open which one."""
WORDS = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "apache": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0 license": "Apache-2.0",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd": "BSD",
    "mit license": "MIT",
    "new bsd": "BSD-3-Clause",
}
"""What the field `License` says of the same, in lower case."""


def license_of(metadata: PackageMetadata) -> str:
    """The license of a package by its own metadata: its SPDX expression (PEP 639), else its classifiers, else the field
    `License` where that is no whole text.
    """
    if expression := str(metadata.get("License-Expression") or "").strip():
        return expression
    rows = [row.rpartition(" :: ")[2] for row in metadata.get_all("Classifier") or () if row.startswith("License ::")]
    stated = sorted({CLASSIFIERS.get(row, row) for row in rows} - {"OSI Approved", "DFSG approved"})
    if stated:
        return " OR ".join(stated)
    line = str(metadata.get("License") or "").strip()
    if line and "\n" not in line and len(line) < 60 and line.lower() not in ("unknown", "none"):
        return WORDS.get(line.lower(), line)
    return NOT_STATED


def installed() -> dict[str, Distribution]:
    """What this environment has installed, by normalized name."""
    return {canonicalize_name(one.metadata["Name"]): one for one in distributions() if one.metadata["Name"]}


def locks() -> list[Path]:
    """Every lock of the repository: of environments, engines, and of a CUDA build's libraries."""
    return sorted(environments.FOLDER.glob("**/*.lock"))


def named(lock: Path) -> str:
    """What a lock is called in lists and file names: `data`, `embedded-torch`, `cuda`."""
    folder, stem = lock.parent.name, lock.stem
    if lock.parent == environments.FOLDER:
        return stem
    return folder if stem == "requirements" else f"{folder}-{stem}"


def with_licenses(bill: dict[str, Any], known: Mapping[str, Distribution]) -> dict[str, Any]:
    """A bill of materials with the licenses of those packages that are installed here in the same version."""
    for component in bill.get("components", ()):
        distribution = known.get(canonicalize_name(component["name"]))
        if distribution is None or distribution.version.partition("+")[0] != component.get("version"):
            continue
        text = license_of(distribution.metadata)
        if text != NOT_STATED and not component.get("licenses"):
            spdx = re.fullmatch(r"[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]+)*", text) and text != "BSD"
            component["licenses"] = [{"expression": text}] if spdx else [{"license": {"name": text}}]
    return bill


def run_apart(package: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a package that is no dependency of ours, in an environment that uv makes for it."""
    install = runpy.run_path(str(environments.FOLDER / "embedded" / "install.py"))
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(pip, stdout=subprocess.PIPE, text=True, check=False).stdout
    env = {**os.environ, **install["uv_environment"](listing, os.environ)}
    uv = Path(sys.executable).with_name("uv")
    words = [str(uv), "tool", "run", "--quiet", "--from", package, *command]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False)


def write_bills(folder: Path) -> list[Path]:
    """Write a bill of materials for each lock. Exits with cyclonedx-bom's own words when it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    known, paths = installed(), list[Path]()
    for lock in locks():
        options = ["--output-reproducible", "--no-validate", "--sv", "1.6", "--of", "JSON"]  # to validate takes 12 s
        done = run_apart(CYCLONEDX, "cyclonedx-py", "requirements", *options, str(lock))
        if done.returncode:
            sys.exit(f"cyclonedx-py could not read {lock.relative_to(ROOT)}:\n{done.stderr.strip()}")
        paths.append(folder / f"{named(lock)}.cdx.json")
        bill = with_licenses(json.loads(done.stdout), known)
        write_atomically(paths[-1], json.dumps(bill, indent=1, sort_keys=True) + "\n")
    return paths


def audit(services: Iterable[str] = ("pypi", "osv")) -> int:
    """Look for known weaknesses of every locked package, by the first of the databases that answers; 0: none, 1: some,
    3: no database answers, so that nothing is known.
    """
    found, unreachable = 0, dict[str, str]()
    for service in services:
        for lock in locks():
            with tempfile.TemporaryDirectory() as folder:
                pins = Path(folder) / "pins.txt"  # without hashes: nothing is installed, and torch has none
                rows = environments.read_lock_file(lock).values()
                pins.write_text("".join(f"{row.partition(';')[0].strip()}\n" for row in rows), encoding="utf-8")
                options = ["--disable-pip", "--no-deps", "--progress-spinner=off", "--vulnerability-service", service]
                done = run_apart(AUDIT, "pip-audit", *options, "--format=json", "-r", str(pins))
            try:
                rows = json.loads(done.stdout)["dependencies"]
            except (ValueError, KeyError):
                unreachable[service] = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                break
            skipped = [row for row in rows if "skip_reason" in row]
            if rows and len(skipped) == len(rows):  # an index without PyPI's JSON API answers 404 for each
                unreachable[service] = str(skipped[0]["skip_reason"])
                break
            found += _tell(lock, rows, skipped)
        else:
            return 1 if found else 0
    for service, why in unreachable.items():
        print(f"not reached: the database of {service}: {why[:160]}")
    print("nothing was audited: no database of known weaknesses answers from here")
    return 3


def _tell(lock: Path, rows: list[dict[str, Any]], skipped: list[dict[str, Any]]) -> int:
    """Print what is known of a lock's packages; how many weaknesses."""
    count = 0
    for row in rows:
        for one in row.get("vulns", ()):
            fixed = ", ".join(one.get("fix_versions") or ()) or "no version yet"
            print(f"{named(lock)}: {row['name']} {row['version']}: {one['id']}, mended in {fixed}")
            count += 1
    told = f"{named(lock)}: {len(rows) - len(skipped)} packages, {count} known weaknesses"
    print(told + (f"; not known to the database: {', '.join(r['name'] for r in skipped)}" if skipped else ""))
    return count


def by_license(known: Mapping[str, Distribution]) -> dict[str, list[str]]:
    """The packages of the embedded lock, which has all but the engines', by license. What this machine has not
    installed (a CUDA build's libraries, other Pythons) is left out.
    """
    table: dict[str, list[str]] = {}
    for lock in environments.lock_files(environments.EMBEDDED):
        for name in environments.read_lock_file(lock):
            if name in known:
                table.setdefault(license_of(known[name].metadata), []).append(name)
    return {text: sorted(table[text]) for text in sorted(table, key=lambda text: (-len(table[text]), text))}


def license_rows(table: Mapping[str, list[str]]) -> str:
    """The list of docs/licenses.md."""
    return "\n".join(
        textwrap.fill(f"- **{text}** ({len(names)}): {', '.join(names)}", WIDTH, subsequent_indent="  ", **_WHOLE)
        for text, names in table.items()
    )


def stated_licenses(page: str) -> dict[str, str]:
    """What the page says: {package: license}."""
    body = page.partition(BEGIN)[2].partition(END)[0]
    rows = re.findall(r"^- \*\*(.+?)\*\* \(\d+\): (.+?)(?=^- |\Z)", body, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for text, names in rows for name in " ".join(names.split()).split(", ")}


def write_licenses() -> None:
    """Bring the table of docs/licenses.md up to date."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_atomically(PAGE, f"{before}{BEGIN}\n{license_rows(by_license(installed()))}\n{END}{after}")


if __name__ == "__main__":
    what = sys.argv[1]
    if what == "sbom":
        print("\n".join(str(path) for path in write_bills(Path(sys.argv[2]))))
    elif what == "licenses":
        write_licenses()
    else:
        sys.exit(audit())
