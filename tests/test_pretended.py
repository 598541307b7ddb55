"The paths of CUDA without a GPU: nothing mixes devices, one choice waits once, all else never."
from contextlib import contextmanager

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam
from pretended import CUDA, Pretended, pretended_cuda, to_cuda, values
from torch import nn

import early_prune.recipes as recipes
from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback
from early_prune.criteria import AtInit, gradient, grasp, magnitude, movement, random_scores, snip, synflow, taylor
from early_prune.dependency import trace
from early_prune.distributions import erk, global_, uniform
from early_prune.masks import Masks, by_filter, by_kernel, by_weight, two_four
from early_prune.models import get_model
from early_prune.ranking import Neurons, bn_scale, fpgm, l2_norm, rank, scores, taylor_bn
from early_prune.regrowth import Exploration, Momentum, by_gradient, by_momentum
from early_prune.surgery import cut
from early_prune.triggers import AtEpoch


def network(cuda, arch='resnet8'):
    "A network with gradients, the same on both devices."
    torch.manual_seed(0)
    net = get_model(arch, n_in=1)
    x,y = torch.randn(8, 1, 8, 8),torch.arange(8)
    if cuda: net,x,y = to_cuda(net),to_cuda(x),to_cuda(y)
    nn.functional.cross_entropy(net(x), y).backward()
    return net,x,y

def same(mine, theirs):
    "The same masks or tensors, within rounding."
    assert mine.keys()==theirs.keys()
    for nm in mine:
        a,b = values(mine[nm]).detach(),theirs[nm].detach()
        assert isinstance(mine[nm], Pretended) or not isinstance(theirs[nm], torch.Tensor), nm
        assert torch.equal(a, b) if a.dtype is torch.bool else torch.allclose(a, b, atol=1e-6), nm

# ------------------------------------------------------------------ the instrument finds what it is made for
def test_finds_a_mix_of_devices():
    with pretended_cuda():
        x = to_cuda(torch.ones(3))
        assert x.device==CUDA and x.is_cuda and (x*2.+torch.tensor(1.)).device==CUDA
        for mixed in (lambda: x+torch.ones(3), lambda: torch.ones(3)*x, lambda: torch.cat([x, torch.ones(1)]),
                      lambda: torch.where(torch.ones(3, dtype=torch.bool), x, x), lambda: torch._foreach_mul_([x], [torch.ones(3)])):
            with pytest.raises(RuntimeError, match='same device'): mixed()

def test_finds_every_way_of_waiting():
    with pretended_cuda() as waits:
        x = to_cuda(torch.arange(4.))
        for look in (lambda: x.sum().item(), lambda: bool((x>0).any()), lambda: float(x[0]), lambda: x.tolist(), lambda: x.cpu(),
                     lambda: x.to('cpu'), lambda: x[x>1], lambda: (x>1).nonzero(), lambda: torch.empty(4).copy_(x), lambda: x.unique(),
                     lambda: torch.equal(x, x)):
            waits.clear()
            look()
            assert waits
        waits.clear()
        y = torch.zeros(4, device='cuda')+x.half().float()+torch.tensor([1., 2., 3., 4.], device=x.device)+torch.ones(4).to(x.device)
        assert isinstance(y, Pretended) and not waits
        with pytest.raises(TypeError, match='numpy'): x.numpy()

def test_finds_a_planted_item(monkeypatch):
    "The test of upkeep fails where somebody asks the device."
    clean = Masks.mask_grads
    def planted(self):
        if sum(m.sum() for m in self.masks.values()).item(): clean(self)
    monkeypatch.setattr(Masks, 'mask_grads', planted)
    with pytest.raises(AssertionError, match='waited'): test_upkeep_never_waits()

def test_finds_a_planted_mix(monkeypatch):
    "The test of selection fails where a mask is made on the CPU."
    clean = Masks._set
    monkeypatch.setattr(Masks, '_set', lambda self, nm, units, n: clean(self, nm, torch.ones(units.shape, dtype=torch.bool), n))
    with pytest.raises(RuntimeError, match='same device'): test_upkeep_never_waits()

