"""The losses against every pair spelled out, and against values worked by hand."""

import math

import pytest
import torch

from sigrl_core.config import LossConfig
from sigrl_core.errors import ConfigError
from sigrl_core.training.losses import (
    LOSSES,
    BatchReducer,
    Targets,
    distillation,
    get_loss,
    hinges,
    pseudo_positives,
    ranking,
)

pytestmark = pytest.mark.unit


def every_pair(scores: torch.Tensor, states: torch.Tensor, margin: float) -> torch.Tensor:
    hinges = (margin + scores[:, None, :] - scores[:, :, None]).clamp(min=0)
    hinges = hinges * ((states[:, :, None] == 1) & (states[:, None, :] == -1))
    return hinges.sum((1, 2)) / ((hinges > 0).double().sum((1, 2)) + 1e-8)


def of_images(scores: torch.Tensor, states: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """The ranking loss of every image."""
    sums, violated = hinges(scores, states > 0, states < 0, margin)
    return sums.sum(1) / (violated.sum(1).double() + 1e-8)


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
    found, expected = of_images(scores, states, margin), every_pair(scores.double(), states, margin)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-9)
    (one,) = torch.autograd.grad(found.sum(), scores)
    (other,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(one, other, rtol=tolerance, atol=1e-7 if dtype == torch.float32 else 1e-12)


def test_ranking_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.5, 0.0, 9.0], [5.0, 0.0, 0.0, 0.0]])
    states = torch.tensor([[1, -1, -1, 0], [1, -1, -1, -1]], dtype=torch.int8)
    # First image: 1 + 1.5 - 2 = 0.5 violates, 1 + 0 - 2 does not. Second: nothing does.
    torch.testing.assert_close(of_images(scores, states), torch.tensor([0.5, 0.0], dtype=torch.float64))
    loss = ranking(scores, Targets(states_BC=states), LossConfig(), BatchReducer())
    assert (loss.dtype, loss.item()) == (torch.float32, 0.25)


def test_ties_exactly_at_the_margin_do_not_count() -> None:
    scores, states = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[1, -1, -1]], dtype=torch.int8)
    torch.testing.assert_close(of_images(scores, states), torch.tensor([0.5], dtype=torch.float64))


def test_images_without_a_pair_give_zero_and_no_gradient() -> None:
    scores, states = batch(1.0, torch.float32)
    loss = of_images(scores, states)
    assert loss[:2].tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert scores.grad is not None
    assert not scores.grad[:2].any()
    assert scores.grad.isfinite().all()


def test_many_labels_need_no_pairs() -> None:
    scores, states = torch.randn(32, 7186, requires_grad=True), torch.ones(32, 7186, dtype=torch.int8)
    states[:, ::2] = -1  # every pair would be 413 million per image
    ranking(scores, Targets(states_BC=states), LossConfig(), BatchReducer()).backward()


def test_distillation_by_hand() -> None:
    glob, teacher = torch.tensor([[1.0, -1.0]], requires_grad=True), torch.tensor([[0.0, 2.0]], requires_grad=True)
    loss = distillation(glob, teacher)
    assert loss.tolist() == [2.0]
    loss.sum().backward()
    assert teacher.grad is None


# ---- losses of probabilities: p is 0.8, 0.5, 0.2 for logits log 4, 0, -log 4 ----

LOGITS = torch.tensor([[math.log(4), 0.0, -math.log(4)], [0.0, -math.log(4), math.log(4)]], dtype=torch.float64)
STATES = torch.tensor([[1, 0, -1], [1, 0, 0]], dtype=torch.int8)
KNOWN = Targets(
    states_BC=STATES,
    pseudo_BC=torch.tensor([[False, True, False], [False, False, True]]),
    soft_BC=torch.tensor([[torch.nan, 0.3, torch.nan], [torch.nan, torch.nan, 0.1]], dtype=torch.float64),
    estimate_BC=torch.zeros(2, 3, dtype=torch.float64),
    epoch=2,
)
CONFIG = LossConfig(entropy_weight=0.2, soft_weight=0.5, rejection=0.2)


def n(x: float) -> float:
    return -math.log(x + 1e-5)


