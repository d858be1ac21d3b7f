"""Training: state, optimiser, step (pure), loop (all the I/O) and metrics."""
