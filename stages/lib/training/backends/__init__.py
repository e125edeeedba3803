"""Training backends: `fsdp` (PyTorch alone) and `colossalai`, each a `base.Backend`; `factory` makes one."""
