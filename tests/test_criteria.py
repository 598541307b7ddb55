"Criteria at initialisation against independent references in float64, and that they leave the network alone."
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from early_prune.core import prunable
from early_prune.criteria import AtInit, grasp, snip, synflow, taylor
from early_prune.masks import Masks


class Net(nn.Module):
    "Convolution, batch norm, a shortcut and a linear layer."
    def __init__(self):
        super().__init__()
        self.conv1,self.bn,self.conv2,self.fc = nn.Conv2d(2, 4, 3, padding=1),nn.BatchNorm2d(4),nn.Conv2d(4, 4, 3, padding=1),nn.Linear(4, 3)
    def forward(self, x):
        x = F.softplus(self.bn(self.conv1(x)))
        return self.fc((x + torch.tanh(self.conv2(x))).mean((2,3)))

@pytest.fixture
def case():
    torch.manual_seed(0)
    net = Net().double()
    with torch.no_grad():
        for p in net.parameters(): p.add_(torch.randn_like(p)*.1)
        net.bn.running_mean.normal_(); net.bn.running_var.uniform_(.5, 2)
    return net,torch.randn(12,2,5,5).double(),torch.randint(0, 3, (12,))

def _gated(net, x):
    "The network with a switch on each prunable weight, as SNIP defines it; returns output and switches."
    switches = {nm:torch.ones_like(p, requires_grad=True) for nm,p in prunable(net).items()}
    state = {nm:p.detach()*switches[nm] if nm in switches else p.detach() for nm,p in net.named_parameters()}
    return torch.func.functional_call(copy.deepcopy(net), state, (x,)),switches

def test_snip_is_the_gradient_of_switches(case):
    net,x,y = case
    out,switches = _gated(net, x)
    F.cross_entropy(out, y).backward()
    total = sum(c.grad.abs().sum() for c in switches.values())
    scores = snip(net, F.cross_entropy, x, y)
    assert list(scores)==list(prunable(net))
    for nm,s in scores.items(): torch.testing.assert_close(s, switches[nm].grad.abs()/total, rtol=0, atol=1e-8)

def test_grasp_is_the_change_of_the_gradient_flow(case):
    "w * (H g), with H g from the full Hessian, column by column."
    net,x,y = case
    params = prunable(net)
    sizes = [p.numel() for p in params.values()]
    flat = torch.cat([p.detach().flatten() for p in params.values()])
    def loss(v):
        parts = {nm:o.view_as(params[nm]) for nm,o in zip(params, v.split(sizes))}
        state = {nm:parts.get(nm, p.detach()) for nm,p in net.named_parameters()}
        buffers = {nm:b.clone() for nm,b in net.named_buffers()}
        return F.cross_entropy(torch.func.functional_call(net, state | buffers, (x,))/200, y)
    g = torch.autograd.functional.jacobian(loss, flat)
    expected = flat*(torch.autograd.functional.hessian(loss, flat)@g)
    scores = torch.cat([s.flatten() for s in grasp(net, F.cross_entropy, x, y).values()])
    assert expected.abs().max()>1e-7
    torch.testing.assert_close(scores/expected.abs().max(), expected/expected.abs().max(), rtol=0, atol=1e-8)

def test_grasp_removes_what_the_flow_misses_least(case):
    "The score is the first-order loss of gradient flow when a weight shrinks: a small shrinkage shows its sign."
    net,x,y = case
    scores = grasp(net, F.cross_entropy, x, y, temperature=1.)
    def flow():
        copied = copy.deepcopy(net)
        F.cross_entropy(copied(x), y).backward()
        return sum(p.grad.square().sum() for p in prunable(copied).values()).item()
    before = flow()
    nm = 'fc.weight'
    for i in range(6):
        with torch.no_grad():
            was = net.fc.weight.view(-1)[i].item()
            net.fc.weight.view(-1)[i] = was*(1-1e-6)
        lost = (before-flow())/2e-6
        with torch.no_grad(): net.fc.weight.view(-1)[i] = was
        assert lost==pytest.approx(scores[nm].view(-1)[i].item(), rel=1e-3, abs=1e-7)

