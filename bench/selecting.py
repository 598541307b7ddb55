"One mask update: all layers compete, or each layer for itself; and how many weights a tie leaves."
from copy import deepcopy

import torch
from contenders import EarlyPrune, EarlyPruneChoice, Fasterai, FasteraiLocal, GraNet, TorchPrune, layers, present
from measure import in_turns, to_rows
from nets import build

RANKED = EarlyPrune,EarlyPruneChoice,Fasterai,TorchPrune,GraNet
EACH   = EarlyPrune,FasteraiLocal

def _prepare(cls, net, sparsity, after=None, method='update'):
    def prepare():
        contender = cls(deepcopy(net))
        update = getattr(contender, method)
        if after is not None:
            getattr(contender, method)(after)
            if hasattr(contender, 'masks'): _zero(contender)
        return lambda: update(sparsity)
    return prepare

@torch.no_grad()
def _zero(contender):
    if isinstance(contender, EarlyPrune): contender.masks.apply()
    else: contender.upkeep()

def _primitives(net, density):
    flat = torch.cat([m.weight.detach().abs().flatten() for m in layers(net).values()])
    k = round(density*flat.numel())
    ops = {'kthvalue of the vector':lambda: flat.kthvalue(flat.numel()-k+1),
           'topk(sorted) of the vector':lambda: flat.topk(k, sorted=True), 'sort of the vector':lambda: flat.sort()}
    return {nm:(lambda f=f: f) for nm,f in ops.items()}

def _following(rows, contenders, net, n, case, method, d, share):
    later = {c.name:_prepare(c, net, 1-share*d, after=1-d, method=method) for c in contenders}
    rows += to_rows(in_turns(later, n), EarlyPrune.name, 'select', f'{case}, density {d:g} to {share*d:g}, following update')

def select(name='resnet50', n=7, densities=(.9, .5, .1), small=(.5,)):
    "The update of all layers together: the first one, one that prunes a tenth of what is left, a small step."
    net,contenders,rows,case = build(name),present(RANKED),[],f'{name}, global'
    for d in densities:
        first = {c.name:_prepare(c, net, 1-d) for c in contenders} | _primitives(net, d)
        rows += to_rows(in_turns(first, n), EarlyPrune.name, 'select', f'{case}, density {d:g}, first update')
        _following(rows, contenders, net, n, case, 'update', d, .9)
    for d in small: _following(rows, contenders, net, n, case, 'update', d, .998)
    return rows

def select_each(name='resnet50', n=7, densities=(.9, .5, .1)):
    "The update of each layer for itself, the same sparsity for all."
    net,contenders,rows,case = build(name),present(EACH),[],f'{name}, uniform'
    for d in densities:
        first = {c.name:_prepare(c, net, 1-d, method='update_each') for c in contenders}
        rows += to_rows(in_turns(first, n), EarlyPrune.name, 'select', f'{case}, density {d:g}, first update')
        _following(rows, contenders, net, n, case, 'update_each', d, .9)
    return rows

@torch.no_grad()
def _levels(net, levels):
    for m in layers(net).values():
        size = m.weight.abs()
        m.weight.copy_((size/size.max()*levels).ceil().clamp(1, levels))
    return net

def ties(name='resnet50', density=.5, levels=(1, 16)):
    "How many weights each contender keeps when many are equal, as a ratio to how many were asked for."
    rows = []
    for n_levels in levels:
        net = _levels(build(name), n_levels)
        asked = round(density*sum(m.weight.numel() for m in layers(net).values()))
        for cls in present((EarlyPrune, Fasterai, TorchPrune, GraNet)):
            contender = cls(deepcopy(net))
            contender.update(1-density)
            kept = contender.kept()
            rows.append(dict(table='ties', case=f'{name}, global, density {density:g}, different values: {n_levels}',
                             what=cls.name, unit='weights kept', value=[kept]*3, rounds=1, ratio=[kept/asked]*3,
                             against='asked for'))
    return rows
