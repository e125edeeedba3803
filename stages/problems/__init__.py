"""Verifiable problems: data sets of the hub through DeepScaleR's pipeline, or problems made on the spot."""
