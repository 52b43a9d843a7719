"""Networks for small pictures: ResNet with a CIFAR stem, VGG-BN.

Importing this module registers both with transformers' auto classes, so `AutoModelForImageClassification` loads their
folders afterwards.
"""

from salun_diffusers.evaluation.small_picture_networks import VGG as VGG
from salun_diffusers.evaluation.small_picture_networks import SmallPictureResNet as SmallPictureResNet
from salun_diffusers.evaluation.small_picture_networks import SmallPictureResNetConfig as SmallPictureResNetConfig
from salun_diffusers.evaluation.small_picture_networks import VGGConfig as VGGConfig
