"""Evaluate a vision-language model on the seven benchmarks."""
