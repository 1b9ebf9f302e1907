"""An image gives a model the same pixels by every path: exactly from the file, within a bound by way of shards.

The bound is the one that docs/decisions.md states for the default `short_side`, `quality` and `chroma`.
"""

import dataclasses
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from sigrl_core.config import (
    CacheFeaturesConfig,
    CalibrateConfig,
    EvaluateConfig,
    PreprocessConfig,
    SearchConfig,
    ServeConfig,
    TagConfig,
)
from sigrl_core.config.presets import get_preset
from sigrl_core.corpora.listing import ListedImage
from sigrl_core.data import images
from sigrl_core.data.dataset import ShardDataset, read_batch
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ShardError
from sigrl_core.evaluation.calibrate import calibrate
from sigrl_core.inference.batch import load_images
from sigrl_core.inference.tagger import Tagger
from sigrl_core.io.checksums import with_checksum
from sigrl_core.on_ray.cache_features import cache_features
from sigrl_core.on_ray.train import train
from sigrl_core.on_ray.tune import search
from sigrl_core.report.evaluation import evaluate_to_report
from sigrl_core.search.space import SearchSpace
from tests.conftest import untrained_checkpoint, vocabulary_of, write_shards
from tests.serving import app_of

pytestmark = pytest.mark.unit

MAX_MEAN, MIN_PSNR = 3.0, 36.0
"""Bound of one image at 224 pixels: mean difference of 255, and PSNR in dB."""
DEFAULT = PreprocessConfig(corpus="files", images="photos", out="shards")


def to_shard(data: bytes) -> bytes:
    """Stores an image as preprocess.py does by default."""
    stored = images.to_jpeg(
        data, DEFAULT.short_side, DEFAULT.quality, chroma=DEFAULT.chroma, long_side=DEFAULT.long_side
    )
    return stored.data


def differences(original: bytes, stored: bytes, size: int) -> tuple[float, float]:
    """Mean difference of 255 and PSNR of what a model receives."""
    first, second = (images.centre_crop_array(data, size).astype(float) for data in (original, stored))
    squared = max(float(np.square(first - second).mean()), 0.01)
    return float(np.abs(first - second).mean()), 10 * float(np.log10(255**2 / squared))


