"""The token store: tokenized text in memory-mapped shards."""
