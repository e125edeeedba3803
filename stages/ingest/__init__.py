"""Read raw sources into `Documents`."""