def scene(seed: int, width: int, height: int) -> bytes:
    """A made picture with edges, thin lines, strong colours and some noise, as PNG."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, w, h = rng.integers(0, [width, height, width // 3, height // 3])
        colour = tuple(rng.integers(0, 256, 3).tolist())
        draw.ellipse((x, y, x + w, y + h), outline=colour, width=3)
        draw.line((x, y, x + h, y - w), colour, 2)
    noisy = np.asarray(image, int) + rng.normal(0, 3, (height, width, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


SHAPES = [(640, 480), (480, 640), (640, 427), (1024, 683), (500, 375), (1600, 900), (375, 1500)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_made_pictures_within_the_bound(width: int, height: int) -> None:
    data = scene(width, width, height)
    mean, psnr = differences(data, to_shard(data), 224)
    assert mean <= MAX_MEAN
    assert psnr >= MIN_PSNR


def test_photographs_within_the_bound(coco160: Path) -> None:
    for path in sorted(coco160.rglob("*.jpg"))[::20]:
        data = path.read_bytes()
        mean, psnr = differences(data, to_shard(data), 224)
        assert mean <= MAX_MEAN, path.name
        assert psnr >= MIN_PSNR, path.name


@given(st.integers(2, 5000), st.integers(2, 5000), st.integers(224, 700))
def test_a_model_crops_the_same_square_of_the_stored_image(width: int, height: int, size: int) -> None:
    """The crop is a function of int(224 * long / short), see `centre_crop_array`."""
    short, long = sorted((width, height))
    stored = images._aligned_long_side(short, long, size)
    model = 336 if size == 336 else 224
    assert int(model * stored / size) == int(model * long / short)
    assert abs(stored - long * size / short) <= 2
    assert stored >= size


def test_a_jpeg_that_is_decoded_at_a_fraction_stays_in_place(encoded) -> None:
    """3001 and 2003 are odd, so half of the image has another shape."""
    picture = Image.open(io.BytesIO(scene(3, 3001, 2003)))
    data = encoded(picture, quality=95, subsampling="4:4:4")
    stored = images.to_jpeg(data, 336, 95)
    assert int(336 * stored.width / 336) == int(336 * 3001 / 2003)
    mean, psnr = differences(data, stored.data, 224)
    assert mean <= MAX_MEAN
    assert psnr >= MIN_PSNR


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, (width, height) in enumerate(SHAPES[:4]):
        (folder / f"{number}.png").write_bytes(scene(number, width, height))
    return folder


def test_every_path_gives_a_model_the_same_scores(pictures: Path, tmp_path: Path) -> None:
    checkpoint = untrained_checkpoint(tmp_path / "checkpoint")
    tagger = Tagger.load(str(checkpoint))
    names, size = tagger.vocabulary.names, tagger.model.backbone.image_size
    files = sorted(pictures.iterdir())

    def scores_of(inputs: Sequence) -> np.ndarray:
        tagged = [dict(zip(t.labels, t.scores, strict=True)) for t in tagger.tag(inputs, top_k=len(names))]
        return np.array([[each[name] for name in names] for each in tagged])

    expected = scores_of([path.read_bytes() for path in files])
    # tag.py
    config = TagConfig(checkpoint=str(checkpoint), images=str(pictures), out=str(tmp_path / "tags"))
    rows = [ListedImage(path.name, None) for path in files]
    (batch,) = load_images(config, size, rows)
    assert np.array_equal(scores_of(batch.images), expected)
    # serve.py
    client = TestClient(app_of(ServeConfig(checkpoint=str(checkpoint), allow_anonymous=True)))
    sent = [("images", (path.name, path.read_bytes(), "image/png")) for path in files]
    answers = client.post("/v1/tag", files=sent, data={"top_k": str(len(names))}).json()["results"]
    served = [{tag["label"]: tag["score"] for tag in answer["tags"]} for answer in answers]
    assert np.array([[each[name] for name in names] for each in served]) == pytest.approx(expected, abs=1e-5)
    # shards, read as an evaluation reads them
    jpegs = [to_shard(path.read_bytes()) for path in files]
    folder = write_shards(tmp_path / "shards", vocabulary_of(["cat"]), np.ones((len(files), 1), np.int8), jpegs)
    stored = read_batch(ShardDataset(folder), np.arange(len(files)), size).pixels_BHWC
    assert stored is not None
    for path, pixels in zip(files, stored.numpy(), strict=True):
        assert np.abs(images.centre_crop_array(path.read_bytes(), size).astype(int) - pixels).mean() <= MAX_MEAN
    assert scores_of(list(stored.numpy())) == pytest.approx(expected, abs=0.02)


def test_commands_refuse_shards_that_a_model_would_enlarge(toybox_shards: ShardFolder, tmp_path: Path) -> None:
    """The model takes 48 pixels."""
    checkpoint = str(untrained_checkpoint(tmp_path / "checkpoint"))
    shutil.copytree(toybox_shards.uri, tmp_path / "shards")
    manifest = {**toybox_shards.manifest, "config": {"short_side": 40}}
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    data, out = str(tmp_path / "shards"), str(tmp_path / "out")
    preset = get_preset("quickstart")
    run = dataclasses.replace(
        preset, backbone=dataclasses.replace(preset.backbone, name="toybox-vit", pretrained="random")
    )
    commands = {
        "--allow-enlarged": [
            lambda: cache_features(CacheFeaturesConfig(data=data, out=out, checkpoint=checkpoint)),
            lambda: evaluate_to_report(EvaluateConfig(data=data, out=out, checkpoint=checkpoint)),
            lambda: calibrate(CalibrateConfig(data=data, checkpoint=checkpoint)),
            lambda: search(SearchConfig(), run, SearchSpace(), data, out),
        ],
        "--scale.allow-enlarged": [lambda: train(run, data, out)],
    }
    for flag, refused in commands.items():
        for command in refused:
            with pytest.raises(ShardError, match=f"at most 40 pixels, but the model takes 48, .* or add {flag}$"):
                command()
    assert not Path(out).exists()
    allowed = EvaluateConfig(data=data, out=out, checkpoint=checkpoint, allow_enlarged=True)
    assert evaluate_to_report(allowed)["images"] == toybox_shards.num_rows
