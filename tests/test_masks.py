"Exactly k weights, for any scores; nested choices; floors; granularities."
import copy
import pickle
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.optimizer import SGD
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from torch import nn

from early_prune.callbacks import SparsifyCallback
from early_prune.criteria import gradient, magnitude, random_scores, rms_magnitude
from early_prune.data import digits
from early_prune.masks import (
    GRANULARITIES,
    NM,
    Masks,
    _above_floors,
    _Partition,
    _Sort,
    by_filter,
    by_kernel,
    by_weight,
    film_mask,
    keep_top,
    n_keep,
    plot_mask,
    select,
    two_four,
)
from early_prune.models import small_cnn

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
sparsities = st.floats(0, 1, exclude_max=True, allow_nan=False)
finite = st.floats(-100, 100, width=16)

@settings(max_examples=300, deadline=None)
@given(scores=arrays(np.float32, array_shapes(max_dims=4, max_side=7), elements=finite), sparsity=sparsities, dtype=st.sampled_from(DTYPES))
def test_keeps_exactly_k_of_the_best(scores, sparsity, dtype):
    scores = torch.from_numpy(scores).to(dtype)
    mask,k = keep_top(scores, sparsity),max(1, round((1-sparsity)*scores.numel()))
    assert mask.dtype==torch.bool and mask.shape==scores.shape and mask.sum()==k
    best = sorted(range(scores.numel()), key=lambda i: (-scores.flatten()[i].item(), i))[:k]
    assert mask.flatten().nonzero().flatten().tolist()==sorted(best)

def _both(scores, among, k):
    "The fast and the plain choice, and that they agree."
    (fast,n1,_),(plain,n2,_) = (choose(scores, among)(list(scores), k) for choose in (_Partition, _Sort))
    assert n1==n2 and sum(n1.values())==k and all(torch.equal(fast[nm], plain[nm]) for nm in scores)
    return fast

@settings(max_examples=300, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5), levels=st.integers(1, 5), share=st.sampled_from([None, .3, .9]), data=st.data())
def test_both_selections_agree_with_ties(sizes, levels, share, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    scores = {i:torch.from_numpy(rng.integers(0, levels, n).astype(np.float32)) for i,n in enumerate(sizes)}
    among = {} if share is None else {i:torch.from_numpy(rng.random(n)<share) for i,n in enumerate(sizes) if i!=1}
    allowed = torch.cat([among.get(i, torch.ones(s.shape, dtype=torch.bool)) for i,s in scores.items()])
    k = data.draw(st.integers(0, allowed.sum().item()))
    fast = _both(scores, among, k)
    best = sorted((-v, i) for i,v in enumerate(torch.cat(list(scores.values())).tolist()) if allowed[i])[:k]
    assert torch.cat(list(fast.values())).nonzero().flatten().tolist()==sorted(i for _,i in best)

@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), data=st.data())
def test_floors_of_a_selection(sizes, data):
    "Poor layers keep their own best, the others the best of the rest, the total is exact; on both paths."
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    scores = {i:torch.from_numpy((rng.integers(0, 9, n)*10.**-i).astype(np.float32)) for i,n in enumerate(sizes)}
    least = {i:data.draw(st.integers(0, n)) for i,n in enumerate(sizes)}
    k = data.draw(st.integers(sum(least.values()), sum(sizes)))
    masks,counts = select(scores, k, least=least)
    assert sum(counts.values())==k and all(counts[i]>=least[i] and masks[i].sum()==counts[i] for i in counts)
    for i,s in scores.items(): # within a layer the choice is its best
        order = sorted(range(len(s)), key=lambda j: (-s[j].item(), j))
        assert masks[i].nonzero().flatten().tolist()==sorted(order[:counts[i]])
    above = [i for i in counts if counts[i]>least[i]] # across layers: nothing left out beats what a layer above its floor kept
    if above:
        worst_in = min(scores[i][masks[i]].min().item() for i in above)
        best_out = max((scores[i][~masks[i]].max().item() for i in counts if not masks[i].all()), default=-1)
        assert best_out<=worst_in

