"""AReaL's worker (`areal.infra.rpc.rpc_server` 1.0.4, unchanged) with one repair, in AReaL's own interpreter.

Its FSDP engine gives every model `attention_mask = {"full_attention": None, "sliding_attention": None}`. That is for
models that choose a mask for each layer; transformers' MistralModel takes a mask, not a table of them, and fails.
Packed rows carry their bounds in `cu_seq_lens` and position ids: without a mask, they are masked by those.
"""

from __future__ import annotations

from typing import Any


def without_table(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A forward pre-hook."""
    if isinstance(kwargs.get("attention_mask"), dict):
        kwargs["attention_mask"] = None
    return args, kwargs


def repair() -> None:
    """Hang the hook on every model that an FSDP engine loads."""
    from areal.engine.fsdp_engine import FSDPEngine  # type: ignore[import-not-found]

    initialize = FSDPEngine.initialize

    def repaired(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = initialize(self, *args, **kwargs)
        self.model.register_forward_pre_hook(without_table, with_kwargs=True)
        return result

    FSDPEngine.initialize = repaired


if __name__ == "__main__":
    from areal.infra.rpc import rpc_server  # type: ignore[import-not-found]

    repair()
    rpc_server.main()
