"The networks that are measured, without trained weights."
import torch
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

NETS = dict(tiny=tiny, wide=wide)

def build(name):
    "A network by name, always with the same weights."
    torch.manual_seed(0)
    if name in NETS: return NETS[name]()
    return _timm(name) if name.startswith('vit') else _torchvision(name)
