"""Programs that stand in for engines: they check what they are given and write what the engine would."""
