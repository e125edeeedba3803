"""Rehearsals: a profile's own DAG at a thousandth of its size, on the machines that it is meant for."""