@pytest.mark.parametrize('share', [None, .02, .5, .98])
@pytest.mark.parametrize('make', [lambda rng,n: rng.standard_normal(n), lambda rng,n: rng.integers(0, 3, n), lambda rng,n: np.zeros(n),
    lambda rng,n: np.tile(np.arange(64.), n//64+1)[:n], lambda rng,n: np.sort(rng.standard_normal(n)),
    lambda rng,n: np.where(rng.random(n)<.9, -np.inf, rng.random(n)), lambda rng,n: np.where(rng.random(n)<.5, np.inf, rng.random(n))],
    ids=['normal', 'few', 'equal', 'periodic', 'sorted', 'mostly -inf', 'half inf'])
def test_bracket_finds_the_exact_choice(make, share):
    "Large enough for the bracket: the choice is that of the plain sort, whatever the scores, also where the sample misleads."
    rng = np.random.default_rng(0)
    scores = {nm:torch.from_numpy(make(rng, n).astype(np.float32)) for nm,n in dict(a=300_000, b=1000, c=77_777).items()}
    among = {} if share is None else {nm:torch.from_numpy(rng.random(s.numel())<share) for nm,s in scores.items()}
    n = sum(among[nm].sum().item() if nm in among else s.numel() for nm,s in scores.items())
    for k in (1, 2, n//100, n//2, n-1, n): _both(scores, among, k)

def test_a_misleading_sample_is_noticed():
    "Every score that the sample sees is small, so the bracket is far too low: it is widened, and the choice is exact."
    a = np.ones(2**19, dtype=np.float32)
    a[::4] = 0
    scores = {'a':torch.from_numpy(a + np.linspace(0, .1, 2**19, dtype=np.float32))}
    for k in (10, 1000, 2**17): _both(scores, {}, k)

def test_infinite_gradients_of_pruned_weights_are_cleared():
    "Masks clear the bits: infinity and NaN become zero, and what is kept is kept bit for bit, in every float type."
    for dtype in DTYPES:
        layer = nn.Linear(64, 64, bias=False).to(dtype)
        masks = Masks(layer).update(magnitude, .9)
        layer.weight.grad = grad = torch.randn(64, 64).to(dtype)
        grad[~masks['weight']] = torch.tensor([torch.inf, -torch.inf, torch.nan]).to(dtype)[torch.arange((~masks['weight']).sum())%3]
        kept = grad[masks['weight']].clone()
        masks.mask_grads()
        assert not grad[~masks['weight']].any() and torch.equal(grad[masks['weight']], kept)

@pytest.mark.parametrize('threads', [1, 2])
def test_clearing_is_the_same_on_several_threads(threads):
    layer = nn.Sequential(nn.Conv2d(256, 512, 3, bias=False), nn.Linear(1000, 1300, bias=False)).to(memory_format=torch.channels_last)
    masks = Masks(layer).update(magnitude, .8)
    grads = {nm:torch.randn_like(p) for nm,p in masks.params.items()}
    for nm,p in masks.params.items(): p.grad = grads[nm].clone()
    torch.set_num_threads(threads)
    masks.mask_grads()
    assert all(torch.equal(p.grad, grads[nm]*masks[nm]) for nm,p in masks.params.items())

@pytest.mark.parametrize('dtype', DTYPES)
def test_equal_weights(dtype):
    "All weights equal: the count is exact and the first ones win, in every dtype, for one layer and for many."
    net = nn.Sequential(nn.Linear(30, 40, bias=False), nn.Linear(40, 50, bias=False)).to(dtype)
    with torch.no_grad():
        for p in net.parameters(): p.fill_(.25)
    masks = Masks(net).update(magnitude, .9)
    assert sum(m.sum().item() for m in masks.masks.values())==320==round(.1*3200)
    for s in (.1, 1/3, .5, .999): assert keep_top(magnitude(net[0].weight), s).flatten().nonzero().max()==round((1-s)*1200)-1

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12))

