"""Training on a GPU as train.py does it: ViT-B/16, bfloat16, 224 pixels, 925 labels, batches of 32 and 256.

    python tests/bench/bench_gpu_train.py [--out runs/bench_gpu_train] [--quick] [--on-cpu]

One worker with a GPU and all CPUs but one to decode; drawn images, random labels, random weights. Of the epochs
after the first, by what the run writes into metrics.jsonl: images a second, share of time waited for data, the most
memory that tensors took; and how busy the GPU was (nvidia-smi, each half second). No peer here: a step beside plain
torch is bench_train.py. --quick takes fewer images. Ends with one JSON line, which says so where there is no GPU.
--on-cpu runs the same without one, to try this script: a tiny backbone, 20 labels, batches of 4 and 8.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from sigrl_core.config import BackboneConfig, Resources
from sigrl_core.config.presets import get_preset
from sigrl_core.on_ray.train import train
from tests.drawn import drawn_shards, write_drawn

LABELS_EACH = 3
PIXELS = 256
EPOCHS = 4


def shards(out: Path, count: int, num_labels: int) -> str:
    """Drawn images, each with a few of the labels, made once."""
    corpus = out / f"corpus_{count}_{num_labels}"
    write_drawn(corpus, count, PIXELS)
    rng, images = np.random.default_rng(0), sorted((corpus / "pictures").iterdir())
    lines = [
        {"uri": path.name, "labels": [f"label {n}" for n in rng.choice(num_labels, LABELS_EACH, replace=False)]}
        for path in images
    ]
    (corpus / "random.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (corpus / "random.txt").write_text("".join(f"label {n}\n" for n in range(num_labels)))
    given = {"annotations": str(corpus / "random.jsonl"), "vocabulary": str(corpus / "random.txt")}
    return str(drawn_shards(corpus, PIXELS, validation_fraction=0.02, **given))


@contextmanager
def busy(percent: list[float]) -> Iterator[None]:
    """Notes how busy the first GPU is while this lasts."""
    stopped = threading.Event()

    def look() -> None:
        command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not stopped.wait(0.5):
            percent.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gpu_train"))
    parser.add_argument("--on-cpu", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.on_cpu):
        print(json.dumps({"skipped": "no GPU; --on-cpu tries the script"}))
        return
    gpu, out = not arguments.on_cpu, arguments.out.absolute()
    name, num_labels, batch_sizes = ("ViT-B-16", 925, (32, 256)) if gpu else ("toybox-vit", 20, (4, 8))
    preset = get_preset("published")
    backbone = BackboneConfig(name=name, pretrained="random", frozen_blocks=preset.backbone.frozen_blocks)
    figures: dict[str, object] = {"device": torch.cuda.get_device_name(0) if gpu else "CPU", "labels": num_labels}
    for batch_size in batch_sizes:
        data = shards(out, (8 if arguments.quick else 64) * batch_size, num_labels)
        training = replace(preset.training, epochs=EPOCHS, batch_size=batch_size, precision="bf16", augment="crop_flip")
        run, percent = out / f"run_{batch_size}", []
        shutil.rmtree(run, ignore_errors=True)
        cpus = max(1, (os.cpu_count() or 2) - 1)
        resources = Resources(num_workers=1, gpus_per_worker=float(gpu), cpus_per_worker=cpus)
        with busy(percent) if gpu else nullcontext():
            train(replace(preset, backbone=backbone, training=training), data, str(run), resources=resources)
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
        waited, seconds = (sum(row[name] for row in epochs) for name in ("train/data_wait_s", "train/seconds"))
        told = {
            "images_per_s": round(statistics.median(row["train/images_per_s"] for row in epochs), 1),
            "data_wait": round(waited / seconds, 4),
            "peak_mb": round(epochs[-1]["train/memory_mb"]),
            "gpu_busy_percent": statistics.median(each for each in percent if each) if any(percent) else None,
        }
        print(f"batch {batch_size}: {told}", flush=True)
        figures[f"batch_{batch_size}"] = told
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
