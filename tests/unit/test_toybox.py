"""The built-in corpus: labels and captions are true, and a scene depends on its index, subset and seed only."""

import io

import numpy as np
import pytest
from PIL import Image

from sigrl_core.demo import toybox
from sigrl_core.demo.toybox import BACKGROUNDS, COLOURS, SHAPES, SUBSETS, TEXTURES, UNSEEN, draw_scene, scenes

pytestmark = pytest.mark.unit

NAMES = toybox.vocabulary().names
COUNT = 150


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[toybox.Scene]]:
    return {subset: list(scenes(subset, range(COUNT), size=48, seed=0)) for subset in SUBSETS}


def pixels_of(shown: toybox.Scene) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shown.jpeg))).astype(int)


def objects_of(shown: toybox.Scene) -> list[str]:
    """Returns the labels of a colour and a shape; each object has one."""
    return [label for label in shown.labels if label.split()[0] in COLOURS]


def test_the_labels() -> None:
    vocabulary = toybox.vocabulary()
    assert len(vocabulary) == len(set(vocabulary.names)) == 66
    assert len(vocabulary.subset("seen")) == 50
    assert sorted(vocabulary.subset("unseen").names) == sorted(UNSEEN)
    assert len(UNSEEN) == 16
    assert toybox.vocabulary().hash == vocabulary.hash


def test_every_word_of_an_unseen_label_occurs_in_several_seen_ones() -> None:
    seen = toybox.vocabulary().subset("seen").names
    words = [word for label in seen for word in label.split()]
    for label in UNSEEN:
        assert label not in seen
        for word in label.split():
            assert words.count(word) >= 3, (label, word)


def test_a_scene_does_not_depend_on_the_others(drawn: dict[str, list[toybox.Scene]]) -> None:
    for subset in SUBSETS:
        assert list(scenes(subset, [7, 3], size=48, seed=0)) == [drawn[subset][7], drawn[subset][3]]
        assert draw_scene(subset, 9, size=48, seed=0) == drawn[subset][9]
        assert list(scenes(subset, [], size=48, seed=0)) == []


def test_nothing_unseen_is_in_labelled_images(drawn: dict[str, list[toybox.Scene]]) -> None:
    shown = {subset: {label for one in drawn[subset] for label in one.labels} for subset in SUBSETS}
    assert not shown["labelled"] & set(UNSEEN)
    assert len(shown["captioned"] & set(UNSEEN)) > 10
    assert len(shown["test"] & set(UNSEEN)) > 10


def test_subsets_indices_and_seeds_differ(drawn: dict[str, list[toybox.Scene]]) -> None:
    jpegs = [shown.jpeg for subset in SUBSETS for shown in drawn[subset]]
    jpegs += [draw_scene("test", number, size=48, seed=1).jpeg for number in range(10)]
    assert len(set(jpegs)) == len(jpegs)


def test_images_are_jpegs_of_the_requested_size() -> None:
    for size in (32, 48, 200):
        image = Image.open(io.BytesIO(draw_scene("test", 0, size=size, seed=0).jpeg))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))
        image.load()


def test_number_of_objects(drawn: dict[str, list[toybox.Scene]]) -> None:
    for subset in ("labelled", "test"):
        counts = [len(objects_of(shown)) for shown in drawn[subset]]
        assert max(counts) == 4
        assert min(counts) >= 1  # two objects of one colour and shape are one label
        assert np.mean([count >= 2 for count in counts]) > 0.9
    single = [len(objects_of(shown)) == 1 for shown in drawn["captioned"]]
    assert 0.3 < np.mean(single) < 0.97


def test_labels_are_of_the_vocabulary_and_fit_together(drawn: dict[str, list[toybox.Scene]]) -> None:
    for subset in SUBSETS:
        for shown in drawn[subset]:
            assert set(shown.labels) <= set(NAMES)
            assert len(shown.labels) == len(set(shown.labels))
            assert len(set(shown.labels) & set(BACKGROUNDS)) == 1
            shapes = {label.split()[1] for label in objects_of(shown)}
            textured = [label for label in shown.labels if label.split()[0] in TEXTURES]
            assert {label.split()[1] for label in textured} <= shapes
    occurring = {label for shown in drawn["test"] for label in shown.labels}
    assert len(occurring) >= 60
    assert len(occurring & set(UNSEEN)) >= 14


def test_captions_are_true(drawn: dict[str, list[toybox.Scene]]) -> None:
    for shown in drawn["captioned"]:
        words = {word for label in shown.labels for word in label.split()}
        objects, _, place = shown.caption.partition(" on ")
        assert place in ("", *set(shown.labels) & set(BACKGROUNDS))
        for phrase in objects.split(" and "):
            named = phrase.removeprefix("a ")
            assert named in shown.labels or named in words & set(SHAPES), shown
    captions = [shown.caption for shown in drawn["captioned"]]
    assert len(set(captions)) > 60
    assert any(label in caption for caption in captions for label in UNSEEN)  # as in the captions of the web


def test_colours_of_labels_are_visible(drawn: dict[str, list[toybox.Scene]]) -> None:
    shown = [scene for subset in SUBSETS for scene in drawn[subset]]
    for colour, rgb in COLOURS.items():
        close = [(np.abs(pixels_of(p) - rgb).max(-1) < 45).mean() for p in shown]
        labelled = np.array([any(label.startswith(colour) for label in p.labels) for p in shown])
        assert np.mean(np.array(close)[labelled]) > 3 * np.mean(np.array(close)[~labelled]), colour
        assert np.mean(np.array(close)[labelled] > 0.005) > 0.9, colour


def test_backgrounds_of_labels_are_visible(drawn: dict[str, list[toybox.Scene]]) -> None:
    """Each background has its own colour in the corners, which objects rarely cover."""
    shown = [scene for subset in SUBSETS for scene in drawn[subset]]
    corners = np.array([np.median(pixels_of(p)[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0) for p in shown])
    truth = np.array([next(BACKGROUNDS.index(label) for label in p.labels if label in BACKGROUNDS) for p in shown])
    means = np.stack([np.median(corners[truth == b], axis=0) for b in range(len(BACKGROUNDS))])
    guessed = np.linalg.norm(corners[:, None] - means, axis=-1).argmin(1)
    assert np.mean(guessed == truth) > 0.9
