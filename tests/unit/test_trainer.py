"""A configuration on data: which label graph it is given, and going on where it was saved."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sigrl_core.config import BackboneConfig, GraphConfig, OptimConfig, RunConfig, ScoringConfig, TrainingConfig
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.data.label_states import PRESENT
from sigrl_core.data.shards import ShardFolder
from sigrl_core.inference.tagger import Tagger
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.model.checkpoint import load_checkpoint
from sigrl_core.model.model import SigRLModel
from sigrl_core.training.state import Metrics, TrainingState
from sigrl_core.training.trainer import Trainer, make_label_edges
from sigrl_core.training.validation import validate
from tests.conftest import without_clock

pytestmark = pytest.mark.unit

CONFIG = RunConfig(
    backbone=BackboneConfig(name="toybox-vit", pretrained="random", frozen_blocks=2),
    graph=GraphConfig(kind="cooccurrence", threshold=0.3, hidden=8, heads=2, propagation=True),
    scoring=ScoringConfig(top_k_patches=8, learn_scale=True, initial_scale=20.0),
    optim=OptimConfig(lr=3e-3, warmup_epochs=0.0),
    training=TrainingConfig(epochs=2, batch_size=8, augment="none", cache_features_in_memory=True),
)


def finished(experiment: Trainer, folder: Path) -> list[Metrics]:
    """Trains to the end, saved after every epoch."""
    told: list[Metrics] = []

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        assert metrics is not None
        told.append(metrics)
        experiment.save(folder, metrics)

    folder.mkdir(exist_ok=True)
    experiment.fit(report)
    return told


def test_cooccurrence_is_counted_over_the_rows_trained_on(toybox_shards: ShardFolder) -> None:
    rows = ShardDataset(toybox_shards, "train")
    edges = make_label_edges(CONFIG.graph, rows)
    assert edges is not None
    vocabulary = toybox_shards.vocabulary
    states = torch.cat([torch.from_numpy(part) for part in rows.label_states()])
    assert len(states) == len(rows) < toybox_shards.num_rows
    seen = [vocabulary.labels[c].name for c in vocabulary.positions("seen")]
    for label in seen:
        shown = states[states[:, vocabulary.index[label]] == PRESENT]
        for neighbour in seen:
            if neighbour != label:
                both = shown[:, vocabulary.index[neighbour]] == PRESENT
                share = both.float().mean() if len(shown) else torch.tensor(0.0)
                assert ((neighbour, label) in edges.weights) == (share >= 0.3)


def test_kinds_that_need_no_edges_are_given_none(toybox_shards: ShardFolder, tmp_path: Path) -> None:
    rows = ShardDataset(toybox_shards, "train")
    for kind in ("complete", "nearest", "none"):
        assert make_label_edges(GraphConfig(kind=kind), rows) is None
    path = tmp_path / "edges.json"
    path.write_text('{"source": "sand", "target": "red star"}')
    assert make_label_edges(GraphConfig(kind="listed", edges=str(path)), rows) == LabelEdges(
        {("sand", "red star"): 1.0}
    )


def test_the_label_graph_learns_and_is_kept(toybox_shards: ShardFolder, tmp_path: Path) -> None:
    experiment = Trainer(CONFIG, toybox_shards.uri)
    told = finished(experiment, tmp_path / "run")
    assert [metrics["epoch"] for metrics in told] == [1, 2]
    assert told[1]["train/loss"] < told[0]["train/loss"]
    loaded = load_checkpoint(str(tmp_path / "run" / "checkpoint")).model
    learned = loaded.head.propagation.edges
    assert torch.equal(learned, experiment.state.model.head.propagation.edges)
    assert (learned.diagonal() == 0).all()
    assert (learned[~torch.eye(50, dtype=torch.bool)] != 0).float().mean() > 0.9
    assert loaded.edges == experiment.state.model.edges


def test_going_on_where_it_was_saved(toybox_shards: ShardFolder, tmp_path: Path) -> None:
    through = finished(Trainer(CONFIG, toybox_shards.uri), tmp_path / "through")
    first = Trainer(CONFIG, toybox_shards.uri)

    def stop(metrics: Metrics | None, state: TrainingState) -> None:
        first.save(tmp_path, metrics)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.fit(stop)
    again = Trainer(CONFIG, toybox_shards.uri)
    again.resume(tmp_path)
    assert (again.state.epoch, again.state.step) == (1, first.state.step)
    (last,) = finished(again, tmp_path / "again")
    assert without_clock(last) == without_clock(through[1])


def test_labels_held_out_are_asked_for_as_unseen_and_those_that_are_unseen_nowhere(toybox_shards: ShardFolder) -> None:
    seen = toybox_shards.vocabulary.subset("seen").names
    held_out = seen[::5]
    experiment = Trainer(CONFIG, toybox_shards.uri, held_out=held_out)
    trained, unseen, everything = (experiment.validation_tasks[prefix] for prefix in ("", "zsl.", "gzsl."))
    assert [len(question.label_set.labels_CD) for question in (trained, unseen, everything)] == [
        len(seen) - len(held_out),
        len(held_out),
        len(seen),
    ]
    assert sorted([*trained.positions, *unseen.positions]) == list(everything.positions)
    assert list(everything.positions) == toybox_shards.vocabulary.positions("seen")
    assert [toybox_shards.vocabulary.labels[c].name for c in unseen.positions] == held_out
    assert experiment.task.positions == trained.positions
    told: list[Metrics] = []
    experiment.fit(lambda metrics, state: told.append(metrics or {}))
    assert {"validation/map", "validation/zsl.map", "validation/gzsl.map"} <= told[-1].keys()
    saved = experiment.state.model.vocabulary
    assert set(held_out) < set(saved.subset("unseen").names)


def test_the_average_of_the_weights_is_what_is_measured_and_published(
    toybox_shards: ShardFolder, tmp_path: Path
) -> None:
    training = replace(CONFIG.training, ema=0.9, epochs=3)
    experiment = Trainer(replace(CONFIG, training=training), toybox_shards.uri)
    told = finished(experiment, tmp_path / "run")
    published = load_checkpoint(str(tmp_path / "run" / "checkpoint")).model.eval()
    live = experiment.state.model.state_dict()
    assert any(not torch.equal(value, live[name]) for name, value in published.state_dict().items())

    def measured(model: SigRLModel) -> float:
        return validate(model, experiment.validation.in_order(), experiment.validation_tasks)["validation/map"]

    assert measured(published) == told[-1]["validation/map"]
    assert measured(experiment.state.model.eval()) != told[-1]["validation/map"]


def test_unseen_labels_neither_hear_nor_tell(toybox_shards: ShardFolder, tmp_path: Path) -> None:
    """Learned edges change what is said of labels trained on, and of no other."""
    finished(Trainer(CONFIG, toybox_shards.uri), tmp_path / "run")
    tagger = Tagger.load(str(tmp_path / "run" / "checkpoint"))
    vocabulary = toybox_shards.vocabulary
    pixels = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = tagger.encode_images(pixels)
    with_edges = tagger.logits(tokens, vocabulary)
    tagger.model.head.propagates = False
    without = tagger.logits(tokens, vocabulary)
    changed = (with_edges != without).any(0)
    assert [label.group == "seen" for label in vocabulary.labels] == changed.tolist()