@contextmanager
def at_most(n, waits):
    waits.clear()
    yield
    assert len(waits)<=n, f'waited {len(waits)} times: {waits}'

# ------------------------------------------------------------------ masks
@pytest.mark.parametrize('granularity', [by_weight, by_kernel, by_filter, two_four])
def test_selection_waits_once(granularity):
    share = .5 if granularity is two_four else .7
    with pretended_cuda() as waits:
        net,*_ = network(True)
        masks = Masks(net, granularity)
        for sparsity in (.3, share, .4):
            with at_most(1, waits): masks.update(magnitude, sparsity)
        with at_most(0, waits): masks.apply()
        found,weights = dict(masks.masks),dict(net.named_parameters())
    net,*_ = network(False)
    masks = Masks(net, granularity)
    for sparsity in (.3, share, .4): masks.update(magnitude, sparsity)
    masks.apply()
    same(found, masks.masks)
    same(weights, dict(net.named_parameters()))

def test_upkeep_never_waits():
    with pretended_cuda() as waits:
        net,x,y = network(True)
        masks,opt = Masks(net).update(magnitude, .9),torch.optim.Adam(net.parameters())
        opt.step()
        masks.apply()
        for _ in range(2):
            with at_most(0, waits):
                nn.functional.cross_entropy(net(x), y).backward()
                masks.mask_grads()
                opt.step()
                masks.apply()
        assert sum(int((values(p)==0).sum()) for p in masks.params.values())>=masks.sparsity*sum(masks.n_units.values())

@pytest.mark.parametrize('together', [False, True])
@pytest.mark.parametrize('grow', [gradient, Momentum])
def test_a_swap_waits_once(grow, together):
    found = []
    for cuda in (True, False):
        with pretended_cuda() as waits:
            net,*_ = network(cuda)
            masks,grow_by = Masks(net).update(magnitude, .9),grow() if grow is Momentum else grow
            if grow is Momentum:
                for p in masks.params.values(): grow_by.observe(p)
            with at_most(1+together, waits): masks.swap(.3, grow_by, together=together) # together they choose twice
            found.append(dict(masks.masks))
            seen = Exploration(masks)
            with at_most(3, waits): seen.observe(masks, 1)
    same(*found)

@pytest.mark.parametrize('criterion', [magnitude, gradient, taylor, movement])
def test_scores_stay_on_the_device(criterion):
    with pretended_cuda() as waits:
        net,*_ = network(True)
        with at_most(0, waits): mine = {nm:criterion(p) for nm,p in Masks(net).params.items()}
    net,*_ = network(False)
    same(mine, {nm:criterion(p) for nm,p in Masks(net).params.items()})

@pytest.mark.parametrize('criterion', [snip, grasp, synflow])
def test_scores_at_initialisation(criterion):
    found = []
    for cuda in (True, False):
        with pretended_cuda():
            net,x,y = network(cuda)
            score = AtInit(criterion).look(net, nn.functional.cross_entropy, (x,), (y,))
            found.append({nm:score(p) for nm,p in Masks(net).params.items()})
    same(*found)

def test_random_scores_stay_on_the_device():
    with pretended_cuda(): assert isinstance(random_scores(network(True)[0][0].weight), Pretended)

@pytest.mark.parametrize('distribution', [uniform, erk])
@pytest.mark.parametrize('criterion', [magnitude, gradient])
def test_a_selection_layer_by_layer_waits_once(distribution, criterion):
    found = []
    for cuda in (True, False):
        with pretended_cuda() as waits:
            net,*_ = network(cuda)
            masks = Masks(net)
            shapes = {nm:tuple(p.shape) for nm,p in masks.params.items()}
            for sparsity in (.5, .9, .7):
                share = distribution(shapes, sparsity)
                with at_most(1, waits): masks.update(criterion, share if isinstance(share, dict) else dict.fromkeys(shapes, share))
            found.append(dict(masks.masks))
    same(*found)

# ------------------------------------------------------------------ neurons
def traced(net, *inputs, **kwargs):
    "Tracing has tensors of its own, which know no others: it looks at a network of the CPU."
    here = get_model('resnet8', n_in=1)
    here.load_state_dict(values(net.state_dict()))
    return trace(here, *values(inputs), **kwargs)

