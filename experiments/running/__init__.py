"""Runs the points of a study as child processes, or prints the commands that run them elsewhere."""
