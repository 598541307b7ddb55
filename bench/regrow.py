"One drop-and-regrow update at constant sparsity: a share of each layer's weights is swapped for others."
import math
from copy import deepcopy

import torch
from contenders import TYPES, layers
from measure import in_turns, to_rows
from nets import build

from early_prune import regrowth  # noqa: F401  gives Masks its `swap`
from early_prune.criteria import magnitude
from early_prune.distributions import erk
from early_prune.masks import Masks

EARLY,GRANET = 'early_prune',"GraNet's procedure"

class Early:
    "`swap` and `apply`: new masks, and zeros in the weights and in the momentum of what is off."
    def __init__(self, net, density):
        self.opt = _optimizer(net)
        self.masks = Masks(net, types=TYPES)
        shapes = {nm:p.shape for nm,p in self.masks.params.items()}
        self.masks.update(magnitude, erk(shapes, 1-density)).apply(self.opt)

    def update(self, fraction): self.masks.swap(fraction).apply(self.opt)
    def kept(self): return {nm:int(self.masks[nm].sum()) for nm in self.masks.params}

class GraNetRegrow:
    "GraNet's published update in our words: in each layer two full sorts, counts fetched one by one, float masks, new tensors."
    def __init__(self, net, density):
        self.weights = {f'{nm}.weight':m.weight for nm,m in layers(net).items()}
        shares = erk({nm:p.shape for nm,p in self.weights.items()}, 1-density)
        self.masks = {nm:_best_by_sort(p.detach().abs(), round((1-shares[nm])*p.numel())) for nm,p in self.weights.items()}
        self.momentum = {nm:s['momentum_buffer'] for nm,p in self.weights.items() for s in [_optimizer(net).state[p]]}
        self._apply()

    @torch.no_grad()
    def update(self, fraction):
        for nm,p in self.weights.items():
            n_active = self.masks[nm].sum().item()
            n_drop = math.ceil(fraction*n_active)
            order,_ = p.abs().flatten().sort()
            least = order[p.numel()-int(n_active)+n_drop-1].item()
            left = (p.abs()>least).float()
            n_new = int(n_active-left.sum().item())
            promise = p.grad.clone()*(left==0).float()
            _,idxs = promise.abs().flatten().sort(descending=True)
            left.flatten()[idxs[:n_new]] = 1.
            self.masks[nm] = left
            left.sum().item()
        self._apply()

    @torch.no_grad()
    def _apply(self):
        for nm,p in self.weights.items():
            p.data = p.data*self.masks[nm]
            self.momentum[nm] = self.momentum[nm]*self.masks[nm]

    def kept(self): return {nm:int(m.sum()) for nm,m in self.masks.items()}

def _best_by_sort(scores, k):
    mask = torch.zeros(scores.numel())
    mask[scores.flatten().argsort(descending=True, stable=True)[:k]] = 1.
    return mask.view_as(scores)

def _optimizer(net):
    opt = torch.optim.SGD(net.parameters(), .1, momentum=.9)
    for p in net.parameters(): opt.state[p]['momentum_buffer'] = torch.full_like(p, .01)
    return opt

def _with_grads(net):
    torch.manual_seed(1)
    for p in net.parameters(): p.grad = torch.randn_like(p)
    return net

def _prepare(cls, net, density, fraction):
    def prepare():
        copied = deepcopy(net)
        for a,b in zip(copied.parameters(), net.parameters()): a.grad = b.grad
        contender = cls(copied, density)
        return lambda: contender.update(fraction)
    return prepare

def regrow(name='resnet50', n=7, densities=(.5, .2, .1, .05), fraction=.3):
    "Swap `fraction` of the active weights of each layer, ERK densities, with momentum."
    net,rows = _with_grads(build(name)),[]
    for d in densities:
        fs = {EARLY:_prepare(Early, net, d, fraction), GRANET:_prepare(GraNetRegrow, net, d, fraction)}
        rows += to_rows(in_turns(fs, n), EARLY, 'regrow', f'{name}, density {d:g}, drop fraction {fraction:g}')
    return rows
