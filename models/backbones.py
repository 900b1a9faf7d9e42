"""torchvision's and timm's residual networks as stem, residual blocks and head.

FAMILIES has a row for each family: its class, and where its parts are. `resnet50` is torchvision's,
`timm:NAME` timm's. What counts as a block:

    ResNet        a basic or bottleneck block: 8 in resnet18, the paper's 16 in resnet50
    EfficientNet  every MBConv block, also those without a shortcut, which change size or channels.
                  The first block of a ResNet's stage, which the released code pairs, has no
                  identity shortcut either; and the mixed result is the block's whole output
    ConvNeXt      a block; the layers that halve the image belong to the block that follows them
    ViT, DeiT     attention and MLP, each with its shortcut
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import timm
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import global_pool_nlc
from timm.models import _efficientnet_blocks as mbconv
from timm.models import convnext, deit, efficientnet, mobilenetv3, vision_transformer
from timm.models import resnet as timm_resnet
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from models.residual import Head, ResidualNetwork
from runtime.errors import SpotTuneError, brief

TIMM = "timm:"
DROPOUT = "drop_rate"  # timm's networks call dropout as a function

Part = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Family:
    """Where a class of networks has its parts, and which layers are the classifier."""

    title: str
    network: type[nn.Module]  # exactly: a subclass may call its parts in another order
    stem: Part
    blocks: Callable[[nn.Module], list[nn.Module]]
    features: Part  # what comes between the blocks and the classifier
    classifier: tuple[str, ...]  # names in the network
    blocks_prefix: tuple[str, ...]  # with which the names of all weights in blocks begin


def parts(*names: str) -> Part:
    """The named parts of a network, one after another."""

    def in_order(network: nn.Module) -> nn.Module:
        return nn.Sequential(*(_part(network, name) for name in names))

    return in_order


def _part(network: nn.Module, name: str) -> nn.Module:
    return nn.Dropout(network.drop_rate) if name == DROPOUT else network.get_submodule(name)


def _resnet_blocks(network: nn.Module) -> list[nn.Module]:
    return list(chain(network.layer1, network.layer2, network.layer3, network.layer4))


def _mbconv_blocks(network: nn.Module) -> list[nn.Module]:
    return list(chain(*network.blocks))


def _convnext_blocks(network: nn.Module) -> list[nn.Module]:
    blocks = []
    for stage in network.stages:
        first, *others = stage.blocks
        blocks += [nn.Sequential(stage.downsample, first), *others]
    return blocks


def _convnext_features(network: nn.Module) -> nn.Module:
    """Pool, norm and flatten; networks that normalise before the pool have no norm after it."""
    names = ("global_pool", "norm", "flatten", "pre_logits", "drop")
    after = [getattr(network.head, name) for name in names if hasattr(network.head, name)]
    return nn.Sequential(network.norm_pre, *after)


class TokenStem(nn.Module):
    """A vision transformer's images -> tokens N x T x C, with class token and positions.

    Takes the transformer itself, whose parts behind the stem must have been taken out before.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        for name in ("blocks", "norm", "fc_norm", "head_drop", "head", "head_dist", "attn_pool"):
            if getattr(transformer, name, None) is not None:
                setattr(transformer, name, nn.Identity())
        self.transformer = transformer

    def forward(self, images_N3HW: Tensor) -> Tensor:
        x_NTC = self.transformer._pos_embed(self.transformer.patch_embed(images_N3HW))
        return self.transformer.norm_pre(self.transformer.patch_drop(x_NTC))


