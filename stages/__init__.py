"""Stage plane: everything that runs inside a stage's container. Never imports prefect, docker or flows."""
