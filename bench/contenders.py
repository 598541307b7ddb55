"The libraries and procedures that are compared, behind one interface: `update`, `upkeep`, `kept`."
from importlib import import_module

import torch
from torch import nn
from torch.nn.utils import prune

from early_prune.criteria import magnitude
from early_prune.distributions import uniform
from early_prune.masks import Masks

TYPES = nn.Conv2d,nn.Linear

def have(name):
    "Whether a package can be imported."
    try: import_module(name)
    except ImportError: return False
    return True

def layers(model): return {nm:m for nm,m in model.named_modules() if isinstance(m, TYPES)}

class EarlyPrune:
    "`Masks`: choose with `update`, zero the weights with `apply`, then mask the gradients."
    name = 'early_prune'
    def __init__(self, model): self.masks = Masks(model, types=TYPES)
    def choose(self, sparsity): self.masks.update(magnitude, sparsity)
    def update(self, sparsity): self.masks.update(magnitude, sparsity).apply()
    def update_each(self, sparsity): self.update(uniform({nm:p.shape for nm,p in self.masks.params.items()}, sparsity))
    def upkeep(self): self.masks.mask_grads()
    def kept(self): return sum(int(m.sum()) for m in self.masks.masks.values())

class EarlyPruneChoice(EarlyPrune):
    "The choice alone: the weights are left as they are."
    name = 'early_prune, without apply'
    update = EarlyPrune.choose

class Fasterai:
    "`Sparsifier.sparsify_model`, which its callback calls at each update, and `_apply_masks`, at each step."
    name,context = 'fasterai','global'
    def __init__(self, model):
        from fasterai.core.criteria import large_final
        from fasterai.sparse.sparsifier import Sparsifier
        self.model,self.sparsifier = model,Sparsifier(model, 'weight', self.context, large_final, layer_type=TYPES)

    def update(self, sparsity): self.sparsifier.sparsify_model(sparsity)
    def upkeep(self): self.sparsifier._apply_masks()
    def kept(self): return sum(int(m._mask.sum()) for m in layers(self.model).values())

class FasteraiLocal(Fasterai):
    "The same with one threshold for each layer."
    name,context = 'fasterai, local','local'
    update_each = Fasterai.update

class TorchPrune:
    "`torch.nn.utils.prune`: a hook before each forward pass multiplies every weight by its mask."
    name = 'torch.nn.utils.prune'
    def __init__(self, model):
        self.layers = list(layers(model).values())
        self.n = self.n_kept = sum(m.weight.numel() for m in self.layers)

    def update(self, sparsity):
        k = round((1-sparsity)*self.n)
        weights = [(m, 'weight') for m in self.layers]
        prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=self.n_kept-k)
        self.n_kept = k

    def upkeep(self):
        for m in self.layers:
            for hook in m._forward_pre_hooks.values(): hook(m, None)

    def kept(self): return sum(int(m.weight_mask.sum()) for m in self.layers)

class GraNet:
    "GraNet's published procedure in our words: a sorted list of all weights, float masks, new tensors at each step."
    name = "GraNet's procedure"
    def __init__(self, model):
        self.weights = {f'{nm}.weight':m.weight for nm,m in layers(model).items()}
        self.model,self.n = model,sum(p.numel() for p in self.weights.values())
        self.masks = {nm:torch.ones_like(p) for nm,p in self.weights.items()}
        self.momentum = {}

    @torch.no_grad()
    def update(self, sparsity):
        everything = torch.cat([p.abs().flatten() for p in self.weights.values()])
        least = everything.topk(max(1, int((1-sparsity)*self.n)), sorted=True).values[-1]
        for nm,p in self.weights.items():
            self.masks[nm] = (p.abs()>least).float()
            self.masks[nm].sum().item()

    @torch.no_grad()
    def upkeep(self):
        for nm,p in self.model.named_parameters():
            if nm not in self.masks: continue
            p.data = p.data*self.masks[nm]
            if nm in self.momentum: self.momentum[nm] = self.momentum[nm]*self.masks[nm]

    def with_momentum(self):
        self.momentum = {nm:torch.zeros_like(p) for nm,p in self.weights.items()}
        return self

    def kept(self): return sum(int(m.sum()) for m in self.masks.values())

ALL = {c.name:c for c in (EarlyPrune, EarlyPruneChoice, Fasterai, FasteraiLocal, TorchPrune, GraNet)}

def present(contenders):
    "Those whose package is installed."
    return [c for c in contenders if not issubclass(c, Fasterai) or have('fasterai')]
