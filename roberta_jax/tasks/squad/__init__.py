"""Extractive question answering (SQuAD): windows of passages, spans, scores, files."""
