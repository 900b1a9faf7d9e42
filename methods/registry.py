"""All methods by name: which parameters train, how decisions are made, what is added to the loss.

A method is a module with the few calls that training and evaluation share:

    method(images, noise) -> scores N x K and decisions N x L, or None where it has none
    method.penalty(decisions) -> what it adds to the cross-entropy, in nats
    method.optimizers(rates) -> its optimisers, one learning rate each
    method.evaluator() -> a faster copy for predicting, with the same call and the same answers
    method.kept_for_predicting() -> the module that must be stored to predict
    method.policies -> the ways in which it can decide at test time, its default first

Shapes (N images, L blocks, K classes): images N x 3 x H x W, or whatever the network takes; noise
N x L x 2: what is added to the policy's logits before the larger one decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from agent_net import PolicyNet
from gumbel_softmax import POLICIES, TEMPERATURE
from methods.baselines import (
    L2SP,
    PlainNetwork,
    batch_norm_and_last_k,
    feature_extractor,
    last_k,
)
from methods.global_k import Compact, GlobalK
from methods.spottune import SpotTune, Stochastic
from models.residual import ResidualNetwork
from runtime.errors import SpotTuneError


@dataclass(frozen=True)
class Options:
    """Settings of single methods; 0 for the methods that do not use them."""

    k: int = 0  # blocks: the last k of "lastk" and "bn_lastk", the chosen k of "globalk"
    l2sp_alpha: float = 0.0  # penalty on the distance from the pretrained weights
    l2sp_beta: float = 0.0  # penalty on the size of the new classifier
    lambda_k: float = 0.0  # Global-k: weight of L_k, the number of fine-tuned blocks
    lambda_e: float = 0.0  # Global-k: weight of L_e, the entropy


@dataclass(frozen=True)
class TwoBranches:
    """Settings of all methods with two branches; the defaults are the released code's."""

    kept_norm: str = "train"  # BatchNorm of kept blocks: one of KEPT_NORMS in models/spottune.py
    temperature: float = TEMPERATURE
    policy_input: int | None = None  # largest shorter side that the policy network sees, in pixels


# A network with its initial weights, the policy network's width, the settings -> the method.
Build = Callable[[ResidualNetwork, int, Options, TwoBranches], nn.Module]


@dataclass(frozen=True)
class MethodRow:
    """A method's name in flags and files, its name in the literature, what it needs."""

    name: str
    title: str
    build: Build
    options: tuple[str, ...] = ()  # those of Options that it reads
    from_source: bool = True  # starts from pretrained weights
    policies: tuple[str, ...] = ()  # ways to decide at test time, its default first
    has_policy_network: bool = False


def plain(net: ResidualNetwork, *_: object) -> nn.Module:
    """One network, all of which trains."""
    return PlainNetwork(net)


def spottune(
    net: ResidualNetwork, width: int, options: Options, branches: TwoBranches
) -> nn.Module:
    policy_net = PolicyNet(len(net.blocks), width, branches.policy_input)
    return SpotTune(net, policy_net, branches.kept_norm, branches.temperature)


def global_k(
    net: ResidualNetwork, width: int, options: Options, branches: TwoBranches
) -> nn.Module:
    policy_net = PolicyNet(len(net.blocks), width, branches.policy_input)
    wanted = (options.k, options.lambda_k, options.lambda_e)
    return GlobalK(net, policy_net, *wanted, branches.kept_norm, branches.temperature)


METHODS = {
    row.name: row
    for row in (
        MethodRow("scratch", "Training from scratch", plain, from_source=False),
        MethodRow("feature", "Feature extractor", lambda net, *_: feature_extractor(net)),
        MethodRow("finetune", "Standard fine-tuning", plain),
        MethodRow(
            "lastk",
            "Fine-tuning last-k",
            lambda net, _, options, *__: last_k(net, options.k),
            options=("k",),
        ),
        MethodRow("bn", "BatchNorm only", lambda net, *_: batch_norm_and_last_k(net, 0)),
        MethodRow(
            "bn_lastk",
            "BatchNorm and last-k",
            lambda net, _, options, *__: batch_norm_and_last_k(net, options.k),
            options=("k",),
        ),
        MethodRow(
            "stochastic",
            "Stochastic fine-tuning",
            lambda net, _, __, branches: Stochastic(net, branches.kept_norm),
            policies=Stochastic.policies,
        ),
        MethodRow(
            "l2sp",
            "L2-SP",
            lambda net, _, options, *__: L2SP(net, options.l2sp_alpha, options.l2sp_beta),
            options=("l2sp_alpha", "l2sp_beta"),
        ),
        MethodRow(
            "spottune", "SpotTune", spottune, policies=SpotTune.policies, has_policy_network=True
        ),
        MethodRow(
            "globalk",
            "SpotTune (Global-k)",
            global_k,
            options=("k", "lambda_k", "lambda_e"),
            has_policy_network=True,
        ),
    )
}
SOURCE_KIND, COMPACT_KIND = "source", "compact"  # not for --method: other networks in checkpoints
BUILDERS: dict[str, Build] = {
    **{name: row.build for name, row in METHODS.items()},
    SOURCE_KIND: plain,
    COMPACT_KIND: lambda net, *_: Compact(net, torch.zeros(len(net.blocks))),
}

NO_OPTIONS, AS_RELEASED = Options(), TwoBranches()


def choose_policy(policies: Sequence[str], asked: str | None) -> str:
    """The requested test-time policy, or the method's default; any one if there are no decisions.

    Raises SpotTuneError for a policy that the method does not have.
    """
    if asked is None or not policies:
        return policies[0] if policies else POLICIES[0]
    if asked not in policies:
        raise SpotTuneError(f"--policy {asked}: this method decides by {', '.join(policies)}")
    return asked


def build_method(
    kind: str,
    net: ResidualNetwork,
    width: int,
    options: Options = NO_OPTIONS,
    branches: TwoBranches = AS_RELEASED,
) -> nn.Module:
    """The method of that kind around `net`, which holds its initial weights.

    `kind`: a name in METHODS, or "source", or "compact" for what Global-k leaves. `width`: channels
    of the policy network's stem. Raises SpotTuneError for another kind, a `k` above the network's
    number of blocks, or a network that the method does not suit.
    """
    if kind not in BUILDERS:
        raise SpotTuneError(
            f"a method of kind {kind!r} was found; expected one of {', '.join(BUILDERS)}"
        )
    if options.k > len(net.blocks):
        raise SpotTuneError(
            f"--k {options.k}: expected at most {len(net.blocks)}, the network's residual blocks"
        )
    return BUILDERS[kind](net, width, options, branches)
