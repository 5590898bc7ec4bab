"""Exports models as compiled programs: StableHLO and TensorFlow SavedModel."""
