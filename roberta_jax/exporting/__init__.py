"""Exported programs: StableHLO and TensorFlow SavedModel."""
