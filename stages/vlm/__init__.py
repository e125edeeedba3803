"""Train the vision-language model."""
