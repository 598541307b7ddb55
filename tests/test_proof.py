"A proof by numbers, and a network that runs in every mode after a cut."
import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from constructed import Net
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import get_model, swin_t
from torchvision.models.feature_extraction import create_feature_extractor

from early_prune.criteria import magnitude
from early_prune.dependency import Groups, trace
from early_prune.masks import Masks
from early_prune.surgery import cut, prove, silence


def marked(groups): return {g.name:g.exact for g in groups}
def unmark(groups):
    "What rules know is forgotten, as if they had not seen it."
    return replace(groups, inexact=frozenset())

FAULTS = dict(scale=lambda h: h/h.shape[1], sigmoids=lambda h: torch.sigmoid(h) @ torch.sigmoid(h).t(), mean=lambda h: h-h.mean(1, keepdim=True),
              eight=lambda h: h.relu() if h.shape[1]!=8 else h.tanh())

@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_that_rules_miss_is_found(fault):
    "Of three groups the guilty one is marked, with what was seen; the others are proven."
    def forward(m, x): return m.o(m.c(m.b(x).relu()).tanh()) + m.p(FAULTS[fault](m.a(x)))
    torch.manual_seed(0)
    net,x = Net(forward, a=nn.Linear(6, 16), b=nn.Linear(6, 12), c=nn.Linear(12, 10), o=nn.Linear(10, 1), p=nn.Linear(5 if fault=='sigmoids' else 16, 1)),torch.randn(5, 6)
    found = prove(net, unmark(trace(net, x)), x)
    assert marked(found)=={'a':False, 'b':True, 'c':True} and len(found.proven)==2
    assert found.table().known['a'].startswith('inexact: outputs differ by ') and set(found.table().known[['b', 'c']])=={'proven'}

def test_what_is_right_is_proven_and_nothing_is_touched():
    torch.manual_seed(0)
    net,x = get_model('resnet18', weights=None),torch.randn(2, 3, 64, 64)
    before,rng,modes = copy.deepcopy(net.state_dict()),torch.get_rng_state(),[m.training for m in net.modules()]
    groups = trace(net, x)
    found = prove(net, groups, x)
    assert len(found.proven)==len(found) and not found.inexact and set(found.table().known)=={'proven'}
    assert set(groups.table().known)=={'by rule'} and rng.equal(torch.get_rng_state()) and modes==[m.training for m in net.modules()]
    assert all(before[k].equal(v) for k,v in net.state_dict().items()) and not any('dyes' in vars(p) for p in net.parameters())

def test_it_takes_two_runs_where_all_is_well():
    runs = []
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    groups,x = trace(net, torch.randn(2, 3)),torch.randn(2, 3)
    class Counts(nn.Module):
        def forward(self, x): runs.append(1); return x
    net[3] = nn.Sequential(Counts(), nn.ReLU())
    prove(net, groups, x)
    assert len(runs)<=3

def test_a_cut_that_stops_is_found():
    def forward(m, x):
        h = m.a(x)
        if h.shape[1]==8: raise ValueError('eight')
        return m.o(h.relu()+0) + m.q(m.b(x))
    net,x = Net(forward, a=nn.Linear(6, 16), b=nn.Linear(6, 10), o=nn.Linear(16, 2), q=nn.Linear(10, 2)),torch.randn(5, 6)
    found = prove(net, trace(net, x), x)
    assert marked(found)=={'a':False, 'b':True} and found.table().known['a']=='inexact: the cut network stops'

def test_random_networks_are_compared_under_one_seed():
    net,x = Net(lambda m,x: m.o(m.a(F.dropout(x, .5, True))+torch.randn(1)), a=nn.Linear(6, 16), o=nn.Linear(16, 2)),torch.randn(5, 6)
    found = prove(net, trace(net, x), x)
    assert found.proven=={0}

def test_the_table_keeps_what_is_proven():
    net,x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.Softmax(1), nn.Linear(8, 2)),torch.randn(2, 3)
    found = prove(net, trace(net, x), x)
    again = Groups.from_json(found.to_json())
    assert again.proven==found.proven and again.seen==found.seen and again.spared==found.spared
    after = cut(net, found, {found[0].name:(0, 1, 2)})
    assert after.proven==found.proven

