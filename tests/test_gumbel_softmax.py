"""The draw of the decisions: straight-through Gumbel-softmax."""

import pytest
import torch

from gumbel_softmax import TEMPERATURE, gumbel_noise, likelier_decisions, sample_decisions


def noise(*shape, seed=0):
    return gumbel_noise(shape, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("logits", [(0.0, 0.0), (1.0, -1.0), (-0.5, 1.5), (2.0, 0.0)])
def test_draws_follow_the_softmax_of_the_logits(logits):
    draws = 200_000
    logits_NL2 = torch.tensor(logits).expand(draws, 1, 2)
    share = sample_decisions(logits_NL2, noise(draws, 1, 2)).mean().item()
    expected = torch.softmax(torch.tensor(logits), dim=0)[1].item()
    assert share == pytest.approx(expected, abs=4 * (0.25 / draws) ** 0.5)


def test_the_draw_does_not_depend_on_the_temperature():
    logits_NL2 = torch.randn(50, 12, 2, generator=torch.Generator().manual_seed(1))
    cold, hot = (sample_decisions(logits_NL2, noise(50, 12, 2), t).round() for t in (0.1, 100))
    assert torch.equal(cold, hot)


def test_decisions_are_hard():
    decisions_NL = sample_decisions(torch.zeros(100, 12, 2), noise(100, 12, 2))
    torch.testing.assert_close(decisions_NL, decisions_NL.round(), rtol=0, atol=1e-6)
    assert set(decisions_NL.round().unique().tolist()) == {0.0, 1.0}


def test_the_gradient_is_that_of_the_soft_sample_at_temperature_5():
    logits = torch.tensor([[[0.3, -0.2], [1.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    draw = noise(1, 2, 2).double()
    weights = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
    (sample_decisions(logits, draw) * weights).sum().backward()
    # d softmax_1 / d logit_1 = p (1 - p) / 5, by hand; index 0 gets the opposite sign
    gap = (logits.detach() + draw)[..., 1] - (logits.detach() + draw)[..., 0]
    p = 1 / (1 + torch.exp(-gap / 5))
    slope = weights * p * (1 - p) / 5
    torch.testing.assert_close(logits.grad, torch.stack([-slope, slope], dim=-1), atol=1e-6, rtol=0)
    assert TEMPERATURE == 5


def test_index_0_keeps_and_index_1_fine_tunes_and_a_tie_keeps():
    logits_NL2 = torch.tensor([[[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]]])
    assert likelier_decisions(logits_NL2).tolist() == [[0.0, 1.0, 0.0]]


def test_noise_is_seeded_by_its_generator_alone():
    torch.manual_seed(1)
    first = noise(4, 12, 2, seed=7)
    torch.manual_seed(2)
    assert torch.equal(first, noise(4, 12, 2, seed=7))
    assert not torch.equal(first, noise(4, 12, 2, seed=8))


def test_noise_is_gumbel_and_finite():
    draws = noise(500_000)
    assert draws.isfinite().all()
    assert draws.mean().item() == pytest.approx(0.5772, abs=0.01)  # the Euler-Mascheroni constant
    assert draws.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.02)
