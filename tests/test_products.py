"Layers that skip their zeros compute what the dense layers do, wherever they are used."
import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from early_prune import products
from early_prune.core import cost, evaluating
from early_prune.criteria import magnitude
from early_prune.dependency import trace
from early_prune.masks import Masks
from early_prune.products import (
    _SkippingConv1d,
    _SkippingConv2d,
    _SkippingConv3d,
    _SkippingLinear,
    csr,
    skip_zeros,
    unskip_zeros,
)
from early_prune.ranking import Neurons, rank, scores
from early_prune.surgery import cut, load, save


def mlp(): return nn.Sequential(nn.Linear(60, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))

def masked(net, sparsity=.95):
    Masks(net).update(magnitude, sparsity).apply()
    return net.eval()

def all_skip(net):
    "Change every layer that may, whatever it gains."
    for m in net.modules():
        if products._may_skip(m): m.__class__ = products._SKIPPING[type(m)]
    return net

def used(f):
    "How many sparse products are made while `f` runs."
    found,times = [],products._Skipping._times
    def note(self, x): found.append(self); return times(self, x)
    products._Skipping._times = note
    try: f()
    finally: products._Skipping._times = times
    return len(found)

@pytest.fixture
def pair():
    torch.manual_seed(0)
    net = masked(mlp())
    return net,all_skip(copy.deepcopy(net))

@given(rows=st.integers(1, 6), columns=st.integers(1, 9), density=st.sampled_from([0, .2, 1]), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=40)
def test_the_matrix_is_the_weight(rows, columns, density, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, dtype=dtype, generator=g)*(torch.rand(rows, columns, generator=g)<density)
    assert torch.equal(csr(w).to_dense(), w+0) and csr(w).values().numel()==w.count_nonzero()

@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('shape', [(60,), (1, 60), (7, 60), (2, 3, 60), (0, 60), (2, 0, 60), (1, 1, 1, 60)])
def test_linear_layers_agree(bias, dtype, shape):
    torch.manual_seed(0)
    layer = masked(nn.Linear(60, 40, bias).to(dtype))
    twin = all_skip(copy.deepcopy(layer))
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        assert used(lambda: twin(x))==(x.numel()>0) and type(twin) is _SkippingLinear
        got,want = twin(input=x),layer(x)
        torch.testing.assert_close(got, want)
        assert got.is_contiguous() and got.shape==want.shape
        if x.ndim>1: torch.testing.assert_close(twin(x.flip(0).mT.contiguous().mT), layer(x.flip(0)))

@pytest.mark.parametrize('kind,skipping', [(nn.Conv1d, _SkippingConv1d), (nn.Conv2d, _SkippingConv2d), (nn.Conv3d, _SkippingConv3d)])
@pytest.mark.parametrize('options', [{}, dict(stride=2), dict(bias=False), dict(padding='same'), dict(padding='valid'), dict(dilation=3)], ids=str)
@pytest.mark.parametrize('n', [None, 1, 3, 0])
def test_convolutions_agree(kind, skipping, options, n):
    torch.manual_seed(0)
    layer = masked(kind(20, 30, 1, **options))
    twin,dims = all_skip(copy.deepcopy(layer)),int(kind.__name__[4])
    x = torch.randn(*(() if n is None else (n,)), 20, *(5, 4, 3)[:dims])
    with torch.no_grad():
        assert type(twin) is skipping and used(lambda: twin(x))==(n not in (None, 0))
        torch.testing.assert_close(twin(x), layer(x))
        if dims==2 and n: torch.testing.assert_close(twin(x.to(memory_format=torch.channels_last)), layer(x))

@pytest.mark.parametrize('make', [
    lambda: nn.Conv2d(8, 8, 1, groups=2), lambda: nn.Conv2d(8, 8, 3, padding=1), lambda: nn.Conv2d(8, 8, 1, padding=1), lambda: nn.Conv2d(8, 8, (1, 3)),
    lambda: nn.ConvTranspose2d(8, 8, 1), lambda: nn.Linear(8, 8).bfloat16(), lambda: nn.Linear(8, 8).to('meta'), lambda: nn.Bilinear(8, 8, 8),
    lambda: parametrizations.weight_norm(nn.Linear(8, 8)), lambda: prune.l1_unstructured(nn.Linear(8, 8), 'weight', .9), lambda: nn.LazyLinear(8)])
