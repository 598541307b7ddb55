"What masks cost at each training step, between two updates."
from copy import deepcopy

import torch
from contenders import EarlyPrune, Fasterai, GraNet, TorchPrune, have, present
from measure import in_turns, to_rows
from nets import build

FLOAT = 'one _foreach_mul_, float masks'

def _ready(cls, net, sparsity):
    contender = cls(deepcopy(net))
    contender.update(sparsity)
    return contender

def _float_masks(early):
    pairs = [(torch.randn_like(p), early.masks.masks[nm].float()) for nm,p in early.masks.params.items()]
    grads,masks = map(list, zip(*pairs))
    @torch.no_grad()
    def scale(): torch._foreach_mul_(grads, masks)
    return scale

def upkeep(names=('resnet18', 'resnet50', 'vit_small_patch16_224'), n=15, inner=20, sparsity=.9):
    "Masking gradients (early_prune), weights (fasterai), weights and momentum (GraNet), or each forward pass (torch)."
    rows = []
    for name in names:
        if name.startswith('vit') and not have('timm'): continue
        net = build(name)
        ready = {c.name:_ready(c, net, sparsity) for c in present((EarlyPrune, Fasterai, TorchPrune, GraNet))}
        early,granet = ready[EarlyPrune.name],ready[GraNet.name].with_momentum()
        for p in early.masks.params.values(): p.grad = torch.randn_like(p)
        fs = {nm:o.upkeep for nm,o in ready.items()} | {FLOAT:_float_masks(early)}
        fs[f'{granet.name}, without momentum'] = _ready(GraNet, net, sparsity).upkeep
        times = in_turns({nm:(lambda f=f: f) for nm,f in fs.items()}, n, inner)
        rows += to_rows(times, FLOAT, 'upkeep', f'{name}, sparsity {sparsity:g}')
    return rows
