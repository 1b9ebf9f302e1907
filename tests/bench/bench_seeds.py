"""SigRL beside its baselines and ablations on the built-in corpus, over seeds of corpus, small CLIP and head alike.

python tests/bench/bench_seeds.py --out runs/seeds             # three seeds; goes on where it stopped
python tests/bench/bench_seeds.py --out runs/seeds_quick --quick

Prints mean and standard deviation over the seeds, the paired difference to the MKT-style baseline, and one JSON line.
The ablation "no SVFR" is the MKT-style row: without reconstruction the label graph reaches no score.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sigrl_core.config import EvaluateConfig, QuickstartConfig, ReconstructionConfig, RunConfig, ScaleConfig
from sigrl_core.on_ray.quickstart import quickstart, run_config
from sigrl_core.on_ray.train import train
from sigrl_core.report import evaluate_to_report

COLUMNS = ("zsl", "zsl_asked_all", "gzsl", "seen")


def ablations(full: RunConfig, mkt: RunConfig) -> dict[str, RunConfig]:
    """Each differs from SigRL, or from the baseline, in the one thing its name says."""

    def change(config: RunConfig, owner: str, **fields: object) -> RunConfig:
        return dataclasses.replace(config, **{owner: dataclasses.replace(getattr(config, owner), **fields)})

    toggled = 0.0 if full.loss.distillation else 1.0
    published = change(change(full, "scoring", learn_scale=False), "optim", head_rate=1.0)
    published = dataclasses.replace(published, reconstruction=ReconstructionConfig())
    name = "no_distillation" if full.loss.distillation else "with_distillation"
    return {
        "no_gmc": change(full, "graph", kind="none"),
        name: change(full, "loss", distillation=toggled),
        f"mkt_style_{name}": change(mkt, "loss", distillation=toggled),
        "published_form": change(change(published, "graph", residual=False), "loss", distillation=1.0),
        "trunk_trains": change(full, "backbone", frozen_blocks=0),
        "mkt_style_trunk_trains": change(mkt, "backbone", frozen_blocks=0),
    }


def configuration(seed: int, out: Path, quick: bool) -> QuickstartConfig:
    size = {"captioned": 2000, "labelled": 400, "test": 300, "clip_epochs": 1, "epochs": 1} if quick else {}
    return QuickstartConfig(out=str(out / f"seed{seed}"), seed=seed, **size)


def measure(config: QuickstartConfig) -> dict[str, dict[str, float]]:
    """Row name -> protocol -> mAP in percent, for one seed."""
    home = Path(config.out).absolute()
    compare = [f"mkt_style={home / 'mkt_style'}"]
    for name, run in ablations(run_config("quickstart", config), run_config("quickstart_mkt", config)).items():
        where = str(home / name)
        train(run, ScaleConfig(workers=config.workers), str(home / "shards" / "labelled"), None, where)
        compare.append(f"{name}={where}")
    metrics = evaluate_to_report(
        EvaluateConfig(
            checkpoint=str(home / "sigrl"),
            compare=tuple(compare),
            data=str(home / "shards" / "test"),
            out=str(home / "ablations"),
        )
    )
    return {row["name"]: {column: 100 * row[column]["map"] for column in COLUMNS} for row in metrics["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two seeds of a tenth of the size: checks the script only")
    arguments = parser.parse_args()
    seeds = range(2 if arguments.quick else arguments.seeds)
    configurations = [configuration(seed, arguments.out, arguments.quick) for seed in seeds]
    for config in configurations:
        quickstart(config)
    by_seed = [measure(config) for config in configurations]
    summary: dict[str, dict[str, list[float]]] = {}
    print(f"\nmAP in percent, mean ± standard deviation over {len(by_seed)} seeds\n")
    print(f"{'':28}" + "".join(f"{column:>16}" for column in COLUMNS))
    for name in by_seed[0]:
        values = np.array([[rows[name][column] for column in COLUMNS] for rows in by_seed])
        print_row(name, values)
        summary[name] = dict(zip(COLUMNS, values.mean(0).round(2).tolist(), strict=True))
    gaps = np.array([[rows["sigrl"][c] - rows["mkt_style"][c] for c in COLUMNS] for rows in by_seed])
    print_row("sigrl - mkt_style, paired", gaps)
    figures = {
        "seeds": len(by_seed),
        "map": summary,
        "gap_mean": dict(zip(COLUMNS, gaps.mean(0).round(2).tolist(), strict=True)),
        "gap_std": dict(zip(COLUMNS, gaps.std(0, ddof=1).round(2).tolist(), strict=True)),
    }
    print(json.dumps(figures))


def print_row(name: str, values: np.ndarray) -> None:
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    cells = (f"{mean:.1f} ± {std:.1f}" for mean, std in zip(values.mean(0), spread, strict=True))
    print(f"{name:28}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
