"Swaps are exact, whatever the scores; new weights are fresh; the device is asked once."
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18

from early_prune import masks as masks_module
from early_prune.core import prunable
from early_prune.criteria import gradient, magnitude, random_scores
from early_prune.distributions import erk, uniform
from early_prune.masks import Masks, by_filter, by_kernel, by_weight, take_top, two_four
from early_prune.regrowth import (
    Exploration,
    Momentum,
    Regrowth,
    by_gradient,
    by_momentum,
    by_random,
    drop,
    mask_similarity,
    regrow,
)
from early_prune.schedules import Schedule, sched_cosine, sched_linear

FAMILY = {'gradient':by_gradient, 'random':by_random, 'momentum':by_momentum}

def net(seed=0, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12))

def filled(seed=0, levels=None):
    "A network with gradients; `levels`: only so many different values, so that nearly all tie."
    model = net(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
        if levels:
            p.data = torch.randint(1, levels+1, p.shape).float()*torch.randn_like(p).sign()
            p.grad = torch.randint(0, levels, p.shape).float()
    return model

@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 60), levels=st.integers(1, 5), data=st.data())
def test_drop_and_regrow_count_exactly(n, levels, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    mask,scores = torch.from_numpy(rng.random(n)<.6),torch.from_numpy(rng.integers(0, levels, n).astype(np.float32))
    active = mask.nonzero().flatten().tolist()
    k = data.draw(st.integers(0, len(active)))
    gone = sorted(set(active)-set(drop(mask, scores, k).nonzero().flatten().tolist()))
    assert gone==sorted(sorted(active, key=lambda i: (scores[i].item(), -i))[:k])
    away = (~mask).nonzero().flatten().tolist()
    k = data.draw(st.integers(0, len(away)))
    new = regrow(mask, scores, k)
    assert (mask<=new).all()
    assert (new & ~mask).nonzero().flatten().tolist()==sorted(sorted(away, key=lambda i: (-scores[i].item(), i))[:k])

@settings(max_examples=80, deadline=None)
@given(steps=st.lists(st.tuples(st.floats(0, .97), st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=6),
       levels=st.sampled_from([None, 1, 2]), seed=st.integers(0, 99), names=st.sampled_from([None, ['3.weight', '7.weight']]))
def test_random_sequences_of_updates(steps, levels, seed, names):
    "After every update: counts as asked for, as the masks have them, and as recorded; never more than the schedule allows."
    model = filled(seed, levels)
    opt = torch.optim.SGD(model.parameters(), .1, momentum=.9)
    opt.step()
    if levels:
        for p in model.parameters(): p.data = p.data.round()
    masks = Masks(model)
    for sparsity,fraction,may_return,together in steps:
        each = uniform({nm:p.shape for nm,p in masks.params.items()}, sparsity)
        masks.update(magnitude, sparsity if together else each).apply(opt)
        asked,before = dict(masks.n_kept),{nm:masks[nm].clone() for nm in masks.params}
        masks.swap(fraction, may_return=may_return, together=together, names=names).apply(opt)
        assert {nm:masks[nm].sum().item() for nm in masks.params}==masks.n_kept and min(masks.n_kept.values())>=1
        assert sum(masks.n_kept.values())==sum(asked.values())
        if not together: assert masks.n_kept==asked
        for nm,p in masks.params.items():
            if names and nm not in names: assert torch.equal(masks[nm], before[nm])
            new = masks[nm] & ~before[nm]
            assert not p.detach()[~masks[nm]].any() and not p.detach()[new].any()
            assert not opt.state[p]['momentum_buffer'][new | ~masks[nm]].any()

@pytest.mark.parametrize('fraction', [0., .1, .5, 1.])
@pytest.mark.parametrize('sparsity', [.3, .9])
def test_a_swap_without_return_is_exact_and_right(fraction, sparsity):
    "As many are new as were asked for or are there; those that go are the smallest, those that come have the largest gradients."
    model = filled()
    masks = Masks(model).update(magnitude, dict.fromkeys(Masks(model).params, sparsity)).apply()
    before = {nm:masks[nm].clone() for nm in masks.params}
    masks.swap(fraction, may_return=False)
    for nm,p in masks.params.items():
        gone,new = before[nm] & ~masks[nm],masks[nm] & ~before[nm]
        n = min(round(fraction*before[nm].sum().item()), (~before[nm]).sum().item())
        assert gone.sum()==new.sum()==n
        if 0<n<before[nm].sum(): assert p.abs()[gone].max()<=p.abs()[before[nm] & masks[nm]].min()
        if 0<n<(~before[nm]).sum(): assert p.grad.abs()[new].min()>=p.grad.abs()[~before[nm] & ~masks[nm]].max()

def test_what_may_return_keeps_its_value():
    "All weights are dropped and those with a large gradient come back: they were never away."
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data,layer.weight.grad = torch.tensor([[1.,2.,0.,0.]]),torch.tensor([[9.,1.,5.,1.]])
    masks = Masks(layer).adopt_zeros().swap(1.).apply()
    assert masks['weight'].tolist()==[[True, False, True, False]] and layer.weight.tolist()==[[1., 0., 0., 0.]]

def test_layers_compete():
    "A layer with large weights and large gradients takes places from the others; the total is kept and floors hold."
    model = filled()
    with torch.no_grad(): model[3].weight.mul_(1e-3)
    model[7].weight.grad.mul_(100)
    masks = Masks(model, floor=5).update(magnitude, dict.fromkeys(Masks(model).params, .8)).apply()
    n = dict(masks.n_kept)
    masks.swap(.3, together=True)
    assert sum(masks.n_kept.values())==sum(n.values()) and masks.n_kept['3.weight']<n['3.weight'] and masks.n_kept['7.weight']>n['7.weight']
    for _ in range(20): masks.swap(.9, together=True, may_return=False)
    assert sum(masks.n_kept.values())==sum(n.values()) and min(masks.n_kept.values())>=1

def test_a_dense_layer_stays_dense():
    model = filled()
    masks = Masks(model).update(magnitude, {'3.weight':.9})
    masks.swap(.5)
    assert masks.n_kept['0.weight']==masks.n_units['0.weight'] and '0.weight' not in masks.masks
    masks.swap(.5, together=True, may_return=False)
    assert sum(masks.n_kept.values())==sum(masks[nm].sum().item() for nm in masks.params)

def test_kernels_swap():
    model = filled()
    masks = Masks(model, by_kernel).update(magnitude, .5).apply()
    n = dict(masks.n_kept)
    masks.swap(.3)
    assert masks.n_kept==n and masks._units('3.weight').sum()==n['3.weight']
    assert set(masks['3.weight'].flatten(2).float().mean(-1).unique().tolist())=={0., 1.}

@pytest.mark.parametrize('opt_func', [lambda ps: torch.optim.SGD(ps, .1, momentum=.9, nesterov=True), lambda ps: torch.optim.Adam(ps, 1e-2), lambda ps: torch.optim.AdamW(ps, 1e-2, amsgrad=True)], ids=['sgd', 'adam', 'adamw'])
def test_regrown_weights_start_afresh(opt_func):
    "Value and state are zero at the swap, and a step moves the new weights."
    model = net()
    x,y = torch.randn(32,3,6,6),torch.randint(0, 12, (32,))
    opt,masks = opt_func(model.parameters()),Masks(model)
    def backward(): opt.zero_grad(); F.cross_entropy(model(x), y).backward()
    for _ in range(5): backward(); opt.step()
    masks.update(magnitude, .8).apply(opt)
    for _ in range(5): backward(); masks.mask_grads(); opt.step()
    backward()
    before = {nm:masks[nm].clone() for nm in masks.params}
    masks.swap(.5, may_return=False).apply(opt)
    for nm,p in masks.params.items():
        new = masks[nm] & ~before[nm]
        assert new.any() and not p.detach()[new].any()
        for v in opt.state[p].values(): assert v.shape!=p.shape or not v[new].any()
    masks.mask_grads(); opt.step()
    assert torch.cat([p.detach()[masks[nm] & ~before[nm]] for nm,p in masks.params.items()]).abs().gt(0).all()

class Counter(TorchDispatchMode):
    "Counts the values that are fetched from the device."
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))

