"""Straight-through Gumbel-softmax sampling of SpotTune's per-block decisions.

Guo et al., section 3.2, equation 4. For each image and each residual block the policy network
emits two logits: keep the pretrained block (index 0), or use its fine-tuned copy (index 1). The
forward pass takes the hard argmax of logits + Gumbel noise, which is one draw from
softmax(logits); the backward pass uses the gradient of softmax((logits + noise) / temperature).

Shapes (N images, L residual blocks):
    logits     N x L x 2   raw network output, not probabilities
    noise      N x L x 2   independent draws of Gumbel(0, 1)
    decisions  N x L       0 = pretrained block, 1 = fine-tuned block

At test time one of these is added to the policy's logits, and then the larger one decides:
    argmax      nothing: the likelier decision
    sample      Gumbel noise: a draw, as in training and in the released code
    finetuned   infinity for the fine-tuned blocks: every image uses all of them
    kept        infinity for the kept blocks: every image uses all of them
"""

from collections.abc import Sequence

import torch
from torch import Tensor

POLICIES = ("argmax", "sample", "finetuned", "kept")
FIXED = {"argmax": (0.0, 0.0), "finetuned": (0.0, torch.inf), "kept": (torch.inf, 0.0)}
TEMPERATURE = 5.0  # the released code's, which never anneals it


def gumbel_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent Gumbel(0, 1) draws on the generator's device: -log of exponential draws."""
    exponential = torch.empty(tuple(shape), device=generator.device)
    exponential.exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()


def added_at_test_time(
    policy: str, num_images: int, num_blocks: int, generator: torch.Generator
) -> Tensor:
    """What a test-time policy adds to the logits, N x L x 2."""
    if policy == "sample":
        return gumbel_noise((num_images, num_blocks, 2), generator)
    return torch.tensor(FIXED[policy], device=generator.device).expand(num_images, num_blocks, 2)


def sample_decisions(
    logits_NL2: Tensor, noise_NL2: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """Draw decisions N x L: hard values forward, the soft sample's gradient backward."""
    noisy_NL2 = logits_NL2 + noise_NL2
    hard_NL = likelier_decisions(noisy_NL2)
    soft_NL = torch.softmax(noisy_NL2 / temperature, dim=-1)[..., 1]
    return (hard_NL - soft_NL).detach() + soft_NL


def likelier_decisions(logits_NL2: Tensor) -> Tensor:
    """The decision with the larger logit, N x L of exact 0.0 and 1.0; a tie keeps the block."""
    return (logits_NL2[..., 1] > logits_NL2[..., 0]).float()
