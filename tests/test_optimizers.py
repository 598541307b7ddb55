"What an optimizer remembers follows its weights: through masks, returns, cuts and files, with every optimizer."
import copy
import gc
import json
import random
import signal
import subprocess
import sys
import time
from collections import deque, namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from weakref import ref

import numpy as np
import optimizers_zoo as zoo
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD, Adam, Lamb, Larc, Lookahead, OptimWrapper, QHAdam, RAdam, RMSProp, ranger
from optimizers_zoo import Entry, check_cut, check_masks, check_resume
from torch import nn
from torch.optim.swa_utils import AveragedModel

from early_prune import optimizers
from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback
from early_prune.checkpoint import read_state
from early_prune.criteria import gradient, magnitude
from early_prune.data import digits
from early_prune.dependency import trace
from early_prune.masks import Masks, counterparts, holds_zero
from early_prune.models import small_cnn
from early_prune.optimizers import Layout, Unreadable, layout_of, load_memory, memory_state, optimizers_in
from early_prune.ranking import Neurons
from early_prune.regrowth import kept_amount, mean_amount
from early_prune.surgery import cut, forget_neurons
from early_prune.triggers import AtEpoch

ZOO = {nm:o for nm,o in zoo.zoo().items() if o.library in ('torch', 'fastai')}
FAST = [nm for nm in ZOO if 'foreach' not in nm]

# Optimizers written here, each with a memory of its own kind ----------------------------------------

class Own(torch.optim.Optimizer):
    "Momentum, kept by `keep` and read by `move`."
    def __init__(self, params, lr=.02): super().__init__(params, dict(lr=lr))
    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            for p in g['params']:
                if p.grad is not None: p.sub_(self.move(p, self.state[p]), alpha=g['lr'])

def blend(v, g, beta=.9): return v.mul_(beta).add_(g)

class InList(Own):
    def move(self, p, s):
        if not s: s['moments'] = [torch.zeros_like(p), torch.zeros_like(p)]
        a,b = s['moments']
        return blend(a, p.grad)+blend(b, a, .5)

class InDeque(Own):
    def move(self, p, s):
        s.setdefault('last', deque(maxlen=3)).append(p.grad.clone())
        return sum(s['last'])

class InTuple(Own):
    def move(self, p, s):
        a,n = s.get('pair', (torch.zeros_like(p), 0))
        s['pair'] = a*.9+p.grad,n+1
        return s['pair'][0]/s['pair'][1]

class InObject(Own):
    def move(self, p, s):
        if not s: s['kept'] = SimpleNamespace(v=torch.zeros_like(p), inside={1:torch.zeros_like(p)})
        return blend(s['kept'].v, p.grad)+blend(s['kept'].inside[1], p.grad, .3)

class OnParameter(Own):
    def move(self, p, s):
        if not hasattr(p, 'momentum'): p.momentum = torch.zeros_like(p)
        return blend(p.momentum, p.grad)

class ById(Own):
    def __init__(self, params): super().__init__(params); self.by_id = {}
    def move(self, p, s): return blend(self.by_id.setdefault(id(p), torch.zeros_like(p)), p.grad)

class Beside(Own):
    "Slow weights in a list that lies beside the parameters."
    def __init__(self, params):
        super().__init__(params)
        self.slow,self.n = None,0
    @torch.no_grad()
    def step(self):
        params = [p for g in self.param_groups for p in g['params']]
        if self.slow is None: self.slow = [p.clone() for p in params]
        for p in params: p.sub_(p.grad, alpha=.02)
        self.n += 1
        if self.n%3==0:
            for p,s in zip(params, self.slow): p.copy_(s.lerp_(p, .5))

class Flattened(Own):
    def move(self, p, s):
        if not s: s['flat'] = torch.zeros(p.numel(), dtype=p.dtype)
        return blend(s['flat'], p.grad.flatten()).view_as(p)

class Matrix(Own):
    "Rows, and all behind them in one axis."
    def move(self, p, s):
        g = p.grad.reshape(len(p), -1)
        if not s: s['matrix'],s['rows'],s['columns'] = torch.zeros_like(g),torch.zeros_like(g[:,:1]),torch.zeros_like(g[0])
        blend(s['rows'], g.square().mean(1, keepdim=True)); blend(s['columns'], g.square().mean(0))
        return (blend(s['matrix'], g)/(s['rows']+s['columns']+.1).sqrt()).view_as(p)

class Rotated(Own):
    "Momentum in the basis of the eigenvectors of what it has seen."
    def move(self, p, s):
        g = p.grad.reshape(len(p), -1)
        if not s: s['seen'],s['rotated'] = torch.eye(len(p), dtype=p.dtype)*.1,torch.zeros_like(g)
        basis = torch.linalg.eigh(s['seen'].add_(g@g.T)).eigenvectors
        return (basis@blend(s['rotated'], basis.T@g)).view_as(p)

class Normed(Own):
    "The memory is divided by the norm of all of it: slices share a factor."
    def move(self, p, s):
        if not s: s['v'] = torch.zeros_like(p)
        return blend(s['v'], p.grad/p.grad.norm().clamp(min=1e-12))

class Coded(Own):
    "Codes in which 128 stands for zero."
    def move(self, p, s):
        if not s: s['codes'] = torch.full_like(p, 128, dtype=torch.uint8)
        v = (s['codes'].to(p)-128)/64+p.grad
        s['codes'] = (v.clamp(-1.9, 1.9)*64+128).round().to(torch.uint8)
        return v

class Started(Own):
    "A memory that begins at .3, and stays for a weight without gradients."
    def move(self, p, s):
        if not s: s['size'] = torch.full_like(p, .3)
        s['size'] = torch.where(p.grad!=0, s['size']*.9+p.grad.abs(), s['size'])
        return p.grad/s['size']

class Centred(Own):
    def move(self, p, s):
        g = p.grad-p.grad.mean() if p.numel()>1 else p.grad
        if not s: s['v'] = torch.zeros_like(p)
        return blend(s['v'], g)

class Noisy(Own):
    def move(self, p, s): return p.grad+torch.randn_like(p)*1e-3

class Around:
    "Holds an optimizer under a name of its own, and slow copies of the weights."
    def __init__(self, hidden): self.hidden,self.copies,self.param_groups = hidden,{},hidden.param_groups
    def zero_grad(self): self.hidden.zero_grad()
    @torch.no_grad()
    def step(self):
        self.hidden.step()
        for p in (p for g in self.param_groups for p in g['params']): p.copy_(self.copies.setdefault(p, p.clone()).lerp_(p, .4))

KINDS = dict(InList=InList, InDeque=InDeque, InTuple=InTuple, InObject=InObject, OnParameter=OnParameter, ById=ById, Beside=Beside,
             Flattened=Flattened, Matrix=Matrix, Rotated=Rotated, Normed=Normed, Started=Started, Centred=Centred, Noisy=Noisy, Coded=Coded)
MINE = {nm:Entry(f'here/{nm}', lambda net, c=c: c(net.parameters())) for nm,c in KINDS.items()}
MINE['Around'] = Entry('here/Around', lambda net: Around(torch.optim.AdamW(net.parameters())))
MINE['Around of list'] = Entry('here/Around of list', lambda net: Around(InList(net.parameters())))

F64 = torch.float64,False

