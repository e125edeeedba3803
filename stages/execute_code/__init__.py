"""Run the programs that a model wrote, each apart from everything, and score them."""
