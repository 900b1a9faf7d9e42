"""The ways of learning a task: which parameters train, how decisions are made, what the loss adds.

A method is a module with the few calls that training and evaluation share:

    method(images, noise) -> scores N x K and decisions N x L, or None where it has none
    method.penalty(decisions) -> what the loss adds to the cross-entropy, in nats
    method.optimizers(rates) -> its optimisers, one learning rate each
    method.evaluator() -> a copy for predicting, quicker, with the same call and the same answers
    method.kept_for_predicting() -> the module that must be stored to predict
    method.policies -> the ways in which it can decide at test time, its own first

Shapes (N images, L blocks, K classes): images N x 3 x H x W, noise N x L x 2: what is added to the
policy's logits before the larger one decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent_net import PolicyNet
from gumbel_softmax import POLICIES, likelier_decisions, sample_decisions
from models.folding import folded
from models.resnet26 import ResNet
from models.routed import RoutedNet
from models.spottune import SpotTuneNet
from runtime.errors import SpotTuneError

MOMENTUM = 0.9
POLICY_WEIGHT_DECAY = 1e-3
FUSED_DEVICES = ("cpu", "cuda")  # where one kernel can update all tensors
SHARE_MOMENTUM = 0.01  # of Global-k's running share: a mean over about the last 100 steps
SMALLEST_SHARE = 1e-4  # below it the entropy's gradient, log v, is cut off


@dataclass(frozen=True)
class Rates:
    """Learning rates of the network and of the policy network; weight decay of the network."""

    network: float
    policy: float
    weight_decay: float


@dataclass(frozen=True)
class Options:
    """What single methods need to know; 0 for all others."""

    k: int = 0  # blocks: the last k of "lastk", the chosen k of "globalk"
    l2sp_alpha: float = 0.0  # penalty on the distance from the pretrained weights
    l2sp_beta: float = 0.0  # penalty on the size of the new classifier
    lambda_k: float = 0.0  # Global-k: weight of L_k, the number of fine-tuned blocks
    lambda_e: float = 0.0  # Global-k: weight of L_e, the entropy


class PlainNetwork(nn.Module):
    """One network without decisions; the modules of `frozen` stay exactly as they are.

    Their BatchNorm too: it keeps the source's running statistics, also while the rest trains.
    """

    num_blocks = 0  # that need a decision
    policies = ()

    def __init__(self, net: nn.Module, frozen: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.net = net
        self.frozen = tuple(frozen)
        for module in self.frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "PlainNetwork":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, None]:
        return self.net(images), None

    def penalty(self, decisions_NL: None) -> float:
        return 0.0

    def evaluator(self) -> "PlainNetwork":
        return PlainNetwork(folded(self.net))

    def kept_for_predicting(self) -> nn.Module:
        return self

    def optimizers(self, rates: Rates) -> list[torch.optim.Optimizer]:
        return _sgd((self.net, rates.network, rates.weight_decay))


def feature_extractor(net: ResNet) -> PlainNetwork:
    """Only the classifier trains: all before it stays the source's, BatchNorm included."""
    return PlainNetwork(net, frozen=(net.stem, *net.blocks, net.head.bn))


def last_k(net: ResNet, k: int) -> PlainNetwork:
    """The last k blocks train, and what follows them: the head's BatchNorm and the classifier."""
    return PlainNetwork(net, frozen=(net.stem, *net.blocks[: len(net.blocks) - k]))


class L2SP(PlainNetwork):
    """Fine-tuning with a penalty towards the pretrained weights.

    Li, Grandvalet and Davoine, *Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks* (ICML 2018), equation 5, in place of weight decay:

        alpha / 2 * |w - w_pretrained|^2 + beta / 2 * |w_classifier|^2

    w: all that came from the source, BatchNorm's scales and shifts too. `net` as it is handed over
    holds the pretrained weights; they are no part of the state dict.
    """

    def __init__(self, net: ResNet, alpha: float, beta: float) -> None:
        super().__init__(net)
        self.alpha, self.beta = alpha, beta
        for number, parameter in enumerate(self._from_source()):
            start = parameter.detach().clone()
            self.register_buffer(f"pretrained_{number}", start, persistent=False)

    def _from_source(self) -> list[nn.Parameter]:
        named = self.net.named_parameters()
        return [weight for name, weight in named if not name.startswith("head.linear.")]

    def penalty(self, decisions_NL: None) -> Tensor:
        away = [
            (weight - self.get_buffer(f"pretrained_{number}")).square().sum()
            for number, weight in enumerate(self._from_source())
        ]
        size = [weight.square().sum() for weight in self.net.head.linear.parameters()]
        return self.alpha / 2 * torch.stack(away).sum() + self.beta / 2 * torch.stack(size).sum()

    def optimizers(self, rates: Rates) -> list[torch.optim.Optimizer]:
        return _sgd((self.net, rates.network, 0.0))


