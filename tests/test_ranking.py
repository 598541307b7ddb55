"Scores of neurons against their definitions, budgets met, limits kept."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import get_model

from early_prune.core import cost
from early_prune.criteria import rms_magnitude, taylor
from early_prune.dependency import Groups, trace
from early_prune.models import resnet
from early_prune.ranking import (
    NEURON_CRITERIA,
    Averaged,
    Flops,
    Latency,
    Limits,
    Neurons,
    Params,
    bn_scale,
    fpgm,
    l1_norm,
    l2_norm,
    lamp,
    of_neurons,
    over_filters,
    random_neurons,
    rank,
    reachable,
    scores,
    taylor_bn,
    taylor_fo,
    widths,
)
from early_prune.surgery import cut


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))

x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))

def ready():
    net = chain()
    for m in net:
        if isinstance(m, nn.BatchNorm2d): nn.init.uniform_(m.weight, .5, 2); nn.init.normal_(m.bias)
    net(x).square().mean().backward()
    return net,trace(net, x)

def test_scores_equal_their_definitions():
    net,groups = ready()
    w,v,n = net[0].weight.detach(),net[3].weight.detach(),net[1]
    def first(f): return scores(net, groups, f)[:5]
    close = torch.testing.assert_close
    close(first(rms_magnitude), w.flatten(1).norm(dim=1)/27**.5)
    close(first(l1_norm), w.abs().sum((1, 2, 3)))
    close(first(l2_norm), w.flatten(1).norm(dim=1))
    close(first(taylor_fo), (w*net[0].weight.grad).square().sum((1, 2, 3)))
    close(first(bn_scale), n.weight.detach().abs())
    close(first(taylor_bn), (n.weight*n.weight.grad+n.bias*n.bias.grad).detach().abs())
    close(first(fpgm), torch.stack([(w-f).flatten(1).norm(dim=1).sum() for f in w]), rtol=1e-4, atol=1e-4)
    square = w.flatten(1).square().sum(1)
    close(first(lamp), torch.stack([s/square[square>=s].sum() for s in square]))
    close(scores(net, groups, rms_magnitude)[5:], v.flatten(1).norm(dim=1)/45**.5)
    assert first(lamp).max()==1 and 0<=first(random_neurons).min() and first(random_neurons).max()<1

def test_joined_layers_share_a_score():
    net = resnet(8)
    net(torch.randn(4, 1, 8, 8)).square().mean().backward()
    groups = trace(net, torch.randn(1, 1, 8, 8))
    wide = max(groups, key=lambda g: len(g.members))
    modules = dict(net.named_modules())
    norms = [modules[t.removesuffix('.weight')] for (t,d),_ in wide.members if isinstance(modules[t.rpartition('.')[0]], nn.BatchNorm2d) and t.endswith('weight')]
    assert len(norms)>1
    want = sum(m.weight*m.weight.grad+m.bias*m.bias.grad for m in norms).detach().abs()
    torch.testing.assert_close(scores(net, groups, taylor_bn)[wide.start:wide.start+wide.n], want)
    made = [dict(net.named_parameters())[t] for (t,d),_ in wide.members if (t, d) in groups.made]
    want = torch.stack([rms_magnitude(p)[:, 0, 0, 0] for p in made]).mean(0)
    torch.testing.assert_close(scores(net, groups, rms_magnitude)[wide.start:wide.start+wide.n], want.detach())

def test_transposed_convolutions_are_read_by_their_output():
    net = nn.Sequential(nn.ConvTranspose2d(3, 5, 3), nn.Conv2d(5, 2, 1))
    groups = trace(net, x)
    torch.testing.assert_close(scores(net, groups, l1_norm), net[0].weight.detach().abs().sum((0, 2, 3)))
    torch.testing.assert_close(scores(net, groups, rms_magnitude), net[0].weight.detach().square().mean((0, 2, 3)).sqrt())
    net(x).sum().backward()
    torch.testing.assert_close(scores(net, groups, taylor_fo), taylor(net[0].weight).sum((0, 2, 3)))

