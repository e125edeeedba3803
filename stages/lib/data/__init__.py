"""What the data stages share: data sets of the hub and material of this machine, mixtures, leaks, and work spread over
cores or machines.
"""
