"""What evaluation stages and the tables share: suite files, comparability, samples, completions."""
