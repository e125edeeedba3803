"""Control plane: the Prefect flow, the launchers, the command line. Never imports torch."""
