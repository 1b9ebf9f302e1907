"""The training loop, its losses and its state. Nothing here imports Ray."""