class TokenPool(nn.Module):
    """Tokens N x T x C -> N x C, as the transformer has it: class token, mean, or attention."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.attention = transformer.attn_pool
        self.include_prefix = transformer.pool_include_prefix
        self.num_prefix_tokens = transformer.num_prefix_tokens
        self.pool_type = transformer.global_pool

    def forward(self, x_NTC: Tensor) -> Tensor:
        if self.attention is not None:
            return self.attention(x_NTC[:, 0 if self.include_prefix else self.num_prefix_tokens :])
        return global_pool_nlc(
            x_NTC, self.pool_type, self.num_prefix_tokens, reduce_include_prefix=self.include_prefix
        )


def _pooled_tokens(transformer: nn.Module) -> nn.Module:
    pool = TokenPool(transformer)
    return nn.Sequential(transformer.norm, pool, transformer.fc_norm, transformer.head_drop)


class MeanOfTwo(nn.Module):
    """A distilled DeiT's two classifiers, for its first two tokens: the mean of their scores."""

    def __init__(self, head: nn.Module, head_dist: nn.Module) -> None:
        super().__init__()
        self.head, self.head_dist = head, head_dist

    def forward(self, x_NTC: Tensor) -> Tensor:
        return (self.head(x_NTC[:, 0]) + self.head_dist(x_NTC[:, 1])) / 2


RESNET_LAYERS = ("layer1.", "layer2.", "layer3.", "layer4.")
FAMILIES = (
    Family(
        "torchvision's ResNets (resnet18 to resnet152, wide_resnet..., resnext...)",
        torchvision_resnet.ResNet,
        parts("conv1", "bn1", "relu", "maxpool"),
        _resnet_blocks,
        lambda network: nn.Sequential(network.avgpool, nn.Flatten()),
        ("fc",),
        RESNET_LAYERS,
    ),
    Family(
        "timm's ResNets (timm:resnet26d)",
        timm_resnet.ResNet,
        parts("conv1", "bn1", "act1", "maxpool"),
        _resnet_blocks,
        parts("global_pool", DROPOUT),
        ("fc",),
        RESNET_LAYERS,
    ),
    Family(
        "EfficientNets and MobileNetV2 (timm:tf_efficientnet_lite0)",
        efficientnet.EfficientNet,
        parts("conv_stem", "bn1"),
        _mbconv_blocks,
        parts("conv_head", "bn2", "global_pool", DROPOUT),
        ("classifier",),
        ("blocks.",),
    ),
    Family(
        "MobileNetV3 (timm:mobilenetv3_small_100)",
        mobilenetv3.MobileNetV3,
        parts("conv_stem", "bn1"),
        _mbconv_blocks,
        parts("global_pool", "conv_head", "norm_head", "act2", "flatten", DROPOUT),
        ("classifier",),
        ("blocks.",),
    ),
    Family(
        "ConvNeXt (timm:convnext_tiny)",
        convnext.ConvNeXt,
        parts("stem"),
        _convnext_blocks,
        _convnext_features,
        ("head.fc",),
        ("stages.",),
    ),
    Family(
        "ViT and DeiT (timm:vit_tiny_patch16_224)",
        vision_transformer.VisionTransformer,
        TokenStem,
        lambda network: list(network.blocks),
        _pooled_tokens,
        ("head",),
        ("blocks.",),
    ),
    Family(
        "distilled DeiT (timm:deit_tiny_distilled_patch16_224)",
        deit.VisionTransformerDistilled,
        TokenStem,
        lambda network: list(network.blocks),
        parts("norm"),
        ("head", "head_dist"),
        ("blocks.",),
    ),
)

