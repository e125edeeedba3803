"""Models as they are given away: release folders, and what proves where each comes from."""
