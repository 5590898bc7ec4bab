"""The token store: tokenised text in memory-mapped shards."""
