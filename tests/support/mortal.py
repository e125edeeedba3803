"""A process of several that dies in the middle of a training. Light to import: engines' environments do, too."""

from __future__ import annotations

import os
import signal

from stages.core.testing import LocalContext
from stages.pretrain.spec import PretrainConfig


class Mortal(LocalContext[PretrainConfig]):
    """A context whose process dies once it has told of a step."""

    dies_at = 0

    def metric(self, step: int, **values: float) -> None:
        super().metric(step, **values)
        if step == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
