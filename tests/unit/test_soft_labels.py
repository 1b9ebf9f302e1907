"""The label memory: soft labels are handed out by rank, label by label, a share each round, and stay."""

import pytest
import torch

from sigrl_core.config import LossConfig
from sigrl_core.training.soft_labels import PerSampleLabels

pytestmark = pytest.mark.unit

ROWS = torch.arange(8)
STATES = torch.zeros(8, 2, dtype=torch.int8)
STATES[0, 0] = STATES[0, 1] = 1
STATES[1, 1] = -1
PROBABILITIES = torch.stack([torch.linspace(0.1, 0.8, 8), torch.linspace(0.8, 0.1, 8)], 1)


def test_two_rounds_of_soft_labels() -> None:
    """Label 0 has 7 unknown rows, label 1 has 6; 0.9 of them over 2 rounds are 3 and 2 a round."""
    memory = PerSampleLabels(LossConfig(kind="em_apl", soft_share=0.9, soft_warmup_epochs=2), rows=8, labels=2)
    assert [epoch for epoch in range(6) if memory.relabels_after(epoch, epochs=4)] == [2, 3]
    memory.relabel(ROWS, STATES, PROBABILITIES, epochs=4)
    first = memory.soft(ROWS)
    assert first is not None
    assert first[:, 0].isnan().tolist() == [True, False, False, False, True, True, True, True]
    assert first[:, 1].isnan().tolist() == [True] * 6 + [False] * 2
    torch.testing.assert_close(first.nan_to_num(), torch.where(first.isnan(), 0, PROBABILITIES))

    memory.relabel(ROWS, STATES, 1 - PROBABILITIES, epochs=4)  # another opinion of those that have one changes nothing
    second = memory.soft(ROWS)
    assert second is not None
    assert (~second.isnan()).sum(0).tolist() == [6, 4]
    torch.testing.assert_close(second[~first.isnan()], first[~first.isnan()])
    assert second[:, 0].isnan().tolist() == [True, False, False, False, True, False, False, False]


def test_the_order_of_rows_means_nothing() -> None:
    memories = [PerSampleLabels(LossConfig(kind="em_apl", soft_warmup_epochs=0), rows=8, labels=2) for _ in range(2)]
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    memories[0].relabel(ROWS, STATES, PROBABILITIES, epochs=2)
    memories[1].relabel(shuffled, STATES[shuffled], PROBABILITIES[shuffled], epochs=2)
    torch.testing.assert_close(memories[0].soft(ROWS), memories[1].soft(ROWS), equal_nan=True)


def test_the_estimator_trains_and_starts_near_nothing() -> None:
    memory = PerSampleLabels(LossConfig(kind="role"), rows=8, labels=2, seed=3)
    (parameter,) = memory.parameters()
    assert parameter.abs().max() < 0.1
    assert parameter.std() > 0
    estimate = memory.estimate(torch.tensor([5, 1]))
    assert estimate is not None
    estimate.sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.sum(1).tolist() == [0, 2, 0, 0, 0, 2, 0, 0]
    again = PerSampleLabels(LossConfig(kind="role"), rows=8, labels=2, seed=3)
    assert torch.equal(*memory.parameters(), *again.parameters())


def test_other_losses_remember_nothing() -> None:
    memory = PerSampleLabels(LossConfig(kind="an"), rows=8, labels=2)
    assert not memory.state_dict()
    assert memory.estimate(ROWS) is None
    assert memory.soft(ROWS) is None
    assert not memory.relabels_after(7, 8)
