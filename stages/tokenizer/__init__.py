"""The tokenizer: trained on the corpus, or an adopted one."""
