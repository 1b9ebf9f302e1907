"""Scores that travel between labels, and scores that do not depend on the vocabulary asked."""

import math

import pytest
import torch

from sigrl_core.config import GraphConfig, ReconstructionConfig, ScoringConfig
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.propagation import ScorePropagation
from sigrl_core.model.sigrl import SigRL

pytestmark = pytest.mark.unit

LABELS = torch.nn.functional.normalize(
    torch.randn(9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
)


def propagation_of(edges: list[list[float]]) -> ScorePropagation:
    made = ScorePropagation(len(edges))
    made.edges.data = torch.tensor(edges)
    return made


def test_by_hand() -> None:
    """Two labels, probabilities 3/4 and 1/4; what a label tells itself does not count."""
    made = propagation_of([[7.0, 2.0], [-4.0, 7.0]])
    both = torch.arange(2)
    heard = made(torch.tensor([[math.log(3.0), 0.0]]), both, both)
    torch.testing.assert_close(heard, torch.tensor([[2 * 0.25, -4 * 0.75]]) * math.sqrt(2))


def test_labels_not_trained_on_neither_hear_nor_tell() -> None:
    made = propagation_of([[0, 2.0], [-4.0, 0]])
    logits = torch.tensor([[1.0, 9.0, 0.0]])
    places = torch.tensor([1, -1, 0])
    alone = made(logits[:, [2, 0]], torch.arange(2), torch.arange(2))
    torch.testing.assert_close(
        made(logits, places, places), torch.stack([alone[:, 1], 0 * alone[:, 0], alone[:, 0]], 1)
    )
    strangers = torch.full((3,), -1)
    assert torch.equal(made(logits, strangers, strangers), torch.zeros(1, 3))
    assert torch.equal(made.edges_between(places), torch.tensor([[0, 0, -4.0], [0, 0, 0], [2.0, 0, 0]]))


def test_gradients() -> None:
    made = ScorePropagation(3).double()
    made.edges.data = torch.randn(3, 3, dtype=torch.float64)
    places = torch.tensor([2, 0, 1])

    def heard(logits: torch.Tensor, edges: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        values = {"edges": edges, "log_tau": tau}
        return torch.func.functional_call(made, values, (logits, places, places))

    inputs = (torch.randn(2, 3), made.edges.detach(), torch.tensor(0.3))
    assert torch.autograd.gradcheck(heard, [value.double().requires_grad_() for value in inputs])


def model(**scoring: object) -> SigRL:
    torch.manual_seed(0)
    graph = GraphConfig(hidden=8, residual=True, propagation=True)
    made = SigRL(
        8, graph, ReconstructionConfig(rms_normalise=True), ScoringConfig(top_k_patches=3, **scoring), labels=5
    )
    made.propagation.edges.data = torch.randn(5, 5)
    return made.double().eval()


def of(*places: int) -> LabelSet:
    """Labels by number; the first five were trained on."""
    chosen = torch.tensor(places)
    return LabelSet(LABELS[chosen], None, torch.where(chosen < 5, chosen, -1))


@pytest.fixture
def image() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 7, 8).double(), torch.randn(3, 8).double()


def test_training_starts_from_the_scores_as_they_come(image) -> None:
    made = model(learn_scale=True, initial_scale=20.0)
    made.propagation.edges.data.zero_()
    with_edges = made(*image, of(0, 1, 2, 3, 4))
    made.propagates = False
    torch.testing.assert_close(made(*image, of(0, 1, 2, 3, 4)), with_edges)


@pytest.mark.parametrize("learn_scale", [True, False])
def test_scores_and_logits_rank_alike(image, learn_scale: bool) -> None:
    made = model(learn_scale=learn_scale, initial_scale=20.0)
    found = made(*image, of(0, 1, 2, 3, 4, 5))
    scale, bias = (20.0, 0.0) if learn_scale else (1.0, 0.0)
    torch.testing.assert_close(found.logits_BC, found.scores_BC * scale + bias)


def test_a_reference_gives_the_published_scores_of_its_own_labels(image) -> None:
    made, reference = model(learn_scale=True), of(0, 1, 2, 3, 4)
    torch.testing.assert_close(made(*image, reference, reference), made(*image, reference))


def test_with_a_reference_a_score_does_not_depend_on_what_else_is_asked(image) -> None:
    made, reference = model(learn_scale=True), of(0, 1, 2, 3, 4)
    few, many = of(7, 2), of(7, 2, 0, 5, 6, 8, 1)
    torch.testing.assert_close(
        made(*image, many, reference).logits_BC[:, :2], made(*image, few, reference).logits_BC, rtol=0, atol=1e-12
    )
    published = made(*image, many).scores_BC[:, :2] - made(*image, few).scores_BC
    assert published.abs().max() > 0.01