def test_synflow_is_the_flow_of_ones(case):
    "The published procedure, written down plainly: absolute state, ones, sum, weight times gradient."
    net,x,y = case
    reference = copy.deepcopy(net).eval()
    with torch.no_grad():
        for t in [*reference.parameters(), *reference.buffers()]: t.abs_()
    reference(torch.ones(1,2,5,5).double()).sum().backward()
    scores = synflow(net, None, x, None)
    for nm,p in prunable(reference).items():
        assert scores[nm].min()>=0
        torch.testing.assert_close(scores[nm], (p*p.grad).detach().abs(), rtol=1e-8, atol=1e-8)

@pytest.mark.parametrize('func', [snip, grasp, synflow])
def test_the_network_is_as_it_was(case, func):
    net,x,y = case
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    net.conv2.weight.requires_grad_(False)
    net.conv2.eval()
    before = {nm:t.clone() for nm,t in net.state_dict().items()}
    params,modes = [id(p) for p in net.parameters()],[m.training for m in net.modules()]
    func(net, F.cross_entropy, x, y)
    assert all(torch.equal(before[nm], t) for nm,t in net.state_dict().items())
    assert params==[id(p) for p in net.parameters()] and modes==[m.training for m in net.modules()]
    assert not net.conv2.weight.requires_grad and net.conv1.weight.grad is None and torch.equal(net.fc.weight.grad, torch.ones_like(net.fc.weight))

@pytest.mark.parametrize('func', [snip, grasp, synflow])
def test_float32_and_unused_layers(func):
    "A layer that no output depends on has score zero; tuples of inputs are welcome."
    net = nn.ModuleDict(dict(used=nn.Linear(4, 3), idle=nn.Linear(4, 3)))
    net.forward = lambda x: net['used'](x)
    scores = func(net, F.cross_entropy, (torch.randn(6,4),), (torch.randint(0, 3, (6,)),))
    assert not scores['idle.weight'].any() and scores['used.weight'].any()

def test_snip_orders_like_taylor(case):
    net,x,y = case
    scores = snip(net, F.cross_entropy, x, y)
    F.cross_entropy(net(x), y).backward()
    for nm,p in prunable(net).items():
        a,b = scores[nm].flatten(),taylor(p).flatten().double().sqrt()
        torch.testing.assert_close(a/a.sum(), b/b.sum(), rtol=1e-5, atol=1e-7)

def test_deep_flows_do_not_overflow():
    net = nn.Sequential(*[nn.Linear(512, 512, bias=False) for _ in range(60)])
    with torch.no_grad():
        for p in net.parameters(): p.fill_(.2)
    assert all(torch.isfinite(s).all() for s in synflow(net, None, torch.zeros(1,512), None).values())

def test_synflow_in_many_steps_spares_every_layer():
    "One look empties a layer at high sparsity; a hundred looks do not (no floor helps either)."
    torch.manual_seed(0)
    def least(steps):
        net = nn.Sequential(nn.Linear(20, 200, bias=False), nn.ReLU(), nn.Linear(200, 200, bias=False), nn.ReLU(), nn.Linear(200, 10, bias=False))
        masks = Masks(net, floor=0)
        for i in range(steps):
            score = AtInit(synflow, steps).look(net, None, torch.zeros(1,20), None)
            masks.update(score, 1-.004**((i+1)/steps)).apply()
        return min(masks.n_kept.values())
    assert least(100)>5*max(least(1), 1)

def test_at_init_is_a_criterion(case):
    net,x,y = case
    masks = Masks(net, floor=0).update(AtInit(snip).look(net, F.cross_entropy, x, y), .9)
    scores = snip(net, F.cross_entropy, x, y)
    kept = torch.cat([s[masks[nm]] for nm,s in scores.items()]).min()
    assert kept>=torch.cat([s[~masks[nm]] for nm,s in scores.items()]).max()
    with pytest.raises(ValueError, match='`steps` is at least 1'): AtInit(snip, 0)
    assert AtInit(snip).__name__=='snip' and repr(AtInit(synflow, 100))=='AtInit(synflow, steps=100)'