def test_a_maker_that_is_partly_fixed():
    "Half of the filters are read by a slice and stay; the others are scored."
    class Half(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b,self.c = nn.Linear(3, 8),nn.Linear(3, 4),nn.Linear(8, 2)
        def forward(self, x): return self.c(self.a(x)+torch.cat([self.b(x), torch.ones(len(x), 4)], 1))
    net = Half()
    groups = trace(net, torch.randn(2, 3))
    want = torch.stack([rms_magnitude(p)[:4, 0] for p in (net.a.weight, net.b.weight)]).mean(0).detach()
    torch.testing.assert_close(scores(net, groups, rms_magnitude), want)

def test_heads_are_scored_as_a_whole():
    class Attend(nn.Module):
        def __init__(self): super().__init__(); self.up,self.attn,self.down = nn.Linear(3, 12),nn.MultiheadAttention(12, 3, batch_first=True),nn.Linear(12, 2)
        def forward(self, x): return self.down(self.attn(h := self.up(x), h, h, need_weights=False)[0])
    net = Attend()
    groups = trace(net, torch.randn(2, 5, 3))
    heads = groups['attn']
    want = net.attn.in_proj_weight.detach().abs().view(3, 3, 4, 12).sum((0, 2, 3))
    torch.testing.assert_close(scores(net, groups, l1_norm)[heads.start:heads.start+heads.n], want)
    assert all(len(scores(net, groups, f))==groups.n_neurons for f in (fpgm, lamp, l2_norm))

def test_averaged_is_the_mean_over_batches():
    net,groups = ready()
    average,each = Averaged(taylor_bn),[]
    for i in range(3):
        net.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        average.observe(net, groups)
        each.append(scores(net, groups, taylor_bn))
    torch.testing.assert_close(scores(net, groups, average), torch.stack(each).mean(0))
    small = cut(net, groups, rank(groups, scores(net, groups, average), Neurons(.3)))
    with pytest.raises(ValueError, match='reset'): scores(net, small, average)

def test_errors_of_criteria():
    net,groups = ready()
    net.zero_grad()
    for f in (taylor_bn, taylor_fo):
        with pytest.raises(ValueError, match='backward'): scores(net, groups, f)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match='batch norm in every group'): scores(plain, trace(plain, torch.randn(2, 3)), bn_scale)
    net[0].weight.data[2] = float('nan')
    with pytest.raises(ValueError, match='1 scores are NaN'): scores(net, groups, rms_magnitude)

@pytest.mark.parametrize('name', NEURON_CRITERIA)
def test_every_criterion_scores_every_neuron(name):
    net,groups = ready()
    found = scores(net, groups, NEURON_CRITERIA[name])
    assert found.shape==(9,) and found.isfinite().all() and (found>=0).all()

# ---- budgets

net50 = get_model('resnet50', weights=None)
image = torch.randn(1, 3, 64, 64)
groups50 = trace(net50, image)
scores50 = scores(net50, groups50, rms_magnitude)

@pytest.mark.parametrize('ratio', [.1, .3, .5, .7])
def test_flops_budget_is_met_within_one_percent(ratio):
    net = get_model('resnet50', weights=None)
    dense = cost(net, image)
    cut(net, groups50, rank(groups50, scores50, Flops(ratio), net, (image,)))
    left = cost(net, image).flops/dense.flops
    assert 1-ratio-.01<left<=1-ratio

def test_params_budget_is_met():
    net = get_model('resnet50', weights=None)
    n = sum(p.numel() for p in net.parameters())
    cut(net, groups50, rank(groups50, scores50, Params(.6), net))
    assert .39<sum(p.numel() for p in net.parameters())/n<=.4