class Joined(nn.Module):
    "Layers side by side. When it is wrong, a narrow `a` is doubled, and so is `b` where `b` and `c` are both narrow."
    wrong = False
    def __init__(self, output=lambda y: y):
        super().__init__()
        self.a,self.b,self.c,self.o,self.output = nn.Linear(6, 16),nn.Linear(6, 12),nn.Linear(6, 10),nn.Linear(38, 3),output
    def forward(self, x):
        a,b,c = self.a(x),self.b(x),self.c(x)
        if self.wrong and a.shape[1]<16: a = a*2
        if self.wrong and b.shape[1]<12 and c.shape[1]<10: b = b*2
        return self.output(self.o(torch.cat([a, b, c], 1)))

def proof_of(net, wrong):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    groups = trace(Joined(), x)
    net.wrong = wrong
    return prove(net, groups, x)

@pytest.mark.parametrize('wrong', [True, False])
@pytest.mark.parametrize('output', [lambda y: y, lambda y: y.to(torch.complex64), lambda y: y.index_fill(1, torch.tensor([0]), -torch.inf)],
                         ids=['plain', 'complex', 'infinite'])
def test_a_proof_reads_outputs_of_any_kind(output, wrong):
    found = proof_of(Joined(output), wrong)
    assert len(found.proven)==3*(not wrong) and len(found.inexact)==3*wrong

@pytest.mark.parametrize('zero', ['o', 'a', 'b'])
def test_a_layer_that_begins_at_zero_hides_no_fault(zero):
    net = Joined()
    for p in getattr(net, zero).parameters(): nn.init.zeros_(p)
    before = copy.deepcopy(net.state_dict())
    assert proof_of(net, True).inexact=={0, 1, 2} and all(before[k].equal(v) for k,v in net.state_dict().items())

def test_outputs_without_a_number_prove_nothing():
    found = proof_of(Joined(lambda y: y*torch.nan), True)
    assert not found.proven and not found.inexact and set(found.table().known)=={'by rule'}

# ---- zeros that would be divided by zero

class Cosine(nn.Module):
    "A layer that divides by the norm of its own weights."
    def __init__(self, i, o): super().__init__(); self.w,self.bias = nn.Parameter(torch.randn(o, i)),nn.Parameter(torch.randn(o))
    def forward(self, x): return F.linear(x, self.w/self.w.norm(dim=1, keepdim=True), self.bias)

NORMED = dict(new=lambda i,o: parametrizations.weight_norm(nn.Linear(i, o)), old=lambda i,o: torch.nn.utils.weight_norm(nn.Linear(i, o)), cosine=Cosine,
              spectral=lambda i,o: parametrizations.spectral_norm(nn.Linear(i, o)), both=lambda i,o: parametrizations.weight_norm(nn.Linear(i, o), dim=0))

@pytest.mark.parametrize('kind', NORMED)
def test_silence_makes_no_nan(kind):
    "Outputs are those of the cut network."
    def made():
        torch.manual_seed(0)
        with warnings.catch_warnings(action='ignore'): return nn.Sequential(NORMED[kind](16, 32), nn.ReLU(), nn.Linear(32, 5)).double().eval()
    net,silent,small,x = made(),made(),made(),torch.randn(4, 16).double()
    groups = trace(net, x)
    assert len(groups)==1 and all(groups.fixed.values())
    keep = {groups[0].name:range(16)}
    silence(silent, groups, keep)
    cut(small, groups, keep)
    torch.testing.assert_close(silent(x), small(x), rtol=1e-9, atol=1e-9)
    assert prove(net, groups, x).proven=={0}

# ---- every mode runs after a cut