def test_the_device_is_asked_once(monkeypatch):
    "On the path of an accelerator, a swap of a ResNet-18 fetches one value, not one for each layer."
    model = resnet18(weights=None)
    for p in model.parameters(): p.grad = torch.randn_like(p)
    masks = Masks(model).update(magnitude, erk({nm:p.shape for nm,p in Masks(model).params.items()}, .9)).apply()
    expected = Masks(model).adopt(masks).swap(.3, may_return=False)
    monkeypatch.setattr(masks_module, '_on_cpu', lambda t: False)
    with Counter() as counter: masks.swap(.3, may_return=False)
    assert counter.n==1
    assert masks.n_kept==expected.n_kept and all(torch.equal(masks[nm], expected[nm]) for nm in masks.params)

@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 50), levels=st.integers(1, 4), share=st.sampled_from([None, .5]), data=st.data())
def test_both_paths_take_the_same(n, levels, share, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    scores = torch.from_numpy(rng.integers(0, levels, n).astype(np.float32))
    among = None if share is None else torch.from_numpy(rng.random(n)<share)
    k = data.draw(st.integers(0, n if among is None else among.sum().item()))
    a,bad = take_top(scores, k, among)
    allowed = torch.ones(n, dtype=torch.bool) if among is None else among
    assert torch.equal(a, masks_module._best(scores, allowed, k)) and a.sum()==k and not bad

def test_layouts_and_types():
    for dtype in (torch.bfloat16, torch.float16):
        model = filled().to(dtype).to(memory_format=torch.channels_last)
        for p in model.parameters(): p.grad = torch.randn_like(p)
        masks = Masks(model).update(magnitude, dict.fromkeys(Masks(model).params, .8)).apply()
        n = dict(masks.n_kept)
        masks.swap(.4).apply()
        assert masks.n_kept==n and all(masks[nm].stride()==p.stride() and masks[nm].sum()==n[nm] for nm,p in masks.params.items())

def test_nan_is_named_and_changes_nothing():
    model = filled()
    masks = Masks(model).update(magnitude, .5)
    before = {nm:masks[nm].clone() for nm in masks.params}
    model[3].weight.grad[0] = torch.nan
    with pytest.raises(ValueError, match=r'3.weight \(grow\) are not numbers'): masks.swap(.3)
    with pytest.raises(ValueError, match='3.weight are not numbers'): masks.swap(.3, together=True)
    assert all(torch.equal(before[nm], masks[nm]) for nm in before)

def test_momentum_remembers_pruned_weights():
    model,momentum = filled(),Momentum(.5)
    p = model[7].weight
    total = torch.zeros_like(p)
    for _ in range(4):
        p.grad = torch.randn_like(p)
        total = .5*total + p.grad
        momentum.observe(p)
    torch.testing.assert_close(momentum(p), total.abs())
    assert by_momentum.new_criterion() is not by_momentum.new_criterion() and by_gradient.new_criterion() is gradient

@pytest.mark.parametrize('name', FAMILY)
def test_law_of_the_family(name):
    "Every way of regrowth keeps all counts, at every moment of training, and stops with its window."
    r,model = FAMILY[name],filled()
    grow,masks = r.new_criterion(),Masks(model).update(random_scores, dict.fromkeys(Masks(model).params, .9)).apply()
    n = dict(masks.n_kept)
    for pct in (0., .3, .9):
        if hasattr(grow, 'observe'):
            for p in masks.params.values(): grow.observe(p)
        r.swap(masks, pct, grow).apply()
        assert masks.n_kept==n=={nm:m.sum().item() for nm,m in masks.masks.items()}
    last = {nm:masks[nm].clone() for nm in n}
    r.swap(masks, 1., grow)
    assert all(torch.equal(last[nm], masks[nm]) for nm in n)

@given(pct=st.floats(0, 1), alpha=st.floats(.01, 1), end=st.floats(.1, 1))
def test_rigl_decay(pct, alpha, end):
    "alpha/2 (1 + cos(pi t / T_end)), and nothing after T_end (Evci et al., 2020)."
    r = Regrowth(drop_fraction=alpha, last=0., schedule=Schedule(sched_cosine, end_pct=end))
    expected = alpha/2*(1+np.cos(np.pi*pct/end)) if pct<end else 0.
    assert r.fraction(pct)==pytest.approx(expected, abs=1e-12) and r.active(pct)==(pct<end)

def test_other_decays():
    linear = replace(by_gradient, schedule=Schedule(sched_linear, .2, .8), last=.1)
    assert [linear.fraction(o) for o in (.1, .2, .5, .8)]==pytest.approx([0, .5, .3, 0])
    constant = Regrowth(drop_fraction=.3, last=.3)
    assert {round(constant.fraction(o), 9) for o in (0, .4, .99)}=={.3}

def test_exploration():
    masks = Masks(nn.Linear(10, 10, bias=False)).update(random_scores, .8)
    first,seen,ever = masks['weight'].clone(),Exploration(masks),masks['weight'].clone()
    for i in range(1, 6):
        last = masks['weight'].clone()
        masks.swap(.5, random_scores, random_scores); seen.observe(masks, i)
        now = masks['weight']
        ever |= now
        both = lambda a: (a & now).sum().item()/(a | now).sum().item()
        assert seen.history[-1]==pytest.approx((i, ever.float().mean().item(), both(last), both(first)))
    assert seen.rate>=.2 and len(seen.plot().lines)==3 and seen.history[0]==(0, pytest.approx(.2), 1., 1.)
    assert mask_similarity({'a':torch.zeros(3, dtype=torch.bool)}, {'a':torch.zeros(3, dtype=torch.bool)})==1.

def test_sparse_checkpoint_can_be_pruned_further_and_grown_denser():
    model = net()
    masks = Masks(model).update(magnitude, .8).apply()
    again = net(1)
    again.load_state_dict(model.state_dict())
    resumed = Masks(again).adopt_zeros()
    assert resumed.n_kept==masks.n_kept and all(torch.equal(resumed[nm], masks[nm]) for nm in masks.params)
    resumed.update(magnitude, .95).apply()
    assert all((resumed[nm]<=masks[nm]).all() for nm in masks.params)
    for p in again.parameters(): p.grad = torch.randn_like(p)
    resumed.update(gradient, .5).apply()
    assert resumed.sparsity==pytest.approx(.5, abs=1e-3)
    dense = net()
    with torch.no_grad(): dense[3].weight[2] = 0
    filters = Masks(dense, by_filter)
    assert filters.adopt_zeros().n_kept['3.weight']==15

@pytest.mark.parametrize('make,error', [
    (lambda: Masks(net()).swap(1.1), 'got 1.1'), (lambda: Masks(net()).swap(-.1), 'got -0.1'), (lambda: Masks(net(), by_filter).swap(.1), 'silent filter'),
    (lambda: Masks(net(), two_four).swap(.1), 'n:m pattern'), (lambda: Regrowth(drop_fraction=0.), '`drop_fraction`'), (lambda: Regrowth(last=2), '`last`'),
    (lambda: drop(torch.ones(3, dtype=torch.bool), torch.ones(3), 4), '3 are active'), (lambda: regrow(torch.ones(3, dtype=torch.bool), torch.ones(3), 1), '0 are pruned'),
    (lambda: mask_similarity({'a':torch.ones(1)}, {'b':torch.ones(1)}), 'different layers'), (lambda: Momentum(2), '`decay`'),
    (lambda: Momentum().observe(nn.Parameter(torch.ones(1))), 'backward'), (lambda: Masks(net()).update(magnitude, .5).swap(.1), 'backward')])
def test_errors(make, error):
    with pytest.raises(ValueError, match=error): make()

def test_no_fastai_needed():
    code = 'import sys, early_prune.regrowth; sys.exit(any(m.split(".")[0]=="fastai" for m in sys.modules))'
    assert subprocess.run([sys.executable, '-W', 'error', '-c', code], cwd=Path(__file__).parent.parent).returncode==0

def test_any_callable_has_a_name():
    from functools import partial
    assert by_momentum.name=='Momentum' and Regrowth(partial(gradient)).name.startswith('functools.partial')
    assert repr(by_gradient)=='Regrowth(gradient, 0.5 to 0.005, Schedule(sched_cosine, 0, 1), may_return=True, together=False)'


old_form = pytest.mark.filterwarnings('ignore:.*weight_norm. is deprecated')

class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.head = weight_norm(nn.Conv2d(1, 16, 3)),weight_norm(nn.Conv2d(16, 16, 3)),nn.Linear(16, 10)
    def forward(self, x): return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))

