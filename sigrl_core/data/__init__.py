"""Reads shards, makes batches of their rows, and decodes untrusted images safely."""
