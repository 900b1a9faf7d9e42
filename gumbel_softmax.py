"""Straight-through Gumbel-softmax sampling of SpotTune's per-block decisions.

Guo et al., section 3.2 and Fig. 2. For each image and each residual block the policy network
emits two logits: keep the pretrained block (index 0), or use its fine-tuned copy (index 1). The
forward pass takes the hard argmax of logits + Gumbel noise, which is one draw from
softmax(logits); the backward pass uses the gradient of softmax((logits + noise) / temperature).

Shapes (N images, L residual blocks: 12 in ResNet-26):
    logits     N x L x 2   raw network output, not probabilities
    noise      N x L x 2   independent draws of Gumbel(0, 1)
    decisions  N x L       0 = pretrained block, 1 = fine-tuned block
"""

from collections.abc import Sequence

import torch
from torch import Tensor

TEMPERATURE = 5.0  # never annealed, as in the released code


def gumbel_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent Gumbel(0, 1) draws on the generator's device: -log of exponential ones."""
    exponential = torch.empty(tuple(shape), device=generator.device)
    exponential.exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()


def sample_decisions(
    logits_NL2: Tensor, noise_NL2: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """Draw decisions N x L that are hard forward and have the soft sample's gradient backward."""
    noisy_NL2 = logits_NL2 + noise_NL2
    hard_NL = likelier_decisions(noisy_NL2)
    soft_NL = torch.softmax(noisy_NL2 / temperature, dim=-1)[..., 1]
    return (hard_NL - soft_NL).detach() + soft_NL


def hard_decisions(logits_NL2: Tensor, noise_NL2: Tensor | None) -> Tensor:
    """Test-time decisions, exactly 0.0 or 1.0: drawn with noise, the likelier ones without."""
    if noise_NL2 is None:
        return likelier_decisions(logits_NL2)
    return likelier_decisions(logits_NL2 + noise_NL2)


def likelier_decisions(logits_NL2: Tensor) -> Tensor:
    """The decision with the larger logit, N x L of exact 0.0 and 1.0; a tie keeps the block."""
    return (logits_NL2[..., 1] > logits_NL2[..., 0]).float()