# Cuts beside a twin that was sliced by hand from what was there before --------------------------------

@pytest.mark.parametrize('name', FAST)
def test_a_cut_goes_on_as_a_small_network(name):
    dtype,closed,_,_ = zoo.way(ZOO[name]) if name=='torch/LBFGS' else (*F64, True, '')
    found = check_cut(ZOO[name], dtype, closed)
    assert found['how']==('refused' if name=='torch/LBFGS' else 'equal'), found
    if name!='torch/LBFGS': assert found['renewed']==0

@pytest.mark.parametrize('name', MINE)
def test_any_container_is_cut(name):
    found = check_cut(MINE[name], *F64)
    assert found['how']=='equal', found
    if name!='OnParameter': assert (found['renewed']>0)==(name=='Rotated')

def table_of(opt, p): return p.momentum if isinstance(opt, OnParameter) else opt.by_id[id(p)]

@pytest.mark.parametrize('kind', [OnParameter, ById])
def test_memory_without_a_state(kind):
    "On the parameter, or under its `id`: cut like the weight."
    t = zoo.begin(Entry('', lambda net: kind(net.parameters())), *F64).step(4)
    before = {nm:table_of(t.opt, p).clone() for nm,p in t.net.named_parameters()}
    groups = trace(t.net, t.x[:2])
    cut(t.net, groups, {g.name:k for g,k in zip(groups, zoo.KEPT)}, t.opt)
    for nm,p in t.net.named_parameters():
        assert torch.equal(table_of(t.opt, p), before[nm][np.ix_(*zoo.kept_of(nm, before[nm]))])
    t.step(3)

def test_rows_and_columns_of_a_square():
    "Shapes cannot tell them apart."
    net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    opt,x = torch.optim.Adafactor(net.parameters(), lr=.1),torch.randn(32, 12)
    for _ in range(4): opt.zero_grad(); net(x).square().sum().backward(); opt.step()
    state = {nm:{k:v.clone() for k,v in opt.state[p].items()} for nm,p in net.named_parameters()}
    groups,a,b = trace(net, x[:2]),[1,4,5,9],[0,2,3,7,11]
    cut(net, groups, {'0':a, '2':b}, opt)
    now = opt.state[net[2].weight]
    assert torch.equal(now['row_var'], state['2.weight']['row_var'][b]) and torch.equal(now['col_var'], state['2.weight']['col_var'][:,a])
    assert torch.equal(opt.state[net[0].weight]['row_var'], state['0.weight']['row_var'][a])
    assert torch.equal(opt.state[net[0].weight]['col_var'], state['0.weight']['col_var'])

def test_two_cuts():
    "After a cut parameters that were alike are not; the second cut knows."
    t = zoo.begin(ZOO['torch/Adafactor'], *F64).step(4)
    groups = trace(t.net, t.x[:2])
    groups = cut(t.net, groups, {g.name:k for g,k in zip(groups, zoo.KEPT)}, t.opt)
    t.step(2)
    groups = cut(t.net, groups, {groups[0].name:[0,2], groups[2].name:[1,3,5]}, t.opt)
    t.step(2)
    assert all(v.shape[0] in (1, len(p)) for p in t.net.parameters() for k,v in t.opt.state[p].items() if k=='row_var')

class Threshold(Own):
    "Factors above ten rows, the whole below: the kind of memory changes with the size."
    def move(self, p, s):
        whole = len(p)<=10 or p.ndim<2
        if not s: s['whole' if whole else 'rows'] = torch.zeros_like(p) if whole else torch.zeros(len(p), dtype=p.dtype)
        v = s['whole'] if whole else s['rows'].view(-1, *[1]*(p.ndim-1))
        v.mul_(.9).add_(p.grad.square() if whole else p.grad.square().flatten(1).mean(1).view_as(v))
        return p.grad/(v.sqrt()+.1)

def test_memory_that_depends_on_size_begins_anew():
    found = check_cut(Entry('', lambda net: Threshold(net.parameters())), *F64)
    assert found['how']=='equal' and found['renewed']>0, found

# Planted faults ------------------------------------------------------------------------------------

def reverse(t, part, p, at, right=optimizers._cut_part): return right(t, part, p, {d:o.flip(0) for d,o in at.items()})

def neighbour(t, part, p, at, right=optimizers._cut_part):
    return right(t, part, p, {d:(o+1)%p.shape[d] for d,o in at.items()})

def one_forgotten(self, params, right=Layout.read):
    "The second tensor of each parameter is cut to what is in front."
    found = right(self, params)
    return [[(*o[:4], o[4] if i!=1 else torch.zeros_like(o[4]), o[5]) for i,o in enumerate(mine)] for mine in found]

def slow_forgotten(self, params, right=Layout.read):
    return [[(*o[:4], torch.zeros_like(o[4]) if 'slow_weights' in o[0] else o[4], o[5]) for o in mine] for mine in right(self, params)]

@pytest.mark.parametrize('name', ['torch/SGD momentum', 'torch/AdamW', 'torch/Adafactor', 'fastai/Adam', 'fastai/Lookahead of SGD', 'torch/Muon and AdamW'])
@pytest.mark.parametrize('fault', [reverse, neighbour])
def test_slices_of_others_are_seen(name, fault, monkeypatch):
    monkeypatch.setattr(optimizers, '_cut_part', fault)
    assert check_cut(ZOO[name], *F64)['how']=='differs'

@pytest.mark.parametrize('name', ['torch/AdamW', 'torch/Adafactor', 'fastai/Adam'])
def test_a_forgotten_tensor_is_seen(name, monkeypatch):
    monkeypatch.setattr(Layout, 'read', one_forgotten)
    assert check_cut(ZOO[name], *F64)['how']=='differs'

def test_forgotten_slow_weights_are_seen(monkeypatch):
    "Where they are never read the trial says so: weights at zero come back. Where a cut alone forgets them the twin does."
    entry = ZOO['fastai/Lookahead of SGD']
    with monkeypatch.context() as m:
        m.setattr(Layout, 'read', slow_forgotten)
        refused = check_cut(entry, *F64)
    assert refused['how']=='refused' and 'kept where it is not seen' in refused['why']
    def forgetful(self, at, right=Layout.cut):
        with monkeypatch.context() as m:
            m.setattr(Layout, 'read', slow_forgotten)
            return right(self, at)
    monkeypatch.setattr(Layout, 'cut', forgetful)
    assert check_cut(entry, *F64)['how']=='differs'

# Masks ---------------------------------------------------------------------------------------------

CENTRED = {'Centred', 'Noisy', 'Rotated'}

@pytest.mark.parametrize('name', [nm for nm in FAST if nm!='torch/LBFGS'])
def test_zeros_stay(name):
    found = check_masks(ZOO[name], *F64)
    assert found['how']=='zero' and found['finite'], found
    assert found['holds']==(name!='torch/Muon and AdamW')

@pytest.mark.parametrize('name', MINE)
def test_zeros_stay_in_any_container(name):
    found = check_masks(MINE[name], *F64)
    assert found['how']=='zero' and found['finite'], found
    assert found['holds']==(name not in CENTRED)

