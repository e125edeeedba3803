"""Quality filter: a fastText classifier, the top tenth kept."""
