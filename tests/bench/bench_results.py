"""Every loss, label graph, ablation and baseline on the built-in corpus: writes docs/RESULTS.md.

python tests/bench/bench_results.py --out runs/results              # hours on two cores; goes on where it stopped
python tests/bench/bench_results.py --out runs/results --tables single_positive
python tests/bench/bench_results.py --out runs/results --only-write # the page from what is there
python tests/bench/bench_results.py --out runs/results_quick --quick

A row is what its own command gives, `train.py PRESET FLAGS` with one worker, then `evaluate.py`, in this process and so
without the half minute that two commands take to start. It is measured once for each seed, of images, small CLIP and
head alike; in the table `label_graph` two small CLIPs have three heads each.
Settings are chosen by the column "validation" alone: mAP of seen labels on the images that training holds out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sigrl_core.config import QuickstartConfig, RunConfig
from sigrl_core.data.shards import ShardFolder
from sigrl_core.demo.toybox import Structure
from sigrl_core.evaluation.evaluator import Evaluator, evaluate
from sigrl_core.inference.tagger import Tagger
from sigrl_core.io import storage
from sigrl_core.model.checkpoint import is_checkpoint, save_checkpoint
from sigrl_core.on_ray.preprocess import preprocess
from sigrl_core.on_ray.quickstart import make_data, preprocess_config, run_config
from sigrl_core.training.state import Metrics, TrainingState
from sigrl_core.training.trainer import Trainer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "RESULTS.md"
COLUMNS = {"validation": "validation", "zsl": "ZSL", "zsl_asked_all": "ZSL, asked all", "gzsl": "GZSL", "seen": "seen"}
LISTED = "edges.json"


@dataclass(frozen=True)
class Data:
    """One corpus with its small CLIP."""

    seed: int
    structure: Structure = "loose"
    labels: str = "labelled"
    """`labelled`, or `single_positive`: the same images with one label of each."""


@dataclass(frozen=True)
class Row:
    """One line of a table: what is changed of a preset.

    Attributes:
        name: in the table.
        preset: what it starts from.
        flags: dotted field -> value.
        local_candidates: of evaluate.py.
        measured: which row of the evaluation it is: the checkpoint, or the CLIP it started from.
    """

    name: str
    preset: str = "quickstart"
    flags: dict[str, Any] = field(default_factory=dict)
    local_candidates: int | None = None
    measured: str = "sigrl"

    @property
    def command(self) -> str:
        if self.measured != "sigrl":
            return f"evaluate.py, row {self.measured}"
        flags = "".join(f" {_flag(name, value)}" for name, value in self.flags.items())
        candidates = f"; evaluate.py --local-candidates {self.local_candidates}" if self.local_candidates else ""
        return f"train.py {self.preset}{flags}{candidates}"


@dataclass(frozen=True)
class Table:
    title: str
    text: str
    rows: list[Row]
    runs: list[tuple[Data, int]]
    """(data, seed of the head), each a run of every row."""
    beside: str
    """The row that the paired difference of the last column is to, in GZSL or what `measure` says."""
    measure: str = "gzsl"


def _flag(name: str, value: Any) -> str:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        group, _, last = dashed.rpartition(".")
        return f"--{dashed}" if value else f"--{group}.no-{last}"
    return f"--{dashed} {value}"


def sigrl(name: str, local_candidates: int | None = None, **flags: Any) -> Row:
    return Row(name, "quickstart", _dotted(flags), local_candidates)


def mkt(name: str, **flags: Any) -> Row:
    return Row(name, "quickstart_mkt", _dotted(flags))


def _dotted(flags: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in flags.items()}


NO_GRAPH = {"graph__kind": "none", "graph__propagation": False}
SHORT = {"training__epochs": 3}
SHORT_MKT = {"training__epochs": 6}
SINGLE_POSITIVE: dict[str, dict[str, Any]] = {
    "an": {},
    "an_ls": {},
    "wan": {},
    "epr": {"loss__expected_positives": 4.0},
    "role": {"loss__expected_positives": 4.0},
    "em": {},
    "em_apl": {"loss__soft_warmup_epochs": 1},
    "em_pl": {},
    "ll_r": {},
    "pairwise": {},
}
"""Losses of single positives, and what they are set to here."""
NEEDS_ALL_LABELS = ("bce", "ranking", "focal", "asymmetric")


def tables(seeds: int) -> dict[str, Table]:
    loose = [(Data(seed), seed) for seed in range(seeds)]
    zero_shot = [
        sigrl("SigRL (the preset `quickstart`)"),
        Row("CLIP, global", measured="clip_global"),
        Row("CLIP, global + local", measured="clip_global_local"),
        mkt("MKT-style, twice the epochs (`quickstart_mkt`)"),
        mkt("MKT-style, as many epochs", training__epochs=5),
        mkt("MKT-style + propagation (no SVFR)", graph__propagation=True),
        sigrl("no propagation", graph__propagation=False),
        sigrl("no graph of features", graph__kind="none"),
        sigrl("no label graph at all", **NO_GRAPH),
        sigrl("no distillation", loss__distillation=0.0),
        sigrl("no learned scale", scoring__learn_scale=False),
        sigrl(
            "published form",
            graph__propagation=False,
            graph__residual=False,
            reconstruction__residual=False,
            reconstruction__unit_rms=False,
            scoring__learn_scale=False,
            loss__distillation=1.0,
        ),
        mkt("MKT-style, published form", scoring__learn_scale=False, loss__distillation=1.0),
        sigrl("local branch for 16 candidates", local_candidates=16),
        sigrl("half the labels a step", training__label_fraction=0.5),
        sigrl("patches attend by values", backbone__patch_attention="value-value"),
        mkt("MKT-style, patches attend by values", backbone__patch_attention="value-value"),
        sigrl("every block trains", backbone__frozen_blocks=0),
        mkt("MKT-style, every block trains", backbone__frozen_blocks=0),
    ]
    graphs = [
        sigrl(f"{kind}{', propagation' if spreads else ''}", graph__kind=kind, graph__propagation=spreads, **SHORT)
        for spreads in (False, True)
        for kind in ("none", "complete", "nearest", "cooccurrence", "listed")
    ]
    losses = [sigrl(kind, loss__kind=kind, **SHORT) for kind in ("ranking", "bce", "focal", "asymmetric", "pairwise")]
    single = [sigrl(kind, loss__kind=kind, **SHORT, **SINGLE_POSITIVE[kind]) for kind in SINGLE_POSITIVE]
    single += [
        sigrl(f"{kind}, as published", loss__kind=kind, scoring__learn_scale=False, **SHORT, **SINGLE_POSITIVE[kind])
        for kind in ("an", "an_ls", "epr", "role")
    ]
    single += [
        mkt(
            f"{kind}, MKT-style{'' if scaled else ', as published'}",
            loss__kind=kind,
            scoring__learn_scale=scaled,
            **SHORT_MKT,
            **({"loss__soft_warmup_epochs": 2} if kind == "em_apl" else SINGLE_POSITIVE[kind]),
        )
        for kind in SINGLE_POSITIVE
        if kind != "pairwise"
        for scaled in (True, False)
    ]
    single.append(sigrl("bce, all labels known", loss__kind="bce", **SHORT))
    strong = [(Data(clip, "strong"), head) for clip in range(2) for head in range(3)]
    graph_study = [
        sigrl("no label graph", **NO_GRAPH, **SHORT),
        sigrl("complete (published kind)", graph__propagation=False, **SHORT),
        sigrl("co-occurrence", graph__kind="cooccurrence", graph__propagation=False, **SHORT),
        sigrl("propagation alone", graph__kind="none", **SHORT),
        sigrl("complete + propagation", **SHORT),
        mkt("no SVFR, no label graph", **SHORT_MKT),
        mkt("no SVFR, propagation", graph__propagation=True, **SHORT_MKT),
    ]
    ranks = [sigrl("full matrices (published form)", **SHORT)]
    ranks += [
        sigrl(f"rank {rank}, {rank / 64:.2g} of the products", reconstruction__coefficient_rank=rank, **SHORT)
        for rank in (4, 8, 16, 32)
    ]
    return {
        "zero_shot": Table(
            "Zero-shot and generalised zero-shot",
            "Each row differs from the preset in what its name says.",
            zero_shot,
            loose,
            zero_shot[0].name,
        ),
        "label_graph": Table(
            "Where labels are correlated: what the label graph adds",
            "Images of strong scene structure (`quickstart.py --structure strong`); two small CLIPs, three heads "
            "each; three epochs, without SVFR six.",
            graph_study,
            strong,
            graph_study[0].name,
        ),
        "graphs": Table(
            "Label graphs",
            "Three epochs. `listed`: each label attends to those that share a word with it.",
            graphs,
            loose,
            graphs[0].name,
        ),
        "coefficient_rank": Table(
            "Coefficient matrices of low rank",
            "`reconstruction.coefficient_rank`; the small CLIP's embedding is 128 wide. Three epochs.",
            ranks,
            loose,
            ranks[0].name,
        ),
        "losses": Table("Losses, all labels known", "Three epochs.", losses, loose, losses[0].name),
        "single_positive": Table(
            "Single positive labels",
            "Training images carry one of their labels, chosen by content, nothing is known of the others; test and "
            "validation images carry all. `as published`: no learned scale, probabilities inside (0.27, 0.73). "
            "The last row knows every label (IUN). Three epochs, MKT-style six.",
            single,
            [(dataclasses.replace(data, labels="single_positive"), seed) for data, seed in loose],
            single[0].name,
            "seen",
        ),
    }


# ---- running ----


class Results:
    """What was measured so far: a JSON file for each run of each row."""

    def __init__(self, out: Path, quick: bool) -> None:
        self.out, self.quick = out, quick

    def path(self, row: Row, data: Data, seed: int) -> Path:
        flags = (f"{key}={value}" for key, value in sorted(row.flags.items()))
        name = "_".join([self.labels(row, data), row.preset, *flags]).replace("/", "-")
        return self.home(data) / "rows" / f"{name}_head{seed}"

    def labels(self, row: Row, data: Data) -> str:
        return "labelled" if row.flags.get("loss.kind") in NEEDS_ALL_LABELS else data.labels

    def home(self, data: Data) -> Path:
        return self.out / f"{data.structure}_seed{data.seed}"

    def read(self, row: Row, data: Data, seed: int) -> dict[str, float] | None:
        path = self.path(row, data, seed) / f"measured_{row.local_candidates}.json"
        return json.loads(path.read_text())[row.measured] if path.exists() else None

    def measure(self, row: Row, data: Data, seed: int) -> None:
        """Trains and evaluates, unless that is done."""
        if self.read(row, data, seed) is not None:
            return
        config = self.corpus(data)
        home, path = self.home(data).absolute(), self.path(row, data, seed).absolute()
        labels = self.labels(row, data)
        shards = home / "shards" / labels
        if labels == "single_positive":
            told = dataclasses.replace(
                preprocess_config(home, "labelled", "seen"), label_policy="single-positive", out=str(shards)
            )
            preprocess(told)
        run = changed(run_config(row.preset, config), {"training.seed": seed, **self.flags(row, home)})
        checkpoint = path / "checkpoint"
        if not is_checkpoint(checkpoint):
            train_best(run, str(shards), checkpoint)
        tagger = Tagger.load(str(checkpoint), local_candidates=row.local_candidates)
        measured = evaluate(Evaluator(tagger, {}), ShardFolder.open(str(home / "shards" / "test"))).metrics
        validation = tagger.checkpoint.metrics["selected"]["validation/map"]
        columns = [column for column in COLUMNS if column != "validation"]
        found = {each["name"]: {column: 100 * each[column]["map"] for column in columns} for each in measured["rows"]}
        found["sigrl"]["validation"] = 100 * validation
        storage.write_json(str(path / f"measured_{row.local_candidates}.json"), found)
        print(f"{row.name}, {data}, head {seed}: {found[row.measured]}", flush=True)

    def flags(self, row: Row, home: Path) -> dict[str, Any]:
        flags = dict(row.flags)
        if self.quick and "training.epochs" in flags:
            flags["training.epochs"] = 1
        if flags.get("graph.kind") == "listed":
            flags["graph.edges"] = str(shared_words(home))
        return flags

    def corpus(self, data: Data) -> QuickstartConfig:
        """Makes images, small CLIP and shards; a corpus of strong structure takes the CLIP of the loose one."""
        size = {"captioned": 2000, "labelled": 400, "test": 300, "clip_epochs": 1, "epochs": 1} if self.quick else {}
        config = QuickstartConfig(out=str(self.home(data)), seed=data.seed, structure=data.structure, **size)
        clip = self.home(data) / "clip"
        if data.structure != "loose" and not clip.exists():
            self.corpus(Data(data.seed))
            shutil.copytree(self.home(Data(data.seed)) / "clip", clip)
        make_data(config)
        return config


def train_best(run: RunConfig, shards: str, checkpoint: Path) -> None:
    """Keeps the epoch that is best on validation images."""
    experiment, best = Trainer(run, shards), -1.0

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        nonlocal best
        if metrics and metrics["validation/map"] > best:
            best = metrics["validation/map"]
            save_checkpoint(checkpoint, state.model, run, {"selected": metrics, "history": []})

    experiment.fit(report)


def shared_words(home: Path) -> Path:
    """Writes a list of edges as a user may: each label attends to the labels that share a word with it."""
    from sigrl_core.demo.toybox import vocabulary

    names = vocabulary().names
    pairs = [(a, b) for a in names for b in names if set(a.split()) & set(b.split())]
    path = home / LISTED
    path.write_text(json.dumps([{"source": source, "target": target} for source, target in pairs]))
    return path


def changed(config: RunConfig, flags: dict[str, Any]) -> RunConfig:
    parts: dict[str, dict[str, Any]] = {}
    for name, value in flags.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = value
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **values) for part, values in parts.items()}
    )


# ---- writing ----


def values(results: Results, table: Table, row: Row) -> dict[str, np.ndarray]:
    """column -> the value of each run, nan where it was not measured."""
    found = [results.read(row, data, seed) or {} for data, seed in table.runs]
    return {column: np.array([each.get(column, np.nan) for each in found]) for column in COLUMNS}


def cell(numbers: np.ndarray) -> str:
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return "–"
    spread = f" ± {known.std(ddof=1):.1f}" if len(known) > 1 else ""
    missing = f" ({len(known)} of {len(numbers)})" if len(known) < len(numbers) else ""
    return f"{known.mean():.1f}{spread}{missing}"


HEAD = (
    "# Results on the built-in corpus\n\nWritten by `python tests/bench/bench_results.py --out runs/results`; do not "
    "edit. mAP in percent, mean ± standard deviation over runs. Every run of a row is the command in its last "
    "column, under `pipelines/`, on a corpus of its own seed. Settings were chosen by the column *validation* (mAP "
    "of seen labels on images held out of training). Δ is the paired difference in the measure it names.\n"
)


def page(results: Results, chosen: dict[str, Table], everything: dict[str, Table], before: str) -> str:
    """The page `before`, with the tables chosen written anew."""
    _, *old = before.split("\n## ")
    kept = {each.partition("\n")[0]: each.rstrip() for each in old}
    written = [
        section(results, table) if name in chosen else kept[table.title]
        for name, table in everything.items()
        if name in chosen or table.title in kept
    ]
    return "\n## ".join([HEAD, *(f"{each}\n" for each in written)])


def section(results: Results, table: Table) -> str:
    measure = COLUMNS[table.measure]
    lines = [
        f"{table.title}\n\n{table.text} {len(table.runs)} runs, {date.today()}.\n",
        f"| row | {' | '.join(COLUMNS.values())} | Δ {measure} to *{table.beside}* | command |",
        f"|---|{'---|' * (len(COLUMNS) + 2)}",
    ]
    other = next(row for row in table.rows if row.name == table.beside)
    base = values(results, table, other)[table.measure]
    for row in table.rows:
        found = values(results, table, row)
        gap = "" if row is other else cell(found[table.measure] - base)
        cells = " | ".join(cell(found[column]) for column in COLUMNS)
        lines.append(f"| {row.name} | {cells} | {gap} | `{row.command}` |")
    return "\n".join(lines)


def figures(results: Results, chosen: dict[str, Table]) -> dict[str, Any]:
    return {
        name: {
            row.name: {
                column: round(float(np.nanmean(found)), 2)
                for column, found in values(results, table, row).items()
                if not np.isnan(found).all()
            }
            for row in table.rows
        }
        for name, table in chosen.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--tables", nargs="+", help="some of the tables; all by default")
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    parser.add_argument(
        "--quick", action="store_true", help="two rows a table, two runs on small corpora: checks the script"
    )
    options = parser.parse_args(arguments)
    everything = tables(2 if options.quick else 3)
    if options.quick:
        everything = {
            name: dataclasses.replace(table, rows=table.rows[:2], runs=table.runs[:2])
            for name, table in everything.items()
        }
    chosen = {name: everything[name] for name in options.tables or everything}
    results = Results(options.out, options.quick)
    target = options.out / "RESULTS.md" if options.quick else PAGE

    def write() -> None:
        before = target.read_text() if target.exists() else ""
        target.write_text(page(results, chosen, everything, before))

    for table in {} if options.only_write else chosen.values():
        for data, seed in dict.fromkeys(table.runs):  # a whole seed first: half a table can be read
            for row in table.rows:
                results.measure(row, data, seed)
                write()
    target.parent.mkdir(parents=True, exist_ok=True)
    write()
    print(f"written: {target}")
    print(json.dumps(figures(results, chosen)))


if __name__ == "__main__":
    main()
