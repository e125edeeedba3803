"""Checking answers to mathematical problems, safely: what a model writes can neither run, nor hang, nor exhaust the machine."""
