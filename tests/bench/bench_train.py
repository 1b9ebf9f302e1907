"""Training beside the same steps bare: ours under Ray Train, theirs in plain processes with DistributedDataParallel.

    python tests/bench/bench_train.py [--out runs/bench_train] [--quick]

Two workers on one thread each, both at the same niceness, on images of the built-in corpus. In turns, several rounds:

- bare decode: each process decodes and augments its half of every batch, nothing else;
- bare step: the plain loop (forward, loss, backward, AdamW) on those images, in memory already,
  before and after ours, since the machine changes its speed from minute to minute;
- ours: train.py's own loop on shards, epochs after the first, by what it writes into metrics.jsonl;
- bare head and ours from the cache: the same two with every block frozen, on features: theirs lie in memory as 32-bit
  tensors, ours are read from a folder that cache_features.py made.

`of_bare_step` is (bare step + bare decode) / our step, `cache_of_bare_head` is bare head step / our step from the
cache, medians over the rounds; `head_speed_up` is our full step over our step from the cache. `memory_growth` is how
much a worker's peak memory grows from epoch 3 to epoch 20. ViT-B/16 (random weights, 224 pixels, its last two blocks
trained) is measured once.
--quick takes one round and leaves ViT-B/16 away, a few minutes on two cores. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ |= {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from sigrl_core.config import BackboneConfig, CacheFeaturesConfig, Resources, RunConfig
from sigrl_core.config.json import from_json, to_json
from sigrl_core.config.presets import get_preset
from sigrl_core.data.dataset import Batch, RankShard, ShardDataset, read_batch
from sigrl_core.data.shards import ShardFolder
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import save_clip
from sigrl_core.model.model import SigRLModel
from sigrl_core.on_ray.cache_features import cache_features
from sigrl_core.on_ray.train import train
from sigrl_core.training.losses import BatchReducer, Targets, distillation, get_loss
from sigrl_core.training.optim import parameter_groups
from tests.drawn import drawn_shards, write_drawn

WORKERS = 2


# ---- theirs ----


class Plain(nn.Module):
    """Logits and class token of a batch, in one module for DistributedDataParallel."""

    def __init__(self, model: SigRLModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BNW, asked):
        return self.model(tokens_BNW, asked)


def bare(config: RunConfig, data: str, steps: int, out: Path) -> tuple[float, float]:
    """Seconds of a step and of its decoding, over `steps` steps of plain processes."""
    (out / "meeting").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_bare, (to_json(config), data, steps, str(out)), nprocs=WORKERS)
    found = [json.loads((out / f"bare{rank}.json").read_text()) for rank in range(WORKERS)]
    return statistics.mean(one["step"] for one in found), statistics.mean(one["decode"] for one in found)


def _bare(rank: int, config_json: str, data: str, steps: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=WORKERS)
    config, folder = from_json(RunConfig, config_json, "bench"), ShardFolder.open(data)
    seen = folder.vocabulary.positions("seen")
    rows = ShardDataset(folder, "train", seen)
    model = SigRLModel.start(load_backbone(config.backbone), config, folder.vocabulary).train()
    learner = nn.parallel.DistributedDataParallel(Plain(model))
    optimiser = torch.optim.AdamW(parameter_groups(model, config.optim), lr=config.optim.lr)
    asked, loss_of = model.encode_labels(folder.vocabulary.subset("seen")), get_loss(config.loss.kind)
    size, order = config.training.batch_size, rows.epoch_order(0, 0)
    mine = [
        RankShard(rank=rank, world_size=WORKERS).take(order[start : start + size])
        for start in np.arange(steps) * size % (len(order) - size)
    ]

    def decode(numbers: np.ndarray) -> Batch:
        return read_batch(rows, numbers, model.backbone.image_size, config.training.augment, (0, 0))

    decode(mine[0])  # the first shards are read
    dist.barrier()
    started = time.monotonic()
    batches = [decode(numbers) for numbers in mine]
    decoded = time.monotonic() - started
    for number, batch in enumerate(batches):
        if batch.tokens_BNW is not None:
            batches[number] = replace(batch, tokens_BNW=batch.tokens_BNW.float())

    def step(batch: Batch) -> None:
        with torch.no_grad():
            if batch.tokens_BNW is None:
                assert batch.pixels_BHWC is not None
                tokens_BNW = model.backbone.forward_frozen(batch.pixels_BHWC)
            else:
                tokens_BNW = batch.tokens_BNW
            teacher_BD = model.teacher(tokens_BNW)[0]
        output = learner(tokens_BNW, asked)
        known = Targets(states_BC=batch.states_BC[:, seen])
        loss = loss_of(output.scores.logits_BC, known, config.loss, BatchReducer())
        loss = loss + config.loss.distillation * distillation(output.cls_BD, teacher_BD).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    for batch in batches[:2]:
        step(batch)
    dist.barrier()
    started = time.monotonic()
    for batch in batches:
        step(batch)
    stepped = time.monotonic() - started
    Path(f"{out}/bare{rank}.json").write_text(json.dumps({"step": stepped / steps, "decode": decoded / steps}))
    dist.destroy_process_group()


# ---- ours ----


def ours(config: RunConfig, data: str, out: Path) -> tuple[float, list[float], float]:
    """Seconds of a step over all epochs but the first, peak MB after each, and the share of time waited for data."""
    shutil.rmtree(out, ignore_errors=True)
    train(config, data, str(out), resources=Resources(num_workers=WORKERS))
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    folder = ShardFolder.open(data)
    rows = len(ShardDataset(folder, "train", folder.vocabulary.positions("seen")))
    steps = -(-rows // config.training.batch_size)
    seconds = sum(epoch["train/seconds"] for epoch in epochs[1:])
    waited = sum(epoch["train/data_wait_s"] for epoch in epochs[1:])
    return seconds / steps / (len(epochs) - 1), [epoch["train/memory_mb"] for epoch in epochs], waited / seconds


# ---- both ----


def shards(out: Path, count: int, size: int) -> str:
    """Drawn images of the built-in corpus as shards, made once."""
    corpus = out / f"corpus_{count}_{size}"
    write_drawn(corpus, count, size)
    return str(drawn_shards(corpus, size, validation_fraction=0.02))


def measured(config: RunConfig, name: str, data: str, out: Path, rounds: int, steps: int) -> dict[str, float]:
    """All figures of one backbone."""
    clip = out / f"clip_{name}"
    if not clip.exists():
        torch.manual_seed(0)
        save_clip(clip, load_backbone(BackboneConfig(name=name, pretrained="random")))
    backbone = replace(config.backbone, name=name, pretrained=str(clip))
    full = replace(config, backbone=backbone)
    head = replace(
        config,
        backbone=replace(backbone, frozen_blocks=10**6),
        training=replace(config.training, augment="none"),
    )
    features = str(out / f"features_{name}")
    cache_features(CacheFeaturesConfig(data=data, out=features, backbone=head.backbone), Resources(num_workers=WORKERS))
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        told: dict[str, float] = {}
        before = bare(full, data, steps, out)
        told["our_step"], _, told["data_wait"] = ours(full, data, out / "run")
        after = bare(full, data, steps, out)
        told["bare_step"] = statistics.mean([before[0], after[0]])
        told["bare_decode"] = statistics.mean([before[1], after[1]])
        before = bare(head, features, steps, out)
        told["our_head"], _, _ = ours(head, features, out / "run")
        told["bare_head"] = statistics.mean([before[0], bare(head, features, steps, out)[0]])
        told["of_bare_step"] = (told["bare_step"] + told["bare_decode"]) / told["our_step"]
        told["cache_of_bare_head"] = told["bare_head"] / told["our_head"]
        told["head_speed_up"] = told["our_step"] / told["our_head"]
        line = ", ".join(f"{key} {value:.4f}" for key, value in told.items())
        print(f"{name}, round {number + 1}: {line}", flush=True)
        for key, value in told.items():
            found.setdefault(key, []).append(value)
    return {key: round(statistics.median(values), 4) for key, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_train"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    preset = get_preset("quickstart")
    config = replace(
        preset,
        training=replace(preset.training, epochs=4, cache_features_in_memory=False, augment="crop_flip", batch_size=32),
    )
    data = shards(out, 1000, 96)
    figures: dict[str, object] = measured(config, "toybox-vit", data, out, 1 if arguments.quick else 3, 40)
    long = replace(config, training=replace(config.training, epochs=20))
    _, memory, _ = ours(long, shards(out, 120, 96), out / "run")
    figures["memory_growth"] = round(memory[-1] / memory[2] - 1, 4)
    print(f"peak MB of a worker after epochs 1, 3, 10, 20: {[round(memory[n]) for n in (0, 2, 9, 19)]}", flush=True)
    if not arguments.quick:
        published = replace(config.backbone, frozen_blocks=get_preset("published").backbone.frozen_blocks)
        large = replace(config, backbone=published, training=replace(config.training, epochs=2))
        figures["ViT-B-16"] = measured(large, "ViT-B-16", shards(out, 140, 224), out, 1, 4)
    print(json.dumps({**figures, "workers": WORKERS, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