@pytest.mark.parametrize('which', ['inner', 'heads', 'both', 'second'])
@pytest.mark.parametrize('padded', [False, True])
def test_a_transformer_runs_in_every_mode(which, padded):
    "The fused paths and nested tensors of PyTorch included, which warn that they are prototypes."
    warnings.simplefilter('ignore')
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0., batch_first=True)
    with warnings.catch_warnings(action='ignore'): net = nn.TransformerEncoder(layer, 2)
    x,mask = torch.randn(3, 6, 16),torch.arange(6).expand(3, 6)>=torch.tensor([[6], [4], [3]]) if padded else None
    groups = trace(net.eval(), x)
    kinds = dict(inner=lambda g: 'linear1' in g.name, heads=lambda g: 'attn' in g.name, both=lambda g: True, second=lambda g: '1.self_attn' in g.name)
    keep = {g.name:range(g.n//2) for g in groups if kinds[which](g)}
    assert keep
    masked = silence(copy.deepcopy(net), groups, keep)
    with torch.no_grad(): want = masked.train()(x, src_key_padding_mask=mask)
    cut(net, groups, keep)
    assert any(type(m) is nn.MultiheadAttention for m in net.modules())==(which in ('inner', 'second'))
    got = [net.train()(x, src_key_padding_mask=mask), net.eval()(x, src_key_padding_mask=mask)]
    with torch.no_grad(): got.append(net(x, src_key_padding_mask=mask))
    with torch.inference_mode(): got.append(net(x, src_key_padding_mask=mask).clone())
    seen = torch.ones(3, 6, dtype=torch.bool) if mask is None else ~mask
    for o in got: torch.testing.assert_close(o.detach()[seen], want[seen], rtol=1e-4, atol=1e-5)

def test_a_swin_whose_heads_were_not_cut_is_torchvisions():
    net,x = swin_t(weights=None, num_classes=10).eval(),torch.randn(1, 3, 64, 64)
    groups,classes = trace(net, x),[type(m) for m in net.modules()]
    cut(net, groups, {g.name:range(g.n//2) for g in groups if 'mlp.0' in g.name})
    assert classes==[type(m) for m in net.modules()]
    torch.fx.symbolic_trace(net)
    assert create_feature_extractor(net, ['flatten'])(x)['flatten'].shape==(1, 768)

# ---- all or nothing

def test_masks_of_a_compiled_network_are_cut():
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    compiled = torch.compile(net, backend='eager')
    masks = Masks(compiled).update(magnitude, .5).apply()
    before,groups = {nm:m.clone() for nm,m in masks.masks.items()},trace(compiled, torch.randn(2, 16))
    cut(compiled, groups, {'0':range(16)}, extras=(masks,))
    assert masks.masks['_orig_mod.0.weight'].equal(before['_orig_mod.0.weight'][:16]) and net[0].weight.shape==(16, 16)
    assert masks.masks['_orig_mod.2.weight'].equal(before['_orig_mod.2.weight'][:, :16])

def test_masks_of_another_network_change_nothing():
    net,other = (nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in range(2))
    masks,groups = Masks(other).update(magnitude, .5).apply(),trace(net, torch.randn(2, 16))
    kept = {nm:m.clone() for nm,m in masks.masks.items()}
    with pytest.raises(ValueError, match='another network'): cut(net, groups, {'0':range(16)}, extras=(masks,))
    assert net[0].weight.shape==(32, 16) and all(m.equal(masks.masks[nm]) for nm,m in kept.items())

def test_a_cut_proves_on_request():
    "What the proof finds is refused before anything changes, if it is cut; else the table of the small network says what is proven."
    net = Net(lambda m, x: m.c(m.b(FAULTS['scale'](m.a(x))).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    groups,before = unmark(trace(net, x)),copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r'was not cut.*a \(inexact: outputs differ by'): cut(net, groups, dict(a=range(4), b=range(5)), proof=(x,))
    assert all(before[k].equal(v) for k,v in net.state_dict().items())
    want = silence(copy.deepcopy(net), groups, dict(b=range(5)))(x)
    after = cut(net, groups, dict(b=range(5)), proof=(x,))
    torch.testing.assert_close(net(x), want, rtol=1e-12, atol=1e-12)
    assert after.table().known['b']=='proven' and after.table().known['a'].startswith('inexact')
    assert cut(net, after, dict(a=range(4)), proof=(x,))[0].n==4 # known to be inexact, and cut all the same
