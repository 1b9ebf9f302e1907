"""The built-in corpus and its small CLIP: what the quickstart trains on, without any download."""