@pytest.mark.parametrize('criterion', [l2_norm, bn_scale, taylor_bn, fpgm])
def test_ranking_and_cut(criterion):
    found = []
    for cuda in (True, False):
        with pretended_cuda() as waits:
            net,x,_ = network(cuda)
            groups = traced(net, x[:2])
            points = scores(net, groups, criterion)
            with at_most(1, waits): keep = rank(groups, points, Neurons(.5), net, (x[:2],))
            cut(net, groups, keep)
            found.append(dict(net.named_parameters()) | dict(points=points))
            assert len(net(x))==8
    same(*found)

# ------------------------------------------------------------------ the steps of both callbacks

class Watch(Callback):
    "What the host waited for in each batch, from the gradients to the end of the step."
    order = 100
    def __init__(self, waits): self.waits,self.seen = waits,[]
    def after_backward(self): self.waits.clear()
    def after_step(self): self.seen.append((round(self.pct_train*self.n_iter*self.n_epoch), list(self.waits)))

def learner(cuda, n=6, arch='resnet8'):
    torch.manual_seed(0)
    net = get_model(arch, n_in=1)
    data = [(torch.randn(1, 8, 8), torch.tensor(i%10)) for i in range(4*n)]
    dls = DataLoaders(DataLoader(data, bs=4, num_workers=0), DataLoader(data[:4], bs=4, num_workers=0), device=CUDA if cuda else 'cpu')
    return Learner(dls, to_cuda(net) if cuda else net, loss_func=nn.functional.cross_entropy, opt_func=Adam)

@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    "For the trial of an optimizer a pretended tensor is as plain as one of a real device."
    monkeypatch.setattr('early_prune.optimizers._plain', lambda t: type(t) in (torch.Tensor, nn.Parameter, Pretended))

METHODS = {
    'global'  :lambda: SparsifyCallback(.9, distribution=global_, every=5),
    'uniform' :lambda: SparsifyCallback(.9, distribution=uniform, every=5),
    'regrow'  :lambda: SparsifyCallback(.9, start=.9, distribution=erk, every=5, regrowth=by_gradient),
    'momentum':lambda: SparsifyCallback(.9, start=.9, distribution=erk, every=5, regrowth=by_momentum)}

@pytest.mark.parametrize('nm', METHODS)
def test_sparsify_steps(nm):
    found = []
    for cuda in (True, False):
        with pretended_cuda() as waits:
            learn,watch,method = learner(cuda),Watch(waits),METHODS[nm]()
            with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, cbs=[method, watch])
            found.append(dict(learn.model.named_parameters()))
            busy = {step for step,_ in method.history} | {step for step,*_ in (method.exploration.history if method.exploration else [])}
            assert len(watch.seen)==12 and busy<{step for step,_ in watch.seen}
            idle = [waited for step,waited in watch.seen if step not in busy]
            # a look whether zeros have moved, after 1, 2, 4, ... steps with a mask, waits once
            assert cuda is False or (idle and max(map(len, idle))<=1 and not all(idle)), idle
    same(*found)

@pytest.mark.parametrize('kwargs', [dict(), dict(criterion=taylor_bn), dict(physical=False), dict(regrowth=recipes.Regrowth(drop_fraction=.1), every=2)])
def test_early_prune_steps(kwargs, monkeypatch):
    monkeypatch.setattr('early_prune.engine.trace', traced)
    found = []
    for cuda in (True, False):
        with pretended_cuda() as waits:
            learn,watch = learner(cuda),Watch(waits)
            method = EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=2, burst=2, proof=False, **kwargs)
            with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-3, cbs=[method, watch])
            found.append(dict(learn.model.named_parameters()))
            busy = {step for step,_ in method.record} | ({0} if hasattr(method.criterion, 'observe') else set()) # asked after the first gradients
            assert method.cut_at==1 and len(watch.seen)==18
            idle = [waited for step,waited in watch.seen if step not in busy]
            assert cuda is False or (idle and not any(idle)), idle
    same(*found)
