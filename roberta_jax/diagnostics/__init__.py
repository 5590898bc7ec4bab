"""Checks of a machine, or of all hosts of a pod, before a long run is started on it."""
