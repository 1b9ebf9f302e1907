"""A user's own label embeddings: reading, projection, training, checkpoints and tagging."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sigrl_core.config import BackboneConfig, GraphConfig, OptimConfig, RunConfig, ScoringConfig, TrainingConfig
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import VocabularyError
from sigrl_core.inference.tagger import Tagger
from sigrl_core.labels.embeddings import load_embeddings
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.checkpoint import load_checkpoint
from sigrl_core.training.state import Metrics, TrainingState
from sigrl_core.training.trainer import Trainer
from tests.conftest import tagger_of, vocabulary_of

pytestmark = pytest.mark.unit

ABC = vocabulary_of(["a", "b", "c"])


def saved(path: Path, array: np.ndarray) -> str:
    np.save(path, array, allow_pickle=True)
    return str(path)


def test_any_numbers_are_read(tmp_path: Path) -> None:
    rows = np.arange(1, 13).reshape(3, 4)
    for dtype in (np.float64, np.float16, np.int32):
        embeddings = load_embeddings(saved(tmp_path / "e.npy", rows.astype(dtype)), ABC)
        assert embeddings.dtype == np.float32
        assert np.array_equal(embeddings, rows)


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
def test_malformed_embeddings(array: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=message):
        load_embeddings(saved(tmp_path / "e.npy", array), ABC)


def test_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("hello")
    for path in (tmp_path / "text.npy", tmp_path / "gone.npy"):
        with pytest.raises(VocabularyError, match=r"cannot be read as .npy"):
            load_embeddings(str(path), ABC)


@pytest.fixture(scope="module")
def trained(toybox_shards: ShardFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Trains an epoch with embeddings of width 20, a random projection of CLIP's; returns checkpoint and embeddings."""
    folder = tmp_path_factory.mktemp("own")
    clip_VD = tagger_of(toybox_shards.vocabulary).encode_labels(toybox_shards.vocabulary).labels_CD.numpy()
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
        training=TrainingConfig(epochs=1, batch_size=8, augment="none", cache_features_in_memory=True),
    )
    experiment = Trainer(config, toybox_shards.uri)
    started = experiment.state.model.project.weight.detach().clone()

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        experiment.save(folder, metrics or {})

    experiment.fit(report)
    assert not torch.equal(experiment.state.model.project.weight, started)  # the projection is trained
    (folder / "own.npy").unlink()  # the checkpoint does not need it
    return folder / "checkpoint", own_VE.astype(np.float32)


def test_the_initial_projection_is_close_to_clip(toybox_shards: ShardFolder) -> None:
    """The embeddings are a random rotation of CLIP's, wide enough to separate all labels; the projection inverts it."""
    tagger = tagger_of(toybox_shards.vocabulary)
    clip_VD = tagger.encode_labels(toybox_shards.vocabulary).labels_CD
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(128, 128)))[0]).float()
    model = type(tagger.model).start(
        tagger.model.backbone, tagger.checkpoint.config, toybox_shards.vocabulary, None, 3 * clip_VD @ rotation
    )
    with torch.no_grad():
        labels_VD = model.project_labels(model.encode_labels(toybox_shards.vocabulary)).labels_CD
    assert (labels_VD * clip_VD).sum(1).min() > 0.99


def test_the_checkpoint_contains_its_embeddings(trained: tuple[Path, np.ndarray], toybox_shards: ShardFolder) -> None:
    checkpoint, own_VE = trained
    tagger = Tagger.load(str(checkpoint))
    jpegs = toybox_shards.read_shard(0)["image"].to_pylist()
    tags = tagger.tag(jpegs)
    assert all(len(each.labels) == 5 for each in tags)
    again = Tagger.load(str(checkpoint))
    again.encode_labels(toybox_shards.vocabulary, own_VE)
    assert again.tag(jpegs) == tags
    other = Tagger.load(str(checkpoint))
    other.encode_labels(toybox_shards.vocabulary, own_VE[::-1].copy())
    assert other.tag(jpegs) != tags


def test_other_labels_require_embeddings(trained: tuple[Path, np.ndarray], toybox_shards: ShardFolder) -> None:
    checkpoint, own_VE = trained
    tagger, strangers = Tagger.load(str(checkpoint)), Vocabulary.from_names(["red star", "martian"])
    with pytest.raises(VocabularyError, match="label 'martian': the model was trained with label embeddings of a file"):
        tagger.encode_labels(strangers)
    with pytest.raises(VocabularyError, match="label embeddings are 7 wide, the model was trained with 20"):
        tagger.encode_labels(strangers, np.ones((2, 7), np.float32))
    tagger.encode_labels(strangers, own_VE[:2])
    jpegs = toybox_shards.read_shard(0)["image"].to_pylist()
    assert all(len(tags.labels) == 2 for tags in tagger.tag(jpegs, strangers, heat_maps=True))


def test_a_model_without_own_embeddings_refuses_some() -> None:
    with pytest.raises(VocabularyError, match="trained with the text tower's; leave them out"):
        tagger_of(ABC).encode_labels(ABC, np.ones((3, 4), np.float32))


def test_the_original_clip_still_encodes_texts(trained: tuple[Path, np.ndarray]) -> None:
    model = load_checkpoint(str(trained[0])).model
    labels = model.vocabulary.labels[:2]
    texts = [label.texts(model.prompt_templates) for label in labels]
    label_set = model.encode_labels(Vocabulary(labels))
    torch.testing.assert_close(label_set.labels_CD, model.backbone.encode_text(texts))
