"""Label edges: counted in data, read from files, stored in checkpoints, and used by the label graph."""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sigrl_core.config import BackboneConfig, GraphConfig, RunConfig
from sigrl_core.errors import ConfigError, VocabularyError
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import load_checkpoint, save_checkpoint
from sigrl_core.model.label_graph import known_edges, nearest_edges
from sigrl_core.model.model import SigRLModel
from tests.conftest import vocabulary_of

pytestmark = pytest.mark.unit

NAMES = ["fork", "knife", "snow"]
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(
    lambda name: name == name.strip()
)


def rows_of(values: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.sampled_from(["source", "target", "weight", "label", "hears", "other"])
    return st.lists(values, max_size=4) | st.dictionaries(keys, values, max_size=4)


def test_cooccurrence_by_hand() -> None:
    """P(knife | fork) = 1/2: of three images with a fork, knife is known in two and present in one.
    P(fork | knife) = 1/1: of two images with a knife, fork is known in one and present in it."""
    states_NC = np.array([[1, 1, -1], [1, -1, -1], [1, 0, -1], [0, 1, -1], [-1, -1, 1]], np.int8)
    parts = [states_NC[:2], states_NC[2:]]
    edges = LabelEdges.cooccurrence(NAMES, parts, threshold=0.5, neighbour_weight=0.2)
    expected = {("knife", "fork"): 0.2, ("fork", "fork"): 0.8, ("fork", "knife"): 0.2, ("knife", "knife"): 0.8}
    assert edges.weights == {**expected, ("snow", "snow"): 1.0}
    assert ("knife", "fork") not in LabelEdges.cooccurrence(NAMES, parts, threshold=0.6, neighbour_weight=0.2).weights


def test_matrix_has_targets_as_rows() -> None:
    edges = LabelEdges({("knife", "fork"): 0.5, ("snow", "snow"): 1.0})
    assert edges.matrix(vocabulary_of(["knife", "moon", "fork"])).tolist() == [[0, 0, 0], [0, 0, 0], [0.5, 0, 0]]


def test_labels_without_known_edges_attend_to_the_nearest() -> None:
    torch.manual_seed(0)
    labels, config = torch.randn(3, 4), GraphConfig(kind="cooccurrence", neighbours=1)
    given = torch.tensor([[0.8, 0.2, 0], [0, 0, 0], [0, 0, 1.0]])
    assert torch.equal(known_edges(labels, given, config)[[0, 2]], given[[0, 2]])
    assert torch.equal(known_edges(labels, given, config)[1], nearest_edges(labels, None, config)[1])
    assert torch.equal(known_edges(labels, None, config), nearest_edges(labels, None, config))


@pytest.mark.parametrize("array", [True, False])
def test_a_file_and_back(array: bool, tmp_path: Path, capsys) -> None:
    path = tmp_path / "edges.json"
    lines = ['{"source": "knife", "target": "fork", "weight": 0.5}', '{"source": "fork", "target": "knife"}']
    path.write_text(f"[{','.join(lines)}]" if array else "\n".join(lines))
    edges = LabelEdges.load(str(path), vocabulary_of(NAMES))
    assert edges.weights == {("knife", "fork"): 0.5, ("fork", "knife"): 1.0}
    assert LabelEdges.parse(edges.to_json(), "again") == edges
    assert capsys.readouterr().err == ""


def test_a_file_of_version_0_1_0(tmp_path: Path, capsys) -> None:
    path = tmp_path / "edges.json"
    path.write_text('{"label": "fork", "hears": "knife", "weight": 0.5}\n{"label": "knife", "hears": "fork"}')
    edges = LabelEdges.load(str(path), vocabulary_of(NAMES))
    assert edges.weights == {("knife", "fork"): 0.5, ("fork", "knife"): 1.0}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'{path}: the keys "label" and "hears" are deprecated; write "target" and "source"')


@given(st.dictionaries(st.tuples(NAME, NAME), st.floats(1e-30, 1e30)).filter(len))
def test_both_forms_give_the_same_edges(weights: dict[tuple[str, str], float]) -> None:
    edges = LabelEdges(weights)
    assert LabelEdges.parse(edges.to_json(), "edges") == edges
    old = json.dumps(
        [{"label": target, "hears": source, "weight": weight} for (source, target), weight in weights.items()],
        ensure_ascii=False,
        indent=1,
    )
    assert LabelEdges.parse(old, "edges") == edges
    assert edges.hash == hashlib.sha256((old + "\n").encode()).hexdigest()
    vocabulary = vocabulary_of(list(dict.fromkeys(name for edge in weights for name in edge)))
    matrix = edges.matrix(vocabulary)
    assert np.array_equal(LabelEdges.parse(old, "edges").matrix(vocabulary), matrix)
    assert np.count_nonzero(matrix) == len(weights)
    for (source, target), weight in weights.items():
        assert matrix[vocabulary.index[target], vocabulary.index[source]] == np.float32(weight)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), rows_of, max_leaves=8))
