"""What must not matter does not: label order, the other images of a batch, the size of a chunk; and exact gradients."""

import pytest
import torch

from sigrl_core.config import GraphConfig, ReconstructionConfig, ScoringConfig
from sigrl_core.model import label_graph
from sigrl_core.model.coefficients import chunked, naive
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.sigrl import SigRL

pytestmark = pytest.mark.parity


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model() -> SigRL:
    return SigRL(8, GraphConfig(hidden=8), ReconstructionConfig(), ScoringConfig(top_k_patches=3)).double().eval()


def test_label_order_permutes_scores(model: SigRL) -> None:
    patches, glob, labels, order = random(2, 5, 8), random(2, 8), random(7, 8), torch.randperm(7)
    torch.testing.assert_close(
        model(patches, glob, LabelSet(labels[order]))[0], model(patches, glob, LabelSet(labels))[0][:, order]
    )


def test_images_do_not_hear_each_other(model: SigRL) -> None:
    patches, glob, labels = random(4, 5, 8), random(4, 8), random(7, 8)
    alone = torch.cat([model(patches[[b]], glob[[b]], LabelSet(labels))[0] for b in range(4)])
    torch.testing.assert_close(model(patches, glob, LabelSet(labels))[0], alone)


@pytest.mark.parametrize("vectors", [1, 3, 7, 14, 1000])
def test_chunks_change_nothing(model: SigRL, monkeypatch: pytest.MonkeyPatch, vectors: int) -> None:
    def run() -> list:
        model.zero_grad()
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        logits = model(*leaves[:2], LabelSet(leaves[2])).logits_BC
        logits.square().sum().backward()
        return [logits, *(leaf.grad for leaf in leaves), *(p.grad for p in model.parameters())]

    inputs = [random(3, 5, 8), random(3, 8), random(7, 8)]
    expected = run()
    monkeypatch.setitem(chunked.TILE_BYTES, "cpu", vectors * 5 * 8 * 8)
    monkeypatch.setitem(label_graph.TILE_ELEMENTS, "cpu", vectors * 7 * 8)
    for found, value in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("vectors", [1, 2, 100])
def test_gradients_are_exact(pool: bool, shared: bool, vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    B, P, C, D = 3, 4, 3, 2
    monkeypatch.setitem(chunked.TILE_BYTES, "cpu", vectors * P * D * 8)
    leaves = [random(B, P, D), random(*((C, D) if shared else (B, C, D))), random(D, D), random(D, 1), random(1, D)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda X, Q, W: chunked.reduce(X, Q, (W,), pool), leaves[:3])
    assert torch.autograd.gradcheck(
        lambda X, Q, up, down: chunked.reduce(X, Q, (up, down), pool), leaves[:2] + leaves[3:]
    )


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_as_plain_broadcasting_in_float32_and_bfloat16(pool: bool, shared: bool) -> None:
    B, P, C, D = 2, 9, 5, 16
    leaves = [random(B, P, D), random(*((C, D) if shared else (B, C, D))), random(D, D) / 4]
    X, Q, W = leaves = [leaf.float().requires_grad_() for leaf in leaves]
    expected = naive.reduce(X, Q, (W,), pool)
    gradients = torch.autograd.grad(expected.square().sum(), leaves)
    for enabled, tolerance in ((False, 1e-5), (True, 3e-2)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = chunked.reduce(X, Q, (W,), pool)
        assert found.dtype == torch.float32
        for value, true in zip(
            [found, *torch.autograd.grad(found.square().sum(), leaves)], [expected, *gradients], strict=True
        ):
            assert (value - true).norm() <= tolerance * true.norm()
