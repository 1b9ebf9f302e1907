"""The same photographs by shards, tag.py, serve.py and Tagger: how far apart pixels and scores are.

    python tests/bench/bench_same_scores.py [--out runs/bench_same_scores] [--quick] [--table]

40 photographs of ../shared/data go four ways to the same checkpoint: by preprocess.py and the reading of an evaluation,
with the defaults of PreprocessConfig; by tag.py; over HTTP to serve.py; and as file bytes to `Tagger`, which the others
are compared with. For each way: mean and largest difference of a score, and the fraction of photographs whose five best
labels are the same ones. For shards also the differences of the pixels that the model receives, of 255, and their PSNR.

The model is ViT-B/16 with random weights and the 66 labels of the built-in corpus, because published weights cannot be
reached everywhere; --quick takes the quickstart's small one and 10 photographs, which checks the script only. Scores of
random weights lie close together, so their order changes more easily than that of a trained model. The pixels do not
depend on a model.

--table measures `short_side`, `quality` and `chroma` instead, as docs/decisions.md has it: bytes of a stored photograph
and PSNR for models of 224 and 336 pixels, scores for some of them, and the CPU time of a conversion. Some minutes.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from sigrl_core.config import PreprocessConfig, TagConfig
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.data.images import centre_crop_array, to_jpeg
from sigrl_core.data.shards import ShardFolder
from sigrl_core.evaluation.inputs import iterate_batches
from sigrl_core.inference.tagger import Tagger
from sigrl_core.on_ray.preprocess import preprocess
from sigrl_core.on_ray.tag import tag
from sigrl_core.serving.client import Client
from tests.bench.bench_serve import served
from tests.conftest import COCO160, tagged_rows, untrained_checkpoint

SIDES, QUALITIES, CHROMAS = (224, 256, 288, 320, 336, 352, 448, 512), (85, 90, 92, 95), ("4:2:0", "4:4:4")
VERSION_0_1: dict[str, Any] = {"short_side": 256, "quality": 90, "chroma": "4:2:0", "long_side": "nearest"}
SCORED = ((256, 90, "4:2:0"), (256, 90, "4:4:4"), (288, 90, "4:4:4"), (320, 90, "4:4:4"), (448, 90, "4:4:4"))
Scores = dict[str, dict[str, float]]


def compare(scores: Scores, expected: Scores) -> dict[str, float]:
    """Score differences, and the fraction of images with the same five best labels."""
    differences = [abs(scores[uri][label] - score) for uri in expected for label, score in expected[uri].items()]
    same = [_best(scores[uri]) == _best(expected[uri]) for uri in expected]
    return {
        "score_mean": float(np.mean(differences)),
        "score_max": float(np.max(differences)),
        "same_top_5": float(np.mean(same)),
    }


def _best(scores: dict[str, float]) -> set[str]:
    return set(sorted(scores, key=lambda label: scores[label])[-5:])


def compare_pixels(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> dict[str, float]:
    """Differences of 255; the mean over images of their PSNR in dB, and the lowest one."""
    differences = [np.abs(a.astype(np.float32) - b) for a, b in zip(found, expected, strict=True)]
    psnr = [10 * np.log10(255**2 / max(float(np.square(each).mean()), 0.01)) for each in differences]
    return {
        "pixel_mean": float(np.mean([each.mean() for each in differences])),
        "pixel_p99": float(np.mean([np.percentile(each, 99) for each in differences])),
        "pixel_max": float(max(each.max() for each in differences)),
        "psnr": float(np.mean(psnr)),
        "psnr_min": float(min(psnr)),
    }


def scores_of(tagger: Tagger, crops: dict[str, np.ndarray | bytes], batch_size: int = 10) -> Scores:
    names, uris, scores = tagger.vocabulary.names, list(crops), {}
    for start in range(0, len(uris), batch_size):
        some = uris[start : start + batch_size]
        for uri, tags in zip(some, tagger.tag([crops[uri] for uri in some], top_k=len(names)), strict=True):
            scores[uri] = dict(zip(tags.labels, tags.scores, strict=True))
    return scores


# ---- the four ways ----


def by_shards(tagger: Tagger, photographs: Path, out: Path) -> tuple[Scores, dict[str, np.ndarray]]:
    """Scores and pixels of what an evaluation reads."""
    preprocess(PreprocessConfig(corpus="files", images=str(photographs), out=str(out)))
    dataset, pixels = ShardDataset(ShardFolder.open(str(out))), dict[str, np.ndarray]()
    for batch in iterate_batches(dataset, tagger.model.backbone.image_size):
        assert batch.pixels_BHWC is not None
        pixels |= dict(zip(batch.uris, batch.pixels_BHWC.numpy(), strict=True))
    return scores_of(tagger, dict(pixels)), pixels


def by_tag(checkpoint: str, photographs: Path, out: Path, num_labels: int) -> Scores:
    tag(TagConfig(checkpoint=checkpoint, images=str(photographs), out=str(out), top_k=num_labels))
    return {row["uri"]: {each["label"]: each["score"] for each in row["tags"]} for row in tagged_rows(out)}


def by_serve(checkpoint: str, photographs: Path, out: Path, num_labels: int) -> Scores:
    with served(checkpoint, out) as url:
        client, paths = Client(url.removesuffix("/v1/tag"), timeout=300), sorted(photographs.iterdir())
        answers = [client.tag([path], top_k=num_labels).results[0] for path in paths]
    scored = [{each.label: each.score for each in answer.tags} for answer in answers]
    return dict(zip([path.name for path in paths], scored, strict=True))


def measure_paths(backbone: str, photographs: Path, out: Path) -> dict[str, Any]:
    """Every way beside `Tagger` on the files."""
    checkpoint = str(untrained_checkpoint(out / "checkpoint", backbone=backbone))
    tagger = Tagger.load(checkpoint)
    files = {path.name: path.read_bytes() for path in sorted(photographs.iterdir())}
    size, num_labels = tagger.model.backbone.image_size, len(tagger.vocabulary)
    expected = scores_of(tagger, dict(files))
    stored, pixels = by_shards(tagger, photographs, out / "shards")
    crops = [centre_crop_array(files[uri], size) for uri in pixels]
    figures = {
        "shards": compare(stored, expected) | compare_pixels(list(pixels.values()), crops),
        "tag": compare(by_tag(checkpoint, photographs, out / "tags", num_labels), expected),
        "serve": compare(by_serve(checkpoint, photographs, out, num_labels), expected),
    }
    print(f"{'':8}{'mean':>10}{'largest':>10}{'same top 5':>12}")
    for name, each in figures.items():
        print(f"{name:8}{each['score_mean']:10.1e}{each['score_max']:10.1e}{each['same_top_5']:12.2f}")
    rounded = {name: {k: float(f"{v:.4g}") for k, v in each.items()} for name, each in figures.items()}
    return {"model": backbone, "image_size": size, **rounded}


# ---- the choice of short side, quality and chroma ----


def measure_table(photographs: Path, out: Path) -> dict[str, Any]:
    """Prints the tables of docs/decisions.md."""
    files = [path.read_bytes() for path in sorted(photographs.iterdir())]
    expected = {size: [centre_crop_array(data, size) for data in files] for size in (224, 336)}
    tagger = Tagger.load(str(untrained_checkpoint(out / "checkpoint", backbone="ViT-B-16")))
    scores = scores_of(tagger, dict(zip(map(str, range(len(files))), expected[224], strict=True)))

    def row(short_side: int, quality: int, scored: bool, **options: Any) -> dict[str, Any]:
        started = time.process_time()
        stored = [to_jpeg(data, short_side, quality, **options).data for data in files]
        seconds = (time.process_time() - started) / len(files)
        crops = {size: [centre_crop_array(data, size) for data in stored] for size in (224, 336)}
        found = {str(size): compare_pixels(crops[size], expected[size]) for size in (224, 336)}
        if scored:
            found["scores"] = compare(scores_of(tagger, dict(zip(scores, crops[224], strict=True))), scores)
        return {"bytes": float(np.mean([len(data) for data in stored])), "cpu_ms": 1000 * seconds, **found}

    rows = {"0.1.0": row(scored=True, **VERSION_0_1)}
    for side in SIDES:
        cells = []
        for quality in QUALITIES:
            for chroma in CHROMAS:
                each = row(side, quality, (side, quality, chroma) in SCORED, chroma=chroma)
                rows[f"{side} {quality} {chroma}"] = each
                cells.append(f"{each['bytes'] / 1000:.0f}: {each['224']['psnr']:.1f}, {each['336']['psnr']:.1f}")
        print(f"| {side} | " + " | ".join(cells) + " |", flush=True)
    for name, each in rows.items():
        if "scores" in each:
            print(name, json.dumps(each), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_same_scores"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--photographs", type=int, default=40)
    arguments = parser.parse_args()
    if not COCO160.is_dir():
        print(json.dumps({"skipped": "no photographs: ../shared/data/coco160 is missing"}))
        return
    torch.set_num_threads(1)
    out = arguments.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    photographs = out / "photographs"
    photographs.mkdir(parents=True)
    count = 10 if arguments.quick else arguments.photographs
    paths = sorted(COCO160.rglob("*.jpg"))
    for path in paths[:: len(paths) // count][:count]:
        shutil.copy(path, photographs / path.name)
    if arguments.table:
        figures = {name: {"bytes": each["bytes"]} for name, each in measure_table(photographs, out).items()}
    else:
        figures = measure_paths("toybox-vit" if arguments.quick else "ViT-B-16", photographs, out)
    instructions = torch.backends.cpu.get_cpu_capability()
    print(json.dumps({**figures, "photographs": count, "instruction_set": instructions}))


if __name__ == "__main__":
    main()
