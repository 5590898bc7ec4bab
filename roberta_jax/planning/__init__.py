"""Plans a run for accelerators that need not exist: memory, traffic, time, and the command.

`topologies` and `chips` say what is planned for, `memory`, `traffic` and `speed` are the formulas,
`estimate` applies them to the specification of a run, `compiled` and `hlo` read the program that
the compiler makes of the train step, and `report` writes what was found. `roberta_jax.plan` is the
command.
"""
