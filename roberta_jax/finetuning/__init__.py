"""Fine-tuning: the config of a run, its batches, its evaluation and the files that it writes."""