# Each convolution and the BatchNorm that takes nothing but its output, see models/folding.py.
CONV_BN = {
    torchvision_resnet.BasicBlock: (("conv1", "bn1"), ("conv2", "bn2")),
    torchvision_resnet.Bottleneck: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    timm_resnet.BasicBlock: (("conv1", "bn1"), ("conv2", "bn2")),
    timm_resnet.Bottleneck: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    mbconv.ConvBnAct: (("conv", "bn1"),),
    mbconv.DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    mbconv.InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    mbconv.EdgeResidual: (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
}


def family_of(network: nn.Module) -> Family:
    """The row of the network's class; raises SpotTuneError if it has none."""
    for family in FAMILIES:
        if type(network) is family.network:
            return family
    raise SpotTuneError(
        f"a {type(network).__name__} of {type(network).__module__} cannot be paired, since nothing "
        f"here tells where its residual blocks are; expected one of {known_families()}"
    )


def known_families() -> str:
    return "; ".join(family.title for family in FAMILIES)


def stem_blocks_head(network: nn.Module) -> ResidualNetwork:
    """The same network, with the same scores, in the form that SpotTune pairs.

    It is made of the network's own modules, so `network` must not be used afterwards. Raises
    SpotTuneError if the network is of no family in FAMILIES.
    """
    family = family_of(network)
    for module in network.modules():
        if type(module) in CONV_BN:
            module.CONV_BN = CONV_BN[type(module)]
    layers = [network.get_submodule(name) for name in family.classifier]
    classifier = layers[0] if len(layers) == 1 else MeanOfTwo(*layers)
    head = Head(family.features(network), classifier)
    blocks = family.blocks(network)
    return ResidualNetwork(family.stem(network), blocks, head)  # the stem may take the rest apart


@dataclass(frozen=True)
class DataConfig:
    """The pictures that a network's weights were trained for."""

    side: int  # pixels
    mean: tuple[float, float, float]  # red, green, blue from 0 to 1
    std: tuple[float, float, float]
    interpolation: str  # "bilinear" or "bicubic"
    crop_share: float  # of the resized picture's side, in the centre crop of evaluation


def data_config(network: nn.Module) -> DataConfig:
    """That of the network's usual ImageNet weights; before `stem_blocks_head` takes it apart."""
    if not hasattr(network, "pretrained_cfg"):  # all of torchvision's ResNets have the same
        return DataConfig(224, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "bilinear", 224 / 256)
    found = timm.data.resolve_model_data_config(network)
    return DataConfig(
        side=found["input_size"][-1],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        interpolation=found["interpolation"],
        crop_share=found["crop_pct"],
    )


def _names() -> list[str]:
    """All that `create` knows. timm names an architecture, or after a dot also one of its weights.

    In the files of these classes timm has a few other ones too, which `family_of` refuses.
    """
    known = torchvision.models.list_models()
    file = torchvision_resnet.__name__
    names = [n for n in known if torchvision.models.get_model_builder(n).__module__ == file]
    for file in sorted({family.network.__module__.rpartition(".")[2] for family in FAMILIES[1:]}):
        tagged = timm.list_models(module=file, pretrained=True, include_tags=True)
        names += [TIMM + name for name in (*timm.list_models(module=file), *tagged)]
    return names


def create(name: str, num_classes: int, imagenet: bool = False) -> nn.Module:
    """The library's own network of that name, its random weights from PyTorch's generator.

    `imagenet`: with the library's pretrained weights except for the classifier, downloaded where
    that was not done before; the library's own errors pass through. Raises SpotTuneError for a name
    that no library has, or a network that cannot be paired.
    """
    if name not in (names := _names()):
        close = difflib.get_close_matches(name, names, n=1)
        raise SpotTuneError(
            f"--backbone {brief(name)}: no network of that name can be paired"
            f"{f' (did you mean {close[0]}?)' if close else ''}; expected one of {known_families()}"
        )
    if name.startswith(TIMM):
        network = timm.create_model(
            name.removeprefix(TIMM), pretrained=imagenet, num_classes=num_classes
        )
        family_of(network)
        return network
    network = torchvision.models.get_model(name, num_classes=num_classes)
    if imagenet:
        # The weights of the paper's time; the newer ones, of another recipe, transfer otherwise.
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        tensors = weights.get_state_dict(progress=False, check_hash=True)
        kept = {n: t for n, t in tensors.items() if not n.startswith("fc.")}
        network.load_state_dict(kept, strict=False)
    return network
