"""SigRL: tag images with your own labels, from a laptop to a Ray cluster.

Reading order: config, vocabulary, records, model.sigrl, training, tagger; then on_ray, which runs them at scale.
"""

__version__ = "0.1.0"
