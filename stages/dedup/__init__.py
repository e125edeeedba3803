"""Deduplication: the recipes of SlimPajama, DCLM and the Stack."""
