"The two laws of surgery: cutting equals masking, and training goes on as in a small network."
import copy
import json
import os

import numpy as np
import pytest
import torch
from fastai.optimizer import SGD, Adam, Lamb, Lookahead, OptimWrapper, RAdam, RMSProp
from torch import nn
from torchvision.models import get_model

from early_prune.criteria import rms_magnitude
from early_prune.dependency import HeadwiseAttention, trace
from early_prune.models import resnet
from early_prune.ranking import Neurons, rank, scores
from early_prune.surgery import cut, load, save, shrink_to, silence

x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
y = torch.arange(6)%10

def build(seed=0):
    torch.manual_seed(seed)
    return resnet(8)

def halves(net, *inputs):
    groups = trace(net, *inputs)
    return groups,rank(groups, scores(net, groups, rms_magnitude), Neurons(.5), floor=2)

def step(net, optimizer, x=x):
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()

def split(net): return [[p for nm,p in net.named_parameters() if 'weight' in nm],[p for nm,p in net.named_parameters() if 'weight' not in nm]]

TORCH = {
    'sgd'     :lambda net: torch.optim.SGD(net.parameters(), lr=.05, momentum=.9, nesterov=True, weight_decay=1e-3),
    'adam'    :lambda net: torch.optim.Adam(net.parameters(), lr=1e-2),
    'amsgrad' :lambda net: torch.optim.Adam(net.parameters(), lr=1e-2, amsgrad=True),
    'adamw'   :lambda net: torch.optim.AdamW([dict(params=g, weight_decay=wd) for g,wd in zip(split(net), (.1, 0.))], lr=1e-2),
    'rmsprop' :lambda net: torch.optim.RMSprop(net.parameters(), lr=1e-3, momentum=.9)}
FASTAI = {
    'fastai sgd'    :lambda net: SGD(split(net), lr=.05, mom=.9, wd=1e-3),
    'fastai adam'   :lambda net: Adam(split(net), lr=1e-2, wd=.01),
    'fastai radam'  :lambda net: RAdam(split(net), lr=1e-2),
    'fastai lamb'   :lambda net: Lamb(split(net), lr=1e-2),
    'fastai rmsprop':lambda net: RMSProp(split(net), lr=1e-3),
    'lookahead'     :lambda net: Lookahead(Adam(split(net), lr=1e-2)),
    'optim wrapper' :lambda net: OptimWrapper(split(net), torch.optim.AdamW, lr=1e-2, weight_decay=.01)}

def twin(net, optimizer, make, path):
    "A network that was built small, with the same numbers and what the optimizer remembers of them."
    small = load(build, save(net, path)).double().train()
    for a,b in zip([*small.parameters(), *small.buffers()], [*net.parameters(), *net.buffers()]): a.data.copy_(b)
    other,pairs = make(small),dict(zip(net.parameters(), small.parameters()))
    inner = lambda o: o.opt if hasattr(o, 'opt') else o
    for p,q in pairs.items():
        if p in inner(optimizer).state: inner(other).state[q] = copy.deepcopy(inner(optimizer).state[p])
    if hasattr(optimizer, 'slow_weights'): other.count,other.slow_weights = optimizer.count,copy.deepcopy(optimizer.slow_weights)
    return small,other

@pytest.mark.parametrize('name', [*TORCH, *FASTAI])
def test_training_after_a_cut_equals_training_a_small_network(name, tmp_path):
    make = {**TORCH, **FASTAI}[name]
    net = build().double()
    groups,keep = halves(net, x.double())
    optimizer = make(net)
    for _ in range(4): step(net, optimizer, x.double())
    params = list(net.parameters())
    nn.functional.cross_entropy(net(x.double()), y).backward()
    cut(net, groups, keep, optimizer)
    assert [id(p) for p in params]==[id(p) for p in net.parameters()] and all(p.grad.shape==p.shape for p in params)
    optimizer.zero_grad()
    small,other = twin(net, optimizer, make, tmp_path/'net.safetensors')
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(20):
        step(net, optimizer, x.double())
        step(small, other, x.double())
    for (nm,a),b in zip(net.named_parameters(), small.parameters()): torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=nm)
    assert not any(p.equal(q) for p,q in zip(net.parameters(), before))

