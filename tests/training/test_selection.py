"""Runs that select the best parameters or end early, on the toy model, with scripted scores."""