class SpotTune(nn.Module):
    """The two-branch network and its policy network: one loss trains both."""

    policies = POLICIES

    def __init__(self, pretrained: ResNet, policy_net: nn.Module) -> None:
        super().__init__()
        self.num_blocks = len(pretrained.blocks)
        self.net = SpotTuneNet(pretrained)
        self.policy_net = policy_net

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, Tensor]:
        logits_NL2 = self.policy_net(images)
        if self.training:
            decisions_NL = sample_decisions(logits_NL2, noise_NL2)
        else:
            decisions_NL = likelier_decisions(logits_NL2 + noise_NL2)
        return self.net(images, decisions_NL), decisions_NL

    def penalty(self, decisions_NL: Tensor) -> Tensor | float:
        return 0.0

    def evaluator(self) -> nn.Module:
        return RoutedSpotTune(self)

    def kept_for_predicting(self) -> nn.Module:
        return self

    def optimizers(self, rates: Rates) -> list[torch.optim.Optimizer]:
        return _sgd(
            (self.net, rates.network, rates.weight_decay),
            (self.policy_net, rates.policy, POLICY_WEIGHT_DECAY),
        )


class RoutedSpotTune(nn.Module):
    """A copy of a SpotTune method that only predicts: each image runs the blocks it chose."""

    def __init__(self, method: SpotTune) -> None:
        super().__init__()
        self.num_blocks = method.num_blocks
        self.net = RoutedNet(method.net)
        self.policy_net = folded(method.policy_net)

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, Tensor]:
        decisions_NL = likelier_decisions(self.policy_net(images) + noise_NL2)
        return self.net(images, decisions_NL), decisions_NL


class FairCoin(nn.Module):
    """A policy that looks at nothing and has no parameters: equal logits for both branches."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.num_blocks = num_blocks

    def forward(self, images_N3HW: Tensor) -> Tensor:
        return images_N3HW.new_zeros(len(images_N3HW), self.num_blocks, 2, dtype=torch.float32)


class Stochastic(SpotTune):
    """Stochastic fine-tuning: each image draws each of its decisions with a fair coin.

    At test time too. With equal logits there is no likelier decision, so no "argmax".
    """

    policies = POLICIES[1:]

    def __init__(self, pretrained: ResNet) -> None:
        super().__init__(pretrained, FairCoin(len(pretrained.blocks)))


class GlobalK(SpotTune):
    """SpotTune (Global-k): all images of a task fine-tune the same k blocks.

    Guo et al., section 3.3. With v_l the fraction of a batch's images that use fine-tuned block l,

        L_k = (sum_l v_l - k)^2,   L_e = sum_l -v_l log v_l

    are added to the cross-entropy with the weights lambda_k and lambda_e. The paper's weights, and
    how it estimates v_l and ends up with exactly k blocks, were not found. Here v_l comes from the
    sampled decisions of the batch, and at test time every image fine-tunes the k blocks with the
    largest running mean of v_l.
    """

    policies = ()

    def __init__(self, pretrained: ResNet, policy_net: nn.Module, options: Options) -> None:
        super().__init__(pretrained, policy_net)
        self.k, self.lambda_k, self.lambda_e = options.k, options.lambda_k, options.lambda_e
        self.register_buffer("share_L", torch.full((self.num_blocks,), 0.5))

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            decisions_NL = self.chosen_L().expand(len(images), -1)
            return self.net(images, decisions_NL), decisions_NL
        scores_NK, decisions_NL = super().forward(images, noise_NL2)
        self.share_L.lerp_(decisions_NL.detach().mean(dim=0), SHARE_MOMENTUM)
        return scores_NK, decisions_NL

    def chosen_L(self) -> Tensor:
        """1.0 for the k blocks that all images fine-tune, else 0.0; of equal ones the earlier."""
        order = self.share_L.argsort(descending=True, stable=True)
        return torch.zeros_like(self.share_L).index_fill_(0, order[: self.k], 1.0)

    def penalty(self, decisions_NL: Tensor) -> Tensor:
        share_L = decisions_NL.mean(dim=0)
        number = (share_L.sum() - self.k).square()
        entropy = -(share_L * share_L.clamp_min(SMALLEST_SHARE).log()).sum()
        return self.lambda_k * number + self.lambda_e * entropy

    def evaluator(self) -> nn.Module:
        return self.kept_for_predicting().evaluator()

    def kept_for_predicting(self) -> "Compact":
        """One copy of each block, and no policy network: it predicts exactly as the whole."""
        chosen_L = self.chosen_L()
        return Compact(self.net.single_branch(chosen_L.bool().tolist()), chosen_L)


class Compact(PlainNetwork):
    """What is left of Global-k after training: a plain network, and which blocks it fine-tuned."""

    def __init__(self, net: nn.Module, chosen_L: Tensor) -> None:
        super().__init__(net)
        self.num_blocks = len(chosen_L)
        self.register_buffer("chosen_L", chosen_L)

    def forward(self, images: Tensor, noise_NL2: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(images), self.chosen_L.expand(len(images), -1)

    def evaluator(self) -> "Compact":
        return Compact(folded(self.net), self.chosen_L)


@dataclass(frozen=True)
class MethodRow:
    """A method's name in flags and files, its name in the literature, what it needs."""

    name: str
    title: str
    options: tuple[str, ...] = ()  # those of Options that it reads
    from_source: bool = True  # starts from pretrained weights
    policies: tuple[str, ...] = ()  # ways to decide at test time, its own first
    has_policy_network: bool = False


