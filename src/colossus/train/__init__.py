"""Real training: data, step, loop, checkpoints, and the worker process that holds them together."""
