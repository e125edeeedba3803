"""Training programs of others, each in an environment of its own, run as one process tree by a stage: open-instruct,
verl, AReaL.
"""
