"""The candidate mode: the local branch for the labels with the best global scores alone."""

from dataclasses import replace

import pytest
import torch

from sigrl_core.config import GraphConfig, ReconstructionConfig, ScoringConfig, TagConfig
from sigrl_core.errors import ConfigError
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.scoring import local_scores, normalise_over_labels
from sigrl_core.model.sigrl import SigRL

pytestmark = pytest.mark.unit

C, K = 12, 4


def model(candidates: int | None, reconstructs: bool = True) -> SigRL:
    torch.manual_seed(0)
    scoring = ScoringConfig(top_k_patches=3, local_candidates=candidates)
    reconstruction = ReconstructionConfig(enabled=reconstructs, rms_normalise=True)
    return SigRL(8, GraphConfig(hidden=8, residual=True), reconstruction, scoring).double().eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, LabelSet]:
    torch.manual_seed(1)
    labels = torch.nn.functional.normalize(torch.randn(C, 8, dtype=torch.float64), dim=-1)
    return torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64), LabelSet(labels)


@pytest.mark.parametrize("reconstructs", [True, False])
def test_each_image_is_asked_for_its_own_candidates(inputs, reconstructs: bool) -> None:
    patches, glob, asked = inputs
    found = model(K, reconstructs)(patches, glob, asked)
    everyone = model(None, reconstructs)
    overall = everyone(patches, glob, asked)
    torch.testing.assert_close(found.global_BC, overall.global_BC)
    for b in range(len(glob)):
        chosen, rebuilt = (asked.labels_CD @ glob[b]).topk(K).indices, patches[[b]]
        if reconstructs:
            graph = everyone.graph(asked.labels_CD)[chosen]
            rebuilt = everyone._reconstruct(rebuilt, asked.labels_CD[chosen], graph)
        alone = normalise_over_labels(local_scores(rebuilt, asked.labels_CD[chosen], everyone.top_k_patches))[0]
        torch.testing.assert_close(found.local_BC[b, chosen], alone)
        rest = torch.ones(C, dtype=torch.bool)
        rest[chosen] = False
        torch.testing.assert_close(found.local_BC[b, rest], alone.min().expand(C - K))
    torch.testing.assert_close(found.scores_BC, (found.local_BC + found.global_BC) / 2)


def test_labels_below_the_candidates_stay_below(inputs) -> None:
    patches, glob, asked = inputs
    found = model(K)(patches, glob, asked)
    chosen = found.global_BC.topk(K, dim=1).indices
    lowest = found.scores_BC.gather(1, chosen).min(1).values
    assert (found.scores_BC.scatter(1, chosen, -torch.inf).max(1).values <= lowest).all()


def test_more_candidates_than_labels_and_training_ask_for_all(inputs) -> None:
    everyone = model(None)(*inputs).scores_BC
    torch.testing.assert_close(model(C)(*inputs).scores_BC, everyone)
    trains = model(K)
    trains.graph.config = replace(trains.graph.config, dropout=0.0)
    trains.train()
    for layer in trains.graph.layers:
        layer.dropout = 0.0
    torch.testing.assert_close(trains(*inputs).scores_BC, everyone)


def test_the_order_of_labels_means_nothing(inputs) -> None:
    patches, glob, asked = inputs
    order = torch.randperm(C, generator=torch.Generator().manual_seed(0))
    scores = model(K)(patches, glob, asked).scores_BC
    torch.testing.assert_close(model(K)(patches, glob, asked.subset(order)).scores_BC, scores[:, order])


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scoring.local_candidates is 0; expected 1 or more, or None"):
        ScoringConfig(local_candidates=0)
    with pytest.raises(ConfigError, match="local_candidates is -3"):
        TagConfig(checkpoint="c", images="i", out="o", local_candidates=-3)
