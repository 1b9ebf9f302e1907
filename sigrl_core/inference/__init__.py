"""Tags images with a trained checkpoint: one batch (`tagger`), a whole listing (`batch`), heat maps (`heat_map`)."""