PRESENT = n(0.8) + n(0.5)  # of both images
ABSENT = n(0.8)  # of the one label known to be absent, at p = 0.2
UNDECIDED = {p: -0.2 * (p * n(p) + (1 - p) * n(1 - p)) for p in (0.5, 0.2, 0.8)}
SURPLUS = (1.5 - 2.9) ** 2 / 9
BY_HAND = {
    "bce": PRESENT + ABSENT,
    "focal": 0.2**2 * n(0.8) + 0.5**2 * n(0.5) + 0.2**2 * n(0.8),
    "asymmetric": PRESENT + 0.15**4 * n(0.85),
    "an": PRESENT + ABSENT + n(0.5) + n(0.8) + n(0.2),
    "an_ls": (0.9 * n(0.8) + 0.1 * n(0.2)) * 3 + (0.9 * n(0.2) + 0.1 * n(0.8)) + n(0.5) * 2,
    "wan": PRESENT + ABSENT + (n(0.5) + n(0.8) + n(0.2)) / 2,
    "epr": PRESENT + ABSENT + 6 * SURPLUS,
    "em": PRESENT + ABSENT + UNDECIDED[0.5] + UNDECIDED[0.2] + UNDECIDED[0.8],
    "em_apl": PRESENT + ABSENT + 0.5 * n(0.5) + UNDECIDED[0.2] + 0.5 * (0.1 * n(0.8) + 0.9 * n(0.2)),
    "em_pl": PRESENT + ABSENT + 0.7 * n(0.5) + UNDECIDED[0.2] + 0.7 * (0.9 * n(0.8) + 0.1 * n(0.2)),
    # classifier and estimator: observed, then each other's opinion, then what is too few positives
    "role": (PRESENT + ABSENT + 2 * n(0.5) + 2 * (n(0.8) + n(0.2))) / 2 + (3 * n(0.5) + 6 * n(0.5)) / 2 + 6 * SURPLUS,
    "ll_r": PRESENT + ABSENT + n(0.5) + n(0.8),  # int(0.2 * 2 * 3) = 1 rejected, the one at p = 0.8
    "pairwise": (1 - 0.8 + 0.5) + (1 - 0.8 + 0.2) + (1 - 0.5 + 0.2) + (1 - 0.5 + 0.8),
}


def test_every_loss_has_a_value_worked_by_hand() -> None:
    assert BY_HAND.keys() == LOSSES.keys() - {"ranking"}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    """Sums over six labels of two images, divided by six."""
    loss = LOSSES[name](LOGITS, KNOWN, CONFIG, BatchReducer())
    assert loss.item() == pytest.approx(BY_HAND[name] / 6, rel=1e-12)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name != "role"]
)  # its teachers get no gradient: reference file
def test_gradients(name: str) -> None:
    torch.manual_seed(0)
    logits, estimate = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    states = torch.randint(-1, 2, (4, 7), dtype=torch.int8)
    soft = torch.where(torch.rand(4, 7) < 0.5, torch.rand(4, 7), torch.nan).double()
    targets = {"states_BC": states, "pseudo_BC": torch.rand(4, 7) < 0.3, "soft_BC": soft, "epoch": 3}

    def loss(logits_BC: torch.Tensor) -> torch.Tensor:
        return LOSSES[name](
            logits_BC, Targets(**targets, estimate_BC=estimate), LossConfig(rejection=0.1), BatchReducer()
        )

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())
    assert loss(logits.detach()).isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_certain_and_wrong_is_finite(name: str) -> None:
    logits = torch.tensor([[200.0, -200.0, 200.0], [-200.0, 200.0, -200.0]], requires_grad=True)
    loss = LOSSES[name](logits, KNOWN, CONFIG, BatchReducer())
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_order_of_labels_and_images_means_nothing() -> None:
    labels, images = torch.tensor([2, 0, 1]), torch.tensor([1, 0])

    def permuted(values: torch.Tensor) -> torch.Tensor:
        return values[images][:, labels]

    parts = (KNOWN.states_BC, KNOWN.pseudo_BC, KNOWN.soft_BC, KNOWN.estimate_BC)
    states, pseudo, soft, estimate = (permuted(part) for part in parts if part is not None)
    targets = Targets(states_BC=states, pseudo_BC=pseudo, soft_BC=soft, estimate_BC=estimate, epoch=KNOWN.epoch)
    for name, loss in LOSSES.items():
        one, other = (
            loss(LOGITS, KNOWN, CONFIG, BatchReducer()),
            loss(permuted(LOGITS), targets, CONFIG, BatchReducer()),
        )
        assert one.item() == pytest.approx(other.item(), rel=1e-12), name


def test_pseudo_labels_of_clip() -> None:
    """Of cosines 0.03 apart one has e times the share of the next; 0.3 is passed by two equals, not by four."""
    cosine = torch.tensor([[0.30, 0.27, 0.0, 0.0], [0.30, 0.30, 0.0, 0.0], [0.30, 0.30, 0.30, 0.30]])
    found = pseudo_positives(cosine, LossConfig())
    assert found.tolist() == [[True, False, False, False], [True, True, False, False], [False] * 4]


@pytest.mark.parametrize("name", ["role", "em_apl", "em_pl"])
def test_a_loss_without_what_it_needs_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"loss.kind {name}: no "):
        LOSSES[name](LOGITS, Targets(states_BC=STATES), CONFIG, BatchReducer())


def test_an_unknown_loss_names_the_known_ones() -> None:
    assert get_loss("ranking") is LOSSES["ranking"]
    with pytest.raises(ConfigError, match="ranking"):
        get_loss("rankin")