def test_rounding_keeps_the_budget():
    "Widths are multiples of eight, and giving back one step somewhere would break the budget."
    keep = rank(groups50, scores50, Flops(.5), net50, (image,), round_to=8)
    for g in groups50:
        if len(keep[g.name])<g.n: assert len(keep[g.name])%8==0
    meter = Flops(.5).meter(groups50, net50, (image,))
    stay = groups50.stay(keep)
    dense = meter(np.ones(groups50.n_neurons, bool))
    widest = max(g.n for g in groups50)
    assert .5-8/widest<meter(stay)/dense<=.5

def test_neurons_budget_is_exact_and_takes_the_lowest():
    keep = rank(groups50, scores50, Neurons(.5))
    stay = groups50.stay(keep)
    assert sum(widths(keep))==stay.sum()==groups50.n_neurons-round(.5*groups50.n_neurons)
    gone = scores50.numpy()[~stay]
    floors = [scores50.numpy()[g.start:g.start+g.n].max() for g in groups50 if len(keep[g.name])==1]
    kept = np.sort(scores50.numpy()[stay])
    assert gone.max()<=min(k for k in kept if k not in floors)

def test_latency_is_measured_on_the_small_network(monkeypatch):
    "The clock sees a network of the asked widths, and the network itself stays as it was."
    seen = []
    def clock(model, *inputs):
        seen.append(model)
        assert model(*inputs).shape==(2, 2)
        return model[0].out_channels+model[3].out_channels
    monkeypatch.setattr('early_prune.ranking.latency', clock)
    net,groups = ready()
    keep = rank(groups, torch.arange(9.), Latency(.3), net, (x[:2],))
    assert sum(widths(keep))==6 and net[0].out_channels==5 and net not in seen
    assert seen[0][0].weight.shape==(5, 3, 3, 3)

@settings(max_examples=60, deadline=None)
@given(ratio=st.floats(.05, .95), floor=st.one_of(st.integers(1, 9), st.floats(.05, .9)), step=st.integers(1, 9), seed=st.integers(0, 9), per_group=st.booleans())
def test_limits_hold_for_every_ranking(ratio, floor, step, seed, per_group):
    found = torch.randint(0, 5, (groups50.n_neurons,), generator=torch.Generator().manual_seed(seed)).float()
    n = np.array([g.n for g in groups50])
    limits = dict(floor=floor, round_to=step, per_group=per_group)
    try: keep = rank(groups50, found, Neurons(ratio), **limits)
    except ValueError as e:
        assert 'cannot be met' in str(e) and not reachable(groups50, Neurons(ratio), **limits).possible.all()
        return
    kept = np.array(widths(keep))
    least = np.minimum(n, np.ceil(floor*n) if floor<1 else floor)
    assert (kept>=least).all() and sum(kept)<=groups50.n_neurons-round(ratio*groups50.n_neurons)
    assert all(k%step==0 or k==m for k,m in zip(kept, n))
    if per_group and step==1 and floor==1: assert np.ptp(kept/n)<=1/n.min()+1e-9
    for g in groups50:
        mine,ids = found[g.start:g.start+g.n].numpy(),np.array(keep[g.name])
        if len(ids)<g.n: assert mine[ids].min()>=np.delete(mine, ids).max()

def test_ignored_groups_stay_whole():
    keep = rank(groups50, scores50, Neurons(.5), ignore=('conv1', 'layer4.2'))
    whole = {g.name for g in groups50 if any(t.startswith(('conv1.', 'layer4.2.')) for (t,_),_ in g.members)}
    assert whole and all(len(keep[g.name])==g.n for g in groups50 if g.name in whole)

def test_ties_are_broken_by_index():
    groups = trace(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), torch.randn(1, 3))
    assert rank(groups, torch.ones(8), Neurons(.5))=={'0':(0, 1, 2, 3)}

