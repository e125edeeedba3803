"""A small source of documents, which can be told to fail in every way."""