@settings(max_examples=60, deadline=None)
@given(steps=st.lists(sparsities, min_size=1, max_size=6), layerwise=st.booleans(), seed=st.integers(0, 99))
def test_masks_are_exact_and_nested_up_and_down(steps, layerwise, seed):
    torch.manual_seed(seed)
    model = net(seed)
    masks,n = Masks(model, floor=0),sum(p.numel() for p in Masks(model).params.values())
    for s in steps:
        before = {nm:masks[nm].clone() for nm in masks.params}
        masks.update(random_scores, dict.fromkeys(masks.params, s) if layerwise else s).apply()
        kept = {nm:masks[nm].sum().item() for nm in masks.params}
        assert kept==masks.n_kept
        if layerwise: assert kept=={nm:round((1-s)*p.numel()) for nm,p in masks.params.items()}
        else: assert sum(kept.values())==round((1-s)*n)
        up = sum(kept.values())<=sum(m.sum().item() for m in before.values())
        for nm in kept: assert ((masks[nm]<=before[nm]) if up else (before[nm]<=masks[nm])).all()
        assert all(not p.detach()[~masks[nm]].any() for nm,p in masks.params.items())

@pytest.mark.parametrize('floor', [1, 5, .02, .1])
def test_floor_holds_and_the_total_is_met(floor):
    model = net()
    with torch.no_grad(): model[3].weight.mul_(1e-4)
    masks = Masks(model, floor=floor).update(magnitude, .85)
    assert sum(masks.n_kept.values())==round(.15*sum(masks.n_units.values()))
    assert all(masks.n_kept[nm]>=n_keep(n, 1, floor) for nm,n in masks.n_units.items())
    per_layer = Masks(model, floor=60).update(magnitude, dict.fromkeys(masks.params, .85))
    assert min(per_layer.n_kept.values())>=60
    assert sum(per_layer.n_kept.values())==sum(round(.15*n) for n in per_layer.n_units.values())

@pytest.mark.parametrize('name', GRANULARITIES)
def test_granularity_counts_units(name):
    granularity = GRANULARITIES[name]
    masks = Masks(net(), granularity).update(magnitude, .5)
    for nm,p in masks.params.items():
        units = granularity.unit_scores(masks[nm].float())
        assert set(units.unique().tolist())<={0., 1.} and units.sum()==masks.n_kept[nm]
    assert sum(masks.n_kept.values())==round(.5*sum(masks.n_units.values()))
    assert masks.skipped==(['0.weight'] if name=='2:4' else [])

@pytest.mark.parametrize('n,m', [(2,4), (1,4), (4,8), (1,2)])
@pytest.mark.parametrize('shape', [(5,16), (6,16,3,3)])
def test_nm_pattern(n, m, shape):
    "Gradually or at once: the pattern is exact at its own sparsity and never too dense before."
    layer = nn.Linear(16, 5, bias=False) if len(shape)==2 else nn.Conv2d(16, 6, 3, bias=False)
    gradual,at_once = (Masks(layer, NM(n=n, m=m)) for _ in range(2))
    for s in (.1, .25, (1-n/m)*.9, 1-n/m): gradual.update(magnitude, s)
    at_once.update(magnitude, 1-n/m)
    for masks in (gradual, at_once):
        groups = masks['weight'].movedim(1, -1).unflatten(-1, (-1, m)).sum(-1)
        assert (groups==n).all()
    assert torch.equal(gradual['weight'], at_once['weight'])
    expected = layer.weight.abs().movedim(1, -1).unflatten(-1, (-1, m)).topk(n, -1).indices
    assert at_once['weight'].movedim(1, -1).unflatten(-1, (-1, m)).gather(-1, expected).all()

def test_channels_last_keeps_its_layout():
    model = net().to(memory_format=torch.channels_last)
    masks = Masks(model).update(magnitude, .5).apply()
    for nm,p in masks.params.items(): assert masks[nm].stride()==p.stride()
    plain = Masks(net()).update(magnitude, .5)
    assert all(torch.equal(masks[nm], plain[nm]) for nm in plain.params)

