"Dye tracing: what is tied, what is fixed, and the law on random networks."
import copy
import functools
import gc
import os
import random
import threading
import warnings
import weakref
from collections import UserDict, deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from constructed import Net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision.models import get_model

from early_prune import dependency
from early_prune.core import tensors_in
from early_prune.dependency import HEADWISE, SHAPED, Dyes, Groups, headwise, plain, trace
from early_prune.ranking import Neurons, rank
from early_prune.surgery import cut, load, save, silence


def shapes(groups): return {g.name:(g.n, g.places) for g in groups}

def conv(i, o, k=1, **kwargs): return nn.Conv2d(i, o, k, padding=k//2, **kwargs)
image = torch.randn(2, 3, 8, 8, dtype=torch.float64)

def lively(model):
    "Random numbers in every parameter and statistic, in float64."
    torch.manual_seed(1)
    for p in model.parameters(): p.data.normal_(0, .5) if p.ndim>1 else p.data.uniform_(.5, 1.5)
    for nm,b in model.named_buffers():
        if 'var' in nm: b.uniform_(.5, 1.5)
        elif 'mean' in nm: b.normal_()
    return model.double().eval()

def some(groups, share=.4, seed=0):
    "Remove a share of every group at random; one neuron stays."
    rng = np.random.default_rng(seed)
    return {g.name:np.sort(rng.choice(g.n, max(1, g.n-round(share*g.n)), replace=False)) for g in groups}

def law(model, *inputs, seed=0, **kwargs):
    "Cut a copy, silence another, and return both outputs and the table."
    groups = trace(model, *inputs, **kwargs)
    keep = some(groups, seed=seed)
    masked,small = silence(copy.deepcopy(model), groups, keep),copy.deepcopy(model)
    after = cut(small, groups, keep)
    with torch.no_grad(): return small(*inputs),masked(*inputs),groups,small,after

def assert_law(model, *inputs, **kwargs):
    got,want,groups,small,_ = law(lively(model), *inputs, **kwargs)
    assert len(groups) and not groups.inexact
    for a,b in zip(*(o if isinstance(o, tuple) else (o,) for o in (got, want))): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    small.train()
    out = small(*inputs)
    sum(o.sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
    return groups

# ---- joints

def test_residual_sum_ties_layers():
    net = Net(lambda m,x: m.d((h := m.a(x).relu()) + m.c(m.n(m.b(h)).relu())),
              a=conv(3, 6), b=conv(6, 4, 3), n=nn.BatchNorm2d(4), c=conv(4, 6), d=conv(6, 2))
    groups = assert_law(net, image)
    assert {nm:n for nm,(n,_) in shapes(groups).items()}=={'a':6, 'b':4}
    assert groups['a'].places=={('a.weight', 0):1, ('a.bias', 0):1, ('b.weight', 1):1, ('c.weight', 0):1, ('c.bias', 0):1, ('d.weight', 1):1}

def test_concat_reads_the_right_channels():
    "The branches of a concat are judged and cut by their own columns of the consumer."
    net = Net(lambda m,x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4), b=conv(3, 5), c=conv(9, 2))
    groups = assert_law(net, image)
    at = {g.name:dict(g.members)['c.weight', 1].ravel().tolist() for g in groups}
    assert at=={'a':[0, 1, 2, 3], 'b':[4, 5, 6, 7, 8]}

def test_concat_removes_the_unimportant_of_the_second_branch():
    from early_prune.criteria import rms_magnitude
    from early_prune.ranking import Neurons, rank, scores
    net = Net(lambda m,x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 8), b=conv(3, 8), c=conv(16, 2))
    with torch.no_grad():
        net.a.weight.fill_(1.); net.b.weight[:4] = .1; net.b.weight[4:] = 10.
    groups = trace(net, image.float())
    keep = rank(groups, scores(net, groups, rms_magnitude), Neurons(.25))
    assert keep=={'a':tuple(range(8)), 'b':(4, 5, 6, 7)}

def test_flatten():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4*64, 5), nn.Linear(5, 2))
    groups = assert_law(net, image)
    assert groups['0'].places['3.weight', 1]==64

@pytest.mark.parametrize('groups,n,per', [(2, 4, 2), (4, 4, 2), (8, 8, 1)])
def test_grouped_convolution(groups, n, per):
    "Two groups of four: positions go. Four groups of two and depthwise: whole groups go."
    net = nn.Sequential(conv(3, 8), conv(8, 8, 3, groups=groups), nn.BatchNorm2d(8), conv(8, 2))
    found = assert_law(net, image)
    assert (found['0'].n, found['0'].places['0.weight', 0])==(n, per)

@pytest.mark.parametrize('groups', [1, 2, 4])
def test_transposed_convolution(groups):
    assert_law(nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 4, 2, 2, groups=groups), nn.ReLU(), conv(4, 2)), image)

def test_channel_shuffle():
    def shuffle(x): return x.view(len(x), 2, x.shape[1]//2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    net = Net(lambda m,x: m.c(shuffle(m.b(m.a(x)))), a=conv(3, 8), b=conv(8, 8, 3, groups=2), c=conv(8, 2))
    assert len(assert_law(net, image))==2

def test_squeeze_excitation():
    net = Net(lambda m,x: m.d((h := m.a(x)) * m.c(m.b(h.mean((2, 3), keepdim=True)).relu()).sigmoid()),
              a=conv(3, 6), b=conv(6, 3), c=conv(3, 6), d=conv(6, 2))
    assert {g.name:g.n for g in assert_law(net, image)}=={'a':6, 'b':3}

def test_chunk_ties_halves():
    net = Net(lambda m,x: m.b(torch.mul(*m.a(x).chunk(2, 1))), a=conv(3, 8), b=conv(4, 2))
    groups = assert_law(net, image)
    assert (groups['a'].n, groups['a'].places['a.weight', 0])==(4, 2)

def test_pixel_shuffle_and_padding():
    net = Net(lambda m,x: m.b(F.pixel_shuffle(F.pad(m.a(x), (1, 1, 1, 1)), 2)), a=conv(3, 8), b=conv(2, 2))
    assert assert_law(net, image)['a'].places['a.weight', 0]==4
    net = Net(lambda m,x: m.b(m.a(x) + F.pad(m.s(x), (0, 0, 0, 0, 1, 2))), a=conv(3, 6), s=conv(3, 3), b=conv(6, 2))
    assert len(assert_law(net, image))>=1

def test_windows_as_columns():
    net = Net(lambda m,x: m.b(F.unfold(m.a(x), 3, padding=1).view(len(x), -1, *x.shape[-2:])), a=conv(3, 4), b=conv(36, 2))
    assert assert_law(net, image)['a'].places=={('a.weight', 0):1, ('a.bias', 0):1, ('b.weight', 1):9}
    net = Net(lambda m,x: m.b(F.fold(m.a(x).flatten(2), (9, 9), 2)), a=conv(3, 8), b=conv(2, 2))
    assert assert_law(net, image)['a'].places['a.weight', 0]==4
    net = Net(lambda m,x: m.b(m.a(x).unfold(2, 3, 1).unfold(3, 3, 1).amax((-1, -2))), a=conv(3, 4), b=conv(4, 2))
    assert trace(net.float(), image.float())['a'].n==4

def test_tied_weights_and_functional_calls():
    net = Net(lambda m,x: F.linear(m.b(m.a(x).relu()), m.a.weight.T), a=nn.Linear(5, 7), b=nn.Linear(7, 7))
    groups = assert_law(net, torch.randn(4, 5).double())
    assert ('a.weight', 0) in groups['a'].places
    shared = nn.Linear(6, 6)
    net = nn.Sequential(nn.Linear(3, 6), shared, nn.ReLU(), shared, nn.Linear(6, 2))
    found = assert_law(net, torch.randn(4, 3).double())
    assert found[0].places['1.weight', 0]==1 and found[0].places['1.weight', 1]==1

def test_bare_parameters_and_buffers():
    net = Net(lambda m,x: m.b(m.scale*m.a(x)+m.shift), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    net.scale = nn.Parameter(torch.ones(6))
    net.register_buffer('shift', torch.ones(6))
    places = assert_law(net, torch.randn(4, 3).double())['a'].places
    assert ('scale', 0) in places and ('shift', 0) in places

def test_control_flow_inputs_and_outputs():
    def forward(m, x, y):
        h = m.a(x)
        for layer in (m.b, m.c): h = h + layer(h).relu()
        return (m.d(h + m.e(y)), m.f(h))
    net = Net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6), d=nn.Linear(6, 2), e=nn.Linear(4, 6), f=nn.Linear(6, 1))
    groups = assert_law(net, torch.randn(5, 3).double(), torch.randn(5, 4).double())
    assert [g.n for g in groups]==[6] and ('e.weight', 0) in groups[0].places