def test_other_layers_are_left_alone(make):
    m = make()
    if type(m) in (nn.Linear, nn.Conv2d) and 'weight' in m._parameters and not m.weight.is_meta: nn.init.zeros_(m.weight)
    assert not products._may_skip(m)

def test_layers_that_hold_more_values_than_zeros_are_left_alone():
    with torch.inference_mode(): inferred = nn.Linear(4, 4)
    assert not products._may_skip(nn.Linear(8, 8)) and not products._may_skip(inferred)

def test_what_trains_or_is_recorded_is_dense(pair):
    net,twin = pair
    x = torch.randn(4, 60)
    with torch.no_grad(): assert used(lambda: twin(x))==3
    assert used(lambda: twin(x))==0 # the weights ask for gradients
    twin(x).sum().backward(); net(x).sum().backward()
    for a,b in zip(net.parameters(), twin.parameters()): torch.testing.assert_close(a.grad, b.grad)
    frozen = copy.deepcopy(twin).requires_grad_(False)
    assert used(lambda: frozen(x))==3 and used(lambda: frozen(x.clone().requires_grad_()))==0
    with torch.no_grad():
        assert used(lambda: twin.train()(x))==0
        twin.eval()
        with torch.autocast('cpu', torch.bfloat16):
            assert used(lambda: twin(x))==0 and twin(x).dtype==torch.bfloat16
        with warnings.catch_warnings(action='ignore'): assert used(lambda: torch.jit.trace(twin, x, check_trace=False))==0
        program = torch.export.export(twin, (x,))
        torch.testing.assert_close(program.module()(x), net(x))
        assert used(lambda: twin(x))==3
    assert cost(twin, x).flops==cost(net, x).flops>0

@pytest.mark.parametrize('change', [
    lambda net: net[0].weight.mul_(3), lambda net: net.load_state_dict({k:2*v for k,v in net.state_dict().items()}),
    lambda net: setattr(net[0].weight, 'data', net[0].weight*5), lambda net: net.double(), lambda net: nn.init.constant_(net[2].weight, .5),
    lambda net: setattr(net[2], 'weight', nn.Parameter(torch.ones(200, 200))), lambda net: net[4].bias.add_(1),
    lambda net: Masks(net).update(magnitude, .99).apply(), lambda net: net[0].weight.set_(torch.ones(200, 60))])
def test_a_changed_weight_is_noticed(pair, change):
    net,twin = pair
    with torch.no_grad():
        twin(torch.randn(4, 60))
        change(net), change(twin)
        x = torch.randn(4, 60, dtype=net[0].weight.dtype)
        assert used(lambda: twin(x))==3
        torch.testing.assert_close(twin(x), net(x), rtol=1e-4, atol=1e-4)

def test_memory_that_is_taken_again_is_no_old_weight(pair):
    "A weight that is freed and another that is put at its address are two."
    net,twin = pair
    x = torch.randn(4, 60)
    with torch.no_grad():
        for i in range(20):
            twin(x)
            for _ in range(2): twin[2].weight.data = torch.full((200, 200), float(i))
            torch.testing.assert_close(twin[2](torch.ones(1, 200)), torch.full((1, 200), 200.*i)+twin[2].bias)

def test_copies_pickles_and_files(pair, tmp_path):
    net,twin = pair
    x = torch.randn(4, 60)
    with torch.no_grad():
        want = net(x)
        twin(x)
        for again in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
            assert 'known' not in vars(again[0]) and used(lambda: again(x))==3 # noqa: B023
            torch.testing.assert_close(again(x), want)
        assert list(twin.state_dict())==list(net.state_dict())
        loaded = load(mlp, save(twin, tmp_path/'net.safetensors', sparse=True))
        assert torch.equal(loaded(x), want) and type(loaded[0]) is nn.Linear

def test_a_layer_that_skips_is_traced_and_cut(pair):
    net,twin = pair
    x = torch.randn(4, 60)
    for o in (net, twin):
        groups = trace(o, x)
        cut(o, groups, rank(groups, scores(o, groups, lambda p: p.detach().abs()), Neurons(.5), o, (x,)))
    assert net[0].out_features==twin[0].out_features<200
    with torch.no_grad():
        assert used(lambda: twin(x))==3
        torch.testing.assert_close(twin(x), net(x))

