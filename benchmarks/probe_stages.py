"""Imported first, this puts the probe stages of the tests beside the real ones."""

import stages
from stages.core.files import ROOT

stages.__path__.append(str(ROOT / "tests" / "probes"))
