"""Experiments: each file states what differs from `defaults`, and is found by its name, `--config sparse_obs`."""
