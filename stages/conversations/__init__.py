"""Instruction data: data sets of the hub mixed and normalised, or conversations made of this run's documents and
problems.
"""
