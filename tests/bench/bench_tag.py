"""Tagging a bucket beside its bare parts: GET, decode and forward pass, of the same images on the same cores.

    python tests/bench/bench_tag.py [--out runs/bench_tag] [--quick]

Reads from the real object store of ../shared, started here, whose processes share the cores. Two workers of one thread
each, all at the same niceness. In turns, several rounds for the quickstart model and one for ViT-B/16, random weights:

- bare forward: each of two processes tags images in memory already, cropped, in the same batches;
- bare parts: one process gets, decodes and tags the images one stage after the other; CPU-seconds of each, those of
  the store's processes included, since they run on the same cores;
- ours: tag.py's own function over the bucket, by its run log: the rates of its workers together, each from the end of
  its first part to the end of its last, as the bare forward is warm and its processes end when they end too. What a
  first part takes more than the others is `warm_up_s`, how long one worker waits at the end for the other `tail_s`.

`of_bare_forward` is our rate / that of the bare forward; `of_bare_sum` is our rate / (cores / CPU-seconds an image of
the bare parts). Where getting and decoding use the cores that the model wants, `of_bare_forward` cannot be more than
`forward_share`, the forward pass's share of those CPU-seconds. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ |= {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}

import torch

from sigrl_core.config import Resources, TagConfig
from sigrl_core.data.transforms import centre_crop
from sigrl_core.inference.tagger import Tagger
from sigrl_core.io import storage
from sigrl_core.on_ray.tag import tag
from tests.conftest import COCO160, untrained_checkpoint
from tests.e2e.conftest import Store, started_store
from tests.photographs import write_photographs

WORKERS, BATCH, ROWS_PER_PART = 2, 32, TagConfig.rows_per_shard


def checkpoint_of(name: str, out: Path) -> str:
    """An untrained model of the built-in corpus's labels."""
    folder = out / f"checkpoint_{name}"
    if not folder.exists():
        untrained_checkpoint(folder, backbone=name)
    return str(folder)


def _forward(checkpoint: str, images: list[bytes], ready, told) -> None:
    torch.set_num_threads(1)
    tagger = Tagger.load(checkpoint)
    size = tagger.model.backbone.image_size
    crops = [centre_crop(image, size) for image in images]
    tagger.tag(crops[:BATCH])
    ready.wait()
    started = time.monotonic()
    for start in range(0, len(crops), BATCH):
        tagger.tag(crops[start : start + BATCH])
    told.put(len(crops) / (time.monotonic() - started))


def bare_forward(checkpoint: str, images: list[bytes]) -> float:
    """Images a second of two processes."""
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(WORKERS), context.Queue()
    halves = [images[rank::WORKERS] for rank in range(WORKERS)]
    processes = [context.Process(target=_forward, args=(checkpoint, half, ready, told)) for half in halves]
    for process in processes:
        process.start()
    rates = [told.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def bare_parts(checkpoint: str, bucket: str, keys: list[str], store: Store) -> dict[str, float]:
    """CPU-seconds an image: GET, with the store's, decode, forward."""
    tagger = Tagger.load(checkpoint)
    size = tagger.model.backbone.image_size
    storage.read_bytes(f"{bucket}/{keys[0]}")
    begun, of_store = time.process_time(), cpu_seconds(store)
    images = [storage.read_bytes(f"{bucket}/{key}") for key in keys]
    got, of_store = time.process_time(), cpu_seconds(store) - of_store
    crops = [centre_crop(image, size) for image in images]
    decoded = time.process_time()
    for start in range(0, len(crops), BATCH):
        tagger.tag(crops[start : start + BATCH])
    tagged = time.process_time()
    spent = {"get": got - begun, "store": of_store, "decode": decoded - got, "forward": tagged - decoded}
    return {name: seconds / len(keys) for name, seconds in spent.items()}


def cpu_seconds(store: Store) -> float:
    """Of the store's processes and theirs."""
    wanted = {process.pid for process in store.processes}
    spent = 0.0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(entry.name) in wanted or int(fields[1]) in wanted:
                spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def ours(checkpoint: str, bucket: str, out: str, rows_per_shard: int) -> dict[str, float]:
    """Images a second of two workers that are warm, how much longer the first part of each takes, and how much later
    the last one ends."""
    config = TagConfig(checkpoint=checkpoint, images=bucket, out=out, batch_size=BATCH, rows_per_shard=rows_per_shard)
    manifest = tag(config, Resources(num_workers=WORKERS))
    of_worker: dict[int, list[tuple[float, float, int]]] = {}
    lines = storage.read_bytes(f"{out}/run_log.jsonl").splitlines()
    for line, file in zip(map(json.loads, lines), manifest["files"], strict=True):
        start = datetime.fromisoformat(line["started"]).timestamp()
        of_worker.setdefault(line["process"], []).append((start, start + line["seconds"], file["rows"]))
    rate, lasted, ends = 0.0, ([], []), []
    for (start, ready, _), *warm in map(sorted, of_worker.values()):
        ends.append(warm[-1][1])
        rate += sum(rows for *_, rows in warm) / (ends[-1] - ready)
        lasted[0].append(ready - start)
        lasted[1].extend(end - start for start, end, _ in warm)
    warm_up = statistics.mean(lasted[0]) - statistics.mean(lasted[1])
    return {"ours": rate, "warm_up_s": warm_up, "tail_s": max(ends) - min(ends)}


def measured(name: str, bucket: str, keys: list[str], store: Store, out: Path, rounds: int) -> dict[str, float]:
    """All figures of one backbone."""
    checkpoint, found = checkpoint_of(name, out), dict[str, list[float]]()
    images = [storage.read_bytes(f"{bucket}/{key}") for key in keys]
    rows_per_shard = min(ROWS_PER_PART, len(keys) // 8)
    for number in range(rounds):
        told = bare_parts(checkpoint, bucket, keys[: len(keys) // 4], store)
        spent = sum(told.values())
        told["forward_share"] = told["forward"] / spent
        told["bare_forward"] = bare_forward(checkpoint, images)
        told |= ours(checkpoint, bucket, f"s3://tags/{name}{time.time_ns()}", rows_per_shard)
        told["of_bare_forward"] = told["ours"] / told["bare_forward"]
        told["of_bare_sum"] = told["ours"] * spent / min(WORKERS, os.cpu_count() or 1)
        print(f"{name}, round {number + 1}: " + ", ".join(f"{k} {v:.4f}" for k, v in told.items()), flush=True)
        for key, value in told.items():
            found.setdefault(key, []).append(value)
    return {key: round(statistics.median(values), 4) for key, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_tag"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    torch.set_num_threads(1)
    small, large = (1600, 256) if arguments.quick else (12_000, 512)
    write_photographs(COCO160, out / "photographs", small)
    shutil.rmtree(out / "store", ignore_errors=True)
    with started_store(out / "store") as store:
        os.environ.update(store.environment())
        client = store.client()
        paths = sorted((out / "photographs").rglob("*.jpg"))
        for bucket, count in (("small", small), ("large", large)):
            client.create_bucket(Bucket=bucket)
            for path in paths[:count]:
                client.put_object(Bucket=bucket, Key=path.name, Body=path.read_bytes())
        client.create_bucket(Bucket="tags")
        keys = [path.name for path in paths]
        rounds = 1 if arguments.quick else 3
        figures: dict[str, object] = dict(measured("toybox-vit", "s3://small", keys, store, out, rounds))
        figures["ViT-B-16"] = measured("ViT-B-16", "s3://large", keys[:large], store, out, 1)
    print(json.dumps({**figures, "workers": WORKERS, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
