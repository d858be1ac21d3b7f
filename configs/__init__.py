"""Run files: each has `get_config(arg)` that returns a ConfigDict. Nothing here imports jax."""