def test_embedding():
    net = Net(lambda m,i: m.b(m.a(i).mean(1)), a=nn.Embedding(10, 6), b=nn.Linear(6, 2))
    groups = assert_law(net, torch.randint(0, 10, (4, 5)))
    assert groups['a'].places=={('a.weight', 1):1, ('b.weight', 1):1}
    assert 'number' in groups.fixed['a.weight', 0]

def test_heads_of_one_projection():
    class Attention(nn.Module):
        def __init__(self): super().__init__(); self.num_heads,self.head_dim = 4,3; self.qkv,self.proj = nn.Linear(6, 36),nn.Linear(12, 6)
        def forward(self, x):
            q,k,v = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    net = nn.Sequential(nn.Linear(3, 6), Attention(), nn.Linear(6, 2))
    got,want,groups,small,_ = law(lively(net), torch.randn(2, 5, 3).double())
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert groups['1.qkv'].n==4 and small[1].num_heads==2 and small[1].head_dim==3

# ---- safety

EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
SENT = dict(scatter_add=lambda new,to,m: new.scatter_add_(0, to[:, None].expand_as(m), m),
            index_add=lambda new,to,m: new.index_add_(0, to, m),
            index_add_copy=lambda new,to,m: new.index_add(0, to, m),
            amax=lambda new,to,m: new.scatter_reduce_(0, to[:, None].expand_as(m), m, reduce='amax', include_self=False),
            mean=lambda new,to,m: new.scatter_add_(0, to[:, None].expand_as(m), m)/torch.bincount(to).clamp(min=1)[:, None].expand_as(new),
            scatter=lambda new,to,m: new.scatter_(0, to[:6, None].expand(6, m.shape[1]), m[:6]),
            index_copy=lambda new,to,m: new.index_copy_(0, to[:6], m[:6]))

@pytest.mark.parametrize('way', SENT)
def test_messages_along_edges(way):
    "Nodes gather what their neighbours send; channels pass as they are."
    def run(self, x):
        for layer in (self.a, self.b):
            m = layer(x)[EDGES[0]]
            x = F.relu(SENT[way](m.new_zeros(len(x), m.shape[1]), EDGES[1], m))
        return self.c(x)
    net = Net(run, a=nn.Linear(4, 12), b=nn.Linear(12, 10), c=nn.Linear(10, 3))
    groups = assert_law(net, torch.randn(6, 4).double())
    assert [g.n for g in groups]==[12, 10] and not groups.inexact

def test_where_messages_go_may_not_depend_on_the_width():
    "Channels that are sent to nodes by their number from the end: after a cut they go elsewhere."
    def run(self, x):
        m = self.a(x)
        to = torch.arange(m.shape[1]).flip(0)%6
        return self.b(torch.zeros(6, m.shape[1]).scatter_add_(0, to.expand_as(m), m))
    net,x = Net(run, a=nn.Linear(4, 12), b=nn.Linear(12, 3)).eval(),torch.randn(6, 4)
    groups = trace(net, x)
    assert not len(groups) or groups.inexact=={0}

@pytest.mark.parametrize('made', [lambda o: spectral_norm(o), lambda o: torch.nn.utils.spectral_norm(o)], ids=['new', 'old'])
@pytest.mark.parametrize('mode', [False, True])
def test_a_spectral_norm_goes_with_its_layer(made, mode):
    "Singular vectors are cut with the filters and their inputs, each of which has as many entries as the kernel has places."
    with warnings.catch_warnings(action='ignore'):
        net = nn.Sequential(made(conv(3, 8, 3)), nn.BatchNorm2d(8), nn.ReLU(), made(conv(8, 10, 3)), nn.ReLU(), nn.Flatten(), made(nn.Linear(160, 12)),
                            nn.ReLU(), nn.Linear(12, 3)).double()
    x = torch.randn(2, 3, 4, 4).double()
    with torch.no_grad():
        for _ in range(20): net.train()(x) # until the vectors have settled
        groups = trace(net.train(mode), x)
        assert [g.n for g in groups]==[8, 10, 12] and not groups.inexact
        keep = {g.name:some(groups)[g.name] for g in groups}
        silence(net.eval(), groups, keep)
        want = net(x)
        cut(net, groups, keep)
        torch.testing.assert_close(net(x), want, rtol=1e-9, atol=1e-9)
        net.train()(x)
        assert net(x).isfinite().all()

@pytest.mark.parametrize('how,exact', [(lambda h: h.sum(1, True), True), (lambda h: h.norm(dim=1, keepdim=True), True), (lambda h: h.norm(3, 1, True), True),
                                       (lambda h: h.norm(-torch.inf, 1, True), False), (lambda h: h.mean(1, True), False), (lambda h: h.exp().sum(1, True), False),
                                       (lambda h: h.amax(1, True), False), (lambda h: h.var(1, keepdim=True), False)])
def test_a_sum_loses_only_zeros(how, exact):
    net = Net(lambda self, x: self.b(how(F.relu(self.a(x)))), a=nn.Linear(4, 12), b=nn.Linear(1, 3))
    groups = assert_law(net, torch.randn(6, 4).double()) if exact else trace(net.eval(), torch.randn(6, 4))
    assert len(groups)==1 and groups.inexact==(set() if exact else {0})

def test_of_merged_dimensions_the_widest_is_free():
    "A table of channels and places, flattened and read by a layer: places stay, channels go with all of theirs."
    net = Net(lambda self, x: self.b((self.a(x)[:, :, None]*self.t).flatten(1)), a=nn.Linear(4, 6), b=nn.Linear(18, 2))
    net.t = nn.Parameter(torch.randn(6, 3))
    groups = assert_law(net, torch.randn(5, 4).double())
    assert [g.n for g in groups]==[6]

def test_unknown_operator_fixes():
    net = Net(lambda m,x: m.c(torch.fft.fft(m.b(m.a(x))).real), a=nn.Linear(3, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2))
    groups = assert_law(net, torch.randn(4, 3).double())
    assert [g.name for g in groups]==['a'] and 'no rule for `_fft_r2c`' in groups.fixed['b.weight', 0]

@pytest.mark.parametrize('forward,why', [
    (lambda m,x: m.b(m.a(x).view(len(x), 6, -1).flatten(1)), 'stops'),
    (lambda m,x: m.b(m.a(x)[:, :3].repeat(1, 2)), 'part'),
    (lambda m,x: m.b(m.a(x)*torch.ones(6, dtype=x.dtype)), 'fixed size'),
    (lambda m,x: m.b(m.a(x).softmax(1)), 'softmax'),
    (lambda m,x: m.b(m.a(x)[:, torch.arange(6).flip(0)]), 'number'),
    (lambda m,x: m.a(x), 'output'),
], ids=['size in the code', 'slice', 'constant', 'softmax', 'index', 'output'])
def test_fixed_with_a_reason(forward, why):
    net = lively(Net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2)))
    groups = trace(net, torch.randn(4, 3).double())
    assert len(groups)==0 and any(why in o for o in groups.fixed.values()), groups.fixed

def test_a_hard_coded_size_is_found_among_others():
    "Only the layer whose size stands in the code is fixed."
    net = Net(lambda m,x: m.c(m.b(m.a(x).relu()).view(-1, 5)), a=nn.Linear(3, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2))
    assert [g.name for g in assert_law(net, torch.randn(4, 3).double())]==['a']

class Fixed(nn.Module):
    "A residual block with sizes in its code: `stuck` cannot be cut, `inner` and what goes through can."
    def __init__(self, n):
        super().__init__()
        self.stuck,self.inner,self.back,self.out = nn.Linear(n, 6),nn.Linear(n, 5),nn.Linear(6, n),nn.Linear(5, n)
    def forward(self, x): return x + self.back(self.stuck(x).view(-1, 2, 3).flatten(1)) + self.out(self.inner(x).relu())

class Checked(Fixed):
    "The same, where Python stops and no operator."
    def forward(self, x):
        h = self.stuck(x)
        if h.shape[1]!=6: raise ValueError
        return x + self.back(h) + self.out(self.inner(x).relu())

class Derived(Fixed):
    "The same, where the size in the code is counted from the width of the trunk, which is stuck as well."
    def forward(self, x): return x + self.back(self.stuck(x).view(len(x), 3, x.shape[1]-6).flatten(1)) + self.out(self.inner(x).relu())

