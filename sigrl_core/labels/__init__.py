"""Defines labels: vocabularies, edges between labels, and embeddings of labels."""
