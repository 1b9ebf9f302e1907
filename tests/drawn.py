"""Images of the built-in corpus as shards, for tests and benchmarks that train on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sigrl_core.config import PreprocessConfig
from sigrl_core.demo import toybox
from sigrl_core.demo.corpus import IMAGES, write_corpus
from sigrl_core.on_ray.preprocess import preprocess


def write_drawn(folder: Path, count: int, size: int) -> None:
    """`count` drawn scenes of so many pixels with the seen labels of each; does nothing where they are."""
    write_corpus("labelled", count, folder, lambda part, n: toybox.scenes(part, range(n), size=size, seed=0))


def drawn_shards(folder: Path, size: int, **fields: Any) -> Path:
    """Shards of such a corpus, below it; fields of PreprocessConfig by name."""
    config = PreprocessConfig(
        corpus="jsonl",
        images=str(folder / IMAGES),
        annotations=str(folder / "labels.jsonl"),
        vocabulary=str(folder / "vocabulary.json"),
        out=str(folder / "shards"),
        short_side=size,
        annotation_scope="seen",
    )
    preprocess(replace(config, **fields))
    return folder / "shards"