def trained(make, steps=8, prune=True):
    torch.manual_seed(1)
    model,x,y = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4)),torch.randn(64,12),torch.randint(0, 4, (64,))
    opt,masks = make(list(model.parameters())),Masks(model)
    def step(own=True):
        opt.zero_grad(); F.cross_entropy(model(x), y).backward()
        masks.step(opt) if own else opt.step()
    for _ in range(steps): step()
    if prune: masks.update(magnitude, .7).apply(opt)
    return model,opt,masks,step

CONSTANT = ('step_size', 'exp_inf') # Rprop's step goes on from its start, Adamax's bound to a constant, which no zero gradient can use
MAKE = {f'torch {c.__name__}':(lambda ps, c=c: c(ps, lr=.01)) for c in (getattr(torch.optim, nm) for nm in
        ('SGD', 'Adam', 'AdamW', 'NAdam', 'RAdam', 'Adamax', 'Adagrad', 'Adadelta', 'RMSprop', 'Rprop', 'ASGD'))}
MAKE |= {'torch amsgrad':lambda ps: torch.optim.Adam(ps, .01, amsgrad=True), 'torch centered':lambda ps: torch.optim.RMSprop(ps, .01, centered=True, momentum=.9),
         'fastai SGD':lambda ps: SGD(ps, .01, mom=.9, wd=.1), 'fastai Adam':lambda ps: Adam(ps, .01, wd=.1), 'fastai RMSProp':lambda ps: RMSProp(ps, .01, mom=.9),
         'fastai RAdam':lambda ps: RAdam(ps, .01, wd=.1), 'fastai QHAdam':lambda ps: QHAdam(ps, .01, wd=.1), 'fastai Larc':lambda ps: Larc(ps, .01, wd=.1),
         'fastai Lamb':lambda ps: Lamb(ps, .01), 'fastai ranger':lambda ps: ranger(ps, .01), 'fastai Lookahead':lambda ps: Lookahead(SGD(ps, .01, mom=.9)),
         'fastai wrapper':lambda ps: OptimWrapper(ps, torch.optim.AdamW, lr=.01, weight_decay=.1)}

@pytest.mark.parametrize('name', MAKE)
def test_masked_gradients_are_enough(name):
    "No pass over the weights: values and memory of pruned weights are exactly zero after 25 steps, the others train."
    model,opt,masks,_ = trained(MAKE[name])
    x,y = torch.randn(64,12),torch.randint(0, 4, (64,))
    for _ in range(25):
        opt.zero_grad(); F.cross_entropy(model(x), y).backward()
        masks.mask_grads(); opt.step()
    assert holds_zero(opt)
    for nm,p in masks.params.items():
        assert not p.detach()[~masks[nm]].any() and p.detach()[masks[nm]].abs().min()>0
        inner = opt
        while 'opt' in vars(inner): inner = inner.opt
        held = [v for k,v in inner.state[p].items() if isinstance(v, torch.Tensor) and v.shape==p.shape and k not in CONSTANT]
        assert all(not v[~masks[nm]].any() for v in held)

def test_a_new_weight_remembers_what_is_fresh():
    "Not zero: Rprop's step, Adagrad's start, codes in which 128 is zero."
    for make,key,fresh in ((lambda ps: torch.optim.Rprop(ps, lr=.03), 'step_size', .03), (Coded, 'codes', 128), (Started, 'size', .3),
                           (lambda ps: torch.optim.Adagrad(ps, lr=.01, initial_accumulator_value=.1), 'sum', .1)):
        _,opt,masks,_ = trained(make)
        for nm,p in masks.params.items():
            kept = opt.state[p][key]
            assert torch.equal(kept[~masks[nm]], torch.full_like(kept[~masks[nm]], fresh)), key
            assert (kept[masks[nm]]!=torch.full_like(kept, fresh)[masks[nm]]).float().mean()>.1

def test_neurons_forget_to_fresh():
    model,opt,masks,step = trained(lambda ps: torch.optim.Rprop(ps, lr=.03), prune=False)
    groups = trace(model, torch.randn(2, 12))
    forget_neurons(opt, model, groups, np.arange(groups.n_neurons)<3)
    size = opt.state[model[0].weight]['step_size']
    assert torch.equal(size[:3], torch.full_like(size[:3], .03)) and (size[3:]!=.03).any()
    assert torch.equal(opt.state[model[2].weight]['step_size'][:,:3], torch.full((4,3), .03))

def test_another_basis_is_left_alone():
    _,opt,masks,step = trained(Rotated, prune=False)
    before = {p:opt.state[p]['rotated'].clone() for p in masks.params.values()}
    masks.update(magnitude, .9).apply(opt)
    assert all(torch.equal(opt.state[p]['rotated'], v) for p,v in before.items())

def test_state_is_forgotten_when_pruned():
    "Without touching the optimizer, momentum would move a pruned weight."
    model,opt,masks,step = trained(lambda ps: torch.optim.SGD(ps, .1, momentum=.9), prune=False)
    masks.update(magnitude, .5).apply()
    masks.mask_grads(); opt.step()
    assert any(p.detach()[~masks[nm]].any() for nm,p in masks.params.items())

@pytest.mark.parametrize('amount', [None, kept_amount, mean_amount])
def test_second_moments_of_what_returns(amount):
    "Zero, what was kept, or the mean of those that stayed; momenta are zero in each, and SGD makes the same training."
    def train(make):
        torch.manual_seed(0)
        w = nn.Linear(6, 5, bias=False)
        opt,masks = make(w.parameters()),Masks(w)
        masks.amount = amount
        def grads(): w.weight.grad = torch.rand(5, 6)+.5
        for i in range(3): grads(); opt.step()
        masks.update(magnitude, .5).apply(opt)
        for i in range(2): grads(); masks.step(opt)
        old,state = masks['weight'].clone(),{k:v.clone() for k,v in opt.state[w.weight].items() if torch.is_tensor(v)}
        grads()
        masks.swap(.4, gradient, may_return=False).apply(opt)
        return w.weight.detach(),opt.state[w.weight],state,masks['weight'],old,masks,opt,grads,w
    w,now,was,mask,old,*_ = train(lambda ps: torch.optim.Adam(ps, 1e-3))
    back,stay = mask & ~old,mask & old
    assert back.sum()>3 and not w[back].any() and not now['exp_avg'][back].any()
    want = {None:0., mean_amount:was['exp_avg_sq'][stay].mean(), kept_amount:was['exp_avg_sq'][back]}[amount]
    assert torch.allclose(now['exp_avg_sq'][back], torch.as_tensor(want)) and torch.equal(now['exp_avg_sq'][stay], was['exp_avg_sq'][stay])
    if amount is kept_amount: assert (was['exp_avg_sq'][back]>0).all()
    else: assert not now['exp_avg_sq'][~mask].any()
    _,_,_,mask,_,masks,opt,grads,layer = train(lambda ps: torch.optim.Adam(ps, 1e-3))
    for _ in range(5): grads(); masks.step(opt)
    assert not layer.weight.detach()[~masks['weight']].any()
    _,_,_,_,_,masks,opt,grads,layer = train(lambda ps: torch.optim.SGD(ps, 1e-3, momentum=.9))
    for _ in range(5): grads(); masks.step(opt)
    same = SGD_ENDS.setdefault('end', layer.weight.detach().clone())
    assert torch.equal(layer.weight, same) and bool(same.any())

SGD_ENDS = {}

