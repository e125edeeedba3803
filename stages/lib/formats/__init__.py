"""Artifacts on disk: how each kind is read, written and checked. Shared by the stages that make it and those that use
it.
"""
