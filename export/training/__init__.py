"""How a net is trained: the loop, its schedule, checkpoints and curves; what is learned is a ``Problem`` of a task."""
