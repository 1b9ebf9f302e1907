"""The SigRL model."""