def test_pruned_filters_are_silent():
    "Weights, bias and norm of a pruned filter stay off while the network trains; its neighbours train on."
    model,x,y = net(),torch.randn(32,3,8,8),torch.randint(0, 12, (32,))
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    masks = Masks(model, by_filter, ignore=(model[7],)).follow(model, x).update(rms_magnitude, .5).apply(opt)
    for _ in range(5):
        opt.zero_grad(); nn.functional.cross_entropy(model(x), y).backward()
        masks.mask_grads(); opt.step()
    off = ~masks._units('0.weight')
    for o in (model[0].weight, model[0].bias, model[1].weight, model[1].bias): assert not o.detach()[off].any()
    assert not model[:3](x)[:,off].any() and model[:3](x)[:,~off].abs().amax((0,2,3)).min()>0

def test_masks_are_no_part_of_the_state_dict():
    model = net()
    shapes = {nm:t.shape for nm,t in model.state_dict().items()}
    masks = Masks(model).update(magnitude, .9).apply()
    assert {nm:t.shape for nm,t in model.state_dict().items()}==shapes
    net(1).load_state_dict(model.state_dict(), strict=True)
    again = pickle.loads(pickle.dumps(masks))
    assert all(torch.equal(again[nm], masks[nm]) for nm in masks.params)
    copy.deepcopy(model)

def test_memory_is_one_byte_a_weight():
    model = net()
    masks = Masks(model)
    assert not masks.masks
    masks.update(magnitude, .9)
    held = {id(t.untyped_storage()):t.untyped_storage().nbytes() for t in [*masks.masks.values(), *(m for *_,m in masks.upheld)]}
    assert sum(m.untyped_storage().nbytes() for m in masks.masks.values())==sum(p.numel() for p in masks.params.values())
    assert {m.data_ptr() for *_,m in masks.upheld}=={m.data_ptr() for m in masks.masks.values()} and held

def test_a_failed_update_changes_nothing():
    model = net()
    masks = Masks(model).update(magnitude, .5)
    before = {nm:masks[nm].clone() for nm in masks.params}
    with torch.no_grad(): model[7].weight[0,0] = torch.nan
    with pytest.raises(ValueError, match='7.weight are not numbers'): masks.update(magnitude, dict.fromkeys(masks.params, .9))
    with pytest.raises(ValueError, match='7.weight are not numbers'): masks.update(magnitude, .9)
    assert all(torch.equal(before[nm], masks[nm]) for nm in before)

def test_gradients_of_all_weights_can_bring_weights_back():
    "When sparsity falls, a gradient criterion chooses among the pruned; the new weights are zero with fresh state."
    model = nn.Linear(10, 10, bias=False)
    opt = torch.optim.SGD(model.parameters(), .1, momentum=.9)
    masks = Masks(model).update(magnitude, .8).apply(opt)
    model.weight.grad = torch.arange(100.).view(10,10)
    was = masks['weight'].clone()
    masks.update(gradient, .7).apply(opt)
    new = masks['weight'] & ~was
    assert new.sum()==10 and model.weight.grad[new].min()>model.weight.grad[~masks['weight']].max()
    assert not model.weight.detach()[new].any()

def test_a_granularity_by_name_is_refused():
    with pytest.raises(TypeError, match="2:4, filter, kernel, weight.*got 'filter'"): Masks(net(), 'filter')

@pytest.mark.parametrize('bad,error', [(1., 'fraction'), (-.1, 'fraction'), (90, 'write 0.9 for 90 %'), (float('nan'), 'fraction'), ('.9', 'number'), (True, 'number')])
def test_bad_sparsity(bad, error):
    with pytest.raises((ValueError, TypeError), match=error): Masks(net()).update(magnitude, bad)
    with pytest.raises((ValueError, TypeError), match=error): keep_top(torch.rand(4), bad)

