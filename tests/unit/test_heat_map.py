"""Where a label fits: from the pass that scores, on the image that the model saw."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sigrl_core.data import images
from sigrl_core.demo import toybox
from sigrl_core.inference.heat_map import draw, heat_map
from sigrl_core.inference.tagger import Tagger
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.scoring import local_scores, patch_fits
from tests.conftest import tagger_of

pytestmark = pytest.mark.unit


def test_rows_and_columns_by_hand() -> None:
    """Two rows of three patches, the best in the lower middle."""
    assert heat_map(np.array([1.0, 2, 1, 1, 5, 3]), (2, 3)).tolist() == [[0, 0.25, 0], [0, 1, 0.5]]
    assert heat_map(np.full(4, 7.0), (2, 2)).tolist() == [[0, 0], [0, 0]]


def test_drawn_where_it_is_hot() -> None:
    grey = np.full((40, 60, 3), 128, np.uint8)
    drawn = np.asarray(draw(np.array([[0, 0, 0], [0, 0, 1.0]]), grey)).astype(int)
    assert drawn.shape == (40, 60, 3)
    halves = drawn[:, :30].mean(), drawn[:20, 30:].mean(), drawn[20:, 30:].mean()
    assert halves[2] > 1.3 * max(halves[:2])
    assert drawn[39, 59].sum() == drawn.sum(2).max()


@pytest.mark.parametrize("reconstructs", [True, False])
def test_maps_are_of_the_patches_that_are_scored(reconstructs: bool) -> None:
    tagger = tagger_of(toybox.vocabulary(), reconstructs=reconstructs)
    jpegs = [image.jpeg for image in toybox.scenes("test", range(3), 48, 0)]
    vocabulary = Vocabulary.from_names(["red star", "sand", "blue ring"])
    results = tagger.tag([jpegs[0], b"broken", *jpegs[1:]], vocabulary, heat_maps=True)
    assert [len(tags.heat_maps) for tags in results] == [3, 0, 3, 3]
    tokens = tagger.encode_images(torch.from_numpy(np.stack([images.centre_crop_array(jpeg, 48) for jpeg in jpegs])))
    found, labels = tagger.predict(tokens, vocabulary), tagger.encode_labels(vocabulary).labels_CD
    with torch.no_grad():
        glob, patches = tagger.model.backbone.forward_head(tokens)
    assert glob.shape == (3, 128)
    assert torch.equal(found.patches_BPD, patches) != reconstructs
    fits = patch_fits(found.patches_BPD, labels)
    torch.testing.assert_close(fits.topk(16).values.mean(-1), local_scores(found.patches_BPD, labels, 16))
    for tags, fit_CP in zip((results[0], results[2], results[3]), fits, strict=True):
        for name, map_HW in zip(tags.labels, tags.heat_maps, strict=True):
            assert map_HW.shape == (6, 6)
            fit_P = fit_CP[vocabulary.index[name]].numpy()
            np.testing.assert_allclose(map_HW.ravel(), (fit_P - fit_P.min()) / np.ptp(fit_P), atol=1e-5)


def test_asking_for_maps_changes_no_score() -> None:
    tagger: Tagger = tagger_of(toybox.vocabulary())
    jpegs = [image.jpeg for image in toybox.scenes("test", range(2), 48, 0)]
    for tags, plain in zip(tagger.tag(jpegs, heat_maps=True), tagger.tag(jpegs), strict=True):
        assert (tags.labels, tags.scores) == (plain.labels, plain.scores)
        assert plain.heat_maps == []


def test_a_map_moves_with_the_image() -> None:
    """Patches go row by row: an untrained convolutional stem alone tells a dot's row from its column."""
    tagger = tagger_of(toybox.vocabulary(), reconstructs=False)

    def encoded(x: int, y: int) -> bytes:
        image = Image.new("RGB", (48, 48))
        image.paste((255, 255, 255), (x, y, x + 8, y + 8))
        image.save(stream := io.BytesIO(), "PNG")
        return stream.getvalue()

    maps = [tags.heat_maps[0] for tags in tagger.tag([encoded(40, 0), encoded(0, 40)], top_k=1, heat_maps=True)]
    assert not np.allclose(*maps)
