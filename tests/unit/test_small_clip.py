"""The small CLIP: its loss falls, its seed determines it, and it is returned frozen."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sigrl_core.demo import toybox
from sigrl_core.demo.small_clip import SmallClipConfig, train_small_clip
from sigrl_core.model.backbone import Backbone

pytestmark = pytest.mark.unit

CONFIG = SmallClipConfig(epochs=8, batch_size=32)


@pytest.fixture(scope="module")
def captioned() -> tuple[np.ndarray, list[str]]:
    shown = list(toybox.scenes("captioned", range(210), size=48, seed=0))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image.jpeg))) for image in shown])
    return pixels, [image.caption for image in shown]


def trained(captioned: tuple[np.ndarray, list[str]], config: SmallClipConfig) -> tuple[Backbone, list[float]]:
    losses: list[float] = []
    return train_small_clip(*captioned, config, losses.append), losses


@pytest.fixture(scope="module")
def first(captioned: tuple[np.ndarray, list[str]]) -> tuple[Backbone, list[float]]:
    return trained(captioned, CONFIG)


def test_the_loss_falls(first: tuple[Backbone, list[float]]) -> None:
    losses = first[1]
    assert len(losses) == CONFIG.num_steps(210) == 48
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    assert np.isfinite(losses).all()


def test_captions_fit_their_own_images_best(
    first: tuple[Backbone, list[float]], captioned: tuple[np.ndarray, list[str]]
) -> None:
    pixels, captions = captioned
    backbone = first[0]
    with torch.no_grad():
        images_BD = torch.nn.functional.normalize(backbone(torch.from_numpy(pixels[:100]))[0], dim=-1)
    cosine = images_BD @ backbone.encode_text([[caption] for caption in captions[:100]]).T
    assert (cosine.diagonal()[:, None] >= cosine).float().mean() > 0.6  # by chance 0.5


def test_it_is_returned_frozen(first: tuple[Backbone, list[float]]) -> None:
    backbone = first[0]
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.isfinite(value).all() for value in backbone.state_dict().values())
    assert backbone.clip.logit_scale <= np.log(100)


def test_only_the_seed_determines_it(captioned: tuple[np.ndarray, list[str]]) -> None:
    def run(seed: int, state_of_torch: int) -> tuple[Backbone, list[float]]:
        torch.manual_seed(state_of_torch)
        return trained(captioned, SmallClipConfig(epochs=1, batch_size=64, seed=seed))

    (one, losses), (again, same), (_, other) = run(0, 1), run(0, 2), run(1, 1)
    assert len(losses) == 3
    assert losses == same != other
    expected = one.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_too_few_images_for_a_batch(captioned: tuple[np.ndarray, list[str]]) -> None:
    pixels, captions = captioned
    backbone, losses = trained((pixels[:10], captions[:10]), CONFIG)
    assert losses == []
    assert not backbone.training