def test_any_json_is_read_or_refused(value) -> None:
    """The parser raises no other error, and what it reads survives writing."""
    with suppress(VocabularyError):
        edges = LabelEdges.parse(json.dumps(value), "edges")
        assert LabelEdges.parse(edges.to_json(), "edges") == edges


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fork,knife", "not valid JSON"),
        ("", "no edges; write one per line"),
        ("[1]", r'row 1: found 1; expected \{"source": "knife"'),
        (
            '{"source": "knife", "target": "fork", "wieght": 1}',
            "row 1: unknown key 'wieght'; expected source, target, weight",
        ),
        ('{"source": "knife", "target": "fork", "weight": 0}', "weight is 0; expected a number above 0"),
        ('{"source": "knife", "target": "fork", "weight": NaN}', "weight is NaN"),
        (
            '{"source": "knife", "target": "fork"}\n{"label": "fork", "hears": "knife"}',
            "row 2: the edge from 'knife' to 'fork' is listed twice",
        ),
        ('{"source": "knife", "hears": "knife"}', "row 1: found .*; expected"),
        (
            '{"label": "fork", "hears": "knife", "source": "knife"}',
            "unknown key 'source'; expected hears, label, weight",
        ),
        ('{"source": "moon", "target": "fork"}', "'moon' is not in the vocabulary"),
        ('{"source": "knife", "target": "fork", "weight": 1' + "0" * 400 + "}", "weight is 1000.*; expected a number"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_malformed_edge_lists(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "edges").write_text(text)
    with pytest.raises(VocabularyError, match=message):
        LabelEdges.load(str(tmp_path / "edges"), vocabulary_of(NAMES))


def test_no_such_file() -> None:
    with pytest.raises(VocabularyError, match=r"nowhere: cannot be read .*; give graph.edges a file of edges"):
        LabelEdges.load("nowhere", vocabulary_of(NAMES))


def test_an_edge_file_requires_the_kind_listed() -> None:
    with pytest.raises(ConfigError, match=r"graph.edges is None; expected a file with graph.kind = listed"):
        GraphConfig(kind="listed")
    with pytest.raises(ConfigError, match=r"graph.edges is 'e'; expected"):
        GraphConfig(edges="e")


def test_a_checkpoint_contains_its_edges(tmp_path: Path) -> None:
    """A checkpoint scores as before where the edges file is gone, and not as it would without edges."""
    vocabulary = vocabulary_of(NAMES, ["moon"])
    edges = LabelEdges({("knife", "fork"): 1.0, ("fork", "knife"): 1.0, ("snow", "moon"): 2.0})
    config = RunConfig(
        backbone=BackboneConfig(name="toybox-vit", pretrained="random"),
        graph=GraphConfig(kind="listed", edges="gone.json", hidden=8, neighbours=1),
    )
    config = replace(config, reconstruction=replace(config.reconstruction, rms_normalise=True))
    model = SigRLModel.start(load_backbone(config.backbone), config, vocabulary, edges).eval()
    save_checkpoint(tmp_path / "c", model, config, {})
    loaded = load_checkpoint(str(tmp_path / "c")).model
    assert loaded.edges == edges
    tokens = torch.randn(2, 37, 128)
    scores = loaded(tokens, loaded.encode_labels(vocabulary)).scores.scores_BC
    assert torch.equal(scores, model(tokens, model.encode_labels(vocabulary)).scores.scores_BC)
    without = SigRLModel(model.backbone, model.teacher, config, vocabulary).eval()
    without.load_state_dict(model.state_dict())
    assert not torch.equal(scores, without(tokens, without.encode_labels(vocabulary)).scores.scores_BC)


def test_a_checkpoint_of_version_0_1_0_has_its_edges(tmp_path: Path, monkeypatch, capsys) -> None:
    vocabulary, edges = vocabulary_of(NAMES), LabelEdges({("knife", "fork"): 0.5})
    config = RunConfig(
        backbone=BackboneConfig(name="toybox-vit", pretrained="random"),
        graph=GraphConfig(kind="listed", edges="gone.json", hidden=8, neighbours=1),
    )
    model = SigRLModel.start(load_backbone(config.backbone), config, vocabulary, edges)
    old = '[\n {\n  "label": "fork",\n  "hears": "knife",\n  "weight": 0.5\n }\n]\n'
    with monkeypatch.context() as patch:
        patch.setattr(LabelEdges, "to_json", lambda _: old)
        save_checkpoint(tmp_path / "c", model, config, {})
    assert (tmp_path / "c/label_edges.json").read_text() == old
    assert load_checkpoint(str(tmp_path / "c")).model.edges == edges
    assert capsys.readouterr().err == ""