def test_a_loss_that_is_still_alive():
    "The graph of the last batch must not make the next backward expect the old shapes."
    net = build()
    groups,keep = halves(net, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    cut(net, groups, keep, optimizer)
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    assert loss.grad_fn is not None and all(p.grad.shape==p.shape for p in net.parameters())

def test_gradients_are_cut_with_the_weights():
    net,full = build().double(),build().double()
    groups,keep = halves(net, x.double())
    for m in (net, full): nn.functional.cross_entropy(m(x.double()), y).backward()
    cut(net, groups, keep)
    stay = np.append(groups.stay(keep), True)
    for (nm,p),q in zip(net.named_parameters(), full.parameters()):
        want = q.grad
        for d in range(q.ndim):
            if (nm, d) in groups.slots: want = want.index_select(d, torch.from_numpy(np.flatnonzero(stay[groups.slots[nm, d]])))
        assert p.grad.equal(want)

def test_several_cuts_equal_one():
    "Two cuts in a row, by the tables they return, leave what one cut leaves; original indices are known."
    a,b = build(),build()
    groups,keep = halves(a, x)
    rng = np.random.default_rng(0)
    first = {nm:np.sort(np.concatenate([o, rng.choice(rest, len(rest)//2, replace=False)])).astype(int) for g in groups
             for nm,o,rest in [(g.name, np.array(keep[g.name]), np.setdiff1d(np.arange(g.n), keep[g.name]))]}
    half = cut(a, groups, first)
    rest = cut(a, half, {nm:np.searchsorted(first[nm], o) for nm,o in keep.items()})
    once = cut(b, groups, keep)
    assert all(p.equal(q) for p,q in zip(a.parameters(), b.parameters()))
    assert rest.origin()==once.origin()=={nm:tuple(map(int, o)) for nm,o in keep.items()}
    assert trace(a, x).n_neurons==once.n_neurons

def test_a_small_network_goes_back_into_the_large_one():
    "With the original indices the kept weights can be compared or put back."
    net,full = build(),build()
    groups,keep = halves(net, x)
    small = cut(net, groups, keep)
    g = groups[0]
    at,idxs = dict(g.members),list(small.origin()[g.name])
    (tensor,dim) = next(p for p in groups.made if p in at and p[1]==0)
    new = dict(net.named_parameters())[tensor]
    assert full.get_parameter(tensor).index_select(0, torch.tensor(at[tensor, dim][idxs].ravel())).shape[0]==new.shape[0]

# ---- what must survive

def test_formats_modes_and_freezing_are_kept():
    net = get_model('resnet18', weights=None).to(memory_format=torch.channels_last).to(torch.bfloat16)
    for p in net.layer1.parameters(): p.requires_grad_(False)
    net.layer2.eval()
    calls = []
    net.layer1[0].conv1.register_forward_hook(lambda *o: calls.append(1))
    net.conv1.weight.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.shape))
    groups,keep = halves(net, torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
    calls.clear()
    before = [(id(p), p.requires_grad, p.dtype, p.ndim==4 and p.shape[2]>1) for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    cut(net, groups, keep)
    assert [(id(p), p.requires_grad, p.dtype, p.ndim==4 and p.shape[2]>1 and p.is_contiguous(memory_format=torch.channels_last)) for p in net.parameters()]==before
    assert [m.training for m in net.modules()]==modes
    net(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)).sum().backward()
    assert calls==[1, net.conv1.weight.shape]

def test_frozen_body_with_trainable_batch_norm():
    "fastai's first phase: convolutions frozen, batch norm trainable."
    net = get_model('resnet18', weights=None)
    for nm,m in net.named_modules():
        for p in m.parameters(recurse=False): p.requires_grad_(isinstance(m, nn.BatchNorm2d) or nm=='fc')
    groups,keep = halves(net, torch.randn(1, 3, 32, 32))
    want = [p.requires_grad for p in net.parameters()]
    masked = silence(copy.deepcopy(net), groups, keep).eval()
    cut(net, groups, keep)
    assert [p.requires_grad for p in net.parameters()]==want
    z = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net.eval()(z), masked(z), rtol=1e-4, atol=1e-5)
    net.train()(z).sum().backward()

def test_averaged_copies_are_cut_alike():
    net = build()
    groups,keep = halves(net, x)
    average = copy.deepcopy(net)
    with torch.no_grad():
        for p in average.parameters(): p.mul_(.5)
    cut(net, groups, keep, extras=(average,))
    for p,q in zip(net.parameters(), average.parameters()): torch.testing.assert_close(p*.5, q)
    assert average(x).shape==(6, 10)

def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.c = nn.Linear(4, 8),nn.Linear(8, 8),nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)
            self.c.weight = self.b.weight
        def forward(self, x): return self.head(self.c(self.b(self.a(x)).relu()))
    net = Tied()
    z = torch.randn(3, 4)
    groups,keep = halves(net, z)
    masked = silence(copy.deepcopy(net), groups, keep)
    cut(net, groups, keep)
    assert net.c.weight is net.b.weight
    torch.testing.assert_close(net(z), masked(z))

def test_attention_keeps_its_names():
    net = nn.TransformerEncoderLayer(12, 3, 16, dropout=0., batch_first=True)
    net = nn.Sequential(nn.Linear(5, 12), net, nn.Linear(12, 2)).eval()
    z = torch.randn(2, 4, 5)
    names = list(net.state_dict())
    groups = trace(net, z)
    assert {g.n for g in groups}=={12, 3, 16}
    heads = next(g for g in groups if g.n==3)
    masked = silence(copy.deepcopy(net), groups, {heads.name:[0, 2]})
    cut(net, groups, {heads.name:[0, 2]})
    assert type(net[1].self_attn) is HeadwiseAttention and net[1].self_attn.num_heads==2 and list(net.state_dict())==names
    with torch.no_grad(): torch.testing.assert_close(net(z), masked(z), rtol=1e-4, atol=1e-5)
    copy.deepcopy(net).train()(z).sum().backward()

# ---- refusals change nothing

def test_errors_leave_everything_as_it_was():
    net = build()
    groups,keep = halves(net, x)
    state = {k:v.clone() for k,v in net.state_dict().items()}
    name = groups[0].name
    with pytest.raises(ValueError, match='at least one'): cut(net, groups, {name:[]})
    with pytest.raises(ValueError, match=f'cannot keep neuron 999 of {groups[0].n}'): cut(net, groups, {name:[0, 999]})
    with pytest.raises(TypeError, match='integers'): cut(net, groups, {name:[.5, 1]})
    with pytest.raises(TypeError, match='`keep` is a dictionary'): cut(net, groups, [0, 1])
    with pytest.raises(KeyError, match='nothing'): cut(net, groups, {'nothing':[0]})
    with pytest.raises(ValueError, match='another network'): cut(resnet(14), groups, keep)
    optimizer,state = torch.optim.LBFGS(net.parameters()),{k:v.clone() for k,v in net.state_dict().items()}
    with pytest.raises(NotImplementedError, match='LBFGS could not be tried on a copy.*one vector for all weights'): cut(net, groups, keep, optimizer)
    assert all(net.state_dict()[k].equal(v) for k,v in state.items())
    cut(net, groups, keep)
    with pytest.raises(ValueError, match='earlier cut'): cut(net, groups, keep)

# ---- files

def saved(tmp_path):
    net = build().eval()
    groups,keep = halves(net, x)
    small = cut(net, groups, keep)
    return net,small,save(net, tmp_path/'net.safetensors', small)

def test_save_and_load_give_the_same_outputs(tmp_path):
    net,small,path = saved(tmp_path)
    again = load(build, path)
    assert torch.equal(again(x), net(x)) and again.training is False
    assert list(again.state_dict())==list(net.state_dict())
    assert os.listdir(tmp_path)==['net.safetensors']

class Placed(nn.Module):
    "Positions that are added to all channels and that PyTorch does not store; and a size of zero, which counts nothing."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c,self.out_features = nn.Linear(3, 16),nn.Linear(16, 16),nn.Linear(16, 2),0
        self.register_buffer('place', torch.linspace(0, 1, 5*16).view(1, 5, 16), persistent=False)
    def forward(self, x):
        x = self.a(x)+self.place
        return self.c(x+self.b(x).relu())

def test_buffers_that_are_not_stored_follow(tmp_path):
    torch.manual_seed(0)
    net,x = Placed(),torch.randn(2, 5, 3)
    groups = trace(net, x)
    small = cut(net, groups, {g.name:np.arange(0, g.n, 2) for g in groups})
    again = load(Placed, save(net, tmp_path/'net.safetensors', small))
    assert again.place.shape==(1, 5, 8) and torch.equal(again(x), net(x))

class Lazy(Placed):
    "Makes one buffer when it runs, and another larger."
    def __init__(self):
        super().__init__()
        self.register_buffer('seen', torch.zeros(1, 1), persistent=False)
    def forward(self, x):
        self.seen = torch.ones(5, 5)
        self.register_buffer('new', torch.ones(3), persistent=False)
        return super().forward(x)

def test_buffers_that_a_forward_pass_makes_are_no_matter(tmp_path):
    torch.manual_seed(0)
    net,x = Lazy(),torch.randn(2, 5, 3)
    groups = trace(net, x)
    small = cut(net, groups, {g.name:np.arange(0, g.n, 2) for g in groups})
    y = net(x)
    again = load(Lazy, save(net, tmp_path/'net.safetensors', small))
    assert torch.equal(again(x), y) and torch.equal(load(Lazy, save(again, tmp_path/'net.safetensors'))(x), y)

@pytest.mark.parametrize('damage', [
    lambda b: b[:20], lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'PK'+b[2:], lambda b: b'\xff'*8+b[8:],
    lambda b: b.replace(b'early_prune 1', b'early_prune 9'), lambda b: b.replace(b'early_prune', b'early_prime'),
    lambda b: b.replace(b'out_channels', b'out_chamnels'), lambda b: b.replace(b'headwise', b'headwize')])
def test_broken_files_are_refused(tmp_path, damage):
    net,_,path = saved(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    other = build()
    state = {k:v.clone() for k,v in other.state_dict().items()}
    with pytest.raises(ValueError, match='net.safetensors'): shrink_to(other, path)
    assert all(other.state_dict()[k].equal(v) for k,v in state.items())

def test_files_of_other_networks_are_refused(tmp_path):
    _,_,path = saved(tmp_path)
    with pytest.raises(ValueError, match='does not fit'): load(lambda: get_model('resnet18', weights=None), path)
    with pytest.raises(ValueError, match='has shape'): load(shrunk, path)
    with pytest.raises(FileNotFoundError, match='no file'): load(build, tmp_path/'missing.safetensors')

def shrunk():
    net = build()
    groups = trace(net, x)
    cut(net, groups, {g.name:range(2) for g in groups})
    return net

def test_the_file_holds_no_code(tmp_path):
    _,small,path = saved(tmp_path)
    head = path.read_bytes()
    header = json.loads(json.loads(head[8:8+int.from_bytes(head[:8], 'little')])['__metadata__']['early_prune'])
    assert set(header)=={'sizes', 'headwise', 'passing', 'origin', 'told'} and {nm:tuple(o) for nm,o in header['origin'].items()}==small.origin()

def test_a_model_is_saved_from_a_wrapper(tmp_path):
    net = build().eval()
    path = save(nn.DataParallel(net), tmp_path/'net.safetensors')
    assert torch.equal(load(build, path)(x), net(x))

def test_masks_that_cannot_follow_a_cut_stop_it():
    "A pattern of four inputs in a layer that would keep five; with multiples of four it goes on, and the pattern holds."
    from early_prune.criteria import magnitude
    from early_prune.masks import Masks, two_four
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    masks = Masks(net, two_four).update(magnitude, .5).apply()
    groups = trace(net, torch.zeros(1, 4))
    keep,before = {groups[0].name:torch.arange(5).numpy()},[p.clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=r'2.weight would have shape \(2, 5\).*units: rank with `round_to`'):
        cut(net, groups, keep, extras=(masks,))
    assert all(p.equal(o) for p,o in zip(net.parameters(), before)) and masks['2.weight'].shape==(2, 8)
    cut(net, groups, {groups[0].name:torch.arange(4).numpy()}, extras=(masks,))
    assert masks['2.weight'].shape==(2, 4) and masks['2.weight'].sum()==4 and masks.n_units['2.weight']==8
    assert not net[2].weight.detach()[~masks['2.weight']].any()
