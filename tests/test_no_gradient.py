"Layers without a gradient in a batch, and criteria at initialisation with any inputs, outputs and attention."
from collections import OrderedDict
from dataclasses import dataclass

import fastai.callback.schedule  # noqa: F401, it brings `fit_one_cycle`
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Learner, set_seed
from torch import nn

from early_prune.callbacks import SparsifyCallback
from early_prune.core import prunable, sparsity_of
from early_prune.criteria import AtInit, NoGradient, Running, grasp, magnitude, movement, snip, synflow, taylor
from early_prune.data import digits
from early_prune.dependency import trace
from early_prune.distributions import global_
from early_prune.masks import Masks
from early_prune.ranking import scores, taylor_bn, taylor_fo
from early_prune.recipes import recipe
from early_prune.regrowth import Momentum, by_gradient, gradient


class Spare(nn.Module):
    "The first head is never used, and a block is left out in every third batch."
    def __init__(self):
        super().__init__()
        self.spare,self.a,self.b,self.c,self.head,self.n = nn.Linear(16, 5),nn.Conv2d(1, 16, 3),nn.Conv2d(16, 16, 3, padding=1),nn.Conv2d(16, 16, 3),nn.Linear(16, 10),0
    def forward(self, x):
        self.n += 1
        x = self.a(x).relu()
        if not self.training or self.n%3: x = x+self.b(x).relu()
        return self.head(self.c(x).relu().mean((2, 3)))

@pytest.mark.parametrize('name', ['granet', 'snfs', 'rigl', 'granet_sparse', 'set', 'snip', 'taylor', 'movement', 'running'])
def test_training_goes_on_where_a_layer_has_no_gradient(name):
    set_seed(0)
    own = dict(taylor=taylor, movement=movement, running=Running(taylor))
    cb = SparsifyCallback(.8, criterion=own[name], distribution=global_, every=1) if name in own else recipe(name, sparsity=.8)
    learn = Learner(digits(limit=320), Spare())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2, cbs=cb)
    assert sparsity_of(learn.model)==pytest.approx(.8, abs=2e-3)

def test_a_layer_without_gradient_is_not_swapped():
    "It would lose its smallest weights and get back arbitrary ones."
    net = Spare()
    masks = Masks(net).update(magnitude, .5).apply()
    before = {nm:masks[nm].clone() for nm in masks.params}
    net(torch.randn(4, 1, 8, 8)).sum().backward()
    for together in (False, True):
        masks.swap(.3, gradient, together=together)
        assert masks['spare.weight'].equal(before['spare.weight']) and not masks['a.weight'].equal(before['a.weight'])
    with pytest.raises(NoGradient, match='backward'): Masks(Spare()).update(taylor, .5)
    assert net.spare.weight.grad is None

def test_a_dropped_layer_keeps_what_was_observed():
    net,criterion = Spare(),Momentum()
    for _ in range(3):
        net.zero_grad()
        net(torch.randn(4, 1, 8, 8)).sum().backward()
        for nm,p in prunable(net).items():
            if nm!='spare.weight': criterion.observe(p)
    assert net.b.weight.grad is None and criterion(net.b.weight).any()
    masks = Masks(net).update(magnitude, .5).apply()
    before = masks['b.weight'].clone()
    by_gradient.swap(masks, 0., criterion)
    assert not masks['b.weight'].equal(before)

@pytest.mark.parametrize('criterion', [taylor_fo, taylor_bn])
def test_neurons_of_a_branch_without_gradient(criterion):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            block = lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
            self.a,self.b = block(),block()
        def forward(self, x): return self.a(x), self.b(x)
    net,x = Two(),torch.randn(4, 1, 8, 8)
    groups = trace(net, x)
    with pytest.raises(NoGradient): scores(net, groups, criterion)
    net(x)[0].square().sum().backward()
    found = scores(net, groups, criterion)
    silent = torch.cat([torch.full((g.n,), 'b.' in g.name) for g in groups])
    assert (found[silent]==0).all() and (found[~silent]!=0).any()

# ---- criteria at initialisation

class Attention(nn.Module):
    def __init__(self): super().__init__(); self.qkv,self.head = nn.Linear(32, 96),nn.Linear(32, 10)
    def forward(self, x):
        q,k,v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2).mean(1))

class Encoder(nn.Module):
    def __init__(self): super().__init__(); self.enc,self.head = nn.TransformerEncoderLayer(32, 4, 64, 0., batch_first=True),nn.Linear(32, 10)
    def forward(self, x): return self.head(self.enc(x).mean(1))

@pytest.mark.parametrize('make', [Attention, Encoder])
def test_grasp_differentiates_attention_twice(make):
    torch.manual_seed(0)
    net,x,y = make().double(),torch.randn(3, 5, 32).double(),torch.tensor([1, 2, 3])
    found,params = grasp(net, F.cross_entropy, x, y, temperature=1.),prunable(net)
    def grads(step, towards):
        at = {nm:p.detach()+step*towards.get(nm, 0) for nm,p in net.named_parameters()}
        at = {nm:t.requires_grad_() for nm,t in at.items()}
        loss = F.cross_entropy(torch.func.functional_call(net, at, (x,)), y)
        return dict(zip(at, torch.autograd.grad(loss, list(at.values()))))
    g = {nm:o for nm,o in grads(0, {}).items() if nm in params}
    over,under,eps = grads(1e-5, g),grads(-1e-5, g),1e-5
    for nm,p in params.items(): torch.testing.assert_close(found[nm], (p*(over[nm]-under[nm])/(2*eps)).detach(), rtol=1e-4, atol=1e-9)

@dataclass
class Out: logits:torch.Tensor; extra:tuple=()
class Model(OrderedDict): logits = property(lambda self: self['logits'])

KINDS = dict(dict=lambda o: dict(logits=o), object=lambda o: Out(o, (o.argmax(1),)), model=lambda o: Model(logits=o, ids=o.argmax(1)), tuple=lambda o: (o, o.mean(1)))
def logits(o): return o['logits'] if isinstance(o, dict) else o[0] if isinstance(o, tuple) else o.logits

class Tokens(nn.Module):
    def __init__(self, pack): super().__init__(); self.pack,self.e,self.h,self.o = pack,nn.Embedding(20, 16),nn.Linear(19, 8),nn.Linear(8, 4)
    def forward(self, ids, numbers): return self.pack(self.o(self.h(torch.cat([self.e(ids).mean(1), numbers], 1)).relu()))

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('f', [snip, grasp, synflow])
def test_tokens_numbers_and_outputs_of_any_kind(f, kind):
    torch.manual_seed(0)
    ids,numbers,y = torch.randint(0, 20, (6, 5)),torch.randn(6, 3),torch.randint(0, 4, (6,))
    same,net = Tokens(lambda o: o),Tokens(KINDS[kind])
    net.load_state_dict(same.state_dict())
    want = f(same, F.cross_entropy, (ids, numbers), y)
    for inputs in ((ids, numbers), dict(ids=ids, numbers=numbers)):
        found = AtInit(f).look(net, lambda o,y: F.cross_entropy(logits(o), y), inputs, y)
        for nm,p in prunable(net).items():
            if kind!='tuple' or f is not synflow: torch.testing.assert_close(found(p), want[nm])
            else: assert (found(p)>0).any() # the flow into all outputs