def test_all_may_be_new():
    "Where no weight stayed there is no mean: the second moments begin at zero."
    w = nn.Linear(2, 1, bias=False)
    opt,masks = torch.optim.Adam(w.parameters()),Masks(w)
    w.weight.grad = torch.ones(1, 2)
    opt.step()
    masks.adopt({'weight':torch.tensor([[True, False]])}).apply(opt)
    masks.amount = mean_amount
    masks._set_all({'weight':(torch.tensor([[False, True]]), 1)})
    masks.apply(opt)
    assert not opt.state[w.weight]['exp_avg_sq'].any()

def test_step_applies_what_was_forgotten():
    "`masks.step` gives new masks to the optimizer, also where `apply` was called without it or not at all."
    for apply in (lambda m, o: None, lambda m, o: m.apply()):
        model,opt,masks,step = trained(lambda ps: torch.optim.AdamW(ps, .1), prune=False)
        apply(masks.update(magnitude, .8), opt)
        for _ in range(3): step()
        assert all(not p.detach()[~masks[nm]].any() for nm,p in masks.params.items())

@pytest.mark.parametrize('make', [Centred, Noisy, Rotated, lambda ps: torch.optim.Muon([p for p in ps if p.ndim==2])])
def test_what_moves_without_a_gradient_is_found(make):
    net = nn.Sequential(nn.Linear(12, 24, bias=False), nn.Linear(24, 4, bias=False))
    assert not holds_zero(make(list(net.parameters())))

def test_several_optimizers():
    net = zoo.network()
    opts = [torch.optim.Muon(zoo._matrices(net), lr=1e-2),torch.optim.AdamW(zoo._others(net))]
    assert [type(o).__name__ for o in optimizers_in(opts)]==['Muon', 'AdamW']
    masks = Masks(net).update(magnitude, .5)
    with pytest.raises(ValueError, match='AdamW does not hold 7.weight'): masks.apply(opts[1])
    groups = trace(net, zoo.data()[0][:2])
    for part in opts:
        shapes = [p.shape for p in net.parameters()]
        with pytest.raises(ValueError, match='does not hold'): cut(net, groups, {g.name:k for g,k in zip(groups, zoo.KEPT)}, part)
        assert shapes==[p.shape for p in net.parameters()]
    for p in zoo._others(net): p.requires_grad_(False) # frozen weights need no optimizer
    Masks(net).update(magnitude, .5).apply(opts[0])

# The trial ------------------------------------------------------------------------------------------

def looked(monkeypatch, *made):
    "How many trials are made for these optimizers."
    calls,look = [],Layout._look
    monkeypatch.setattr(Layout, '_look', lambda self: (calls.append(1), look(self))[1])
    layouts = [layout_of(o) for o in made]
    monkeypatch.undo()
    return len(calls),layouts

def test_what_is_alike_is_tried_once(monkeypatch):
    "Class, options, functions and sizes make the difference, and a memory that is not empty."
    optimizers._FOUND.clear()
    make = lambda n=6,c=torch.optim.Adam,**kw: c([nn.Parameter(torch.randn(n, 4)), nn.Parameter(torch.randn(n))], **kw)
    n,(a,b) = looked(monkeypatch, make(), make())
    assert n==1 and a is not b and list(a.parts.values())==list(b.parts.values()) and a.holds==b.holds
    assert not a.parts.keys() & b.parts.keys()
    for other in (make(7), make(lr=.2), make(amsgrad=True), make(c=torch.optim.AdamW), make(c=Centred), make(c=type('Adam', (torch.optim.Adam,), {}))):
        assert looked(monkeypatch, other)[0]==1
    monkeypatch.setattr(Centred, 'move', lambda self, p, s: p.grad)
    n,(changed,) = looked(monkeypatch, make(c=Centred))
    assert n==1 and changed.holds
    begun = make()
    for p in begun.param_groups[0]['params']: p.grad = torch.ones_like(p)
    begun.step()
    assert looked(monkeypatch, begun)[0]==1
    for i in range(70): layout_of(make(lr=1+i))
    assert len(optimizers._FOUND)==optimizers._N_FOUND

def test_a_rehearsal_is_kept():
    optimizers._FOUND.clear()
    make = lambda: torch.optim.Adafactor([nn.Parameter(torch.randn(6, 4))])
    first,second = make(),make()
    layout_of(first).rehearse()
    assert layout_of(second).rehearsed and layout_of(second).renewed==set()

def test_parameters_of_one_kind_are_tried_together():
    "The order of the sizes makes a kind; one that does not fit what was found is tried as large as it is."
    shapes = [(8, 4), (40, 4), (4, 8), (6, 6), (9, 1), (5,), (30,), (1,)]
    params = [nn.Parameter(torch.randn(s)) for s in shapes]
    layout = layout_of(torch.optim.AdamW(params))
    assert [len(ids) for ids in layout.members]==[2, 1, 1, 1, 2, 1]
    assert layout.holds # also where a parameter is a single number
    class ByArea(Own):
        "Remembers rows of what is large, and every number of what is small."
        def move(self, p, s):
            if 'm' not in s: s['m'] = torch.zeros(p.shape if p.numel()<100 else p.shape[:1])
            if p.numel()<100: return blend(s['m'], p.grad)
            return blend(s['m'], p.grad.mean(1))[:,None]
    large,small = nn.Parameter(torch.randn(20, 10)),nn.Parameter(torch.randn(8, 4))
    opt = ByArea([large, small])
    layout = layout_of(opt)
    for p in (large, small): p.grad = torch.randn_like(p)
    opt.step()
    assert [[part.axes for *_,part in mine] for mine in layout.read([large, small])]==[[((0,),)], [((0,), (1,))]]

