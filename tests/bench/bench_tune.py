"""ASHA with TPE beside random search at full length, on the built-in corpus.

    python tests/bench/bench_tune.py [--out runs/bench_tune] [--quick]

Both search quickstart's head on features of the small CLIP, trained on 200 images and measured on 200 others: 24
trials of 9 epochs, on as many processes as there are cores, once for each of three seeds. ASHA with TPE starts from the
preset, as searches do. Random search starts from nothing and runs every trial to its end. `epochs_saved` is how many
times fewer epochs ASHA with TPE had run when it had an objective as good as the best of random search, less the spread
of that configuration over training seeds; 0 where it never had. Its median over the seeds is the figure.

The best configuration of ASHA with TPE is then trained on all seen labels with three seeds, as is the preset at the
same length, and both are measured on the test images and the unseen labels, which no search has seen.
--quick takes one seed and a smaller corpus, some minutes on two cores. Goes on where it stopped; ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sigrl_core.config import CacheFeaturesConfig, QuickstartConfig, Resources, RunConfig, SearchConfig
from sigrl_core.data.shards import ShardFolder
from sigrl_core.evaluation.evaluator import Evaluator, evaluate
from sigrl_core.inference.tagger import Tagger
from sigrl_core.model.checkpoint import is_checkpoint
from sigrl_core.on_ray.cache_features import cache_features
from sigrl_core.on_ray.preprocess import preprocess
from sigrl_core.on_ray.quickstart import make_data, preprocess_config, run_config
from sigrl_core.on_ray.tune import search
from sigrl_core.report.search import write_search_page
from sigrl_core.search.space import SearchSpace
from sigrl_core.search.study import Study, Trial, choose_held_out_labels
from sigrl_core.training.state import MONITOR, Metrics, TrainingState
from sigrl_core.training.trainer import Trainer

TRIALS, EPOCHS, RETRAINED = 24, 9, 3
HOW: dict[str, dict[str, Any]] = {"random": {"sampler": "random", "scheduler": "none"}, "asha_tpe": {}}
APART = 100  # between the seeds of the two: TPE's first trials are random ones, and shall not be the other's


def best_of(search: Study) -> Trial:
    assert search.best is not None
    return search.best


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    return replace(config, training=replace(config.training, seed=seed))


def spread(config: RunConfig, data: str) -> float:
    """Standard deviation of a configuration's objective over training seeds."""
    held_out, found = choose_held_out_labels(ShardFolder.open(data).vocabulary, SearchConfig().held_out), []
    for seed in range(RETRAINED):
        told: list[float] = []
        experiment = Trainer(with_seed(config, seed), data, held_out=held_out, objective="gzsl.map")
        experiment.fit(lambda metrics, state, told=told: told.append((metrics or {})[MONITOR]))
        found.append(max(told))
    return statistics.stdev(found)


def epochs_until(found: Study, target: float) -> int | None:
    """Epochs of all trials up to the first that is as good, in the order of proposal."""
    total = 0
    for trial in found.ended:
        total += len(trial.epochs)
        if trial.objective is not None and trial.objective >= target:
            return total
    return None


def on_test(config: RunConfig, data: str, test: str, out: Path) -> list[float]:
    """GZSL mAP of each seed, of the best epoch on held-out images."""
    found = []
    for seed in range(RETRAINED):
        folder = out / f"{seed}"
        if not is_checkpoint(str(folder / "checkpoint")):
            folder.mkdir(parents=True, exist_ok=True)
            experiment = Trainer(with_seed(config, seed), data)

            def report(metrics: Metrics | None, state: TrainingState, folder=folder, experiment=experiment) -> None:
                if state.best[1] == state.epoch:
                    experiment.save_checkpoint(folder, {"selected": metrics})

            experiment.fit(report)
        evaluation = evaluate(Evaluator(Tagger.load(str(folder)), {}), ShardFolder.open(test))
        found.append(evaluation.metrics["rows"][0]["gzsl"]["map"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_tune"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    small: dict[str, Any] = {"captioned": 2000, "labelled": 160, "test": 200, "clip_epochs": 1}
    sizes: dict[str, Any] = small if arguments.quick else {"labelled": 400}
    corpus = QuickstartConfig(out=str(out / "corpus"), **sizes)
    made = make_data(corpus)
    base = run_config("quickstart", corpus)
    base = replace(base, training=replace(base.training, epochs=EPOCHS, cache_features_in_memory=False))
    preprocess(
        replace(
            preprocess_config(made, "labelled", "seen"), out=str(made / "shards" / "searched"), validation_fraction=0.5
        )
    )
    features = {}
    for part in ("searched", "test"):
        features[part] = str(out / "features" / part)
        cache_features(
            CacheFeaturesConfig(data=str(made / "shards" / part), out=features[part], backbone=base.backbone),
            Resources(num_workers=2),
        )
    rows = []
    for seed in range(1 if arguments.quick else 3):
        row: dict[str, Any] = {"seed": seed}
        found: dict[str, Study] = {}
        for number, (name, how) in enumerate(HOW.items()):
            config = SearchConfig(trials=TRIALS, seed=seed + APART * number, **how)
            started = time.monotonic()
            found[name] = search(
                config,
                base,
                SearchSpace(),
                features["searched"],
                str(out / f"{name}_{seed}"),
                finish=write_search_page,
            )
            row[f"{name}_s"] = round(time.monotonic() - started)
            row[f"{name}_epochs"] = sum(len(trial.epochs) for trial in found[name].ended)
            row[f"{name}_best"] = best_of(found[name]).objective
        row["spread"] = spread(best_of(found["random"]).config, features["searched"])
        needed = epochs_until(found["asha_tpe"], row["random_best"] - row["spread"])
        row["epochs_needed"] = needed
        row["epochs_saved"] = row["random_epochs"] / needed if needed else 0.0
        print(
            ", ".join(f"{name} {value:.4g}" if value is not None else name for name, value in row.items()), flush=True
        )
        rows.append((row, found["asha_tpe"]))
    best = max((best_of(each) for _, each in rows), key=lambda trial: trial.objective or 0.0)
    measured = {
        "best": on_test(best.config, features["searched"], features["test"], out / "retrained" / "best"),
        "preset": on_test(base, features["searched"], features["test"], out / "retrained" / "preset"),
    }
    for name, values in measured.items():
        print(f"{name} on the test images, GZSL mAP: {', '.join(f'{value:.4f}' for value in values)}")
    figures = {
        "epochs_saved": round(statistics.median(row["epochs_saved"] for row, _ in rows), 2),
        "searches": [row for row, _ in rows],
        **{f"{name}_test_gzsl": round(statistics.mean(values), 4) for name, values in measured.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