@old_form
@pytest.mark.parametrize('sparsity', [.5, .8, .88, dict.fromkeys(('a.weight_v', 'b.weight_v', 'head.weight'), .88)])
@pytest.mark.parametrize('granularity', [by_weight, by_kernel])
def test_weight_norm_keeps_a_weight_of_each_filter(sparsity, granularity):
    "A gain is no weight, and a filter of zeros has no direction: it would be zero divided by zero."
    net = Normed()
    assert list(prunable(net))==['a.weight_v', 'b.weight_v', 'head.weight']
    with torch.no_grad(): net.a.weight_v[3] *= 1e-6
    if granularity is by_kernel: sparsity = .5
    masks = Masks(net, granularity).update(magnitude, sparsity).apply()
    for _ in range(3):
        net(torch.randn(2, 1, 8, 8)).sum().backward()
        for together in (True, False): masks.swap(.5, gradient, magnitude, together=together).apply()
        assert all(masks[nm].flatten(1).any(1).all() for nm in ('a.weight_v', 'b.weight_v'))
        assert net(torch.randn(2, 1, 8, 8)).isfinite().all()
    want = .5 if sparsity==.5 else sparsity if isinstance(sparsity, float) else .88
    assert abs(masks.sparsity-want)<1e-3 # what has returned is zero until it trains

@old_form
def test_filters_under_weight_norm_are_left_dense():
    masks = Masks(Normed(), by_filter)
    assert masks.skipped==['a.weight_v', 'b.weight_v'] and list(masks.params)==['head.weight']
