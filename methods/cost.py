"""Multiply-accumulate operations (MACs) that one image costs, counted by PyTorch's flop counter."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from methods.spottune import RoutedSpotTune


@torch.no_grad()
def macs_per_image(evaluator: nn.Module, height: int, width: int) -> dict[str, int]:
    """MACs of predicting one image: of the network, and of the policy network where there is one.

    In the routed network they do not depend on the decisions: a block's two copies cost the same.
    """
    device = next(evaluator.parameters()).device
    image = torch.zeros(1, 3, height, width, device=device)
    nothing_added = torch.zeros(1, evaluator.num_blocks, 2, device=device)
    whole = _macs(lambda: evaluator(image, nothing_added))
    policy = 0
    if isinstance(evaluator, RoutedSpotTune):
        policy = _macs(lambda: evaluator.policy_net(image))
    return {"network": whole - policy, "policy_network": policy}


def _macs(run) -> int:
    # The counter does not know the CPU's fused attention; the plain form is counted everywhere.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2