@pytest.mark.parametrize('kind,trunk', [(Fixed, [8]), (Checked, [8]), (Derived, [])])
def test_many_stops_take_few_runs(monkeypatch, kind, trunk):
    "What stops in each of many blocks is found together, and nothing else is fixed."
    flow,runs = dependency._flow,[]
    monkeypatch.setattr(dependency, '_flow', lambda *args: runs.append(1) or flow(*args))
    found = {}
    for n in (2, 12):
        runs.clear()
        net = nn.Sequential(nn.Linear(3, 8), *(kind(8) for _ in range(n)), nn.Linear(8, 2))
        groups = assert_law(net, torch.randn(4, 3).double())
        assert [g.n for g in groups]==trunk+[5]*n
        assert all('stops' in groups.fixed[f'{i+1}.stuck.weight', 0] for i in range(n))
        assert not any('forward' in vars(m) for m in net.modules())
        found[n] = len(runs)
    assert found[12]<=found[2]+2, found

class Attends(nn.Module):
    "Attention with dropout as a function, as in most code for language."
    def __init__(self, p):
        super().__init__()
        self.p,self.q,self.k,self.v,self.out = p,*(nn.Linear(8, 48) for _ in range(3)),nn.Linear(48, 8)

    def forward(self, x):
        q,k,v = (f(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.)
        return self.out(F.dropout(found, self.p, self.training).transpose(1, 2).flatten(2))

class Gated(nn.Module):
    "A gate that looks like dropout, but joins two layers, and only in training."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(4, 6),nn.Linear(4, 6),nn.Linear(6, 2)

    def forward(self, x):
        h,noise = self.a(x),self.b(x)
        if self.training: h = h*torch.empty_like(h).bernoulli_(.5).div_(.5)*noise
        return self.c(h)+self.c(noise)

def test_dropout_as_a_function_is_no_other_course(monkeypatch):
    "It takes as many runs as the network without dropout, one with colours and one with other sizes, and finds the same."
    flow,runs,found = dependency._flow,[],[]
    monkeypatch.setattr(dependency, '_flow', lambda *args: runs.append(1) or flow(*args))
    for p in (0., .1): found.append((trace(Attends(p), torch.randn(2, 3, 8)).to_json(), len(runs)))
    assert found[0][0]==found[1][0] and found[0][1]==2 and len(runs)==4 and 'q.weight' in found[0][0]

def test_a_gate_of_noise_that_joins_is_tied():
    groups = trace(Gated(), torch.randn(3, 4))
    assert [sorted(nm for nm,_ in g.places) for g in groups]==[['a.bias', 'a.weight', 'b.bias', 'b.weight', 'c.weight']]

def test_a_network_that_stops_outside_of_its_modules():
    "There is no place behind it to go on from."
    def forward(m, x):
        for f in (m.a, m.b): x = f(x).view(-1, 6)
        return m.d(m.c(x).relu())
    net = Net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 7), d=nn.Linear(7, 2))
    assert [g.name for g in assert_law(net, torch.randn(4, 3).double())]==['c']

def test_forward_of_an_instance_is_left_alone():
    "Also a module whose `forward` somebody has replaced."
    net = nn.Sequential(nn.Linear(3, 8), Fixed(8), nn.Linear(8, 2))
    net[1].forward = mine = lambda x: Fixed.forward(net[1], x)
    assert [g.n for g in trace(net, torch.randn(4, 3))]==[8, 5] and net[1].forward is mine

LAID = dict(plain=lambda x: x, last=lambda x: x.to(memory_format=torch.channels_last), turned=lambda x: x.transpose(1, 2),
            expanded=lambda x: x[:, :1].expand(2, 4, 3, 5), whole=lambda x: x.long(), cut=lambda x: x[..., 1:3],
            half=lambda x: x.half(), narrow=lambda x: x[:, :, :1, :1], flat=lambda x: x[0, 0].T)

def _called(op, x, y):
    z,f = x.clone() if op.endswith('_') else x,getattr(torch.ops.aten, op)
    if op=='native_batch_norm': return f(z, *[torch.empty(z.shape[1], device='meta')]*4, False, .1, 1e-5)
    if op=='native_layer_norm': return f(z, z.shape[2:], None, None, 1e-5)
    if op=='native_group_norm': return f(z, None, None, 2, 4, 15, 2, 1e-5)
    if op=='_safe_softmax': return f(z, -1)
    if op=='roll': return f(z, [1], [0])
    if op=='mean': return f(z, [-1, 0], y.ndim==4)
    if op=='pow': return f(z, 2)
    if op in ('mm', 'bmm', 'addmm'):
        a,b = (o.flatten(0, -3 if op=='bmm' else -2) if o.ndim>2 else o for o in (z, y))
        b = b.mT
        return f(torch.empty(b.shape[-1:], dtype=z.dtype, device='meta'), a, b) if op=='addmm' else f(a, b)
    return f(z, y) if op.rstrip('_') in ('add', 'sub', 'mul', 'div') else f(z)

def _seen(op, x, y):
    with Dyes():
        try: out = _called(op, x, y)
        except (RuntimeError, ValueError, IndexError) as e: return type(e)
    out = out[0] if isinstance(out, tuple) else out
    return out.shape,out.stride(),out.dtype,out.device

@pytest.mark.parametrize('op', sorted(SHAPED))
@pytest.mark.parametrize('layout', LAID)
def test_shapes_that_are_not_asked_for(monkeypatch, op, layout):
    "They are what PyTorch says, also for operands that are laid out in different ways, or too small."
    x = torch.empty(2, 4, 3, 5, device='meta')
    pairs = [(LAID[layout](x), LAID[other](x)) for other in LAID]
    mine = [_seen(op, *o) for o in pairs]
    monkeypatch.setattr(dependency, 'SHAPED', set())
    assert mine==[_seen(op, *o) for o in pairs]

@pytest.mark.parametrize('op', [lambda x: x*1j, lambda x: torch.add(x, x, out=x.new_empty(0, device='meta')).abs(),
                                lambda x: torch.add(x[:1], x, out=torch.empty_like(x)), lambda x: x.clone().add_(x[:1]),
                                lambda x: x.clone(memory_format=torch.contiguous_format), lambda x: x+x.double(),
                                lambda x: torch.addmm(x[:, 0], x, x), lambda x: torch.mm(x, x[:2]), lambda x: x[:1]+x[0]])
def test_shapes_of_unusual_calls(monkeypatch, op):
    "Complex numbers, results that the caller brings, types and sizes that differ."
    def seen():
        with Dyes():
            try: out = op(torch.empty(4, 4, device='meta').T)
            except RuntimeError as e: return type(e)
        return out.shape,out.stride(),out.dtype
    mine = seen()
    monkeypatch.setattr(dependency, 'SHAPED', set())
    assert mine==seen()

def test_a_result_that_the_caller_brings():
    "It has the colours of what was written into it."
    def forward(m, x):
        h = m.a(x).detach()
        return m.b(torch.add(h, h, out=torch.empty_like(h)))
    assert [g.n for g in assert_law(Net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2)), torch.randn(4, 3).double())]==[6]

def test_a_norm_with_a_size_in_the_code():
    net = Net(lambda m,x: m.b(F.layer_norm(m.a(x), (6,))), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    assert 'stops' in trace(net, torch.randn(4, 3)).fixed['a.weight', 0]

def test_a_mask_as_an_index():
    "As networks for speech hide moments in training."
    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.hidden = nn.Linear(3, 6),nn.Linear(6, 2),nn.Parameter(torch.randn(6))
        def forward(self, x):
            h = self.a(x).tanh()*2
            if self.training: h[torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)] = self.hidden
            return self.b(h.transpose(1, 2).transpose(1, 2))
    groups = assert_law(Hides(), torch.randn(2, 4, 3).double())
    assert set(groups['a'].places)=={('a.weight', 0), ('a.bias', 0), ('b.weight', 1), ('hidden', 0)}

