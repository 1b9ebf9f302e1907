"""Defines hyperparameter searches: the search space and the study with its trials."""
