"""Build: the package carries the files that the control plane reads (flows/data_files.py). All else: pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

HERE = Path(__file__).resolve().parent
FOLDERS = ("infra", "containers")
KINDS = {".toml", ".json", ".yaml", ".sh", ".lock", ".txt", ".in", ".md", ".py", ".example", ".Dockerfile", ""}


class BuildWithData(build_py):
    """`build_py`, which also copies the data files into flows/_data. An editable installation reads the checkout."""

    def run(self) -> None:
        """Copy. Hidden files stay out: infra/.env holds the passwords of a running installation. Raises SetupError when
        a folder is missing: the package would start and find no profile.
        """
        super().run()
        if self.editable_mode:
            return
        if missing := [folder for folder in FOLDERS if not (HERE / folder).is_dir()]:
            raise SetupError(f"{HERE} has no {' and no '.join(missing)}: build from a checkout or a whole sdist")
        for source in sorted(path for folder in FOLDERS for path in (HERE / folder).rglob("*")):
            inner = source.relative_to(HERE)
            if source.is_file() and source.suffix in KINDS and not any(part[0] in "._" for part in inner.parts):
                target = Path(self.build_lib) / "flows" / "_data" / inner
                self.mkpath(str(target.parent))
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithData})
