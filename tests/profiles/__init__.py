"""The profiles for GPUs, walked node by node without one: requests, commands, engines' settings, what an engine finds
prepared, memory, and what a plan says.
"""
