"""Evaluates and calibrates checkpoints on shard folders."""
