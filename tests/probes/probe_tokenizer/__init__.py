"""A vocabulary made of the documents, for the tests."""
