"""A user's own label embeddings: read, projected, trained, kept, and asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sigrl_core.checkpoint import load_checkpoint
from sigrl_core.config import BackboneConfig, GraphConfig, OptimConfig, RunConfig, ScoringConfig, TrainingConfig
from sigrl_core.errors import VocabularyError
from sigrl_core.experiment import Experiment
from sigrl_core.label_embeddings import load_embeddings
from sigrl_core.records import ShardFolder
from sigrl_core.tagger import Tagger
from sigrl_core.training import Metrics, TrainingState
from sigrl_core.vocabulary import Vocabulary
from tests.conftest import tagger_of, vocabulary_of

pytestmark = pytest.mark.unit

ABC = vocabulary_of(["a", "b", "c"])


def saved(path: Path, array: np.ndarray) -> str:
    np.save(path, array, allow_pickle=True)
    return str(path)


def test_any_numbers_are_read(tmp_path: Path) -> None:
    rows = np.arange(1, 13).reshape(3, 4)
    for dtype in (np.float64, np.float16, np.int32):
        found = load_embeddings(saved(tmp_path / "e.npy", rows.astype(dtype)), ABC)
        assert found.dtype == np.float32
        assert np.array_equal(found, rows)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 4)), "found 2 rows; expected an array of 3 rows of numbers, one for each label in order"),
        (np.ones(3), r"found float64 of shape \(3,\)"),
        (np.array([["x"]] * 3), "found <U1"),
        (np.array([[1.0], [np.nan], [1.0]]), "the row of label 'b' is zero or not finite"),
        (np.array([[1.0], [1.0], [0.0]]), "the row of label 'c' is zero"),
        (np.array([{"a": 1}, 2, 3], object), "cannot be read as .npy .*allow_pickle=False"),
    ],
)
def test_what_is_no_embedding(array: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=message):
        load_embeddings(saved(tmp_path / "e.npy", array), ABC)


def test_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("hello")
    for path in (tmp_path / "text.npy", tmp_path / "gone.npy"):
        with pytest.raises(VocabularyError, match=r"cannot be read as .npy"):
            load_embeddings(str(path), ABC)


@pytest.fixture(scope="module")
def trained(toybox_shards: ShardFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A checkpoint trained for an epoch on embeddings of width 20, a random map of CLIP's, and these embeddings."""
    folder = tmp_path_factory.mktemp("own")
    clip_VD = tagger_of(toybox_shards.vocabulary).ask(toybox_shards.vocabulary).labels_CD.numpy()
    own_VE = clip_VD @ np.random.default_rng(0).normal(size=(clip_VD.shape[1], 20))
    config = RunConfig(
        backbone=BackboneConfig(
            name="toybox-vit",
            pretrained="random",
            frozen_blocks=2,
            label_embeddings=saved(folder / "own.npy", own_VE),
        ),
        graph=GraphConfig(hidden=8, heads=2),
        scoring=ScoringConfig(learn_scale=True, initial_scale=20.0),
        optim=OptimConfig(lr=1e-2, warmup_epochs=0.0),
        training=TrainingConfig(epochs=1, batch_size=8, augment="none", hold_features=True),
    )
    experiment = Experiment(config, toybox_shards.uri)
    started = experiment.state.recogniser.project.weight.detach().clone()

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        experiment.save(folder, metrics or {})

    experiment.fit(report)
    assert not torch.equal(experiment.state.recogniser.project.weight, started)  # it learns
    (folder / "own.npy").unlink()  # and is not needed any more
    return folder / "checkpoint", own_VE.astype(np.float32)


def test_it_starts_close_to_what_clip_says(toybox_shards: ShardFolder) -> None:
    """Enough numbers a label to tell all apart, turned at random: the projection turns them back."""
    tagger = tagger_of(toybox_shards.vocabulary)
    clip_VD = tagger.ask(toybox_shards.vocabulary).labels_CD
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(128, 128)))[0]).float()
    recogniser = type(tagger.recogniser).start(
        tagger.recogniser.backbone, tagger.checkpoint.config, toybox_shards.vocabulary, None, 3 * clip_VD @ turn
    )
    with torch.no_grad():
        found = recogniser.embedded(recogniser.ask(toybox_shards.vocabulary)).labels_CD
    assert (found * clip_VD).sum(1).min() > 0.99


def test_the_checkpoint_knows_its_labels(trained: tuple[Path, np.ndarray], toybox_shards: ShardFolder) -> None:
    checkpoint, own_VE = trained
    tagger = Tagger.load(str(checkpoint))
    jpegs = toybox_shards.read_shard(0)["image"].to_pylist()
    told = tagger.tag(jpegs)
    assert all(len(tags.labels) == 5 for tags in told)
    again = Tagger.load(str(checkpoint))
    again.ask(toybox_shards.vocabulary, own_VE)
    assert again.tag(jpegs) == told
    other = Tagger.load(str(checkpoint))
    other.ask(toybox_shards.vocabulary, own_VE[::-1].copy())
    assert other.tag(jpegs) != told


def test_other_labels_bring_their_own(trained: tuple[Path, np.ndarray], toybox_shards: ShardFolder) -> None:
    checkpoint, own_VE = trained
    tagger, strangers = Tagger.load(str(checkpoint)), Vocabulary.of(["red star", "martian"])
    with pytest.raises(VocabularyError, match="label 'martian': the model was trained with label embeddings of a file"):
        tagger.ask(strangers)
    with pytest.raises(VocabularyError, match="label embeddings are 7 wide, the model was trained with 20"):
        tagger.ask(strangers, np.ones((2, 7), np.float32))
    tagger.ask(strangers, own_VE[:2])
    jpegs = toybox_shards.read_shard(0)["image"].to_pylist()
    assert all(len(tags.labels) == 2 for tags in tagger.tag(jpegs, strangers, heat_maps=True))


def test_a_model_of_the_text_tower_takes_none() -> None:
    with pytest.raises(VocabularyError, match="trained with the text tower's; leave them away"):
        tagger_of(ABC).ask(ABC, np.ones((3, 4), np.float32))


def test_the_clip_it_started_from_still_reads_texts(trained: tuple[Path, np.ndarray]) -> None:
    recogniser = load_checkpoint(str(trained[0])).recogniser
    labels = recogniser.vocabulary.labels[:2]
    texts = [label.texts(recogniser.prompt_templates) for label in labels]
    asked = recogniser.ask(Vocabulary(labels))
    torch.testing.assert_close(asked.labels_CD, recogniser.backbone.encode_text(texts))
