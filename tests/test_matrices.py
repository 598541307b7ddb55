"Which tensors are matrices is found by what a layer computes, and masks divide them along the right dimension."
import functools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from early_prune.core import layer_table, matrices, prunable, sparsity_of
from early_prune.criteria import magnitude, rms_magnitude
from early_prune.masks import Masks, by_filter, by_kernel, by_weight, two_four
from early_prune.regrowth import by_gradient


def normal(*shape): return nn.Parameter(torch.randn(*shape))

class Turned(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight,self.bias = normal(i, o),nn.Parameter(torch.zeros(o))
    def forward(self, x): return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(x.size()[:-1]+(self.weight.shape[1],))

def layer(forward, **shapes):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            for nm,s in shapes.items(): setattr(self, nm, normal(*s))
    Own.forward = forward
    return Own()

def experts(self, x, chosen):
    out = torch.zeros_like(x)
    if x.shape[-1]!=8: raise ValueError('width')
    for e in chosen.unique():
        rows,_ = torch.where(chosen==e)
        a,b = (x[rows] @ self.up[e]).chunk(2, dim=-1)
        out.index_add_(0, rows, F.linear(a*b, self.down[e]))
    return out

def both(self, x):
    b,n,_ = x.shape
    q,k = torch.stack([x@w for w in self.qk.unbind(0)])
    return torch.einsum('b i d, b j d -> b i j', q, k).flatten(1)[:, :n] @ self.out.t() + self.position[:n].sum()

MATRICES = dict(
    matmul=(layer(lambda self, x: x@self.w, w=(3, 5)), dict(w=(5, 3))),
    by_hand=(layer(lambda self, x: (self.w@x.mT).mT, w=(5, 3)), dict(w=(5, 3))),
    einsum=(layer(lambda self, x: torch.einsum('bld,dhk->bhlk', x, self.w), w=(8, 2, 4)), dict(w=(8, 8))),
    heads_in=(layer(lambda self, x: torch.einsum('bhk,hkd->bd', x, self.w), w=(2, 4, 8)), dict(w=(8, 2, 4))),
    blocks=(layer(lambda self, x: torch.bmm(x, self.w), w=(4, 3, 6)), dict(w=(24, 3))),
    tensordot=(layer(lambda self, x: torch.tensordot(x, self.w, 1), w=(3, 6)), dict(w=(3, 6))),
    experts=(layer(experts, up=(4, 8, 6), down=(4, 8, 3)), dict(up=(24, 8), down=(32, 3))),
    functional=(layer(lambda self, x: F.conv2d(x, self.k, padding=1), k=(4, 2, 3, 3)), dict(k=(4, 2, 3, 3))),
    several=(layer(both, qk=(2, 8, 8), out=(4, 3), position=(9, 8)), dict(qk=(16, 8), out=(4, 3))),
    low_rank=(layer(lambda self, x: F.linear(x, self.a@self.b), a=(6, 2), b=(2, 5)), dict(a=(6, 2), b=(5, 2))),
    normalized=(layer(lambda self, x: F.linear(F.normalize(x), F.normalize(self.w)), w=(10, 4)), dict(w=(10, 4))),
    turned=(Turned(3, 7), dict(weight=(7, 3))), bilinear=(nn.Bilinear(2, 3, 4), dict(weight=(4, 2, 3))),
    cell=(nn.GRUCell(3, 4), dict(weight_ih=(12, 3), weight_hh=(12, 4))), up=(nn.ConvTranspose1d(4, 6, 3), dict(weight=(6, 4, 3))),
    grouped_up=(nn.ConvTranspose1d(4, 6, 3, groups=2), dict(weight=(6, 2, 3))))

@pytest.mark.parametrize('name', MATRICES)
def test_what_multiplies_is_a_matrix(name):
    net,want = MATRICES[name]
    assert {nm:o.shape for nm,o in matrices(net)[0].items()}==want
    for o in matrices(net)[0].values(): assert o.as_stored(o.filters_first(o.p)).equal(o.p)

TABLES = dict(
    position=layer(lambda self, x: x+self.t[:x.shape[1]], t=(9, 8)), lookup=layer(lambda self, i: self.t[i], t=(9, 8)),
    embedding=layer(lambda self, i: F.embedding(i, self.t)*math.sqrt(8), t=(9, 8)), scale=layer(lambda self, x: x*self.t, t=(8, 1, 1)),
    token=layer(lambda self, x: torch.cat([self.t.expand(len(x), -1, -1), x], 1), t=(1, 1, 8)), norm=nn.LayerNorm((4, 4, 4)))

@pytest.mark.parametrize('name', TABLES)
def test_what_is_added_looked_up_or_scales_is_none(name):
    found,dense = matrices(TABLES[name])
    assert not found and list(dense)==(['t'] if name=='position' else [])

def test_sums_of_tables_are_inputs_and_no_weights():
    def forward(self, i): return torch.cat([self.cls.expand(len(i), -1, -1), self.table[i]+self.position[:i.shape[1]]], 1) @ self.w
    net = layer(forward, cls=(1, 1, 4), table=(9, 4), position=(5, 4), w=(4, 6))
    assert list(prunable(net))==['w']

def test_lists_and_dictionaries_of_parameters():
    class Lists(nn.Module):
        def __init__(self):
            super().__init__()
            self.ws,self.named = nn.ParameterList([normal(4, 4) for _ in range(3)]),nn.ParameterDict(dict(out=normal(4, 2)))
        def forward(self, x):
            for w in self.ws: x = (x@w).relu()
            return x@self.named['out']
    net = nn.Sequential(Lists())
    assert {nm:o.shape for nm,o in matrices(net)[0].items()}=={'0.ws.0':(4, 4), '0.ws.1':(4, 4), '0.ws.2':(4, 4), '0.named.out':(2, 4)}
    masks = Masks(net, by_filter).update(magnitude, .5).apply()
    assert (net[0].named['out']==0).all(0).sum()==masks.n_units['0.named.out']-masks.n_kept['0.named.out']

def test_weights_handed_to_an_inner_layer():
    from fastai.text.models.awdlstm import WeightDropout
    net = WeightDropout(nn.LSTM(5, 2), .4)
    assert 'weight_hh_l0_raw' in prunable(net) and 'module.weight_ih_l0' in prunable(net)

def test_following_changes_nothing():
    class Cache(nn.Module):
        def __init__(self):
            super().__init__()
            self.w,self.seen,self.register = normal(3, 3),[],self.register_buffer('n', torch.zeros(()))
        def forward(self, x, mask=None):
            self.n += 1
            self.seen.append(x)
            self.last = x
            while mask is None and x.sum()>0: x = x-torch.rand(())
            return x@self.w
    net,before = Cache(),torch.get_rng_state()
    assert list(prunable(net))==['w'] and net.n==0 and net.seen==[] and not hasattr(net, 'last') and before.equal(torch.get_rng_state())

def test_a_layer_that_cannot_be_followed_is_named():
    def forward(self, x): raise RuntimeError('only on other machines')
    net = nn.Sequential(nn.Linear(4, 4), layer(forward, w=(4, 4)))
    found,dense = matrices(net)
    assert list(found)==['0.weight'] and dense['1.w']=='is used in a way that cannot be followed'
    masks = Masks(net)
    assert masks.table().loc['1.w'].iloc[-1]==dense['1.w'] and '1.w' in masks._repr_html_()
    assert '1.w' in prunable(net, types=(nn.Linear, type(net[1]))) # who knows better asks for it

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed,self.block,self.head = nn.Embedding(9, 4),Turned(4, 4),nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight
    def forward(self, x): return self.head(self.block(self.embed(x)))

def test_a_tied_embedding_is_left_alone_unless_asked_for():
    found,dense = matrices(Tied())
    assert list(found)==['block.weight'] and dense=={'head.weight':'is also a table of embeddings'}
    assert list(prunable(Tied(), types=(nn.Linear,)))==[]
    assert list(prunable(Tied(), types=(nn.Embedding, Turned)))==['embed.weight', 'block.weight']

@pytest.mark.parametrize('granularity', [by_filter, by_kernel, two_four])
@pytest.mark.parametrize('turned', ['matmul', 'conv', 'grouped', 'experts'])
def test_units_of_turned_weights_are_those_of_straight_ones(turned, granularity):
    "A layer stored as `(in, out)` is masked as the same layer stored as `(out, in)` is."
    make = dict(matmul=lambda: (Turned(8, 6), nn.Linear(8, 6), lambda w: w.T), experts=lambda: (layer(experts, up=(4, 8, 8)), nn.Linear(8, 32), lambda w: w.mT.reshape(32, 8)),
                conv=lambda: (nn.ConvTranspose2d(8, 6, 3), nn.Conv2d(8, 6, 3), lambda w: w.transpose(0, 1)),
                grouped=lambda: (nn.ConvTranspose2d(8, 6, 3, groups=2), nn.Conv2d(8, 6, 3, groups=2), lambda w: w.view(2, 4, 3, 3, 3).transpose(1, 2).reshape(6, 4, 3, 3)))[turned]
    own,straight,turn = make()
    nm,p = next(iter(prunable(own).items()))
    with torch.no_grad(): straight.weight.copy_(turn(p))
    a,b = (Masks(net, granularity, types=None).update(magnitude, .5) for net in (own, straight))
    assert turn(a[nm]).equal(b['weight']) and a.n_kept[nm]==b.n_kept['weight']
    a.update(magnitude, .25), b.update(magnitude, .25)
    assert turn(a[nm]).equal(b['weight']) and a[nm].stride()==p.stride()
    again = Masks(own, granularity).unpack(a.pack())
    assert again[nm].equal(a[nm]) and Masks(own, granularity).adopt(a)[nm].equal(a[nm])
    a.apply()
    assert Masks(own, granularity).adopt_zeros()[nm].equal(a[nm])
    if granularity is by_kernel:
        p.grad,straight.weight.grad = torch.randn_like(p),None
        straight.weight.grad = turn(p.grad).contiguous()
        with torch.no_grad(): straight.weight.copy_(turn(p))
        for masks in (a, b): by_gradient.swap(masks, .1, by_gradient.grow)
        assert turn(a[nm]).equal(b['weight'])

def test_rms_of_filters_that_are_columns():
    own,straight = Turned(8, 6),nn.Linear(8, 6)
    with torch.no_grad(): straight.weight.copy_(own.weight.T)
    a,b = (Masks(net, by_weight).update(rms_magnitude, .5)['weight'] for net in (own, straight))
    assert a.T.equal(b)

def test_biases_follow_columns():
    net = nn.Sequential(Turned(8, 6), nn.ReLU(), nn.Linear(6, 3))
    masks = Masks(net, by_filter, ignore=(net[2],)).follow(net, torch.randn(2, 8))
    assert list(masks.followers['0.weight'])==['0.bias']
    with torch.no_grad(): net[0].bias.fill_(1)
    masks.update(magnitude, .5).apply()
    assert (net[0](torch.randn(4, 8))==0).all(0).sum()==3

def test_flops_of_several_matrices_in_one_layer():
    net = layer(lambda self, x: x@self.a@self.b, a=(8, 16), b=(16, 4))
    table = layer_table(net, torch.randn(1, 8))
    assert table.flops.tolist()==[2*8*16, 2*16*4]
    table = layer_table(nn.LSTM(4, 8), torch.randn(1, 3, 4))
    assert table.flops.sum()==2*3*(4*32+8*32)

# ---- weights that are computed from other tensors

class Halved(nn.Module):
    def forward(self, w): return w/2
class Shifted(nn.Module):
    def forward(self, w): return w+1

PARTS = dict(weight=['parametrizations.weight.original1'], spectral=['parametrizations.weight.original'], orthogonal=[], halved=['parametrizations.weight.original'],
             shifted=[], both=['parametrizations.weight.original1'])
MAKE = dict(weight=parametrizations.weight_norm, spectral=parametrizations.spectral_norm, orthogonal=parametrizations.orthogonal,
            halved=lambda m: parametrize.register_parametrization(m, 'weight', Halved()) or m, shifted=lambda m: parametrize.register_parametrization(m, 'weight', Shifted()) or m,
            both=lambda m: parametrize.register_parametrization(parametrizations.weight_norm(m), 'weight', Halved()) or m)

@pytest.mark.parametrize('name', MAKE)
@pytest.mark.parametrize('make', [lambda: nn.Linear(8, 6), lambda: nn.Conv2d(4, 6, 3), lambda: Turned(8, 6)], ids=['linear', 'conv', 'own'])
def test_parametrized_weights_have_the_zeros_of_their_masks(name, make):
    torch.manual_seed(0)
    net = MAKE[name](make())
    before,(found,dense) = {nm:t.clone() for nm,t in net.state_dict().items()},matrices(net)
    assert list(found)==PARTS[name] and all(t.equal(before[nm]) for nm,t in net.state_dict().items())
    assert list(dense)==([] if found else ['parametrizations.weight'])
    if not found: return
    x = torch.randn(5, 4, 6, 6) if isinstance(net, nn.Conv2d) else torch.randn(5, 8)
    for sparsity in (.5, .8):
        masks = Masks(net).update(magnitude, sparsity).apply()
        assert (net.eval().weight==0).equal(~masks[PARTS[name][0]]) and net(x).isfinite().all() and net.train()(x).isfinite().all()
    assert abs(masks.sparsity-.8)<.01 and sparsity_of(net)==pytest.approx(masks.sparsity)

def test_every_slice_that_is_divided_keeps_a_weight():
    for dim in (0, 1):
        net = parametrizations.weight_norm(nn.Linear(16, 16), dim=dim)
        with torch.no_grad(): net.parametrizations.weight.original1.select(dim, 3).mul_(1e-6)
        masks = Masks(net).update(magnitude, .9).apply()
        assert masks['parametrizations.weight.original1'].any(1-dim).all() and net.weight.isfinite().all()

@pytest.mark.filterwarnings('ignore:.*is deprecated')
def test_filters_of_spectral_norm_and_of_weight_norm():
    x,old = torch.randn(2, 3, 8, 8),nn.utils.spectral_norm(nn.Conv2d(3, 8, 3))
    for net in (parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), old):
        Masks(net, by_filter).update(magnitude, .5).apply()
        assert net(x).isfinite().all() and (net.weight==0).flatten(1).all(1).sum()==4
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 4, 3))
    masks = Masks(net, by_filter)
    assert masks.skipped==['0.parametrizations.weight.original1'] and 'length of a filter' in masks.dense[masks.skipped[0]]

