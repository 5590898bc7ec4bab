"""The supervisor of a run: starts its processes, watches them and restarts what crashed.

It uses the standard library only and never imports JAX, so that nothing that can hang or crash with
a device does so in the supervisor.
"""
