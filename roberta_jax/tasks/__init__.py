"""Fine-tuning tasks: one table of them, their files, their inputs and their metrics."""