def test_weights_with_inputs_first():
    "The linear layer of GPT-2, with its own names of sizes, and three parts of one projection."
    class Turned(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf,self.nx,self.weight,self.bias = nf,nx,nn.Parameter(torch.randn(nx, nf)),nn.Parameter(torch.randn(nf))
        def forward(self, x): return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.split_size,self.head_dim,self.qkv,self.proj = 8,2,Turned(24, 5),Turned(5, 8)
        def forward(self, x):
            q,k,v = (o.view(*o.shape[:-1], -1, self.head_dim).transpose(1, 2) for o in self.qkv(x).split(self.split_size, 2))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    net = nn.Sequential(Turned(5, 3), Attends(), Turned(2, 5))
    groups = assert_law(net, torch.randn(2, 4, 3).double())
    assert [g.n for g in groups]==[5, 4, 5]

class Attention(nn.Module):
    "One head whose channels can be cut, scaled in one of the ways of the field."
    ways = dict(fused=lambda q,k,v: F.scaled_dot_product_attention(q, k, v),
                before=lambda q,k,v: ((q*q.shape[-1]**-.5)@k.transpose(1, 2)).softmax(-1)@v,
                after=lambda q,k,v: ((q@k.transpose(1, 2))/q.shape[-1]**.5).softmax(-1)@v,
                constant=lambda q,k,v: ((q@k.transpose(1, 2))/3).softmax(-1)@v,
                given=lambda q,k,v: F.scaled_dot_product_attention(q, k, v, scale=.3))
    def __init__(self, way):
        super().__init__()
        self.q,self.k,self.v,self.o = (nn.Linear(8, 8) for _ in range(4))
        self.way = self.ways[way]
    def forward(self, x): return self.o(self.way(self.q(x), self.k(x), self.v(x)))

@pytest.mark.parametrize('way', Attention.ways)
def test_a_scale_that_is_read_from_a_shape(way):
    "A cut changes the number that the products are divided by, and with it what is left."
    net,x = lively(nn.Sequential(nn.Linear(3, 8), Attention(way), nn.Linear(8, 2))),torch.randn(2, 5, 3).double()
    groups = trace(net, x)
    keep = some(groups)
    for g in groups:
        masked,small,mine = silence(copy.deepcopy(net), groups, {g.name:keep[g.name]}),copy.deepcopy(net),{g.name:keep[g.name]}
        cut(small, groups, mine)
        assert g.exact==torch.allclose(small(x), masked(x), rtol=1e-9)
    assert [g.name for g in groups if not g.exact]==([] if way in ('constant', 'given') else ['1.q'])

def test_sizes_that_are_rounded():
    "The channels of a head are what is left after a division: a small change of the width does not show in it."
    def forward(m, x):
        x = m.a(x)
        q,k,v = m.qkv(x).view(*x.shape[:2], 3, 4, x.shape[-1]//4).permute(2, 0, 3, 1, 4)
        return m.o(F.scaled_dot_product_attention(q, k, v, scale=1.).transpose(1, 2).flatten(2))
    net = Net(forward, a=nn.Linear(3, 32), qkv=nn.Linear(32, 96), o=nn.Linear(32, 2))
    assert len(trace(net, torch.randn(2, 5, 3)))<2

def test_coordinates_are_no_neurons():
    "What a layer reads from a buffer was made by nobody, and stays."
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp,self.head = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 5)),nn.Linear(5, 2)
            self.register_buffer('table', torch.randn(7, 2), persistent=False)
        def forward(self, x): return self.head(x @ self.mlp(self.table))
    groups = assert_law(Places(), torch.randn(3, 7).double())
    assert [g.n for g in groups]==[6, 5] and 'buffer' in groups.fixed['mlp.0.weight', 1]

def test_equal_sizes_are_no_coincidence():
    "The code counts on two layers being equally wide; grown alike they would pass."
    net = Net(lambda m,x: m.c(m.b(y := m.a(x)).reshape(len(x), y.shape[1], *x.shape[2:]))+m.d(y),
              a=conv(3, 8), b=conv(8, 8), c=conv(8, 4), d=conv(8, 4))
    groups = trace(net, image.float())
    assert len(groups)==0 or len(assert_law(net, image))

def test_unused_parameters_are_fixed():
    net = Net(lambda m,x: m.b(m.a(x)), a=nn.Linear(3, 6), b=nn.Linear(6, 2), c=nn.Linear(4, 4))
    assert 'never used' in trace(net, torch.randn(2, 3)).fixed['c.weight', 0]

def test_parts_used_only_in_training_shrink_too():
    def forward(m, x):
        h = m.a(x)
        return (m.b(h), m.aux(h)) if m.training else m.b(h)
    groups = trace(Net(forward, a=conv(3, 6), b=conv(6, 2), aux=conv(6, 2)).eval(), image.float()[:1])
    assert ('aux.weight', 1) in groups['a'].places

def test_nothing_is_changed():
    net = get_model('resnet18', weights=None).train()
    net.layer1[0].eval()
    net.fc.requires_grad_(False)
    before,modes = {k:v.clone() for k,v in net.state_dict().items()},[m.training for m in net.modules()]
    attributes = [dict(vars(m)) for m in net.modules()]
    rng = torch.get_rng_state()
    trace(net, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert rng.equal(torch.get_rng_state())
    assert [m.training for m in net.modules()]==modes and all(net.state_dict()[k].equal(v) for k,v in before.items())
    assert all(vars(m).keys()==o.keys() for m,o in zip(net.modules(), attributes))
    assert not any(hasattr(p, 'dyes') or hasattr(p, 'name_in_model') for p in net.parameters())

def test_a_network_is_freed():
    net = get_model('mobilenet_v2', weights=None)
    groups,gone = trace(net, torch.randn(1, 3, 32, 32)),weakref.ref(net)
    cut(net, groups, some(groups))
    del net
    gc.collect()
    assert gone() is None

def test_errors():
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match='example inputs'): trace(net)
    with pytest.raises(ValueError, match='could not be run'): trace(net, torch.randn(2, 4))
    class Silent(nn.Module):
        def forward(self, x): raise AssertionError
    with pytest.raises(ValueError, match='example inputs: AssertionError'): trace(Silent(), torch.randn(1, 3))
    def hidden(m, x): return m.b((h := m.a(x))[h>-9].view(len(x), -1))
    with pytest.raises(ValueError, match='real=True'): trace(Net(hidden, a=nn.Linear(3, 4), b=nn.Linear(4, 2)), torch.randn(1, 3))
    with pytest.raises(ValueError, match='dim') as e: trace(Net(lambda m,x: m.a(x[x>0].view(1, -1)), a=net), torch.tensor([[1., 2, -1]]))
    assert 'real=True' not in str(e.value)
    with pytest.raises(TypeError, match='lock'): trace(Net(lambda m,x: [m.a(x), threading.Lock()], a=net), torch.randn(1, 3))
    warnings.simplefilter('ignore', FutureWarning)
    for made in (torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(1, 3))):
        with pytest.raises(TypeError, match='Linear is scripted or traced'): trace(made(net), torch.randn(1, 3))
    with pytest.raises(ValueError, match='lazy'): trace(nn.LazyLinear(3), torch.randn(1, 3))
    with pytest.raises(KeyError, match='no group'): trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))['x']

def test_real_arithmetic():
    "A network whose course depends on values is traced with numbers."
    def forward(m, x):
        h = m.a(x)
        return m.b(h.relu() if x.sum()>-1e9 else h)
    net = Net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    assert [g.n for g in assert_law(net, torch.randn(4, 3).double(), real=True)]==[6]

def test_wrappers_are_looked_into():
    net = get_model('resnet18', weights=None)
    assert plain(nn.DataParallel(net)) is net and plain(torch.compile(net, backend='eager')) is net
    a,b = (trace(o, torch.randn(1, 3, 32, 32)) for o in (net, nn.DataParallel(net)))
    assert shapes(a)==shapes(b)

def test_json_round_trip():
    groups = trace(get_model('mobilenet_v3_small', weights=None), torch.randn(1, 3, 32, 32))
    again = Groups.from_json(groups.to_json())
    assert shapes(again)==shapes(groups) and again.fixed==groups.fixed and again.made==groups.made
    assert all((a==b).all() for (_,_,a),(_,_,b) in zip(again.sizes, groups.sizes)) and again.origin()==groups.origin()

# ---- a network that is looked at stays as it was

@functools.lru_cache
def waves(n): return torch.arange(n).float().sin()[:, None]
@functools.cache
def kept_for(n, device): return torch.linspace(1, 2, n, device=device)[:, None]
TABLES = {}
def shared(n):
    if n not in TABLES: TABLES[n] = torch.eye(n).cumsum(0)/n
    return TABLES[n]

class Box:
    "Something that a network holds and that is no module."
    __slots__ = 'seen'
    def __init__(self): self.seen = None

