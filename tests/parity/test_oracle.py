"""The fast code against the loops of oracle.py: random small shapes, every option."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_core.config import GraphConfig, LossConfig, ReconstructionConfig, ScoringConfig
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.sigrl import SigRL
from sigrl_core.training.losses import BatchReducer, Targets, ranking

pytestmark = pytest.mark.parity

_spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
assert _spec is not None
assert _spec.loader is not None
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)

NAMES = {
    "semantic.": "semantic.",
    "reconstruction.": "recon.",
    "graph.layers.0.": "gat1.",
    "graph.layers.1.": "gat2.",
}
sizes = st.fixed_dictionaries(
    {"B": st.integers(1, 3), "P": st.integers(1, 5), "C": st.integers(1, 5), "D": st.sampled_from([2, 6])}
)
options = st.fixed_dictionaries({"residual": st.booleans(), "rms_normalise": st.booleans()})


def weights_of(model: SigRL) -> dict:
    weights = {}
    for name, tensor in model.state_dict().items():
        ours, theirs = next((ours, theirs) for ours, theirs in NAMES.items() if name.startswith(ours))
        weights[theirs + name.removeprefix(ours)] = tensor.numpy()
    return weights


@settings(max_examples=40, deadline=None)
@given(
    sizes, options, st.sampled_from(["complete", "none"]), st.booleans(), st.sampled_from([1, 2]), st.integers(1, 8),
    st.integers(0, 2**16),
)  # fmt: skip
def test_scores(size: dict, options: dict, kind: str, graph_residual: bool, heads: int, kept: int, seed: int) -> None:
    B, P, C, D = size.values()
    torch.manual_seed(seed)
    graph = GraphConfig(kind=kind, hidden=4, heads=heads, residual=graph_residual)  # type: ignore[arg-type]
    model = SigRL(D, graph, ReconstructionConfig(**options), ScoringConfig(top_k_patches=kept)).double().eval()
    patches, glob, labels = (2 * torch.randn(*shape, dtype=torch.float64) for shape in ((B, P, D), (B, D), (C, D)))
    with torch.no_grad():
        found = model(patches, glob, LabelSet(labels))

    T, weights = labels.numpy(), weights_of(model)
    G = T if kind == "none" else oracle.graph_embed(T, weights, heads) + (T if graph_residual else 0)
    for b in range(B):
        X = patches[b].numpy()
        O = oracle.mixed(oracle.semantic(X, T, weights), T)  # noqa: E741 - the paper's letter
        R = oracle.reconstructed(X, O, G, weights, options["residual"], options["rms_normalise"])
        local, overall, score = oracle.scores(R, glob[b].numpy(), T, kept)
        np.testing.assert_allclose(found.local_BC[b], local, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.global_BC[b], overall, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.scores_BC[b], score, rtol=1e-8, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(0, 2**16))
def test_label_graph_with_edges(C: int, heads: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = (
        SigRL(4, GraphConfig(kind="cooccurrence", hidden=6, heads=heads), ReconstructionConfig(), ScoringConfig())
        .double()
        .eval()
    )
    labels, weights = torch.randn(C, 4, dtype=torch.float64), torch.rand(C, C, dtype=torch.float64)
    edges = torch.where((torch.rand(C, C) < 0.5) | torch.eye(C, dtype=torch.bool), weights + 0.1, 0.0)
    with torch.no_grad():
        found = model.graph(labels, edges)
    expected = oracle.graph_embed(labels.numpy(), weights_of(model), heads, edges.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_without_reconstruction_patches_are_scored_as_they_come() -> None:
    torch.manual_seed(0)
    model = SigRL(4, GraphConfig(), ReconstructionConfig(enabled=False), ScoringConfig(top_k_patches=2))
    assert not list(model.parameters())
    patches, glob, labels = torch.randn(2, 5, 4), torch.randn(2, 4), torch.randn(3, 4)
    found = model(patches, glob, LabelSet(labels))
    for b in range(2):
        expected = oracle.scores(patches[b].double().numpy(), glob[b].double().numpy(), labels.double().numpy(), 2)[2]
        np.testing.assert_allclose(found.scores_BC[b], expected, rtol=1e-5, atol=1e-6)
    assert found.logits_BC is found.scores_BC


def test_the_learned_scale() -> None:
    config = ScoringConfig(learn_scale=True, initial_scale=20.0)
    model = SigRL(4, GraphConfig(), ReconstructionConfig(enabled=False), config)
    assert {name for name, _ in model.named_parameters()} == {"log_scale", "bias"}
    found = model(torch.randn(2, 5, 4), torch.randn(2, 4), LabelSet(torch.randn(3, 4)))
    torch.testing.assert_close(found.logits_BC, 20 * found.scores_BC)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 7), st.integers(0, 2**16), st.sampled_from([0.1, 1.0, 100.0]))
def test_ranking(B: int, C: int, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    scores, states = scale * random.normal(size=(B, C)), random.integers(-1, 2, size=(B, C)).astype(np.int8)
    for b in range(B):
        known = Targets(states_BC=torch.from_numpy(states[b : b + 1]))
        found = ranking(torch.from_numpy(scores[b : b + 1]), known, LossConfig(), BatchReducer())
        np.testing.assert_allclose(found, oracle.ranking(scores[b], states[b]), rtol=1e-9, atol=1e-12)
