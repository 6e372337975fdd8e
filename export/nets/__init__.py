"""Nets that `eddy train` makes: plain modules, with `forward(steps, *states)` and `initial_state(batch)`."""