def test_the_trial_leaves_no_trace():
    "Optimizer, weights, gradients and random numbers are as before, and a scheduler that wraps `step` is not called."
    net = zoo.network()
    opt = torch.optim.Adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 1/(i+1))
    calls = []
    opt.register_step_post_hook(lambda *args: calls.append(1))
    F.cross_entropy(net(zoo.data()[0]), zoo.data()[1]).backward()
    opt.step(); scheduler.step()
    weights,memory = copy.deepcopy(net.state_dict()),copy.deepcopy(opt.state_dict())
    grads,chance = [p.grad.clone() for p in net.parameters()],(torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    layout_of(opt).rehearse()
    assert calls==[1] and all(torch.equal(v, weights[k]) for k,v in net.state_dict().items())
    assert str(memory)==str(opt.state_dict()) and all(torch.equal(p.grad, g) for p,g in zip(net.parameters(), grads))
    assert torch.equal(torch.get_rng_state(), chance[0]) and random.getstate()==chance[1] and (np.random.get_state()[1]==chance[2]).all()

def test_a_learning_rate_of_zero_hides_nothing():
    "In the first step of a warm-up nothing moves; the trial takes steps all the same."
    assert not holds_zero(Centred([nn.Parameter(torch.randn(6, 6))], lr=0.))

def test_a_layout_keeps_nothing_alive():
    net = zoo.network()
    opt = torch.optim.Adam(net.parameters())
    layout_of(opt)
    alive = ref(opt),ref(net)
    del opt,net
    gc.collect()
    assert alive[0]() is None and alive[1]() is None

def test_new_parameters_are_noticed():
    a,b = nn.Parameter(torch.randn(4, 4)),nn.Parameter(torch.randn(4, 4))
    opt = torch.optim.SGD([a], .1)
    first = layout_of(opt)
    opt.add_param_group(dict(params=[b]))
    assert layout_of(opt) is not first and id(b) in layout_of(opt).parts

class Later(Own):
    "Momentum from the sixth step on, for which an entry waits."
    def move(self, p, s):
        s['n'],moment = s.get('n', 0)+1,s.setdefault('moment', None)
        if s['n']>5 and moment is None: s['moment'] = torch.zeros_like(p)
        return p.grad if s['moment'] is None else blend(s['moment'], p.grad)

class LaterBeside(Own):
    "The same in a list beside the parameters, from the twentieth step on."
    def __init__(self, params):
        super().__init__(params)
        self.n,self.moments = 0,[]
    @torch.no_grad()
    def step(self):
        params,self.n = self.param_groups[0]['params'],self.n+1
        if self.n==20: self.moments = [torch.zeros_like(p) for p in params]
        for p,m in zip(params, self.moments or [torch.zeros_like(p) for p in params]): p.sub_(blend(m, p.grad), alpha=.02)

@pytest.mark.parametrize('make', [Later, LaterBeside])
def test_memory_that_begins_after_a_first_reading_is_read(make):
    net = zoo.network()
    optimizer,masks = make(net.parameters()),Masks(net).update(magnitude, .1)
    held = lambda p: optimizer.state[p]['moment'] if make is Later else optimizer.moments[[q is p for q in net.parameters()].index(True)]
    for i in range(25):
        for p in net.parameters(): p.grad = torch.ones_like(p)
        optimizer.step()
        masks.apply(optimizer) # reads each time, and finds no memory at first
    masks.update(magnitude, .5).apply(optimizer)
    for nm,p in masks.params.items():
        assert not held(p)[~masks[nm]].any() and held(p)[masks[nm]].all()

# Memory where nobody looks: each is refused, on the first day and after some steps -------------------

class Hidden(Own):
    "Momentum in a table that `table` hides, under the name that `key` gives a weight."
    def __init__(self, params, key=id):
        super().__init__(params)
        self.key = key
        self.hide({})
    def hide(self, table): self.moment = lambda k,p: table.setdefault(k, torch.zeros_like(p))
    def move(self, p, s): return blend(self.moment(self.key(p), p), p.grad)

class OfClass(Hidden):
    table = {}
    def hide(self, table): self.table.clear()
    def move(self, p, s): return blend(self.table.setdefault(p, torch.zeros_like(p)), p.grad)

class Nested(Hidden):
    def hide(self, table): self.tables = dict(first=table)
    def move(self, p, s): return blend(self.tables['first'].setdefault(self.key(p), torch.zeros_like(p)), p.grad)

class Slotted:
    __slots__ = 'm',
    def __init__(self, p): self.m = torch.zeros_like(p)

class InSlots(Own):
    def move(self, p, s): return blend(s.setdefault('kept', Slotted(p)).m, p.grad)

class Odd(Hidden):
    def hide(self, table): self.by_key = table
    def move(self, p, s): return blend(self.by_key.setdefault(self.key(p), torch.zeros_like(p)), p.grad)

class Arrays(Hidden):
    def hide(self, table): self.arrays = table
    def move(self, p, s):
        self.arrays[id(p)] = self.arrays.get(id(p), 0)*.9+p.grad.numpy()
        return torch.from_numpy(self.arrays[id(p)])

class WholeVector(Own):
    @torch.no_grad()
    def step(self):
        params,s = self.param_groups[0]['params'],self.state['all']
        s['m'] = s.get('m', 0)*.9+torch.cat([p.grad.flatten() for p in params])
        for p,d in zip(params, s['m'].split([p.numel() for p in params])): p.sub_(d.view_as(p), alpha=.02)

class NamesFirst(Own):
    "Tables of names by weight and of momentum by name."
    def __init__(self, params):
        super().__init__(params)
        self.names,self.by_name = {p:f'weight {i}' for i,p in enumerate(self.param_groups[0]['params'])},{}
    @torch.no_grad()
    def step(self):
        for p,nm in self.names.items(): p.sub_(blend(self.by_name.setdefault(nm, torch.zeros_like(p)), p.grad), alpha=.02)

def exchanged(params):
    optimizer,table = torch.optim.SGD(params),{}
    @torch.no_grad()
    def step():
        for p in optimizer.param_groups[0]['params']: p.sub_(blend(table.setdefault(p, torch.zeros_like(p)), p.grad), alpha=.02)
    optimizer.step = step
    return optimizer

HIDDEN = dict(closure=Hidden, of_class=OfClass, nested=Nested, slots=InSlots, pair=partial(Odd, key=lambda p: ('m', id(p))),
    text=partial(Odd, key=lambda p: str(id(p))), address=partial(Odd, key=torch.Tensor.data_ptr), arrays=Arrays, vector=WholeVector,
    names=NamesFirst, step=exchanged)

@pytest.mark.parametrize('stepped', [False, True])
@pytest.mark.parametrize('name', HIDDEN)
def test_memory_that_is_not_seen_is_refused(name, stepped):
    net = zoo.network()
    optimizer = HIDDEN[name](net.parameters())
    for p in net.parameters(): p.grad = torch.randn_like(p)
    if stepped: optimizer.step()
    with pytest.raises(Unreadable, match=type(optimizer).__name__): Masks(net).update(magnitude, .5).apply(optimizer)

class Basis(Own):
    "A matrix over the outputs, in which zeros of a vector move as soon as two outputs had a gradient together."
    def move(self, p, s):
        g,m = p.grad.flatten(1) if p.ndim>1 else p.grad[:,None],s.setdefault('moment', torch.zeros_like(p))
        m.mul_(.9).add_(p.grad)
        rows = s.setdefault('rows', torch.zeros(len(p), len(p), dtype=p.dtype)).mul_(.9).add_(g@g.T)
        return torch.linalg.solve(rows+torch.eye(len(p), dtype=p.dtype), m.flatten(1) if p.ndim>1 else m[:,None]).view_as(p)

def test_a_basis_is_no_hidden_memory():
    for steps in (0, 5):
        t = zoo.begin(Entry('x/basis', lambda net: Basis(net.parameters())), torch.float64, False)
        layout = layout_of(t.step(steps).opt if steps else t.opt)
        assert not layout.holds and layout.tried

class SlowAdam(Own):
    "Slow weights that the constructor makes, and moments whose root is taken."
    def __init__(self, params):
        super().__init__(params)
        for p in self.param_groups[0]['params']: self.state[p]['slow'] = p.detach().clone()
    def move(self, p, s):
        s['n'] = s.get('n', 0)+1
        m,v = (s.setdefault(nm, torch.zeros_like(p)) for nm in ('first', 'second'))
        m.mul_(.9).add_(p.grad)
        v.mul_(.99).addcmul_(p.grad, p.grad)
        if s['n']%5==0: p.copy_(s['slow'].lerp_(p, .5))
        return m/(v.sqrt()+1e-8)

@pytest.mark.parametrize('steps', [0, 3, 5, 8])
def test_a_second_moment_of_a_stepped_optimizer_is_tried_as_one(steps):
    "It is taken for slow weights where it does not begin as one number; a trial with a negative one is none."
    t = zoo.begin(Entry('x/slow', lambda net: SlowAdam(net.parameters())), torch.float64, False)
    layout = layout_of(t.step(steps).opt if steps else t.opt)
    layout.rehearse()
    assert layout.holds
    for parts in layout.parts.values(): assert {path[-1]:o.amount for (_,path),o in parts.items()}['second']

def test_a_step_that_a_scheduler_watches_is_none_of_its_own():
    net = zoo.network()
    optimizer = torch.optim.SGD(net.parameters(), momentum=.9)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert 'step' in vars(optimizer) and layout_of(optimizer).holds

def test_a_named_tuple_is_cut_and_not_written():
    "A file would give back a tuple without names."
    Pair = namedtuple('Pair', 'a b')
    class InNamed(Own):
        def move(self, p, s): return blend(s.setdefault('pair', Pair(torch.zeros_like(p), torch.zeros_like(p))).a, p.grad)
    entry = Entry('x/named', lambda net: InNamed(net.parameters()))
    assert check_cut(entry, *F64)['how']=='equal'
    assert 'Pair cannot be stored' in check_resume(entry, *F64)['why']

class Moody(Own):
    def move(self, p, s): raise ArithmeticError('not today')

def test_what_cannot_be_tried_is_refused_by_name():
    net = zoo.network()
    for call in (lambda o: layout_of(o), lambda o: Masks(net).update(magnitude, .5).apply(o), lambda o: memory_state(o)):
        with pytest.raises(Unreadable, match='Moody could not be tried on a copy: ArithmeticError: not today'): call(Moody(net.parameters()))
    with pytest.raises(TypeError, match='has `step`'): layout_of('adam')

class Shifting(Own):
    "A memory of another shape each time, which no layout can know."
    def move(self, p, s):
        s['n'] = s.get('n', 0)+1
        if s['n']>20: s['late'] = torch.zeros(s['n'], 3)
        return p.grad

def test_what_appears_later_and_fits_nothing_is_refused():
    t = zoo.begin(Entry('', lambda net: Shifting(net.parameters())), *F64).step(23)
    groups,shapes = trace(t.net, t.x[:2]),[p.shape for p in t.net.parameters()]
    with pytest.raises(Unreadable, match='keeps `late` of shape'): cut(t.net, groups, {g.name:k for g,k in zip(groups, zoo.KEPT)}, t.opt)
    assert shapes==[p.shape for p in t.net.parameters()]

# Files ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['torch/Adafactor', 'torch/Rprop', 'torch/ASGD', 'torch/Muon and AdamW', 'torch/two groups', 'fastai/ranger',
                                  'fastai/Lookahead of OptimWrapper', 'fastai/Larc'])
