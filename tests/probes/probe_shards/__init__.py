"""Windows of token ids, for the tests."""
