"""The built-in corpus and its small CLIP: what the quickstart learns from where no weights can be fetched."""