def test_memory_survives_a_file(name): assert check_resume(ZOO[name], *F64)['how']=='same bits'

@pytest.mark.parametrize('name', ['InList', 'InDeque', 'InTuple', 'OnParameter', 'Beside', 'Matrix', 'Rotated', 'Coded', 'Around'])
def test_any_container_survives_a_file(name): assert check_resume(MINE[name], *F64)['how']=='same bits'

class Named(Own):
    "Keeps things that a file cannot hold as they are: a device, a type, a weight, a view of it, its address, an array, a generator."
    def __init__(self, params, lr=.02):
        super().__init__(params, lr)
        self.where,self.kind,self.order,self.turn = torch.device('cpu'),torch.float64,torch.contiguous_format,complex(1, 2)
        self.noise,self.weights,self.by_address = torch.Generator().manual_seed(3),{},{}
    def move(self, p, s):
        self.weights.setdefault(p, [p, p.detach().view(-1)[::2]])
        self.by_address.setdefault((p.data_ptr(), p.numel()), np.arange(3.))
        s['m'] = blend(s.get('m', torch.zeros_like(p, dtype=self.kind, device=self.where)).clone(memory_format=self.order), p.grad)
        own,half = self.weights[p]
        assert own is p and self.turn==complex(1, 2)
        half.sub_(1e-3*torch.rand(half.shape, generator=self.noise)*self.by_address[p.data_ptr(), p.numel()][1])
        return s['m']

def test_references_survive_a_file():
    "What is the weight itself, or a view of it, is one of the new weight."
    assert check_resume(Entry('', lambda net: Named(net.parameters())), *F64)['how']=='same bits'

def test_a_reference_out_of_bounds_is_refused():
    t = zoo.begin(Entry('', lambda net: Named(net.parameters())), *F64).step(2)
    state = memory_state(t.opt)
    for at,wrong in (('@parameter', {'@parameter':99}), ('@view', {'@view':0, '@size':[9999], '@stride':[1], '@from':0}), ('@torch', {'@torch':'load'}),
                     ('@view', {'@view':0, '@size':[2], '@stride':[-1], '@from':0}), ('@parameter', {'@parameter':'a'})):
        bad = copy.deepcopy(state)
        def put(o):
            for k,v in (o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, (list, tuple)) else ()):
                if isinstance(v, dict) and at in v and not isinstance(o, tuple): o[k] = wrong
                else: put(v)
        put(bad)
        with pytest.raises(ValueError): load_memory(t.opt, bad)

@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    "A process is killed while it trains twelve optimizers with strange memories; another goes on, to the same bits."
    whole,broken = tmp_path/'whole',tmp_path/'broken'
    program = [sys.executable, str(Path(__file__).with_name('kill_optimizers.py'))]
    for o in (whole, broken): o.mkdir()
    subprocess.run([*program, str(whole), '14'], check=True)
    process = subprocess.Popen([*program, str(broken), '14', 'slowly'])
    while len(list(broken.glob('*.safetensors')))<12 or read_state(next(broken.glob('*.safetensors')))['n']<5:
        assert process.poll() is None
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait()==-signal.SIGKILL
    at = [read_state(p)['n'] for p in broken.glob('*.safetensors')]
    assert len(at)==12 and 4<=min(at) and max(at)<14
    subprocess.run([*program, str(broken), '14'], check=True)
    for p in whole.glob('*.safetensors'):
        a,b = read_state(p),read_state(broken/p.name)
        assert a['n']==b['n']==14 and all(torch.equal(t, b['net'][nm]) for nm,t in a['net'].items()), p.stem

def test_a_memory_that_no_file_holds_is_refused():
    with pytest.raises(Unreadable, match='SimpleNamespace cannot be stored'): check_or_raise(MINE['InObject'])

def check_or_raise(entry): return memory_state(zoo.begin(entry, *F64).step(2).opt)

def test_a_file_of_another_optimizer_is_refused():
    state = memory_state(zoo.begin(ZOO['torch/AdamW'], *F64).step(2).opt)
    for name in ('torch/SGD momentum', 'torch/two groups'):
        with pytest.raises(ValueError, match='the optimizer is'): load_memory(zoo.begin(ZOO[name], *F64).opt, state)
    wide = torch.optim.AdamW(zoo.network(a=10).double().parameters())
    with pytest.raises(ValueError, match='the memory is of other parameters'): load_memory(wide, state)
    state['values'][0]['step'] = 3
    with pytest.raises(ValueError, match="no setting 'step'"): load_memory(zoo.begin(ZOO['torch/AdamW'], *F64).opt, state)

# A step after a cut that forgot the optimizer -------------------------------------------------------

STALE = [(c, kw) for c,more in ((torch.optim.AdamW, {}), (torch.optim.Adam, {}), (torch.optim.SGD, dict(momentum=.9)), (torch.optim.Adagrad, {}))
         for kw in (more | dict(foreach=False), more | dict(foreach=True), more | dict(fused=True))]

