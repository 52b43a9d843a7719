"""Networks for small pictures that transformers has no configuration for: ResNet with a CIFAR stem, VGG-BN.

Importing this module registers both with transformers' auto classes, so `AutoModelForImageClassification` loads their
folders afterwards.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class SmallPictureResNetConfig(ResNetConfig):
    """transformers' ResNet configuration under another name: the stem differs."""

    model_type = "salun_small_picture_resnet"


class SmallPictureResNet(ResNetForImageClassification):
    """ResNet whose stem is one 3 x 3 convolution without stride and without pooling, as is usual for CIFAR.

    He et al. 2016 (arXiv 1512.03385), section 4.2; the network of SalUn's CIFAR experiments.
    """

    config_class = SmallPictureResNetConfig

    def __init__(self, config: SmallPictureResNetConfig) -> None:
        super().__init__(config)
        embedder: Any = self.resnet.embedder
        embedder.embedder.convolution = nn.Conv2d(
            config.num_channels, config.embedding_size, kernel_size=3, stride=1, padding=1, bias=False
        )
        embedder.pooler = nn.Identity()
        self.post_init()


class VGGConfig(PretrainedConfig):
    """VGG with batch norm; a 0 in `widths` is a pooling layer."""

    model_type = "salun_vgg"

    def __init__(
        self,
        num_channels: int = 3,
        widths: tuple[int, ...] = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
        **others: Any,
    ) -> None:
        self.num_channels, self.widths = num_channels, list(widths)
        super().__init__(**others)


class VGG(PreTrainedModel):
    """VGG-16 with batch norm and one linear layer over the averaged features (arXiv 1409.1556, configuration D).

    Pictures smaller than 32 pixels are pooled down to one pixel and no further.
    """

    config_class = VGGConfig
    main_input_name = "pixel_values"

    def __init__(self, config: VGGConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        channels = config.num_channels
        for width in config.widths:
            if width == 0:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, len(config.id2label or {}))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Return an output with ``.logits``, and ``.loss`` if labels are given."""
        logits = self.classifier(self.features(pixel_values).mean((2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


AutoConfig.register("salun_small_picture_resnet", SmallPictureResNetConfig, exist_ok=True)
AutoConfig.register("salun_vgg", VGGConfig, exist_ok=True)
AutoModelForImageClassification.register(SmallPictureResNetConfig, SmallPictureResNet, exist_ok=True)
AutoModelForImageClassification.register(VGGConfig, VGG, exist_ok=True)