METHODS = {
    row.name: row
    for row in (
        MethodRow("scratch", "Training from scratch", from_source=False),
        MethodRow("feature", "Feature extractor"),
        MethodRow("finetune", "Standard fine-tuning"),
        MethodRow("lastk", "Fine-tuning last-k", ("k",)),
        MethodRow("stochastic", "Stochastic fine-tuning", policies=Stochastic.policies),
        MethodRow("l2sp", "L2-SP", ("l2sp_alpha", "l2sp_beta")),
        MethodRow("spottune", "SpotTune", policies=SpotTune.policies, has_policy_network=True),
        MethodRow(
            "globalk",
            "SpotTune (Global-k)",
            options=("k", "lambda_k", "lambda_e"),
            has_policy_network=True,
        ),
    )
}
SOURCE_KIND, COMPACT_KIND = "source", "compact"


NO_OPTIONS = Options()


def choose_policy(policies: Sequence[str], asked: str | None) -> str:
    """The test-time policy asked for, or a method's own; any one where there are no decisions.

    Raises SpotTuneError for one that the method does not know.
    """
    if asked is None or not policies:
        return policies[0] if policies else POLICIES[0]
    if asked not in policies:
        raise SpotTuneError(f"--policy {asked}: this method decides by {', '.join(policies)}")
    return asked


def build_method(kind: str, net: ResNet, width: int, options: Options = NO_OPTIONS) -> nn.Module:
    """The method of that kind around `net`, which holds its initial weights.

    `kind`: a name in METHODS, or "source", or "compact" for what Global-k leaves.
    """
    if kind in (SOURCE_KIND, "scratch", "finetune"):
        return PlainNetwork(net)
    if kind == "feature":
        return feature_extractor(net)
    if kind == "lastk":
        return last_k(net, options.k)
    if kind == "l2sp":
        return L2SP(net, options.l2sp_alpha, options.l2sp_beta)
    if kind == "stochastic":
        return Stochastic(net)
    if kind == "spottune":
        return SpotTune(net, PolicyNet(len(net.blocks), width))
    if kind == "globalk":
        return GlobalK(net, PolicyNet(len(net.blocks), width), options)
    if kind == COMPACT_KIND:
        return Compact(net, torch.zeros(len(net.blocks)))
    raise SpotTuneError(
        f"a method of kind {kind!r} was found; expected one of {', '.join(METHODS)}, "
        f"{SOURCE_KIND} or {COMPACT_KIND}"
    )


def _sgd(*groups: tuple[nn.Module, float, float]) -> list[torch.optim.Optimizer]:
    """An SGD for each (module, learning rate, weight decay) that has anything to train."""
    optimizers = []
    for module, lr, weight_decay in groups:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if trained:
            fused = all(parameter.device.type in FUSED_DEVICES for parameter in trained)
            optimizers.append(
                torch.optim.SGD(
                    trained, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, fused=fused
                )
            )
    return optimizers