@pytest.mark.parametrize('make,kwargs', STALE)
def test_a_step_after_a_forgotten_optimizer_stops(make, kwargs):
    net = zoo.network()
    x,y = zoo.data()
    opt = make(net.parameters(), lr=1e-2, **kwargs)
    def step(opt): opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
    for _ in range(2): step(opt)
    groups = trace(net, x[:2])
    cut(net, groups, {g.name:k for g,k in zip(groups, zoo.KEPT)})
    with pytest.raises(RuntimeError, match='pass it to `cut` as `optimizer=`'): step(opt)
    fresh = make(net.parameters(), lr=1e-2, **kwargs)
    for _ in range(2): step(fresh)

@pytest.mark.parametrize('make,kwargs', STALE)
def test_a_second_forgotten_optimizer_stops_as_well(make, kwargs):
    "Where another was cut along, and has stepped; and where an older memory is loaded after good steps."
    net = zoo.network()
    x,y = zoo.data()
    first,second = (make(net.parameters(), lr=1e-2, **kwargs) for _ in range(2))
    def step(opt): opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
    for _ in range(2): step(first); step(second)
    old,groups = second.state_dict(),trace(net, x[:2])
    cut(net, groups, {g.name:k for g,k in zip(groups, zoo.KEPT)}, first)
    for _ in range(2): step(first)
    with pytest.raises(RuntimeError, match='pass it to `cut` as `optimizer=`'): step(second)
    second = make(net.parameters(), lr=1e-2, **kwargs)
    for _ in range(2): step(second)
    second.load_state_dict(old)
    with pytest.raises(RuntimeError, match='pass it to `cut` as `optimizer=`'): step(second)
    second.load_state_dict(first.state_dict())
    step(second)

def test_nobody_listens_when_what_was_cut_is_gone():
    net,(x,_) = zoo.network(),zoo.data()
    groups = trace(net, x[:2])
    cut(net, groups, {g.name:k for g,k in zip(groups, zoo.KEPT)})
    mine = {id(p) for p in net.parameters()} & optimizers._FORGOTTEN.shapes.keys()
    assert mine and optimizers._FORGOTTEN.handle is not None
    del net,groups
    gc.collect()
    assert not mine & optimizers._FORGOTTEN.shapes.keys()
    assert (optimizers._FORGOTTEN.handle is None)==(not optimizers._FORGOTTEN.shapes)

# Averaged copies -----------------------------------------------------------------------------------

def test_averaged_copies_are_masked_and_cut():
    "In the wrapper or out of it; an extra without a copy is an error."
    net = zoo.network()
    for wrap in (lambda n: AveragedModel(n), lambda n: AveragedModel(n).module, lambda n: nn.ModuleDict(dict(online=n, ema=copy.deepcopy(n)))):
        masks,extra = Masks(net).update(magnitude, .5),wrap(net)
        masks.apply(extras=(extra,))
        (copied,tensors), = counterparts(extra, masks.params)
        assert all(not tensors[nm].detach()[~masks[nm]].any() for nm in masks.params) and copied is not net
    with pytest.raises(ValueError, match='ReLU holds no copy'): masks.apply(extras=(nn.ReLU(),))
    net = zoo.network()
    ema,groups = AveragedModel(net),trace(net, zoo.data()[0][:2])
    keep = {g.name:k for g,k in zip(groups, zoo.KEPT)}
    with pytest.raises(ValueError, match='holds no copy'): cut(net, groups, keep, extras=(nn.Linear(2, 2),))
    cut(net, groups, keep, extras=(ema,))
    assert [p.shape for p in ema.parameters()]==[p.shape for p in net.parameters()]
    ema.update_parameters(net)

def test_masks_of_a_compiled_network_find_a_plain_copy():
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    twin = copy.deepcopy(net)
    masks = Masks(torch.compile(net)).update(magnitude, .5).apply(extras=(twin,))
    for nm in masks.params: assert not dict(twin.named_parameters())[nm.removeprefix('_orig_mod.')].detach()[~masks[nm]].any()

# The stored file and its page ---------------------------------------------------------------------

STORED = zoo.newest()

def test_results_are_resumed(tmp_path, monkeypatch):
    "What is in the file is not done again, unless asked for; a failure is a record."
    monkeypatch.setattr(zoo, 'zoo', lambda: {'torch/SGD':ZOO['torch/SGD'], 'torch/moody':Entry('torch/moody', lambda net: Moody(net.parameters()))})
    path = tmp_path/'x.jsonl'
    for n,args in ((2, []), (2, []), (3, ['SGD', '--again']), (3, ['nonsense', '--again'])):
        assert zoo.main([*args, '--path', str(path)])==0
        assert len(path.read_text().splitlines())==n
    known = zoo.newest(path)
    assert known['torch/SGD']['cut']['how']=='equal' and not known['torch/moody']['runs'] and 'not today' in known['torch/moody']['why']

def test_stored_results_hold_what_is_promised():
    "No crash after a cut, no weight off zero, no NaN that the dense training has not; the rest is refused."
    assert set(ZOO)<=set(STORED) and len({r['library'] for r in STORED.values()})==10
    running = [r for r in STORED.values() if r['runs']]
    assert {r['cut']['how'] for r in running}<={'equal', 'refused'} and {r['masks']['how'] for r in running}<={'zero', 'refused'}
    assert all(r['masks']['finite'] or not r['dense_finite'] for r in running if r['masks']['how']=='zero')
    assert sum(r['cut']['how']=='equal' for r in running)>=330

def test_page_shows_the_file():
    cells = json.loads((zoo.RESULTS.parent.parent/'optimizers.ipynb').read_text())['cells']
    shown = ''.join(''.join(o['data'].get('text/html', '')) for c in cells for o in c.get('outputs', []) if 'data' in o)
    assert all(f'<th>{nm}</th>' in shown for nm in STORED), 'the page is older than the file'

# In a Learner ---------------------------------------------------------------------------------------

def fit(*cbs, opt_func=torch.optim.AdamW, epochs=3):
    torch.manual_seed(0)
    learn = Learner(digits(limit=128, valid_limit=32), small_cnn(), CrossEntropyLossFlat(), opt_func=partial(OptimWrapper, opt=opt_func))
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3, cbs=list(cbs))
    return learn

class Holder(Callback):
    "Keeps a copy under some name, and averages it or not."
    def __init__(self, name, moves): self.where,self.moves = name,moves
    def before_fit(self):
        make = AveragedModel if self.moves else copy.deepcopy
        setattr(self, self.where, make(self.learn.model))
    def after_step(self):
        if self.moves: getattr(self, self.where).update_parameters(self.learn.model)

def zeros(net): return sum(int((p==0).sum()) for p in net.parameters() if p.ndim>1)

@pytest.mark.parametrize('name', ['ema_model', 'ema', 'averaged'])
def test_averages_under_any_name_and_no_teacher(name):
    average,teacher = Holder(name, True),Holder('teacher', False)
    learn = fit(SparsifyCallback(.8), average, teacher)
    assert zeros(getattr(average, name))==zeros(learn.model)>0 and zeros(teacher.teacher)==0
    average = Holder(name, True)
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=1), average)
    assert [p.shape for p in getattr(average, name).parameters()]==[p.shape for p in learn.model.parameters()]

