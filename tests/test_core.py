"What a network costs, against independent counts."
import itertools
import threading
from collections import UserDict, UserList, deque
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision import models

from early_prune.core import (
    cost,
    evaluating,
    latency,
    layer_flops,
    layer_table,
    look_up,
    prunable,
    sparsity_of,
    tensors_in,
)


def counted(model, x):
    "FLOPs of convolutions and linear layers by hooks on a real forward pass."
    total = []
    def hook(m, i, out):
        if isinstance(m, nn.Conv2d): total.append(2*out.numel()*m.in_channels//m.groups*m.kernel_size[0]*m.kernel_size[1])
        if isinstance(m, nn.Linear): total.append(2*out.numel()*m.in_features)
    handles = [m.register_forward_hook(hook) for m in model.modules()]
    with torch.no_grad(): model.eval()(x)
    for h in handles: h.remove()
    return sum(total)

@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v3_small', 'shufflenet_v2_x0_5', 'vgg11'])
def test_flops(name):
    model,x = getattr(models, name)(weights=None),torch.zeros(2,3,64,64)
    assert layer_flops(model, x)['']==counted(model, x)

def test_nothing_changes():
    model = models.resnet18(weights=None).train()
    model.layer1.eval()
    before = {nm:t.clone() for nm,t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    cost(model, torch.zeros(1,3,32,32)); latency(model, torch.zeros(1,3,32,32), seconds=.01)
    assert [m.training for m in model.modules()]==modes
    assert all(torch.equal(before[nm], t) for nm,t in model.state_dict().items())

def test_modes_return_after_an_error():
    model = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(RuntimeError), evaluating(model): raise RuntimeError
    assert model.training and model[0].training

def test_published_sizes():
    model = models.resnet50(weights=None)
    found = cost(model, torch.zeros(1,3,224,224))
    assert found.params==25_557_032 and found.flops==pytest.approx(8.2e9, rel=.01)

def test_cost_of_zeros():
    model,x = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 50)),torch.zeros(1,100)
    dense = cost(model, x)
    with torch.no_grad(): model[0].weight[:90] = 0
    sparse = cost(model, x)
    assert sparse.sparse_flops==dense.flops-2*9000 and sparse.flops==dense.flops and sparse.nonzeros==dense.nonzeros-9000
    assert sparse.sparse_megabytes==pytest.approx(dense.megabytes-(9000*4-10_000/8)/1e6)
    assert (sparse/dense)['nonzeros']==pytest.approx(sparse.nonzeros/dense.nonzeros)

def test_prunable_tied_and_special():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed,self.attn,self.head = nn.Embedding(10, 8),nn.MultiheadAttention(8, 2, add_bias_kv=True),nn.Linear(8, 10, bias=False)
            self.again = self.head
    assert list(prunable(Tied()))==['attn.in_proj_weight', 'attn.out_proj.weight', 'head.weight']
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert list(prunable(tied))==['0.weight'] and layer_table(tied).weights.sum()==16

def test_errors():
    with pytest.raises(ValueError, match='ReLU has no prunable layer'): sparsity_of(nn.ReLU())
    with pytest.raises(ValueError, match='needs example inputs'): cost(nn.Linear(2,2))
    with pytest.raises(ValueError, match=r"names no layer or parameter of the model: \['nope'\]"): prunable(nn.Linear(2,2), ignore=('nope',))
    with pytest.raises(ValueError, match="`x` is unknown: 'b'; known are 'aaaa'"): look_up({'aaaa':1}, 'b', 'x')

def test_ignore_takes_layers_and_names():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), *[nn.Linear(2, 2) for _ in range(9)])
    everything = list(prunable(net))
    for ignore in ('1', ('1',), ['1'], (net[1],), net[1], ('1.0', '1.1.weight')):
        assert list(prunable(net, ignore=ignore))==[nm for nm in everything if not nm.startswith('1.')], ignore
    assert '10.weight' in prunable(net, ignore=('1',)) # a name is not a prefix of letters

# ---- tensors wherever they are

@dataclass
class Held: y:object
@dataclass(slots=True)
class Slotted: y:object
class Private:
    __slots__ = '__y'
    def __init__(self, y): self.__y = y
class Named(NamedTuple): y:object
class Mixed(dict):
    "A dictionary with an attribute of its own."
    def __init__(self, y): self.extra = y
def one_by_one(y): yield y
def closed(y): return lambda: y

WRAPS = [lambda y: y, lambda y: [y], lambda y: dict(a=(1, {'b':y})), Held, Slotted, Private, Named, Mixed, one_by_one, closed, lambda y: SimpleNamespace(y=y),
         lambda y: {y}, lambda y: frozenset([y]), lambda y: deque([y]), lambda y: UserDict(a=y), lambda y: UserList([y]), lambda y: {1:y}.values(),
         lambda y: {y:1}, lambda y: map(abs, [y]), lambda y: partial(print, y), lambda y: y.sum, lambda y: Held(one_by_one(Slotted(y))),
         lambda y: torch.distributions.Normal(y, torch.ones_like(y)), lambda y: torch.distributions.Independent(torch.distributions.Normal(y, y+1), 1),
         lambda y: torch.nn.utils.rnn.PackedSequence(y, torch.ones(3))]

@pytest.mark.parametrize('wrap', WRAPS)
def test_a_tensor_is_found_in(wrap):
    y = torch.rand(3, 3)
    found = [t for t in tensors_in(wrap(y)).values() if t.shape==y.shape]
    assert any(t.equal(y) for t in found)

def test_a_tensor_is_found_once_and_circles_end():
    y,o = torch.rand(2),SimpleNamespace()
    o.me,o.y,o.again = o,y,[y]
    assert list(tensors_in(o))==['.y'] and list(tensors_in((y, 1, 'a', None, torch.float32, np.ones(2)), 'out'))==['out[0]']

@pytest.mark.parametrize('o', [threading.Lock(), itertools.count(), object()], ids=str)
def test_what_cannot_be_searched_is_refused(o):
    with pytest.raises(TypeError, match=type(o).__name__): tensors_in(SimpleNamespace(o=[o]), 'y')


@dataclass
class Question:
    x:torch.Tensor
    scale:torch.Tensor

class Asked(nn.Module):
    "Takes its input by place, by name, in a dictionary or in an object."
    def __init__(self): super().__init__(); self.a,self.b = nn.Conv2d(3, 8, 3),nn.Linear(8, 2)
    def forward(self, x=None, *, image=None):
        x = image if x is None else x['x'] if isinstance(x, dict) else x.x if isinstance(x, Question) else x
        return self.b(self.a(x).relu().mean((2, 3)))

@pytest.mark.parametrize('way', ['dict', 'object', 'named'])
def test_costs_of_inputs_of_any_structure(way):
    "The same FLOPs as of the tensor alone, for any batch; nothing given is changed."
    net,x = Asked(),torch.randn(5, 3, 6, 6)
    given = dict(dict=[dict(x=x)], object=[Question(x, torch.ones(()))], named=[])[way]
    named = dict(image=x) if way=='named' else {}
    assert cost(net, *given, **named)==cost(net, x) and layer_flops(net, *given, **named)==layer_flops(net, x)
    pd.testing.assert_frame_equal(layer_table(net, *given, **named), layer_table(net, x))
    assert latency(net, *given, **named, seconds=.001)>0 and not x.is_meta
