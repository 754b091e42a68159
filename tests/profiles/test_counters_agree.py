"""Both FLOP counters agree on every product."""

from __future__ import annotations

import pytest
import torch
from fvcore.nn import ActivationCountAnalysis
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.models.registry import MODELS, build_model
from profiles.flops.counter import count_flops, counting_mode, silence_fvcore
from profiles.flops.operators import OTHERS

#: one of each family, and the side of its images
SMALL = {
    **dict.fromkeys(MODELS, 32),
    **dict.fromkeys(
        [
            "torchvision/resnet18", "torchvision/mobilenet_v2", "torchvision/mobilenet_v3_small",
            "torchvision/efficientnet_b0", "torchvision/shufflenet_v2_x1_0", "torchvision/squeezenet1_1",
            "torchvision/mnasnet0_5", "torchvision/lraspp_mobilenet_v3_large", "timm/resnet18", "timm/convnext_atto",
            "timm/mobilenetv3_small_050", "smp/unet:resnet18", "smp/deeplabv3plus:mobilenet_v2", "smp/segformer:mit_b0",
        ],
        32,
    ),
    "timm/vit_tiny_patch16_224": 224, "timm/mobilevit_xxs": 64,
}  # fmt: skip
#: those that take longer, most of them for their random weights
LARGE = {
    "torchvision/alexnet": 64, "torchvision/convnext_tiny": 32, "torchvision/densenet121": 32,
    "torchvision/efficientnet_v2_s": 32, "torchvision/googlenet": 32, "torchvision/inception_v3": 80,
    "torchvision/regnet_x_400mf": 32, "torchvision/regnet_y_400mf": 32, "torchvision/resnet50": 32,
    "torchvision/resnext50_32x4d": 32, "torchvision/swin_t": 32, "torchvision/vgg11_bn": 32,
    "torchvision/wide_resnet50_2": 32, "torchvision/fcn_resnet50": 32, "torchvision/deeplabv3_resnet50": 32,
    "torchvision/deeplabv3_mobilenet_v3_large": 32, "torchvision/vit_b_16": 224, "torchvision/vit_b_32": 224,
    "torchvision/swin_v2_t": 64, "torchvision/maxvit_t": 224, "timm/efficientnet_b0": 32, "timm/ghostnet_100": 32,
    "timm/xcit_nano_12_p8_224": 32, "timm/poolformer_s12": 32, "timm/edgenext_xx_small": 64,
    "timm/swin_tiny_patch4_window7_224": 224, "timm/cait_xxs24_224": 224, "timm/halonet26t": 256,
    "timm/botnet26t_256": 256, "timm/lambda_resnet26t": 256, "timm/levit_128s": 224, "timm/efficientformer_l1": 224,
    "timm/coatnet_0_rw_224": 224, "timm/eva02_tiny_patch14_224": 224, "timm/hiera_tiny_224": 224,
    "timm/tiny_vit_5m_224": 224, "timm/mixer_s32_224": 224, "timm/nextvit_small": 64, "timm/fastvit_t8": 64,
    "timm/hrnet_w18_small": 64, "timm/repvgg_a0": 64, "timm/maxvit_rmlp_pico_rw_256": 256,
    "timm/sequencer2d_s": 64,
    "smp/unetplusplus:resnet18": 32,
    "smp/fpn:resnet18": 32, "smp/manet:resnet18": 32, "smp/linknet:resnet18": 32, "smp/pspnet:resnet18": 32,
    "smp/upernet:resnet18": 32, "smp/unet:tu-mobilenetv3_small_050": 32, "smp/dpt:tu-vit_tiny_patch16_224": 64,
    "smp/pan:resnet18": 128, "smp/unet:mobileone_s0": 64,
}  # fmt: skip
NAMES_OF_OTHERS = {name for name, _ in OTHERS.values()}


def agree(name: str, side: int) -> None:
    """Products to the last MAC; all else is of a kind that only fvcore counts; nothing is left out; layers add up."""
    result = count_flops(build_model(name, classes=10), (torch.zeros(1, 3, side, side),))
    assert (result.counter, result.unsupported) == ("fvcore", {})
    assert result.products == result.macs_torch
    rest = {kind: macs for kind, macs in result.by_operator.items() if kind in NAMES_OF_OTHERS}
    assert result.macs == result.products + sum(rest.values())
    assert result.layers[0].macs == sum(layer.own_macs for layer in result.layers) == result.macs
    assert result.layers[0].params == sum(layer.own_params for layer in result.layers) == result.params
    assert result.layers[0].activations == sum(layer.own_activations for layer in result.layers) == result.activations


@pytest.mark.filterwarnings("ignore")  # libraries' own talk of their random weights
@pytest.mark.parametrize(("name", "side"), SMALL.items())
def test_counters_agree_on_products(name: str, side: int) -> None:
    agree(name, side)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), LARGE.items())
def test_counters_agree_on_model_families(name: str, side: int) -> None:
    agree(name, side)


@pytest.mark.parametrize("name", ["wrn16_2", "vgg11", "torchvision/mobilenet_v2", "timm/levit_128s"])
def test_activations_match_fvcore(name: str) -> None:
    side = LARGE.get(name, 32)
    net, example = build_model(name, classes=10).eval(), (torch.zeros(1, 3, side, side),)
    with silence_fvcore(), counting_mode(net):
        reference = ActivationCountAnalysis(net, example).unsupported_ops_warnings(False).total()
    assert count_flops(net, example).activations == reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gmac", "millions"),
    [("vit_medium_patch16_reg4_gap_256", 10.8, 22.6), ("vit_betwixt_patch16_reg4_gap_256", 16.5, 28.2)],
)
def test_transformers_match_timm(name: str, gmac: float, millions: float) -> None:
    result = count_flops(build_model(f"timm/{name}", classes=1000), (torch.zeros(1, 3, 256, 256),))
    assert (round(result.macs / 1e9, 1), round((result.activations or 0) / 1e6, 1)) == (gmac, millions)


class Made(TorchDispatchMode):
    """Numbers that products make, seen as they run."""

    PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm")

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.PRODUCTS:
            self.numbers += output.numel()
        return output


def test_attention_scores_are_activations() -> None:
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    net, x = Attention(), torch.zeros(2, 3, 13, 8)
    with counting_mode(net), Made() as made:
        net(x)
    assert count_flops(net, (x,)).activations == made.numbers == 2 * 3 * 13 * (13 + 8)
