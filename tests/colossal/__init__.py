"""Engine `colossalai` in tests: its environment, and a program that trains with it."""