class Keeps(nn.Module):
    "A network that keeps something from its forward pass, in one of many places."
    def __init__(self, way):
        super().__init__()
        self.a,self.o,self.way = nn.Linear(16, 32),nn.Linear(32, 5),way
        self.table,self.kept,self.n,self.box,self.slot = None,{'deep':[{}]},0,SimpleNamespace(past=deque(maxlen=2)),Box()
        self.plain,self.draws,self.source = torch.zeros(3),random.Random(0),torch.Generator().manual_seed(3)
        self.register_buffer('counted', torch.zeros(()))
        self.register_buffer('freqs', torch.arange(1., 7))
        self.register_buffer('last', torch.zeros(2, 6, 32), persistent=False)
        calls = 0
        def count(x):
            nonlocal calls
            calls += 1
            return x*calls
        self.times = count
    def scaled(self, x):
        n,way = x.shape[1],self.way
        if way=='attribute':
            if self.table is None: self.table = torch.ones(n, n).tril()/n
            return self.table @ x
        if way=='container':
            self.kept['deep'][0].setdefault(n, torch.ones(n)[:, None]*2)
            return x*self.kept['deep'][0][n]
        if way=='buffer made on the way':
            if not hasattr(self, 'made'): self.register_buffer('made', torch.full((n, 1), .5))
            return x*self.made
        if way=='where the input is': return x*kept_for(n, x.device)
        if way=='counter': self.n += 1; self.counted += 1; self.plain += 1; return x*self.n*self.counted*self.plain.sum()
        if way=='object': self.box.past.append(x); self.slot.seen = x; return x*len(self.box.past)
        if way=='random': return x*torch.rand(1)*random.random()*np.random.rand()*self.draws.random()*torch.rand(1, generator=self.source)
        if way=='of a buffer':
            if self.table is None: self.table = torch.outer(torch.arange(n), self.freqs).cos().sum(1)[:, None]
            return x*self.table
        if way=='written': self.last[:, :n] = x; return x+self.last[:, :n]*.5
        return x*dict(cache=waves, module=shared).get(way, lambda n: 1)(n)[:, :1] if way in ('cache', 'module') else self.times(x)
    def forward(self, x): return self.o(F.dropout(self.scaled(self.a(x)).relu(), .2, self.training))

WAYS = ['attribute', 'container', 'buffer made on the way', 'where the input is', 'counter', 'object', 'random', 'of a buffer', 'written', 'cache',
        'module', 'closure']

def runs(net, x):
    "What a network says, twice in evaluation and twice in training, from one seed."
    torch.manual_seed(3); random.seed(3); np.random.seed(3)
    with torch.no_grad(): return torch.stack([m(x) for m in (net.eval(), net, net.train(), net)])

