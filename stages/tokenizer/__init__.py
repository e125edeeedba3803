"""The tokenizer: trained on the corpus, or an existing one taken over."""