def test_only_layers_that_gain_skip(pair, monkeypatch):
    net,_ = pair
    x,times = torch.randn(4, 60),iter([([2.]*8, [1.]*8), ([1.]*8, [1.]*8), ([9., 1.]*4, [1., 2.]*4)])
    monkeypatch.setattr(products, '_in_turns', lambda *args: next(times))
    table = skip_zeros(net, x)
    assert [type(m) for m in net[::2]]==[_SkippingLinear, nn.Linear, nn.Linear]
    assert list(table.index)==['0', '2', '4'] and table.skips.tolist()==[True, False, False] and table.gain.tolist()==[2, 1, 4.75]
    assert table.sparsity.tolist()==pytest.approx([float((m.weight==0).float().mean()) for m in net[::2]])
    assert unskip_zeros(net) is net and {type(m) for m in net[::2]}=={nn.Linear}

def test_both_products_are_measured_on_the_inputs_of_each_layer(monkeypatch):
    class Twice(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = nn.Linear(40, 40),nn.Linear(40, 40)
        def forward(self, x, named=None): return self.a(input=self.a(x)) + self.a(x[:1]) + (0 if named is None else named)
    net,seen = masked(Twice()),{}
    monkeypatch.setattr(products, '_in_turns', lambda m, calls, rounds: (seen.update({m:{k:n for k,(_,n) in calls.items()}}), ([1.], [2.]))[1])
    skip_zeros(net, torch.ones(3, 40), named=1.)
    assert seen=={net.a:{(3, 40):2, (1, 40):1}} # `b` is never called

def test_hooks_stay_and_are_not_called_by_the_measuring(pair):
    net,_ = pair
    calls = []
    net[0].register_forward_hook(lambda m, x, y: calls.append(len(x[0])))
    skip_zeros(net, torch.randn(4, 60), rounds=3, least=1.)
    assert calls==[4] and not net[0]._forward_pre_hooks
    with torch.no_grad(): net(torch.randn(5, 60))
    assert calls==[4, 5]

def test_an_error_in_the_middle_leaves_the_layers_dense(pair, monkeypatch):
    net,_ = pair
    def fail(weight): raise RuntimeError('no such product here')
    monkeypatch.setattr(products, 'csr', fail)
    with pytest.raises(RuntimeError, match='no such product'): skip_zeros(net, torch.randn(4, 60))
    assert {type(m) for m in net[::2]}=={nn.Linear} and not any(m._forward_pre_hooks for m in net)

def test_a_second_call_measures_again(pair):
    net,twin = pair
    x = torch.randn(4, 60)
    before = net(x)
    table = skip_zeros(twin, x, rounds=2, least=1e9)
    assert not table.skips.any() and {type(m) for m in twin[::2]}=={nn.Linear} and torch.equal(twin(x), before)

def test_refusals(pair):
    net,x = pair[0],torch.randn(4, 60)
    with pytest.raises(ValueError, match='in training mode'): skip_zeros(net.train(), x)
    net.eval()
    with pytest.raises(ValueError, match='`model` is a bare network, got DataParallel'): skip_zeros(nn.DataParallel(net), x)
    with pytest.raises(ValueError, match='`model` is a bare network, got OptimizedModule'): skip_zeros(torch.compile(net), x)
    for wrong in (dict(least=.9), dict(rounds=0)):
        with pytest.raises(ValueError, match='`least` and `rounds` are at least 1'): skip_zeros(net, x, **wrong)
    with evaluating(net), pytest.raises(TypeError): skip_zeros(net)
    assert not any(m._forward_pre_hooks for m in net)

def test_nothing_to_skip_is_an_empty_table():
    table = skip_zeros(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval(), torch.zeros(1, 1, 8, 8))
    assert len(table)==0 and list(table.columns)==['sparsity', 'dense', 'skipping', 'gain', 'skips']

def test_no_warning_of_pytorch_reaches_the_user():
    with warnings.catch_warnings(action='error'):
        assert csr(torch.zeros(3, 4)).values().numel()==0