@pytest.mark.parametrize('real', [False, True])
@pytest.mark.parametrize('way', WAYS)
def test_a_look_leaves_no_trace(way, real):
    "Bit for bit what an untraced twin says, and so does another network that shares a table."
    for table in (waves, kept_for): table.cache_clear()
    TABLES.clear()
    torch.manual_seed(0)
    net,x = Keeps(way),torch.randn(2, 6, 16)
    twin = Keeps(way)
    twin.load_state_dict(net.state_dict())
    given,states = x.clone(),(torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    trace(net, x, real=real)
    assert x.equal(given) and states[0].equal(torch.get_rng_state()) and states[1:]==(random.getstate(), str(np.random.get_state()))
    other = Keeps(way)
    other.load_state_dict(twin.state_dict())
    found = runs(net, x),runs(other, x)
    for table in (waves, kept_for): table.cache_clear()
    TABLES.clear()
    want = runs(twin, x)
    assert found[0].equal(want) and found[1].equal(want)
    assert all(a.equal(b) for a,b in zip(net.state_dict().values(), twin.state_dict().values()))

EVERYTHING = []
class Store: everything = []

def test_a_table_of_the_module_is_put_back():
    def keeps(m, x): EVERYTHING.append(h := m.a(x)); return m.b(h)
    trace(Net(keeps, a=nn.Linear(3, 4), b=nn.Linear(4, 2)), torch.randn(2, 3))
    assert not EVERYTHING

def test_a_cache_outside_that_cannot_be_emptied_is_named():
    def keeps(m, x): Store.everything.append(h := m.a(x)); return m.b(h)
    with pytest.warns(UserWarning, match='tensors without numbers outside of Net, in objects of type list'):
        trace(Net(keeps, a=nn.Linear(3, 4), b=nn.Linear(4, 2)), torch.randn(2, 3))

def test_a_cache_of_what_parameters_touched_is_emptied():
    @functools.lru_cache
    def squared(net): return net.a.weight**2
    net,x = Net(lambda m,x: m.b(F.linear(x, squared(m))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)),torch.randn(2, 3)
    want = squared(net).clone()
    squared.cache_clear()
    trace(net, x)
    assert squared(net).equal(want)

def test_hooks_gradients_and_modes_stay():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    calls = []
    net[0].register_forward_hook(lambda *args: calls.append(1))
    net[3].weight.requires_grad_(False)
    net[0].weight.grad = torch.ones(4, 3)
    hooks = [dict(m._forward_hooks) for m in net]
    trace(net.train(), torch.randn(4, 3))
    assert hooks==[dict(m._forward_hooks) for m in net] and all(m.training for m in net) and calls==[]
    assert [p.requires_grad for p in net.parameters()]==[True, True, True, True, False, True] and net[0].weight.grad.equal(torch.ones(4, 3))
    assert net[1].num_batches_tracked==0 and net[1].running_mean.equal(torch.zeros(4))

# ---- outputs, wherever they are

@dataclass
class Out: y:object
class Slots:
    __slots__ = 'y'
    def __init__(self, y): self.y = y
def one_by_one(y): yield y

@pytest.mark.parametrize('wrap', [Out, Slots, one_by_one, lambda y: SimpleNamespace(y=y), lambda y: {y}, lambda y: deque([y]), lambda y: UserDict(y=y),
    lambda y: dict(deep=[Out(one_by_one(Slots(y)))]), lambda y: functools.partial(print, y), lambda y: lambda: y,
    lambda y: torch.distributions.Normal(y, torch.ones(()), validate_args=False)])
def test_outputs_are_found_in(wrap):
    groups = trace(Net(lambda m,x: wrap(m.o(m.a(x).relu())), a=nn.Linear(16, 32), o=nn.Linear(32, 6)), torch.randn(2, 16))
    assert [g.name for g in groups]==['a'] and 'output' in groups.fixed['o.weight', 0]

def test_inputs_by_name_and_in_objects():
    class Kw(nn.Module):
        def __init__(self): super().__init__(); self.a,self.h = nn.Linear(8, 16),nn.Linear(16, 3)
        def forward(self, *, x): return self.h(self.a(x).relu())
    class Obj(Kw):
        def forward(self, b): return self.h(self.a(b.y).relu())
    x = torch.randn(2, 8)
    assert [g.n for g in trace(Kw(), x=x)]==[g.n for g in trace(Obj(), Out(x))]==[16]
    with pytest.raises(ValueError) as e: trace(Kw(), dict(x=x))
    assert 'real=True' not in str(e.value)

# ---- numbers, courses and silence

class Scaled(nn.Module):
    "One head whose scale is a number in one of many forms."
    ways = dict(tensor=lambda a,d: a/torch.sqrt(torch.tensor(float(d))), new=lambda a,d: a*a.new_tensor(d**-.5), full=lambda a,d: a*torch.full((), d**-.5),
        full_like=lambda a,d: a*torch.full_like(a, d**-.5), new_full=lambda a,d: a*a.new_full((1, 1), d**-.5), power=lambda a,d: a*torch.tensor(float(d)).pow(-.5),
        alpha=lambda a,d: torch.add(torch.zeros(()), a, alpha=d**-.5), batched=lambda a,d: torch.baddbmm(a.new_zeros(1, 1, 1), a, torch.eye(6), alpha=d**-.5) if a.ndim<3
            else a/d**.5, count=lambda a,d: a/torch.ones(d).sum(), root=lambda a,d: a.pow(1/d), clamped=lambda a,d: a.clamp(max=1/d), eps=lambda a,d: F.softplus(a, beta=d),
        late=lambda a,d: (a+torch.randn(6, 4)@torch.randn(4, 6)*0)/d, device=lambda a,d: a*torch.tensor(d**-.5, device=a.device))
    def __init__(self, way): super().__init__(); self.way = self.ways[way]; self.q,self.k,self.v,self.o = (nn.Linear(16, n) for n in (32, 32, 16, 5))
    def forward(self, x):
        q,k,v = self.q(x),self.k(x),self.v(x)
        return self.o(self.way(q@k.transpose(1, 2), q.shape[-1]).softmax(-1)@v)

@pytest.mark.parametrize('way', Scaled.ways)
def test_a_number_from_a_width_is_seen(way):
    groups = trace(Scaled(way), torch.randn(2, 6, 16))
    assert [g.name for g in groups if not g.exact]==['q']

def test_a_number_from_another_groups_width_accuses_that_group():
    "The colours near the number are those of `a`; it is the width of `b` that it depends on."
    def forward(m, x): h,w = m.a(x),m.b(x); return m.o(h.relu()/w.shape[-1]) + m.p(w)
    net = Net(forward, a=nn.Linear(8, 12), b=nn.Linear(8, 20), o=nn.Linear(12, 3), p=nn.Linear(20, 3))
    assert 'b' in [g.name for g in trace(net, torch.randn(2, 8)) if not g.exact]

MEET = dict(elu=lambda h: F.elu(h)+1, sigmoid=torch.sigmoid, exp=torch.exp, softplus=F.softplus, cosine=torch.cos, shifted=lambda h: h+1,
            relu=torch.relu, gelu=F.gelu, tanh=torch.tanh, squared=lambda h: h*h, gated=lambda h: h*torch.sigmoid(h), doubled=lambda h: h/2)

@pytest.mark.parametrize('f', MEET)
def test_two_activations_in_a_sum(f):
    "A sum over neurons of products of two activations is exact if one of them is zero where its neuron is."
    f,loud = MEET[f],f in ('elu', 'sigmoid', 'exp', 'softplus', 'cosine', 'shifted')
    net = lively(Net(lambda m,x: f(m.a(x)) @ f(m.b(x)).t(), a=nn.Linear(16, 24), b=nn.Linear(16, 24)))
    got,want,groups,*_ = law(net, torch.randn(4, 16).double())
    assert bool(groups.inexact)==loud and torch.allclose(got, want, rtol=1e-9)!=loud

@pytest.mark.parametrize('f,exact', [(torch.relu, True), (torch.sigmoid, False)])
def test_a_buffer_that_reads_neurons(f, exact):
    net = Net(lambda m,x: F.linear(f(m.a(x)), m.b), a=nn.Linear(6, 8))
    net.register_buffer('b', torch.randn(3, 8))
    net = lively(net)
    got,want,groups,*_ = law(net, torch.randn(4, 6).double())
    assert [g.exact for g in groups] in ([exact], []) and (not len(groups) or torch.allclose(got, want)==exact)

def narrow(limit, h): return h.relu() if h.shape[1]>=limit else h.tanh()
COURSES = dict(wide=lambda h: narrow(32, h), middle=lambda h: narrow(20, h), low=lambda h: narrow(6, h),
               only_narrow=lambda h: h if h.shape[1]>6 else h.tanh(),
               norm=lambda h: F.group_norm(h, 4 if h.shape[1]>=32 else 2) if h.shape[1]%4==0 else h)

@pytest.mark.parametrize('way', COURSES)
def test_a_course_that_depends_on_a_width(way):
    net = Net(lambda m,x: m.o(m.b(COURSES[way](m.a(x))).relu()), a=nn.Linear(16, 32), b=nn.Linear(32, 24), o=nn.Linear(24, 5))
    groups = trace(net, torch.randn(4, 16))
    assert 'a' not in [g.name for g in groups if g.exact] and 'b' in [g.name for g in groups]

def test_a_course_that_only_growing_changes_is_nothing_to_a_cut():
    net = Net(lambda m,x: m.o(h.relu() if (h := m.a(x)).shape[1]<=32 else h.tanh()), a=nn.Linear(16, 32), o=nn.Linear(32, 5))
    assert [g.name for g in trace(net, torch.randn(4, 16)) if g.exact]==['a']

@pytest.mark.parametrize('kind', [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_layers_make_their_first_state(kind):
    "Zeros that nobody has touched meet an input that has no numbers."
    cell = kind.__name__.endswith('Cell')
    def forward(m, x): h = m.r(m.a(x) if cell else m.a(x)[:, None].expand(-1, 3, -1)); return m.o(h[0] if isinstance(h, tuple) else h)
    net = Net(forward, a=nn.Linear(6, 8), r=kind(8, 10, **({} if cell else dict(batch_first=True))), o=nn.Linear(10, 3))
    x = torch.randn(4, 6)
    found,real = trace(net, x),trace(net, x, real=True)
    assert len(found)==2 and [(g.name, g.n, g.places) for g in found]==[(g.name, g.n, g.places) for g in real]

class Extra(nn.Module):
    def __init__(self): super().__init__(); self.a,self.o,self.extra = nn.Linear(16, 32),nn.Linear(32, 5),nn.Tanh()
    def forward(self, x): return self.o(self.extra(h) if (h := self.a(x)).shape[1]<20 else h)

def test_a_module_that_only_a_narrow_network_calls():
    assert 'a' not in [g.name for g in trace(Extra(), torch.randn(4, 16)) if g.exact]

def test_outputs_that_only_training_returns():
    def forward(m, x): h = m.a(x).relu(); y,z = m.o(m.b(h).relu()),m.aux(h); return (y, z) if m.training else y
    net = Net(forward, a=nn.Linear(16, 32), b=nn.Linear(32, 24), o=nn.Linear(24, 6), aux=nn.Linear(32, 6))
    for batch in (1, 4): assert [g.name for g in trace(net, torch.randn(batch, 16))]==['a', 'b']

def test_a_path_that_only_training_takes():
    "It has no parameters of its own, and a size in its code."
    def forward(m, x):
        h = m.a(x).relu()
        if m.training: h = h + h.view(len(x), 4, 8).flip(1).flatten(1)*.1
        return m.o(h)
    assert not len(trace(Net(forward, a=nn.Linear(16, 32), o=nn.Linear(32, 6)), torch.randn(4, 16)))
    def forward(m, x): h,w = m.a(x),m.b(x); return m.o(h)+m.o(w) if m.training else m.o(h)+m.p(w)
    net = Net(forward, a=nn.Linear(16, 32), b=nn.Linear(16, 32), o=nn.Linear(32, 6), p=nn.Linear(32, 6))
    assert set(trace(net, torch.randn(4, 16))['a'].places)>={('a.weight', 0), ('b.weight', 0), ('p.weight', 1)}

@pytest.mark.parametrize('batch', [1, 2, 3])
@pytest.mark.parametrize('norm', [nn.InstanceNorm2d, lambda n,affine: nn.InstanceNorm2d(n, affine=affine, track_running_stats=True)])
def test_instance_norm_with_any_batch(norm, batch):
    net = nn.Sequential(conv(3, 16), norm(16, affine=True), nn.ReLU(), conv(16, 24), norm(24, affine=True), nn.ReLU(), conv(24, 2))
    assert [g.n for g in assert_law(net, torch.randn(batch, 3, 8, 8).double())]==[16, 24]

# ---- heads by meaning

class Heads(nn.Module):
    "Attention that knows its number of heads under any name, or from something that configures it."
    def __init__(self, name, heads=4, width=8, **others):
        super().__init__()
        holder,_,self.key = name.rpartition('.')
        self.config = {'kind':'x', self.key:heads} if holder=='dict' else SimpleNamespace(**{self.key:heads}) if holder else None
        if not holder: setattr(self, name, heads)
        for nm,v in others.items(): setattr(self, nm, v)
        self.width = width
        self.q,self.k,self.v,self.o = (nn.Linear(i, n) for i,n in ((16, heads*width),)*3+((heads*width, 16),))
    def forward(self, x):
        c = self.config
        heads = getattr(self, self.key) if c is None else c[self.key] if isinstance(c, dict) else getattr(c, self.key)
        q,k,v = (m(x).view(*x.shape[:2], heads, self.width).transpose(1, 2) for m in (self.q, self.k, self.v))
        return self.o(((q@k.transpose(2, 3)/q.shape[-1]**.5).softmax(-1)@v).transpose(1, 2).flatten(2))

@pytest.mark.parametrize('kwargs', [dict(name=nm) for nm in ('num_heads', 'h', 'nh', 'zahl', 'conf.heads', 'dict.n')] + [
    dict(name='h', depth=4), dict(name='h', heads=8), dict(name='depth', num_heads=4), dict(name='h', heads=5, width=5)], ids=str)
def test_heads_are_found_by_trying(kwargs):
    "Whatever the number is called, and whatever else is as large."
    net = nn.Sequential(nn.Linear(16, 16), Heads(**kwargs), nn.Linear(16, 2))
    groups = assert_law(net, torch.randn(2, 6, 16).double())
    assert [g.n for g in groups]==[16, kwargs.get('heads', 4), 16]

def test_a_shared_configuration_is_not_changed_for_others():
    net = nn.Sequential(*(Heads('conf.heads') for _ in range(3)), nn.Linear(16, 2))
    for m in net[1:3]: m.config = net[0].config
    groups = trace(net, torch.randn(2, 6, 16))
    assert net[0].config is net[1].config and net[0].config.heads==4
    cut(net, groups, {'0.q':(0, 2), '1.q':(1,)})
    assert [m.config.heads for m in net[:3]]==[2, 1, 4] and net(torch.randn(2, 6, 16)).shape==(2, 6, 2)

class Computed(nn.Module):
    "Channels of a head are counted from the input."
    def __init__(self, dim, heads): super().__init__(); self.num_heads = heads; self.qkv,self.proj = nn.Linear(dim, 3*dim),nn.Linear(dim, dim)
    def forward(self, x):
        b,n,c = x.shape
        q,k,v = self.qkv(x).reshape(b, n, 3, self.num_heads, c//self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(((q@k.transpose(-2, -1)).softmax(-1)@v).transpose(1, 2).reshape(b, n, -1))

@pytest.mark.parametrize('dim,heads', [(24, 6), (12, 3), (48, 12), (24, 4), (32, 4), (64, 16), (32, 8), (16, 4), (96, 6), (40, 5), (6, 2)])
def test_heads_that_are_computed_never_stop(dim, heads):
    class Around(nn.Module):
        def __init__(self): super().__init__(); self.a,self.n,self.m,self.o = nn.Linear(16, dim),nn.LayerNorm(dim),Computed(dim, heads),nn.Linear(dim, 5)
        def forward(self, x): x = self.a(x); return self.o(x+self.m(self.n(x)))
    net,x = Around(),torch.randn(2, 9, 16)
    groups = trace(net, x)
    for alone in groups:
        for n in range(1, alone.n):
            small = copy.deepcopy(net)
            cut(small, groups, {alone.name:range(n)})
            small(x)

# ---- attention classes

@pytest.mark.parametrize('kwargs', [{}, dict(batch_first=True), dict(bias=False), dict(kdim=6, vdim=7)], ids=str)
@pytest.mark.parametrize('options', [{}, dict(need_weights=False), dict(average_attn_weights=False), 'float', 'bool', 'padding'], ids=str)
def test_headwise_attention_is_the_same(kwargs, options):
    m = nn.MultiheadAttention(12, 3, **kwargs).eval()
    first = kwargs.get('batch_first', False)
    q,k,v = (torch.randn(5, 4, n) for n in (12, kwargs.get('kdim', 12), kwargs.get('vdim', 12)))
    n,length = (5, 4) if first else (4, 5)
    options = {'float':dict(attn_mask=torch.randn(length, length)), 'bool':dict(attn_mask=torch.ones(n*3, length, length).triu(1).bool()),
               'padding':dict(key_padding_mask=torch.arange(length).expand(n, length)>2)}.get(options, options) if isinstance(options, str) else options
    want = m(q, k, v, **options)
    with headwise(m): got = m(q, k, v, **options)
    assert type(m) is nn.MultiheadAttention
    for a,b in zip(got, want): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

def test_unbatched_attention():
    m,x = nn.MultiheadAttention(12, 3).eval(),torch.randn(5, 12)
    want = m(x, x, x)
    with headwise(m): got = m(x, x, x)
    for a,b in zip(got, want): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('name,size', [('swin_t', 72), ('swin_v2_t', 80), ('maxvit_t', 224)])
def test_window_attention_is_the_same(name, size):
    "Padded and shifted windows included: the sizes are no multiples of the window."
    torch.manual_seed(0)
    net,x = get_model(name, weights=None).eval(),torch.randn(1, 3, size, size)
    with torch.no_grad():
        want = net(x)
        with headwise(net):
            assert any(type(m) in HEADWISE.values() for m in net.modules())
            torch.testing.assert_close(net(x), want, rtol=1e-4, atol=1e-5)

# ---- random networks

class Random(nn.Module):
    "A random network from a list of draws: every step makes a new map from earlier ones."
    def __init__(self, draws):
        super().__init__()
        self.steps,self.layers,self.widths = [],nn.ModuleDict(),[3]
        for i,(kind,a,b,n) in enumerate(draws):
            a,b = a%len(self.widths),b%len(self.widths)
            getattr(self, f'_{kind}')(str(i), a, b, n)
        self.head = nn.Linear(self.widths[-1], 2)

    def _new(self, i, layer, a, width, f=None):
        if layer is not None: self.layers[i] = layer
        self.steps.append(f or (lambda m,xs: m.layers[i](xs[a])))
        self.widths.append(width)

    def _conv(self, i, a, b, n): self._new(i, conv(self.widths[a], n, 3), a, n)
    def _grouped(self, i, a, b, n):
        g = next(o for o in (4, 3, 2, 1) if self.widths[a]%o==0)
        self._new(i, conv(self.widths[a], g*n, 3, groups=g), a, g*n)
    def _depthwise(self, i, a, b, n): self._new(i, conv(self.widths[a], self.widths[a], 3, groups=self.widths[a]), a, self.widths[a])
    def _norm(self, i, a, b, n): self._new(i, nn.BatchNorm2d(self.widths[a]), a, self.widths[a])
    def _act(self, i, a, b, n): self._new(i, nn.SiLU(), a, self.widths[a])
    def _add(self, i, a, b, n):
        if self.widths[a]==self.widths[b]: self._new(i, None, a, self.widths[a], lambda m,xs: xs[a]+xs[b])
        else: self._new(i, conv(self.widths[a], self.widths[b]), a, self.widths[b], lambda m,xs: m.layers[i](xs[a])+xs[b])
    def _cat(self, i, a, b, n): self._new(i, None, a, self.widths[a]+self.widths[b], lambda m,xs: torch.cat([xs[a], xs[b]], 1))
    def _gate(self, i, a, b, n):
        self._new(i, conv(self.widths[a], self.widths[a]), a, self.widths[a], lambda m,xs: xs[a]*m.layers[i](xs[a].mean((2, 3), keepdim=True)).sigmoid())
    def _halves(self, i, a, b, n):
        if self.widths[a]%2: return self._conv(i, a, b, n)
        self._new(i, None, a, self.widths[a]//2, lambda m,xs: torch.sub(*xs[a].chunk(2, 1)))
    def _shuffle(self, i, a, b, n):
        if self.widths[a]%2: return self._act(i, a, b, n)
        self._new(i, None, a, self.widths[a], lambda m,xs: xs[a].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))
    def _slice(self, i, a, b, n):
        k = min(n, self.widths[a])
        self._new(i, None, a, k, lambda m,xs: xs[a][:, :k])
    def _tokens(self, i, a, b, n):
        d = self.widths[a]
        if d%2: return self._conv(i, a, b, n)
        def attend(m, xs):
            t = xs[a].flatten(2).transpose(1, 2)
            return (t+m.layers[i](t, t, t, need_weights=False)[0]).transpose(1, 2).unflatten(2, xs[a].shape[2:])
        self._new(i, nn.MultiheadAttention(d, 2, batch_first=True), a, d, attend)

    def forward(self, x):
        xs = [x]
        for step in self.steps: xs.append(step(self, xs))
        return self.head(xs[-1].mean((2, 3)))

KINDS = [nm[1:] for nm in vars(Random) if nm[0]=='_' and nm not in ('_new',) and nm[1]!='_']
draws = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 30), st.integers(0, 30), st.integers(2, 6)), min_size=2, max_size=9)

@settings(max_examples=120, deadline=None)
@given(draws=draws, seed=st.integers(0, 5))
def test_the_law_holds_or_the_group_is_fixed(draws, seed):
    net = lively(Random(draws))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    got,want,groups,small,after = law(net, x, seed=seed)
    assert got.shape==want.shape and not groups.inexact
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7*max(1., want.abs().max().item()))
    tensors = dict(small.named_parameters())
    for (nm,d),mine in after.slots.items():
        if nm in tensors: assert tensors[nm].shape[d]==len(mine)
    small.train()(x).sum().backward()


