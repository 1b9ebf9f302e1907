"""Evaluation: every protocol asks what it says, and the numbers are those of the tagger's own scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import normalize

from sigrl_core.data import images
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import CheckpointError, ShardError
from sigrl_core.evaluation.evaluator import Evaluation, Evaluator, evaluate
from sigrl_core.evaluation.inputs import iterate_batches
from sigrl_core.evaluation.protocols import PROTOCOLS
from sigrl_core.inference.tagger import Tagger
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.training.validation import ValidationTask, validate
from tests.conftest import random_states, tagger_of, vocabulary_of, write_shards

pytestmark = pytest.mark.unit

AT_K = {f"{measure}@{k}" for measure in ("f1", "p", "r") for k in (3, 5)}


@pytest.fixture(scope="module")
def tagger(toybox_shards: ShardFolder) -> Tagger:
    return tagger_of(toybox_shards.vocabulary)


@pytest.fixture(scope="module")
def other(toybox_shards: ShardFolder) -> Tagger:
    """Another checkpoint, on another CLIP."""
    return tagger_of(toybox_shards.vocabulary, reconstructs=False, seed=1)


@pytest.fixture(scope="module")
def measured(toybox_shards: ShardFolder, tagger: Tagger, other: Tagger) -> Evaluation:
    return evaluate(Evaluator(tagger, {"mkt_style": other}), toybox_shards)


def row(evaluation: Evaluation, name: str) -> dict:
    return next(row for row in evaluation.metrics["rows"] if row["name"] == name)


def micro(tags: list[set[str]], truth: list[set[str]]) -> tuple[float, float, float]:
    """Precision, recall and F1 of all images together, counted in sets."""
    hits = sum(len(found & true) for found, true in zip(tags, truth, strict=True))
    precision, recall = hits / sum(map(len, tags)), hits / sum(map(len, truth))
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def test_rows_and_keys(measured: Evaluation, toybox_shards: ShardFolder, tagger: Tagger) -> None:
    rows = measured.metrics["rows"]
    assert [row["name"] for row in rows] == [
        "sigrl",
        "sigrl_independent",
        "clip_global",
        "clip_global_local",
        "mkt_style",
    ]
    for row in rows:
        assert set(row) == {"name", "zsl", "zsl_asked_all", "gzsl", "seen"}
        assert all(set(row[protocol]) == {"map", *AT_K} for protocol in set(row) - {"name"})
    assert measured.metrics["images"] == len(measured.uris) == 40
    assert measured.metrics["labels"] == {"seen": 50, "unseen": 16}
    assert measured.metrics["vocabulary_hash"] == toybox_shards.vocabulary.hash
    assert measured.metrics["data"] == toybox_shards.uri
    assert measured.metrics["checkpoints"] == {"sigrl": "runs/a & b", "mkt_style": "runs/a & b"}
    assert [row["name"] for row in evaluate(Evaluator(tagger, {}), toybox_shards).metrics["rows"]] == [
        "sigrl",
        "sigrl_independent",
        "clip_global",
        "clip_global_local",
    ]


@pytest.mark.parametrize("protocol", ["zsl", "gzsl", "seen"])
@pytest.mark.parametrize("name", ["sigrl", "mkt_style"])
def test_the_numbers_are_those_of_the_tagger(
    measured: Evaluation, toybox_shards: ShardFolder, tagger: Tagger, other: Tagger, name: str, protocol: str
) -> None:
    asks = tagger if name == "sigrl" else other
    vocabulary = toybox_shards.vocabulary
    kinds = {"zsl": ["unseen"], "gzsl": ["seen", "unseen"], "seen": ["seen"]}[protocol]
    asked = Vocabulary(tuple(label for label in vocabulary.labels if label.group in kinds))
    rows = ShardDataset(toybox_shards)
    read = [rows.read(number) for number in range(40)]
    names = np.array(vocabulary.names)
    truth = [set(names[np.frombuffer(states, np.int8) > 0]) & set(asked.names) for _, _, states in read]
    tagged = [asks.tag([jpeg], asked, top_k=len(asked))[0] for _, jpeg, _ in read]
    found = row(measured, name)[protocol]
    for k in (3, 5):
        precision, recall, f1 = micro([set(tags.labels[:k]) for tags in tagged], truth)
        assert (found[f"p@{k}"], found[f"r@{k}"], found[f"f1@{k}"]) == pytest.approx((precision, recall, f1))
    score_of = [dict(zip(tags.labels, tags.scores, strict=True)) for tags in tagged]
    precisions = [
        average_precision_score([label in true for true in truth], [scores[label] for scores in score_of])
        for label in asked.names
        if any(label in true for true in truth)
    ]
    assert found["map"] == pytest.approx(np.mean(precisions), rel=1e-5)


def test_unseen_labels_among_all(measured: Evaluation, toybox_shards: ShardFolder) -> None:
    unseen = toybox_shards.vocabulary.positions("unseen")
    for name, by in measured.scores.items():
        np.testing.assert_array_equal(by["zsl_asked_all"], by["gzsl"][:, unseen])
        assert by["zsl"].shape == by["zsl_asked_all"].shape == (40, 16)
        depends_on_what_was_asked = not np.allclose(by["zsl"], by["zsl_asked_all"])
        assert depends_on_what_was_asked == (name not in ("clip_global", "sigrl_independent"))
    scores, truth = measured.scores["sigrl"]["gzsl"][:, unseen], measured.states_NC[:, unseen] > 0
    expected = [average_precision_score(truth[:, c], scores[:, c]) for c in range(16) if truth[:, c].any()]
    assert row(measured, "sigrl")["zsl_asked_all"]["map"] == pytest.approx(np.mean(expected))


def test_zero_shot_clip_is_the_backbone_alone(measured: Evaluation, toybox_shards: ShardFolder, tagger: Tagger) -> None:
    rows, backbone = ShardDataset(toybox_shards), tagger.model.backbone
    pixels = torch.from_numpy(np.stack([images.centre_crop_array(rows.read(n)[1], 48) for n in range(40)]))
    labels_CD = backbone.encode_text([[f"a photo of a {name}."] for name in toybox_shards.vocabulary.names])
    with torch.no_grad():
        cls_BD, patches_BPD = backbone(pixels)
        cosine_BC = normalize(cls_BD, dim=-1) @ labels_CD.T
        best_BC = (patches_BPD @ labels_CD.T).sort(dim=1, descending=True).values[:, :16].mean(1)
        both_BC = (normalize(best_BC, dim=-1) + normalize(cosine_BC, dim=-1)) / 2
    found = measured.scores["clip_global"]["gzsl"], measured.scores["clip_global_local"]["gzsl"]
    np.testing.assert_allclose(found[0], cosine_BC.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[1], both_BC.numpy(), rtol=0, atol=1e-5)


def test_label_by_label(measured: Evaluation) -> None:
    for name, by in measured.scores.items():
        found = measured.metrics["per_label"][name]
        assert list(found) == measured.vocabulary.names
        for c, label in enumerate(measured.vocabulary.names):
            truth = measured.states_NC[:, c] > 0
            expected = average_precision_score(truth, by["gzsl"][:, c]) if truth.any() else 0.0
            assert found[label] == pytest.approx(expected)


def test_unknown_states_take_no_part(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(["red", "green"], ["blue"])
    states_NC = random_states(12, 3)
    states_NC[:5, 0] = 0
    tagger = tagger_of(vocabulary)
    evaluation = evaluate(Evaluator(tagger, {}), write_shards(tmp_path / "shards", vocabulary, states_NC))
    known = states_NC[:, 0] != 0
    expected = average_precision_score(states_NC[known, 0] > 0, evaluation.scores["sigrl"]["gzsl"][known, 0])
    assert evaluation.metrics["per_label"]["sigrl"]["red"] == pytest.approx(expected)


def test_without_unseen_labels(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(["red", "green", "blue"])
    folder = write_shards(tmp_path / "shards", vocabulary, random_states(6, 3))
    rows = evaluate(Evaluator(tagger_of(vocabulary), {}), folder).metrics["rows"]
    assert [set(row) for row in rows] == [{"name", "gzsl", "seen"}] * 4
    assert all(row["gzsl"] == row["seen"] for row in rows)


def test_without_seen_labels(tmp_path: Path) -> None:
    vocabulary = vocabulary_of([], ["red", "green", "blue"])
    folder = write_shards(tmp_path / "shards", vocabulary, random_states(6, 3))
    rows = evaluate(Evaluator(tagger_of(vocabulary), {}), folder).metrics["rows"]
    assert [set(row) for row in rows] == [{"name", "gzsl", "zsl", "zsl_asked_all"}] * 4


def test_protocols(toybox_shards: ShardFolder) -> None:
    vocabulary = toybox_shards.vocabulary
    for protocol in ("zsl", "gzsl", "seen"):
        scored = PROTOCOLS[protocol].scored_vocabulary(vocabulary)
        assert scored.names == [vocabulary.names[c] for c in PROTOCOLS[protocol].evaluated_columns(vocabulary)]
    all_labels, unseen = PROTOCOLS["zsl_asked_all"], PROTOCOLS["zsl"]
    assert all_labels.scored_vocabulary(vocabulary) == vocabulary
    assert all_labels.evaluated_columns(vocabulary) == unseen.evaluated_columns(vocabulary)


def test_progress_counts_every_image_once(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(["red", "green"])
    folder = write_shards(tmp_path / "shards", vocabulary, random_states(70, 2), rows_per_shard=33)
    progress: list[int] = []
    evaluation = evaluate(Evaluator(tagger_of(vocabulary), {}), folder, progress.append)
    assert progress == [64, 6]
    assert evaluation.uris == [f"{number:03d}.jpg" for number in range(70)]
    np.testing.assert_array_equal(evaluation.states_NC, random_states(70, 2))


def test_other_labels_are_refused(tmp_path: Path, tagger: Tagger) -> None:
    vocabulary = vocabulary_of(["red", "green"])
    folder = write_shards(tmp_path / "shards", vocabulary, random_states(3, 2))
    expected = f"{vocabulary.hash[:8]} .2 labels., runs/a & b expects {tagger.vocabulary.hash[:8]} .66 labels."
    with pytest.raises(ShardError, match=expected) as caught:
        evaluate(Evaluator(tagger, {}), folder)
    assert folder.uri in str(caught.value)
    with pytest.raises(CheckpointError, match=r"\(mkt_style\): vocabulary .* compare checkpoints of one vocabulary"):
        evaluate(Evaluator(tagger_of(vocabulary), {"mkt_style": tagger}), folder)


def test_nothing_to_measure(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(["red", "green"])
    folder = write_shards(tmp_path / "shards", vocabulary, np.zeros((0, 2), np.int8))
    with pytest.raises(ShardError, match="no images to evaluate"):
        evaluate(Evaluator(tagger_of(vocabulary), {}), folder)


def test_validation_while_training(measured: Evaluation, toybox_shards: ShardFolder, tagger: Tagger) -> None:
    seen = toybox_shards.vocabulary.positions("seen")
    asked = tagger.encode_labels(toybox_shards.vocabulary.subset("seen"))
    everything = toybox_shards.vocabulary
    tasks = {
        "": ValidationTask(asked, seen),
        "gzsl.": ValidationTask(tagger.encode_labels(everything), range(len(everything))),
    }
    found = validate(tagger.model, iterate_batches(ShardDataset(toybox_shards), 48), tasks)
    assert found == {
        "validation/map": pytest.approx(row(measured, "sigrl")["seen"]["map"]),
        "validation/gzsl.map": pytest.approx(row(measured, "sigrl")["gzsl"]["map"]),
    }
    assert validate(tagger.model, [], tasks) == {}
