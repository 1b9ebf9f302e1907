"""The losses against every pair spelled out, and against values worked by hand."""

import pytest
import torch

from sigrl_core.errors import ConfigError
from sigrl_core.losses import LOSSES, distillation, get_loss, ranking

pytestmark = pytest.mark.unit


def every_pair(scores: torch.Tensor, states: torch.Tensor, margin: float) -> torch.Tensor:
    hinges = (margin + scores[:, None, :] - scores[:, :, None]).clamp(min=0)
    hinges = hinges * ((states[:, :, None] == 1) & (states[:, None, :] == -1))
    return hinges.sum((1, 2)) / ((hinges > 0).double().sum((1, 2)) + 1e-8)


def batch(scale: float, dtype: torch.dtype, C: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    states = torch.randint(-1, 2, (8, C), dtype=torch.int8)
    states[0], states[1] = 0, 1  # nothing known; no negative
    return (scale * torch.randn(8, C, dtype=torch.float64)).to(dtype).requires_grad_(), states


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-6)])
def test_ranking_is_every_pair(scale: float, margin: float, dtype: torch.dtype, tolerance: float) -> None:
    scores, states = batch(scale, dtype)
    found, expected = ranking(scores, states, margin), every_pair(scores.double(), states, margin)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-9)
    (one,) = torch.autograd.grad(found.sum(), scores)
    (other,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(one, other, rtol=tolerance, atol=1e-7 if dtype == torch.float32 else 1e-12)


def test_ranking_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.5, 0.0, 9.0], [5.0, 0.0, 0.0, 0.0]])
    states = torch.tensor([[1, -1, -1, 0], [1, -1, -1, -1]], dtype=torch.int8)
    # First image: 1 + 1.5 - 2 = 0.5 violates, 1 + 0 - 2 does not. Second: nothing does.
    torch.testing.assert_close(ranking(scores, states), torch.tensor([0.5, 0.0]))


def test_ties_exactly_at_the_margin_do_not_count() -> None:
    scores, states = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[1, -1, -1]], dtype=torch.int8)
    torch.testing.assert_close(ranking(scores, states), torch.tensor([0.5]))


def test_images_without_a_pair_give_zero_and_no_gradient() -> None:
    scores, states = batch(1.0, torch.float32)
    loss = ranking(scores, states)
    assert loss[:2].tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert scores.grad is not None
    assert not scores.grad[:2].any()
    assert scores.grad.isfinite().all()


def test_many_labels_need_no_pairs() -> None:
    scores, states = torch.randn(32, 7186, requires_grad=True), torch.ones(32, 7186, dtype=torch.int8)
    states[:, ::2] = -1  # every pair would be 413 million per image
    ranking(scores, states).mean().backward()


def test_distillation_by_hand() -> None:
    glob, teacher = torch.tensor([[1.0, -1.0]], requires_grad=True), torch.tensor([[0.0, 2.0]], requires_grad=True)
    loss = distillation(glob, teacher)
    assert loss.tolist() == [2.0]
    loss.sum().backward()
    assert teacher.grad is None


def test_an_unknown_loss_names_the_known_ones() -> None:
    assert get_loss("ranking") is LOSSES["ranking"]
    with pytest.raises(ConfigError, match="ranking"):
        get_loss("rankin")