# ---- random networks that do what networks of strangers do

@functools.lru_cache
def grid(n): return torch.linspace(.5, 1.5, n*n, dtype=torch.float64).view(n, n)

ACTS = torch.relu, torch.sigmoid, torch.tanh, torch.exp, F.softplus, lambda h: F.elu(h)+1, torch.cos, F.gelu
SCALES = (lambda h,c: h*c**-.5, lambda h,c: h/torch.tensor(float(c)).sqrt(), lambda h,c: h*h.new_tensor(c**-.5), lambda h,c: h*torch.full((), c**-.5, dtype=h.dtype),
          lambda h,c: torch.add(torch.zeros_like(h), h, alpha=1/c), lambda h,c: h*torch.tensor(float(c)).pow(-1), lambda h,c: h/torch.ones(c, dtype=h.dtype).sum())
PACKS = lambda y: y, Out, lambda y: {'y':[y]}, lambda y: SimpleNamespace(y=y), lambda y: deque([y]), one_by_one

class Wild(Random):
    "Caches, scales from widths, sums of two activations, buffers, branches, paths of training, computed heads, normed weights."
    def __init__(self, draws, pack):
        super().__init__(draws)
        self.pack,self.aux = PACKS[pack],nn.Linear(self.widths[len(self.widths)//2], 3)
    def _cached(self, i, a, b, n):
        def step(m, xs):
            if not hasattr(m, f'table{i}'): setattr(m, f'table{i}', torch.ones(xs[a].shape[2:], dtype=xs[a].dtype).tril()/n)
            return xs[a]*getattr(m, f'table{i}')
        self._new(i, None, a, self.widths[a], step)
    def _shared(self, i, a, b, n): self._new(i, None, a, self.widths[a], lambda m,xs: xs[a]*grid(xs[a].shape[-1]))
    def _scaled(self, i, a, b, n): self._new(i, None, a, self.widths[a], lambda m,xs: SCALES[(n+b)%len(SCALES)](xs[a], xs[b].shape[1]))
    def _product(self, i, a, b, n):
        f,g = ACTS[n%len(ACTS)],ACTS[(n+b)%len(ACTS)]
        self.layers[f'{i}q'],self.layers[f'{i}k'] = conv(self.widths[a], n),conv(self.widths[b], n)
        def step(m, xs):
            q,k = f(m.layers[f'{i}q'](xs[a])).flatten(2),g(m.layers[f'{i}k'](xs[b])).flatten(2)
            return (q.transpose(1, 2) @ k).mean(2).view(len(q), 1, *xs[a].shape[2:])
        self._new(i, None, a, 1, step)
    def _buffer(self, i, a, b, n):
        self.register_buffer(f'reads{i}', torch.randn(n, self.widths[a], 1, 1))
        self._new(i, None, a, n, lambda m,xs: F.conv2d(ACTS[b%len(ACTS)](xs[a]), getattr(m, f'reads{i}')))
    def _shifted(self, i, a, b, n):
        self.register_buffer(f'shift{i}', torch.randn(self.widths[a], 1, 1))
        self._new(i, None, a, self.widths[a], lambda m,xs: xs[a]+getattr(m, f'shift{i}'))
    def _branch(self, i, a, b, n):
        limit = self.widths[a]+b%3-1
        self._new(i, None, a, self.widths[a], lambda m,xs: xs[a].relu() if xs[a].shape[1]>=limit else xs[a].tanh())
    def _trained(self, i, a, b, n):
        if self.widths[a]!=self.widths[b]: return self._act(i, a, b, n)
        self._new(i, None, a, self.widths[a], lambda m,xs: xs[a]+xs[b]*.1 if m.training else xs[a]*2)
    def _computed(self, i, a, b, n):
        d,heads = self.widths[a],2 if self.widths[a]%2==0 else 1
        def attend(m, xs): return m.layers[i](xs[a].flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, xs[a].shape[2:])
        self._new(i, Computed(d, heads), a, d, attend)
    def _heads(self, i, a, b, n):
        self.layers[f'{i}in'],self.layers[f'{i}out'] = nn.Linear(self.widths[a], 16),nn.Linear(16, n)
        def attend(m, xs):
            t = m.layers[f'{i}in'](xs[a].flatten(2).transpose(1, 2))
            return m.layers[f'{i}out'](m.layers[i](t)).transpose(1, 2).unflatten(2, xs[a].shape[2:])
        self._new(i, Heads(('nh', 'cfg.k', 'heads')[b%3], heads=2+b%3, width=3), a, n, attend)
    def _normed(self, i, a, b, n):
        wrap = weight_norm if b%2 else spectral_norm
        self._new(i, wrap(conv(self.widths[a], n)), a, n)
    def _instance(self, i, a, b, n): self._new(i, nn.InstanceNorm2d(self.widths[a], affine=bool(b%2)), a, self.widths[a])
    def _groups(self, i, a, b, n):
        if self.widths[a]%2: return self._act(i, a, b, n)
        count = (lambda c: 2) if b%2 else (lambda c: c//2)
        self._new(i, None, a, self.widths[a], lambda m,xs: F.group_norm(xs[a], count(xs[a].shape[1])))
    def forward(self, x):
        xs = [x]
        for step in self.steps: xs.append(step(self, xs))
        y = self.pack(self.head(xs[-1].mean((2, 3))))
        return (y, self.aux(xs[len(xs)//2].mean((2, 3)))) if self.training else y

WILD = KINDS+[nm[1:] for nm in vars(Wild) if nm[0]=='_' and nm[1]!='_']
wild = st.lists(st.tuples(st.sampled_from(WILD), st.integers(0, 30), st.integers(0, 30), st.integers(2, 6)), min_size=2, max_size=9)

def only_one(out): return next(iter(tensors_in(out).values()))

def violations(draws, seed, pack):
    "Look at a network, cut what is exact, and list what is wrong."
    grid.cache_clear()
    net,x = lively(Wild(draws, pack)),torch.randn(2, 3, 4, 4, dtype=torch.float64)
    twin,bad = copy.deepcopy(net),[]
    groups = trace(net, x)
    with torch.no_grad():
        was,now = only_one(twin(x)),only_one(net(x))
        if not torch.equal(was.nan_to_num(), now.nan_to_num()): bad.append('the network was changed by looking')
        if not was.isfinite().all(): return bad # exponentials of exponentials: 0 times infinity is no zero
        keep = {g.name:idxs for g,idxs in zip(groups, some(groups, seed=seed).values()) if g.exact}
        masked,small = silence(copy.deepcopy(twin), groups, keep),copy.deepcopy(twin)
        cut(small, groups, keep)
        got,want = only_one(small(x)),only_one(masked(x))
        if got.shape!=want.shape or not torch.allclose(got, want, rtol=1e-7, atol=1e-7*max(1., want.abs().max().item())): bad.append('cut differs from masked')
        out = small.train()(x)
        if [t.shape[1] for t in tensors_in(out).values()]!=[2, 3]: bad.append('an output was cut')
    sum(t.sum() for t in tensors_in(small(x)).values()).backward()
    return bad

@settings(max_examples=60, deadline=None)
@given(draws=wild, seed=st.integers(0, 5), pack=st.integers(0, len(PACKS)-1))
def test_the_law_holds_in_the_wild(draws, seed, pack): assert not violations(draws, seed, pack)

@pytest.mark.slow
@settings(max_examples=int(os.environ.get("GRAPHS", 3000)), deadline=None)
@given(draws=wild, seed=st.integers(0, 5), pack=st.integers(0, len(PACKS)-1))
def test_the_law_holds_in_3000_wild_networks(draws, seed, pack): assert not violations(draws, seed, pack)

@pytest.mark.parametrize('name', ['h', 'conf.heads', 'dict.n', 'num_heads'])
def test_a_file_holds_numbers_that_were_found_by_trying(name, tmp_path):
    "Or the small network would be built with the heads of the large one, and say something else."
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 16), Heads(name), nn.Linear(16, 2)).eval()
    net,x = build(),torch.randn(2, 6, 16)
    cut(net, trace(net, x), {'1.q':(0, 3)})
    for _ in range(2): # also of what was read
        net,want = load(build, save(net, tmp_path/'small.safetensors')),net(x)
        assert net(x).equal(want)

def squeezing(how): return Net(lambda m,x: m.o(m.b(how(m.a(x)).relu())), a=nn.Conv2d(3, 4, 1), b=nn.Linear(4, 6), o=nn.Linear(6, 2))

SQUEEZES = dict(bare=lambda h: h.mean((2, 3), keepdim=True).squeeze(), channels=lambda h: h.mean((2, 3)).squeeze(1), several=lambda h: h.mean((2, 3), keepdim=True).squeeze((1, 2, 3)))

@pytest.mark.parametrize('how', SQUEEZES)
def test_two_stay_where_one_would_be_squeezed_away(how):
    "`squeeze` drops a dimension of one channel, and the network stops or means something else."
    net,x = squeezing(SQUEEZES[how]),torch.randn(5, 3, 2, 2)
    groups = trace(net, x)
    assert {g.name:g.least for g in groups}==dict(a=2, b=1) and all(g.exact for g in groups)
    with pytest.raises(ValueError, match='a: at least two neurons must stay.*squeeze'): cut(net, groups, dict(a=[1]))
    keep = rank(groups, torch.arange(10.), Neurons(.7))
    assert len(keep['a'])==2 and {g.name:g.least for g in Groups.from_json(groups.to_json())}==dict(a=2, b=1)
    after = cut(net, groups, dict(a=[1, 3], b=[0]))
    assert net(x).shape==(5, 2) and {g.name:g.least for g in after}==dict(a=2, b=1)

def test_a_squeeze_of_other_dimensions_asks_for_nothing():
    net,x = squeezing(lambda h: h.mean((2, 3), keepdim=True).squeeze(3).squeeze(-1)),torch.randn(5, 3, 2, 2)
    assert [g.least for g in trace(net, x)]==[1, 1]

@pytest.mark.parametrize('on', [True, False])
def test_the_collector_is_as_it_was(on, monkeypatch):
    "Also where the network stops."
    was,seen,flow = gc.isenabled(),[],dependency._flow
    monkeypatch.setattr(dependency, '_flow', lambda *args: seen.append(gc.isenabled()) or flow(*args))
    try:
        (gc.enable if on else gc.disable)()
        trace(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.randn(2, 4))
        assert gc.isenabled()==on and seen and not any(seen)
        with pytest.raises(ValueError, match='could not be run'): trace(nn.Linear(4, 6), torch.randn(2, 5))
        assert gc.isenabled()==on
    finally: (gc.enable if was else gc.disable)()