def test_other_errors():
    with pytest.raises(ValueError, match='has no prunable layer'): Masks(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match='n:m units is at most 0.5, got 0.6'): Masks(net(), two_four).update(magnitude, .6)
    with pytest.raises(ValueError, match=r'`k` is in \[0, 3\], got 4'): select({'a':torch.ones(3)}, 4)
    with pytest.raises(ValueError, match='there are 1 candidates'): select({'a':torch.ones(3)}, 2, {'a':torch.tensor([True,False,False])})
    with pytest.raises(ValueError, match='backward'): Masks(net()).update(gradient, .5)
    model = net()
    masks = Masks(model).update(magnitude, .5)
    model[7].weight.data = model[7].weight.data[:3]
    with pytest.raises(ValueError, match=r'7.weight has shape \(3, 16\), its mask \(12, 16\)'): masks.apply()

def test_units_of_linear_layers():
    assert by_kernel.count(torch.zeros(4,5))==20==by_weight.count(torch.zeros(4,5)) and by_filter.count(torch.zeros(4,5))==4

@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_floors_take_from_the_others(data):
    "Quotas above the floors: nobody below its floor, the total exact, and nothing changes where nobody is poor."
    units = data.draw(st.lists(st.integers(1, 10**7), min_size=1, max_size=8))
    sparsity,floor = data.draw(st.floats(0, .999)),data.draw(st.sampled_from([0, 1, 30, .01, .2]))
    quotas = {i:n_keep(n, sparsity, 0) for i,n in enumerate(units)}
    least,k = {i:n_keep(n, 1, floor) for i,n in enumerate(units)},sum(quotas.values())
    if k<sum(least.values()): return
    got = _above_floors(quotas, least, k)
    assert sum(got.values())==k and all(least[i]<=got[i]<=units[i] for i in got)
    if all(quotas[i]>=least[i] for i in quotas): assert got==quotas

def test_a_film_in_the_style_of_the_book(recwarn):
    "Its axes lie where they are put: the style asks for a tight layout, which Matplotlib warns about."
    with plt.rc_context({'figure.autolayout':True}): assert film_mask([torch.ones(4, 4, dtype=torch.bool)])[:3]==b'GIF'
    assert not recwarn.list

def test_film_is_compact_and_tells_what_came_back():
    torch.manual_seed(0)
    masks,figures = [torch.rand(8, 24)>.5 for _ in range(6)],plt.get_fignums()
    film = film_mask(masks, [f'moment {i}' for i in range(6)], fps=5)
    im = Image.open(BytesIO(film))
    assert im.n_frames==6 and len(film)<60_000
    shades = set()
    for i,(before,now) in enumerate(zip(masks, masks[1:]), 1):
        im.seek(i)
        rgb = np.asarray(im.convert('RGB')).astype(int)
        orange = (abs(rgb - [0xE6, 0x9F, 0]).sum(-1)<8).mean()
        assert abs(orange/(.9*.72) - (now & ~before).float().mean())<.02
        shades |= {im.info['duration']}
    assert shades=={200, 2000} and plt.get_fignums()==figures # the last stays; no figure is left open
    ax = plot_mask(masks[0], before=masks[0])
    assert ax.images[0].get_array().max()==1
    plt.close(ax.figure)

# Parameters and layers that others replace ---------------------------------------------------------

def followed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    return net,Masks(net, by_filter, ignore=('4',)).follow(net, torch.randn(2, 3, 8, 8)).update(magnitude, .5).apply()

def assigned(net): net.load_state_dict({nm:torch.rand_like(t)+1 if t.is_floating_point() else t for nm,t in net.state_dict().items()}, assign=True)

def renamed(net):
    for m in net.modules():
        for nm,p in list(m._parameters.items()):
            if p is not None: setattr(m, nm, nn.Parameter(torch.rand_like(p)+1))

