"""Edges between labels: counted, read, kept with the checkpoint, and used by the label graph."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sigrl_core.checkpoint import load_checkpoint, save_checkpoint
from sigrl_core.config import BackboneConfig, GraphConfig, RunConfig
from sigrl_core.errors import ConfigError, VocabularyError
from sigrl_core.label_edges import LabelEdges
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.label_graph import known, nearest
from sigrl_core.model.recogniser import Recogniser
from tests.conftest import vocabulary_of

pytestmark = pytest.mark.unit

NAMES = ["fork", "knife", "snow"]


def test_cooccurrence_by_hand() -> None:
    """fork in three pictures, knife known in two of them and there in one: P(knife | fork) = 1/2; and P(fork | knife)
    = 1/1 of two knives, as of the other the fork is unknown."""
    states_NC = np.array([[1, 1, -1], [1, -1, -1], [1, 0, -1], [0, 1, -1], [-1, -1, 1]], np.int8)
    parts = [states_NC[:2], states_NC[2:]]
    edges = LabelEdges.cooccurrence(NAMES, parts, threshold=0.5, others=0.2)
    expected = {("fork", "knife"): 0.2, ("fork", "fork"): 0.8, ("knife", "fork"): 0.2, ("knife", "knife"): 0.8}
    assert edges.weights == {**expected, ("snow", "snow"): 1.0}
    assert ("fork", "knife") not in LabelEdges.cooccurrence(NAMES, parts, threshold=0.6, others=0.2).weights


def test_a_matrix_of_the_labels_asked() -> None:
    edges = LabelEdges({("fork", "knife"): 0.5, ("snow", "snow"): 1.0})
    assert edges.matrix(vocabulary_of(["knife", "moon", "fork"])).tolist() == [[0, 0, 0], [0, 0, 0], [0.5, 0, 0]]


def test_labels_without_known_edges_hear_the_nearest() -> None:
    torch.manual_seed(0)
    labels, config = torch.randn(3, 4), GraphConfig(kind="cooccurrence", neighbours=1)
    given = torch.tensor([[0.8, 0.2, 0], [0, 0, 0], [0, 0, 1.0]])
    assert torch.equal(known(labels, given, config)[[0, 2]], given[[0, 2]])
    assert torch.equal(known(labels, given, config)[1], nearest(labels, None, config)[1])
    assert torch.equal(known(labels, None, config), nearest(labels, None, config))


@pytest.mark.parametrize("array", [True, False])
def test_a_file_and_back(array: bool, tmp_path: Path) -> None:
    path = tmp_path / "edges.json"
    lines = ['{"label": "fork", "hears": "knife", "weight": 0.5}', '{"label": "knife", "hears": "fork"}']
    path.write_text(f"[{','.join(lines)}]" if array else "\n".join(lines))
    edges = LabelEdges.load(str(path), vocabulary_of(NAMES))
    assert edges.weights == {("fork", "knife"): 0.5, ("knife", "fork"): 1.0}
    assert LabelEdges.parse(edges.to_json(), "again") == edges


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fork,knife", "not valid JSON"),
        ("", "no edges found"),
        ("[1]", r'row 1: found 1; expected \{"label": "fork"'),
        ('{"label": "fork", "hears": "knife", "wieght": 1}', "row 1: unknown key 'wieght'"),
        ('{"label": "fork", "hears": "knife", "weight": 0}', "weight is 0; expected a number above 0"),
        ('{"label": "fork", "hears": "knife", "weight": NaN}', "weight is nan"),
        ('{"label": "fork", "hears": "knife"}\n{"label": "fork", "hears": "knife"}', "row 2: fork hears knife twice"),
        ('{"label": "fork", "hears": "moon"}', "'moon' is not in the vocabulary"),
    ],
)
def test_what_is_no_edge_list(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "edges").write_text(text)
    with pytest.raises(VocabularyError, match=message):
        LabelEdges.load(str(tmp_path / "edges"), vocabulary_of(NAMES))


def test_no_such_file() -> None:
    with pytest.raises(VocabularyError, match=r"nowhere: cannot be read .*; graph.edges takes a file"):
        LabelEdges.load("nowhere", vocabulary_of(NAMES))


def test_a_list_is_named_where_it_is_used_and_nowhere_else() -> None:
    with pytest.raises(ConfigError, match=r"graph.edges is None; expected a file with graph.kind = listed"):
        GraphConfig(kind="listed")
    with pytest.raises(ConfigError, match=r"graph.edges is 'e'; expected"):
        GraphConfig(edges="e")


def test_the_checkpoint_keeps_its_edges(tmp_path: Path) -> None:
    """Loaded where the list no longer lies, it scores as before, and not as without."""
    vocabulary = vocabulary_of(NAMES, ["moon"])
    edges = LabelEdges({("fork", "knife"): 1.0, ("knife", "fork"): 1.0, ("moon", "snow"): 2.0})
    config = RunConfig(
        backbone=BackboneConfig(name="toybox-vit", pretrained="random"),
        graph=GraphConfig(kind="listed", edges="gone.json", hidden=8, neighbours=1),
    )
    config = replace(config, reconstruction=replace(config.reconstruction, unit_rms=True))
    recogniser = Recogniser.start(load_backbone(config.backbone), config, vocabulary, edges).eval()
    save_checkpoint(tmp_path / "c", recogniser, config, {})
    loaded = load_checkpoint(str(tmp_path / "c")).recogniser
    assert loaded.edges == edges
    tokens = torch.randn(2, 37, 128)
    found = loaded(tokens, loaded.ask(vocabulary)).scores.scores_BC
    assert torch.equal(found, recogniser(tokens, recogniser.ask(vocabulary)).scores.scores_BC)
    without = Recogniser(recogniser.backbone, recogniser.teacher, config, vocabulary).eval()
    without.load_state_dict(recogniser.state_dict())
    assert not torch.equal(found, without(tokens, without.ask(vocabulary)).scores.scores_BC)
