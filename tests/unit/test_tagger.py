"""The tagger: what one image gets does not depend on its neighbours in the batch, only on the vocabulary asked."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sigrl_core.config import BackboneConfig
from sigrl_core.data import images
from sigrl_core.demo import toybox
from sigrl_core.inference.tagger import Tagger, Tags, top_tags
from sigrl_core.labels.vocabulary import Label, Vocabulary
from sigrl_core.model.model import SigRLModel
from tests.conftest import tagger_of

pytestmark = pytest.mark.unit

VOCABULARY = toybox.vocabulary()


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return tagger_of(VOCABULARY)


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return [image.jpeg for image in toybox.scenes("test", range(9), size=48, seed=0)]


def assert_same(found: Tags, expected: Tags) -> None:
    assert found.labels == expected.labels
    assert found.error == expected.error
    assert found.scores == pytest.approx(expected.scores, abs=1e-5)


def scores_of(tags: Tags) -> dict[str, float]:
    return dict(zip(tags.labels, tags.scores, strict=True))


def test_a_batch_gives_what_single_images_give(tagger: Tagger, jpegs: list[bytes]) -> None:
    together = tagger.tag(jpegs)
    for jpeg, found in zip(jpegs, together, strict=True):
        assert_same(found, tagger.tag([jpeg])[0])
        assert len(found.labels) == 5
        assert found.scores == sorted(found.scores, reverse=True)
    assert len({tuple(tags.scores) for tags in together}) == 9
    assert tagger.tag([]) == []


def test_tags_are_the_best_scores(tagger: Tagger, jpegs: list[bytes]) -> None:
    pixels = torch.from_numpy(np.stack([images.centre_crop_array(jpeg, 48) for jpeg in jpegs]))
    scores_BC = tagger.score(tagger.encode_images(pixels), VOCABULARY)
    assert scores_BC.shape == (9, 66)
    for scores_C, found in zip(scores_BC, tagger.tag(jpegs, top_k=3), strict=True):
        ranked = sorted(zip(scores_C.tolist(), VOCABULARY.names, strict=True), reverse=True)[:3]
        assert found.labels == [name for _, name in ranked]
        assert found.scores == [score for score, _ in ranked]


def test_unreadable_images_get_reasons_and_disturb_no_others(tagger: Tagger, jpegs: list[bytes]) -> None:
    broken = {0: (b"", "empty"), 2: (b"this is text", "not_an_image"), 5: (jpegs[5][:-200], "truncated")}
    files = [broken[i][0] if i in broken else jpeg for i, jpeg in enumerate(jpegs)]
    found = tagger.tag(files)
    for i, expected in enumerate(tagger.tag(jpegs)):
        if i in broken:
            assert found[i] == Tags(labels=[], scores=[], error=broken[i][1], detail=found[i].detail)
            assert found[i].detail
            assert found[i].error in images.REASONS
        else:
            assert_same(found[i], expected)
    assert [tags.error for tags in tagger.tag([b"", b"text"])] == ["empty", "not_an_image"]


def test_images_of_any_size_and_mode(tagger: Tagger, make_image, encoded) -> None:
    image = make_image(3, 200, 90)
    png = encoded(image, "PNG")
    expected = tagger.tag([png])[0]
    see_through = image.convert("RGBA")
    see_through.putalpha(0)
    found = tagger.tag([image, image.convert("L"), see_through, image.resize((1, 1)), image.convert("P")])
    assert_same(found[0], expected)
    assert_same(found[1], tagger.tag([encoded(image.convert("L"), "PNG")])[0])
    assert_same(found[2], tagger.tag([Image.new("RGB", (200, 90), "white")])[0])
    assert [len(tags.labels) for tags in found] == [5] * 5
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image, "JPEG", exif=exif)
    assert_same(tagger.tag([Image.open(io.BytesIO(turned))])[0], tagger.tag([turned])[0])


def test_more_tags_than_labels(tagger: Tagger, jpegs: list[bytes]) -> None:
    few = Vocabulary.from_names(["red star", "sand"])
    assert sorted(tagger.tag(jpegs[:1], few, top_k=50)[0].labels) == ["red star", "sand"]
    assert sorted(tagger.tag(jpegs[:1], top_k=1000)[0].labels) == sorted(VOCABULARY.names)


def test_any_words_may_be_asked(tagger: Tagger, jpegs: list[bytes]) -> None:
    asked = Vocabulary((Label(name="zebra"), Label(name="Fußgängerübergang", group="unseen"), Label(name="red star")))
    for found in tagger.tag(jpegs, asked):
        assert sorted(found.labels) == sorted(asked.names)
        assert np.isfinite(found.scores).all()
    one = tagger.tag(jpegs[:1], Vocabulary.from_names(["sand"]))[0]
    assert one.labels == ["sand"]
    assert abs(one.scores[0]) == pytest.approx(1)  # the norms run over the labels asked
    assert tagger.vocabulary == VOCABULARY


def test_the_label_graph_of_a_vocabulary_is_made_once(tagger: Tagger, jpegs: list[bytes]) -> None:
    asked, made = Vocabulary.from_names(["martian", "red star", "sand"]), []
    hook = tagger.model.head.graph.register_forward_hook(lambda *_: made.append(1))
    tokens = tagger.encode_images(torch.from_numpy(np.stack([images.centre_crop_array(jpeg, 48) for jpeg in jpegs])))
    found = [tagger.score(tokens, asked) for _ in range(3)]
    assert len(made) == 1
    hook.remove()
    with torch.no_grad():
        expected = tagger.model(tokens, tagger.model.encode_labels(asked)).scores.scores_BC
    assert all(np.array_equal(each, expected.numpy()) for each in found)


def test_the_order_of_labels_permutes_scores(tagger: Tagger, jpegs: list[bytes]) -> None:
    order = np.random.default_rng(0).permutation(66)
    shuffled = Vocabulary(tuple(VOCABULARY.labels[c] for c in order))
    for found, expected in zip(tagger.tag(jpegs, shuffled, top_k=66), tagger.tag(jpegs, top_k=66), strict=True):
        assert scores_of(found) == pytest.approx(scores_of(expected), abs=1e-5)
    tokens = tagger.encode_images(torch.from_numpy(np.stack([images.centre_crop_array(jpegs[0], 48)])))
    expected_BC = tagger.score(tokens, VOCABULARY)[:, order]
    np.testing.assert_allclose(tagger.score(tokens, shuffled), expected_BC, rtol=0, atol=1e-5)


def test_prompts_of_labels_and_the_checkpoints_templates(tagger: Tagger) -> None:
    backbone = tagger.model.backbone
    vocabulary = Vocabulary((Label(name="x", prompts=("a red star", "a star")), Label(name="sand", synonyms=("dune",))))
    expected = backbone.encode_text([["a red star", "a star"], ["my sand!", "sand", "my dune!", "dune"]])
    config = replace(tagger.checkpoint.config, backbone=BackboneConfig(prompt_templates=("my {}!", "{}")))
    asked = SigRLModel.start(backbone, config, VOCABULARY).encode_labels(vocabulary)
    assert torch.equal(asked.labels_CD, expected)
    assert asked.trained_C is not None
    assert asked.trained_C.tolist() == [-1, VOCABULARY.subset("seen").index["sand"]]
    assert not torch.equal(
        tagger.encode_labels(vocabulary).labels_CD, tagger.encode_labels(Vocabulary.from_names(["x", "sand"])).labels_CD
    )


def test_equal_scores_keep_the_order_of_the_vocabulary() -> None:
    vocabulary = Vocabulary.from_names(["a", "b", "c", "d"])
    scores_C = np.array([0.5, 0.7, 0.5, 0.7], np.float32)
    assert top_tags(scores_C, vocabulary, 3).labels == ["b", "d", "a"]
    many = Vocabulary.from_names([f"label {c}" for c in range(200)])
    scores_C = np.random.default_rng(0).choice(np.array([0.25, 0.5], np.float32), 200)
    expected = [many.names[c] for value in (0.5, 0.25) for c in np.flatnonzero(scores_C == value)]
    assert top_tags(scores_C, many, 150).labels == expected[:150]


def test_tagging_learns_nothing(tagger: Tagger, jpegs: list[bytes]) -> None:
    before = {name: value.clone() for name, value in tagger.model.state_dict().items()}
    first = tagger.tag(jpegs)
    assert tagger.tag(jpegs) == first
    assert not tagger.model.training
    assert all(torch.equal(value, before[name]) for name, value in tagger.model.state_dict().items())


def test_half_precision_and_embeddings(tagger: Tagger, jpegs: list[bytes]) -> None:
    half = Tagger(tagger.checkpoint, precision="bf16")
    every = len(VOCABULARY)
    exact, rough = (each.tag(jpegs, top_k=every, embeddings=True) for each in (tagger, half))
    for one, other in zip(exact, rough, strict=True):
        scores, near = scores_of(one), scores_of(other)
        assert max(abs(scores[name] - near[name]) for name in scores) < 0.05 * max(map(abs, scores.values()))
        assert scores != near
        assert one.embedding_D is not None
        assert other.embedding_D is not None
        assert np.linalg.norm(one.embedding_D) == pytest.approx(1, abs=1e-5)
        assert one.embedding_D @ other.embedding_D > 0.999
    assert tagger.tag(jpegs)[0].embedding_D is None