KEPT = {}

@functools.cache
def counted(n): return n

class Helper: table = None

class Keeps(nn.Module):
    "A layer that keeps what it computes, in places that a copy of the module shares with it."
    def __init__(self, where):
        super().__init__()
        self.w,self.helper,self.where,self.calls,self.nested = nn.Parameter(torch.randn(4, 4)),Helper(),where,0,{'a':[]}
        last = None
        def closed(x):
            nonlocal last
            last = x if last is None else last
            return last
        self.closed = closed

    def forward(self, x):
        self.calls += 1
        ones = x.new_ones(x.shape[-1])
        if self.where=='object':
            if self.helper.table is None: self.helper.table = ones
            ones = self.helper.table
        elif self.where=='module': ones = KEPT.setdefault('ones', ones)
        elif self.where=='nested':
            self.nested['a'].append(ones)
            ones = self.nested['a'][0]
        elif self.where=='closure': ones = self.closed(ones)
        else: ones = counted(ones)
        return x@self.w+ones

@pytest.mark.parametrize('where', ['object', 'module', 'nested', 'closure', 'cache'])
def test_a_look_at_the_layers_leaves_nothing(where):
    "The network that was looked at computes what its twin does, bit for bit, and no cache has grown."
    KEPT.clear(); counted.cache_clear()
    torch.manual_seed(0)
    net,x = Keeps(where),torch.randn(2, 4)
    want,state = x@net.w+1,random.getstate()
    assert list(prunable(net))==['w']
    assert net.calls==0 and not KEPT and not counted.cache_info().currsize and net.helper.table is None and random.getstate()==state
    assert net(x).equal(want)
