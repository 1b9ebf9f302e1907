"""Label graphs: who hears whom, and what is made of it."""

import pytest
import torch

from sigrl_core.config import GraphConfig
from sigrl_core.errors import ConfigError
from sigrl_core.model.label_graph import GRAPHS, GATv2Layer, LabelGraph, Neighbours, nearest_edges

pytestmark = pytest.mark.unit


def test_the_configuration_knows_every_graph() -> None:
    for kind in (*GRAPHS, "none"):
        assert GraphConfig(kind=kind, edges="edges.json" if kind == "listed" else None).kind == kind
    known = "complete, nearest, cooccurrence, listed, none"
    with pytest.raises(ConfigError, match=f"graph.kind is 'full'; expected one of {known}, or .*--plugin MODULE"):
        GraphConfig(kind="full")


def test_nearest_by_cosine() -> None:
    """Angles of 0, 10, 25 and 90 degrees; lengths say nothing."""
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 25.0, 90.0]))
    labels = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None]
    edges = nearest_edges(labels, None, GraphConfig(neighbours=1))
    assert edges.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert nearest_edges(labels, None, GraphConfig(neighbours=9)).tolist() == [[1.0] * 4] * 4
    assert nearest_edges(labels[:1], None, GraphConfig()).tolist() == [[1.0]]


def test_a_label_hears_only_those_it_has_an_edge_to() -> None:
    torch.manual_seed(0)
    graph = LabelGraph(6, GraphConfig(kind="nearest", neighbours=2, layers=1)).eval()
    labels = torch.randn(7, 6, requires_grad=True)
    graph(labels)[3].sum().backward()
    assert labels.grad is not None
    has_edge = nearest_edges(labels, None, graph.config)[3] > 0
    assert torch.equal(labels.grad.abs().sum(1) > 0, has_edge)
    assert has_edge.sum() == 3


def test_all_as_neighbours_is_the_complete_graph() -> None:
    """Which holds the vector of every pair; gradients too."""
    torch.manual_seed(0)
    complete = LabelGraph(6, GraphConfig(hidden=8)).double().eval()
    everyone = LabelGraph(6, GraphConfig(hidden=8, kind="nearest", neighbours=20)).double().eval()
    everyone.load_state_dict(complete.state_dict())
    labels = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    found, expected = complete(labels), everyone(labels)
    torch.testing.assert_close(found, expected)
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), [labels, *graph.parameters()])
        for out, graph in ((found, complete), (expected, everyone))
    )
    torch.testing.assert_close(ours, theirs)


def test_a_complete_graph_of_too_many_labels_hears_the_nearest() -> None:
    torch.manual_seed(0)
    limited = LabelGraph(6, GraphConfig(hidden=8, max_complete_labels=8, neighbours=2)).eval()
    sparse = LabelGraph(6, GraphConfig(hidden=8, kind="nearest", neighbours=2)).eval()
    sparse.load_state_dict(limited.state_dict())
    labels = torch.randn(9, 6)
    torch.testing.assert_close(limited(labels), sparse(labels))
    assert limited.compute_edges(labels[:8]) is None


def test_sparse_edges_as_dense_ones() -> None:
    """Rows with one, two and all labels; gradients too."""
    torch.manual_seed(0)
    layer = GATv2Layer(6, 8, 2, 0.0).double()
    edges = torch.tensor([[0, 0.5, 0, 0], [2, 0, 0, 1], [1, 1, 1, 1], [0, 0.1, 0.2, 0]], dtype=torch.float64)
    nodes = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    found = layer(nodes, Neighbours.from_edges(edges))
    u = layer.linear(nodes).view(4, 2, 4)
    logits = torch.nn.functional.leaky_relu(u[:, None] + u, 0.2) @ layer.attn.weight[0] + edges.log()[..., None]
    expected = torch.einsum("tch,che->the", logits.softmax(1), u).reshape(4, 8)
    torch.testing.assert_close(found, expected)
    (ours,), (theirs,) = (torch.autograd.grad(out.square().sum(), nodes) for out in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("layers", "widths"), [(1, [(6, 6)]), (3, [(6, 8), (8, 8), (8, 6)])])
def test_layers(layers: int, widths: list[tuple[int, int]]) -> None:
    graph = LabelGraph(6, GraphConfig(hidden=8, heads=4, layers=layers)).eval()
    made = [layer for layer in graph.layers if isinstance(layer, GATv2Layer)]
    assert [(layer.linear.in_features, layer.linear.out_features) for layer in made] == widths
    assert [layer.heads for layer in made] == [4] * (layers - 1) + [1]
    assert graph(torch.randn(5, 6)).shape == (5, 6)


@pytest.mark.parametrize("name", ["neighbours", "max_complete_labels", "layers", "heads"])
def test_nonsense_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"graph.{name} is 0; expected 1 or more"):
        GraphConfig(**{name: 0})
