"""Documents into packed windows of token ids."""
