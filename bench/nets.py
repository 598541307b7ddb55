"The networks that are measured, without trained weights."
from functools import partial

import torch
from measure import device
from torch import nn


def _torchvision(name):
    from torchvision import models
    return getattr(models, name)(weights=None)

def _timm(name):
    import timm
    return timm.create_model(name, pretrained=False)

def tiny():
    "Two convolutions and two linear layers."
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 10))

def wide():
    "One linear layer of 4.2 million weights, large enough to see in the memory of a process."
    return nn.Sequential(nn.Linear(2048, 2048, bias=False))

class Unet(nn.Module):
    "A plain U-Net with batch norm: four levels down, four up, the levels joined by `cat`."
    def __init__(self, n_in=3, n_out=2, n=64):
        super().__init__()
        self.down = nn.ModuleList(_twice(a, b) for a,b in ((n_in, n), (n, 2*n), (2*n, 4*n), (4*n, 8*n), (8*n, 16*n)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2*o, o, 2, 2) for o in (8*n, 4*n, 2*n, n))
        self.join = nn.ModuleList(_twice(2*o, o) for o in (8*n, 4*n, 2*n, n))
        self.head = nn.Conv2d(n, n_out, 1)

    def forward(self, x):
        levels = []
        for i,down in enumerate(self.down):
            x = down(nn.functional.max_pool2d(x, 2) if i else x)
            levels.append(x)
        for up,join,level in zip(self.up, self.join, levels[-2::-1]): x = join(torch.cat([level, up(x)], 1))
        return self.head(x)

def _twice(a, b): return nn.Sequential(*_layer(a, b), *_layer(b, b))
def _layer(a, b): return nn.Conv2d(a, b, 3, padding=1, bias=False),nn.BatchNorm2d(b),nn.ReLU(inplace=True)

def dynamic_unet():
    "fastai's U-Net on the body of a ResNet-34, for images of 64 x 64."
    from fastai.vision.learner import create_body
    from fastai.vision.models.unet import DynamicUnet
    return DynamicUnet(create_body(_torchvision('resnet34'), pretrained=False), 2, (64, 64))

NETS = dict(tiny=tiny, wide=wide, unet=Unet, dynamic_unet=dynamic_unet)

def build(name):
    "A network by name on the device, always with the same weights."
    torch.manual_seed(0)
    make = NETS.get(name) or partial(_timm if 'patch' in name else _torchvision, name)
    return make().to(device())