def names_of(net): return dict(net.named_parameters())
def clones(net): return [p.detach().clone() for p in net.parameters()]
class Shadow:
    def __init__(self, net): self.shadow = {nm:p.detach().clone() for nm,p in net.named_parameters()}

FORMS = dict( # how an average can be kept, and how its tensors are listed in the order of the parameters
    named=(lambda net: {nm:p.detach().clone() for nm,p in net.named_parameters()}, lambda o,net: [o[nm] for nm in names_of(net)]),
    prefixed=(lambda net: {f'module.{nm}':p.detach().clone() for nm,p in net.named_parameters()}, lambda o,net: list(o.values())),
    renamed=(lambda net: {nm.replace('.', ''):p.detach().clone() for nm,p in net.named_parameters()}, lambda o,net: list(o.values())),
    state_dict=(lambda net: {nm:t.clone() for nm,t in net.state_dict().items()}, lambda o,net: [o[nm] for nm in names_of(net)]),
    listed=(clones, lambda o,net: o), tupled=(lambda net: tuple(clones(net)), lambda o,net: list(o)),
    by_parameter=(lambda net: {p:p.detach().clone() for p in net.parameters()}, lambda o,net: [o[p] for p in net.parameters()]),
    by_id=(lambda net: {id(p):p.detach().clone() for p in net.parameters()}, lambda o,net: [o[id(p)] for p in net.parameters()]),
    nested=(lambda net: dict(decay=.9, numbers=[dict(fast=clones(net))]), lambda o,net: o['numbers'][0]['fast']),
    inside=(Shadow, lambda o,net: [o.shadow[nm] for nm in names_of(net)]),
    networks=(lambda net: [copy.deepcopy(net)], lambda o,net: list(o[0].parameters())))

class Keeper(Callback):
    "Keeps an average in some form, or what it saw first."
    def __init__(self, form, moves): self.moves,(self.make,self.tensors) = moves,FORMS[form]
    def before_fit(self): self.held = self.make(self.learn.model)
    def mine(self, net): return self.tensors(self.held, net)
    def after_step(self):
        if not self.moves: return
        with torch.no_grad():
            for t,p in zip(self.mine(self.learn.model), self.learn.model.parameters(), strict=True): t.mul_(.9).add_(p, alpha=.1)

@pytest.mark.parametrize('form', FORMS)
def test_averages_in_any_container(form):
    "Masked like the network and cut like it; what never moves is left as it is."
    average,first = Keeper(form, True),Keeper(form, False)
    learn = fit(SparsifyCallback(.8), average, first)
    for t,p in zip(average.mine(learn.model), learn.model.parameters(), strict=True):
        if p.ndim>1: assert torch.equal(t==0, p==0) and int((p==0).sum())
    assert not any(bool((t==0).any()) for t in first.mine(learn.model) if t.ndim>1)
    average = Keeper(form, True)
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=1), average)
    assert [t.shape for t in average.mine(learn.model)]==[p.shape for p in learn.model.parameters()]

class Rebuilt(Keeper):
    "Makes a new dictionary at each step."
    def after_step(self):
        if self.moves: self.held = {nm:.9*self.held[nm]+.1*p.detach() for nm,p in self.learn.model.named_parameters()}

def test_averages_that_are_built_anew_and_references_that_are_not_copies():
    class Watch(Callback):
        def before_fit(self): self.own,self.params = self.learn.model.state_dict(),list(self.learn.model.parameters())
    average,watch = Rebuilt('named', True),Watch()
    learn = fit(SparsifyCallback(.8), average, watch)
    for t,p in zip(average.mine(learn.model), learn.model.parameters()): assert p.ndim<2 or torch.equal(t==0, p==0)
    average,watch = Rebuilt('named', True),Watch()
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=1), average, watch)
    assert [t.shape for t in average.mine(learn.model)]==[p.shape for p in learn.model.parameters()]
    assert all(a is b for a,b in zip(watch.params, learn.model.parameters()))

def test_tables_of_tensors_are_extras():
    "`apply` and `cut` take an average that is a dictionary; one of other names or shapes is refused."
    net = zoo.network()
    tables = [{nm:p.detach().clone() for nm,p in net.named_parameters()} for _ in range(2)]
    del tables[1]['3.weight'] # an average of some layers only
    masks = Masks(net).update(magnitude, .5).apply(extras=tables)
    for table in tables: assert all(not table[nm][~masks[nm]].any() for nm in masks.params if nm in table)
    groups = trace(net, zoo.data()[0][:2])
    keep = {g.name:k for g,k in zip(groups, zoo.KEPT)}
    for wrong in ({'a':torch.ones(3)}, {'0.weight':torch.ones(3)}, {}):
        with pytest.raises(ValueError, match='holds no copy'): cut(net, groups, keep, extras=(wrong,))
    want = {nm:t[np.ix_(*zoo.kept_of(nm, t))].clone() for nm,t in tables[0].items()}
    cut(net, groups, keep, extras=tables)
    for table in tables: assert all(torch.equal(t, want[nm]) for nm,t in table.items())

class Unsteady(Own):
    "Does not know that weights can shrink."
    def __init__(self, params, lr=1e-2): super().__init__(params, lr); self.sizes = {}
    def move(self, p, s):
        if self.sizes.setdefault('n', 0)==0: self.sizes['n'] = sum(q.numel() for g in self.param_groups for q in g['params'])
        assert self.sizes['n']==sum(q.numel() for g in self.param_groups for q in g['params']), 'another size'
        return p.grad

def test_a_callback_refuses_before_the_first_batch():
    class Count(Callback):
        n = 0
        def before_batch(self): self.n += self.training
    for opt_func,cb in ((Moody, lambda: SparsifyCallback(.8)), (Unsteady, lambda: EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(0)))):
        count = Count()
        with pytest.raises(Unreadable, match=opt_func.__name__): fit(cb(), count, opt_func=opt_func)
        assert count.n==0

class Views(torch.optim.SGD):
    "Keeps a view that it changes in place, as the SOAP of heavyball does."
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]['params']:
            state = self.state[p]
            if not state: state['whole'] = torch.zeros_like(p); state['view'] = state['whole'].view_as(p)
            with torch.enable_grad(): state['whole'].add_(p)
            p.sub_(.01*p.grad)

class Attribute(torch.optim.SGD):
    "Its constructor makes a number beside each parameter that becomes a tensor, as AdaHessian of timm has it."
    def __init__(self, params, lr=.01):
        super().__init__(params, lr)
        for p in self.param_groups[0]['params']: p.size = 0.

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]['params']:
            p.size = p.size*.9+p.grad**2
            p.sub_(.01*p.grad/(p.size+1).sqrt())

@pytest.mark.parametrize('make', [Views, Attribute])
def test_after_steps(make):
    "A layout is found also of an optimizer that has made steps, whose memory lies in views or beside the weights."
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    opt,x = make(net.parameters()),torch.randn(4, 6)
    for _ in range(3):
        opt.zero_grad()
        net(x).square().sum().backward()
        opt.step()
    read = layout_of(opt).read(list(net.parameters()))
    for p,mine in zip(net.parameters(), read):
        assert mine and all(part.whole and part.axes==tuple((d,) for d in range(p.ndim)) for *_,part in mine)
