"""Features of images in files: what is read is what was written, and a file that is another is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.core.artifacts import ImageFeatures
from stages.core.errors import InputError
from stages.core.testing import local_artifact
from stages.lib.vision.features import Features, write_features, write_index

ROWS = torch.arange(24, dtype=torch.float32).reshape(3, 4, 2)
FILE = "features-00000.safetensors"


def stored(folder: Path, dtype: str = "fp32") -> Features:
    write_index(folder, ["a", "b", "c"], [3], dtype, "digest")
    return Features(local_artifact(ImageFeatures, folder).entries())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_rows_come_back_by_name(tmp_path: Path, dtype: str) -> None:
    write_features(tmp_path / FILE, [ROWS[:1], ROWS[1:]], dtype)
    features = stored(tmp_path, dtype)
    assert (features.names, features.digest) == (["a", "b", "c"], "digest")
    assert torch.equal(features.batch(["c", "a", "c"]).float(), ROWS[[2, 0, 2]])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"features": ROWS.half(), "crc32": torch.zeros(3, dtype=torch.int64)},
            "it holds F16 and I64, index.json says",
        ),
        ({"features": ROWS, "crc32": torch.zeros(3)}, "it holds F32 and F32, index.json says"),
        ({"features": ROWS[:2].clone(), "crc32": torch.zeros(2, dtype=torch.int64)}, "2 images, index.json says 3"),
        ({"features": ROWS, "crc32": torch.zeros(2, dtype=torch.int64)}, "3 images, index.json says 3"),
        ({"features": ROWS.reshape(3, 8), "crc32": torch.zeros(3, dtype=torch.int64)}, "not enough values"),
        ({"features": ROWS}, "'crc32'"),
        ({"features": ROWS, "crc32": torch.zeros(3, dtype=torch.int64)}, "row 0 is not that of its CRC32"),
    ],
)
def test_a_file_that_is_another_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(InputError, match=rf"^{FILE} cannot be read: .*{message}"):
        stored(tmp_path).batch(["a"])