def test_impossible_budgets_are_refused_with_the_range():
    with pytest.raises(ValueError, match='the least within the limits is'): rank(groups50, scores50, Flops(.9), net50, (image,), floor=.5)
    table = reachable(groups50, [Neurons(.6), Params(.2)], net50, floor=.5)
    assert table.possible.tolist()==[False, True] and table.least['neurons']==sum(-(-g.n//2) for g in groups50)

@pytest.mark.parametrize('bad,error', [(50, ValueError), (0, ValueError), (1., ValueError), (-.1, ValueError), ('.5', TypeError), (True, TypeError)])
def test_bad_ratios(bad, error):
    for budget in (Neurons, Params, Flops, Latency):
        with pytest.raises(error, match='ratio'): budget(bad)

def test_other_errors():
    with pytest.raises(ValueError, match='floor'): Limits(floor=0)
    with pytest.raises(ValueError, match='round_to'): Limits(round_to=0)
    with pytest.raises(ValueError, match='ignore'): rank(groups50, scores50, Neurons(.5), ignore=('layer9',))
    with pytest.raises(ValueError, match='`scores` has 3'): rank(groups50, torch.ones(3), Neurons(.5))
    with pytest.raises(ValueError, match='Flops'): rank(groups50, scores50, Flops(.5))
    assert over_filters(taylor).__doc__==taylor.__doc__

def test_wrong_kinds_are_named():
    with pytest.raises(TypeError, match='`inputs` is a tuple'): rank(groups50, scores50, Flops(.5), net50, image)
    with pytest.raises(TypeError, match=r'`budget` is .*Neurons\(0.5\)'): rank(groups50, scores50, .5)
    with pytest.raises(TypeError, match='`criterion` is a function'): scores(net50, groups50, 'magnitude')
    def two(model, groups): return torch.ones(groups.n_neurons)
    with pytest.raises(TypeError, match='`two` takes two arguments.*of_neurons'): scores(net50, groups50, two)
    assert scores(net50, groups50, of_neurons(two)).sum()==groups50.n_neurons

class _Undecided(nn.Module):
    "A network whose course depends on values."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(16, 32),nn.Linear(32, 32),nn.Linear(32, 10)
    def forward(self, x):
        x = self.a(x).relu()
        return self.c(self.b(x).relu() if x.mean().item()>=0 else x)

def test_flops_of_a_course_that_depends_on_values():
    "What was traced with numbers is counted with numbers, before and after a cut."
    net,x = _Undecided(),torch.rand(2, 16)
    groups = trace(net, x, real=True)
    keep = rank(groups, scores(net, groups, rms_magnitude), Flops(.5), net, (x,))
    count = Flops(.5).meter(groups, net, (x,))
    dense,small = count(groups.stay({})),count(groups.stay(keep))
    assert dense==2*2*(16*32 + 32*32 + 32*10) and .4<small/dense<=.5
    left = Groups.from_json(cut(net, groups, keep).to_json())
    a,b = net.a.out_features,net.b.out_features
    assert left.real and Flops(.5).meter(left, net, (x,))(left.stay({}))==small==2*2*(16*a + a*b + b*10)

class Mixer(nn.Module):
    "Mixes places by a transposed layer, where the bias of the embedding is what makes its neurons."
    def __init__(self):
        super().__init__()
        self.e,self.o = nn.Linear(48, 32),nn.Linear(32, 5)
        self.t = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
    def forward(self, x):
        x = self.e(x)
        return self.o((x+self.t(x.transpose(1, 2)).transpose(1, 2)).mean(1))

@pytest.mark.parametrize('name', [nm for nm in NEURON_CRITERIA if 'bn' not in nm])
def test_biases_that_make_neurons_are_ranked(name):
    torch.manual_seed(0)
    net,x = Mixer(),torch.randn(2, 16, 48)
    groups = trace(net, x)
    assert any(net.get_parameter(nm).ndim==1 for nm,_ in groups.made)
    net(x).square().sum().backward()
    found = scores(net, groups, NEURON_CRITERIA[name])
    keep = rank(groups, found, Neurons(.3))
    assert found.isfinite().all() and sum(map(len, keep.values()))==groups.n_neurons-round(.3*groups.n_neurons)
    if name=='l1_norm':
        want = net.e.weight.abs().sum(1)+net.e.bias.abs()
        g = groups['e']
        torch.testing.assert_close(found[g.start:g.start+g.n], want)
