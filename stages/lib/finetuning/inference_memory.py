"""What reading and writing with a model takes in memory: the formulas that a measurement is planned with. Light; tested
against real runs.

Shapes: T tokens in a forward pass, padding included, of which one row has L; hidden H, inner width I, vocabulary V, E
bytes a value.
"""

from __future__ import annotations

from stages.lib.modeling.shape import ModelShape

BYTES = {"fp32": 4, "bf16": 2}
"""Of a value, by precision."""
CHUNK = 4096
"""Labels whose logits exist at one time: at 32,000 entries half a gigabyte in float32."""


def read_bytes(shape: ModelShape, vocabulary: int, tokens: int, longest: int, precision: str) -> int:
    """Largest sum of what a forward pass over `tokens` holds besides the weights, without gradients.

    A mask of rows x L x L truth values lies there all the time, and one that it was made of. The larger of: attention,
    with its mask once more in the precision (what PyTorch's kernels take); a SwiGLU with its input, its output, the
    residual and three inner results; logits of CHUNK labels, in float32 twice.
    """
    size, squares = BYTES[precision], (tokens // max(1, longest)) * longest * longest
    attention = 6 * tokens * size * shape.hidden + squares * size
    block = tokens * size * (3 * shape.hidden + 3 * shape.intermediate)
    logits = min(CHUNK, tokens) * vocabulary * (8 if size == 4 else size + 8) + 2 * tokens * size * shape.hidden
    return 2 * squares + max(attention, block, logits)


def cache_bytes(shape: ModelShape, length: int, precision: str) -> int:
    """Keys and values of one sequence that is being written, up to `length` tokens; no more than the window is kept.

    While a token is added, a block's are there twice, and once more for each query head of a group.
    """
    kept = min(length, shape.window or length)
    block = 2 * kept * shape.kv_heads * shape.head_dim * BYTES[precision]
    return block * (shape.layers + 1 + shape.heads // shape.kv_heads)


def rows_at_once(shape: ModelShape, length: int, precision: str, budget: float) -> int:
    """Sequences that are written side by side within `budget` bytes; at least one."""
    return max(1, int(budget // cache_bytes(shape, length, precision)))
