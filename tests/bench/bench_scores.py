"""What scores are worth as probabilities, apart from the vocabulary, and for labels nobody trained on.

python tests/bench/bench_scores.py --quickstart runs/quickstart     # made where it is not there
python tests/bench/bench_scores.py --quickstart runs/quick --quick

1. Calibration: a copy of the checkpoint is calibrated on held-out images whose seen labels are known, by each
   method, and measured on the test images: expected calibration error before and after, and the mean F1 over labels
   with one threshold of 0.5 and with each label's own, for seen and unseen labels.
2. Twenty unrelated labels are added to the vocabulary: how far the scores of the others move, of those that do not
   depend on the vocabulary and of the published ones.
3. tag.py is asked with a file of labels that SigRL never trained on: unseen pairs, and shapes of any colour. Chance is
   what tags drawn at random would be right.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sigrl_core.config import CalibrateConfig, PreprocessConfig, QuickstartConfig
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.demo import toybox
from sigrl_core.demo.corpus import IMAGE_SIZE, write_corpus
from sigrl_core.evaluation.calibrate import calibrate
from sigrl_core.evaluation.evaluator import Evaluator, evaluate
from sigrl_core.evaluation.inputs import iterate_batches
from sigrl_core.inference.tagger import Tagger
from sigrl_core.labels.vocabulary import Label, Vocabulary
from sigrl_core.model.model import compute_tokens
from sigrl_core.on_ray.preprocess import preprocess
from sigrl_core.on_ray.quickstart import quickstart
from tests.conftest import tagged_rows

REPOSITORY = Path(__file__).resolve().parents[2]
UNRELATED = (
    *("airport", "bride", "cathedral", "drummer", "elephant", "ferry", "glacier", "harbour", "iguana", "jacket"),
    *("kitchen", "ladder", "microscope", "notebook", "orchestra", "passport", "quarry", "raccoon", "saddle", "tractor"),
)
TAGS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"), help="folder of a quickstart")
    parser.add_argument("--quick", action="store_true", help="a small quickstart: checks the script only")
    options = parser.parse_args()
    size: dict[str, int] = {"captioned": 2000, "labelled": 400, "test": 300, "clip_epochs": 1, "epochs": 1}
    config = QuickstartConfig(out=str(options.quickstart), **(size if options.quick else {}))
    quickstart(config)
    home = options.quickstart.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        calibration = calibrated(home, config, Path(scratch))
        moved = shift(home)
        new = new_labels(home, Path(scratch))
    print(json.dumps({"calibration": calibration, "shift": moved, "new_labels": new}))


def calibrated(home: Path, config: QuickstartConfig, scratch: Path) -> dict[str, Any]:
    """Held out: scenes like those of the test, of which seen labels alone were written down."""

    def later(part: toybox.Subset, count: int) -> list[toybox.Scene]:
        return toybox.scenes("test", range(config.test, config.test + count), IMAGE_SIZE, config.seed)

    write_corpus("labelled", config.test, scratch / "held_out", later)
    preprocess(
        PreprocessConfig(
            corpus="jsonl",
            images=str(scratch / "held_out" / "pictures"),
            annotations=str(scratch / "held_out" / "labels.jsonl"),
            vocabulary=str(scratch / "held_out" / "vocabulary.json"),
            out=str(scratch / "shards"),
            short_side=IMAGE_SIZE,
            annotation_scope="seen",
        )
    )
    shutil.copytree(home / "sigrl" / "checkpoint", scratch / "checkpoint")
    figures: dict[str, Any] = {}
    print(f"\ncalibrated on {config.test} held-out images, measured on {config.test} others, in percent")
    print(f"{'':20}{'error before':>14}{'after':>8}{'F1 at 0.5':>12}{'own thresholds':>16}")
    for method in ("platt", "isotonic"):
        calibrate(
            CalibrateConfig(
                checkpoint=str(scratch / "checkpoint"), data=str(scratch / "shards"), split="all", method=method
            )
        )
        measured = evaluate(
            Evaluator(Tagger.load(str(scratch / "checkpoint")), {}), ShardFolder.open(str(home / "shards" / "test"))
        )
        figures[method] = {}
        for split, values in measured.metrics["calibration"].items():
            told = {key: round(100 * value, 2) for key, value in values.items() if key != "reliability"}
            figures[method][split] = told
            print(
                f"{method + ', ' + split:20}{told['ece_before']:14.1f}{told['ece_after']:8.1f}"
                f"{told['f1_half']:12.1f}{told['f1_thresholds']:16.1f}"
            )
    return figures


def shift(home: Path) -> dict[str, float]:
    """Largest movement of any score by twenty more labels, in standard deviations of the scores of its image."""
    tagger = Tagger.load(str(home / "sigrl"))
    vocabulary = tagger.vocabulary
    more = Vocabulary((*vocabulary.labels, *(Label(name=name, group="unseen") for name in UNRELATED)))
    rows = ShardDataset(ShardFolder.open(str(home / "shards" / "test")))
    found: dict[str, list[np.ndarray]] = {"independent": [], "published": []}
    for batch in iterate_batches(rows, tagger.model.backbone.image_size):
        tokens = compute_tokens(tagger.model, batch)
        for name, score in (("independent", tagger.logits), ("published", tagger.score)):
            before, after = score(tokens, vocabulary), score(tokens, more)[:, : len(vocabulary)]
            found[name].append(np.abs(after - before) / before.std(axis=1, keepdims=True))
    figures = {}
    print(f"\n{len(UNRELATED)} unrelated labels more: scores move, in standard deviations over the labels of an image")
    for name, parts in found.items():
        moved = np.concatenate(parts)
        figures |= {f"{name}_mean": float(moved.mean()), f"{name}_max": float(moved.max())}
        print(f"{name:12} mean {moved.mean():.2e}  largest {moved.max():.2e}")
    return figures


def new_labels(home: Path, scratch: Path) -> dict[str, float]:
    """Precision of the best tags by tag.py, and of tags drawn at random."""
    names = [*toybox.UNSEEN, *toybox.SHAPES]
    (scratch / "new.txt").write_text("\n".join(names) + "\n")
    command = [sys.executable, "pipelines/tag.py", "--checkpoint", str(home / "sigrl"), "--out", str(scratch / "tags")]
    command += ["--images", str(home / "corpus" / "test" / "pictures"), "--vocabulary", str(scratch / "new.txt")]
    subprocess.run([*command, "--top-k", str(TAGS)], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    true = {}
    for line in (home / "corpus" / "test" / "labels.jsonl").read_text().splitlines():
        row = json.loads(line)
        true[row["uri"]] = {*row["labels"], *(name.split()[-1] for name in row["labels"])}
    tagged = tagged_rows(scratch / "tags")
    right = float(np.mean([tag["label"] in true[row["uri"]] for row in tagged for tag in row["tags"]]))
    chance = float(np.mean([[name in labels for name in names] for labels in true.values()]))
    print(f"\n{len(names)} labels never trained on, the best {TAGS} of each image by tag.py:")
    print(f"right {100 * right:.1f} %, by chance {100 * chance:.1f} %: {right / chance:.1f} times")
    figures = {"labels": len(names), "right": right, "chance": chance, "ratio": right / chance}
    return {key: round(value, 4) for key, value in figures.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