@pytest.mark.parametrize('replace', [assigned, renamed])
def test_masks_go_with_parameters_that_are_replaced(replace):
    "Followers as well; masks, counts and gradients are those of the new tensors."
    net,masks = followed()
    gone = ~masks['0.weight'].flatten(1).any(1)
    replace(net)
    assert net[0].weight.all() and net[1].bias.all()
    masks.apply()
    assert not net[0].weight[gone].any() and not net[1].weight[gone].any() and not net[1].bias[gone].any() and net[0].weight[~gone].all()
    replace(net)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    masks.mask_grads()
    assert not net[0].weight.grad[gone].any() and net[0].weight.grad[~gone].any()
    replace(net)
    masks.update(magnitude, .75).apply()
    assert (net[0].weight.flatten(1)==0).all(1).sum()==6==(net[1].bias==0).sum()
    assert masks.params['0.weight'] is net[0].weight is masks.matrices['0.weight'].p

def test_a_conversion_that_makes_new_parameters():
    net,masks = followed()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try: net.double()
    finally: torch.__future__.set_overwrite_module_params_on_conversion(False)
    with torch.no_grad(): net[0].weight.fill_(1)
    masks.apply()
    assert masks.params['0.weight'] is net[0].weight and (net[0].weight==0).sum()==masks['0.weight'].numel()/2

@pytest.mark.parametrize('change,said', [
    (lambda net: net.__setitem__(0, nn.Conv2d(3, 8, 3)), '0 is another layer'),
    (lambda net: setattr(net[0], 'weight', nn.Parameter(torch.ones(8, 2, 3, 3))), r'0.weight has shape \(8, 2, 3, 3\), and its mask \(8, 3, 3, 3\)'),
    (lambda net: torch.nn.utils.parametrizations.weight_norm(net[0]), '0.weight is gone')])
@pytest.mark.parametrize('use', [Masks.apply, Masks.mask_grads, lambda masks: masks.update(magnitude, .75)])
def test_masks_of_what_is_no_longer_there_are_refused(change, said, use):
    net,masks = followed()
    change(net)
    with pytest.raises(ValueError, match=said): use(masks)

class Adapted(nn.Module):
    "A layer with something beside it."
    def __init__(self, layer): super().__init__(); self.base_layer,self.beside = layer,nn.Linear(288, 4)
    def forward(self, x): return self.base_layer(x)+self.beside(x)

def test_masks_go_on_with_a_layer_that_is_wrapped():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(288, 4))
    masks = Masks(net).update(magnitude, .5)
    net[1] = Adapted(net[1])
    for _ in range(2):
        with torch.no_grad(): net[1].base_layer.weight.fill_(1)
        masks.apply()
        assert (net[1].base_layer.weight==0).sum()==288*4/2 and net[1].beside.weight.all()
    net[1] = Adapted(nn.Linear(288, 4))
    with pytest.raises(ValueError, match='1 is another layer'): masks.apply()

def test_a_fit_in_which_a_parameter_is_replaced_stops():
    "The optimizer holds the old one, and nothing would train."
    class Swap(Callback):
        def after_epoch(self): assigned(self.model)
    learn = Learner(digits(limit=128, valid_limit=32), small_cnn(), opt_func=SGD)
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match='does not hold'):
        learn.fit(3, 1e-3, cbs=[SparsifyCallback(.8), Swap()])

def test_why_no_layer_can_be_divided():
    net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match='filter units: 0.parametrizations.weight.original1 would be divided by the length'): Masks(net, by_filter)

@pytest.mark.parametrize('again', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_reads_its_own_masks(again):
    "It takes no bytes of the first along, and a change of one is none of the other."
    net,masks = followed()
    masks.mask_grads()
    assert masks.bytes
    net2,masks2 = again((net, masks))
    assert not masks2.bytes and not masks2.at
    masks2.update(magnitude, .75).apply()
    masks.apply()
    assert (net2[0].weight.flatten(1)==0).all(1).sum()==6 and (net[0].weight.flatten(1)==0).all(1).sum()==4
