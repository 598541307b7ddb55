"Run by `torchrun`: trains by several processes and writes what each of them holds. `ranks.py OUT CHECK ...`"
import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings('ignore', message='.*torch.jit.script.*')
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from fastai.basics import Callback, Learner, accuracy, set_seed  # noqa: E402
from fastai.callback.schedule import ParamScheduler  # noqa: E402, F401

import early_prune.callbacks as callbacks  # noqa: E402
from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback, distributed  # noqa: E402
from early_prune.checkpoint import CheckpointCallback  # noqa: E402
from early_prune.criteria import magnitude  # noqa: E402
from early_prune.data import digits  # noqa: E402
from early_prune.dependency import plain  # noqa: E402
from early_prune.masks import Masks, agree, averaged, digest, from_first, n_ranks  # noqa: E402
from early_prune.models import small_cnn  # noqa: E402
from early_prune.ranking import Neurons, taylor_bn  # noqa: E402
from early_prune.recipes import NEURON_RECIPES, RECIPES, recipe  # noqa: E402
from early_prune.schedules import agp, one_cycle  # noqa: E402
from early_prune.triggers import AtEpoch  # noqa: E402

FEW = dict(limit=256, valid_limit=120)

class Watch(Callback):
    "Notes masks or widths, and weights, after every epoch; and weights after every step when asked."
    order = 65
    def __init__(self, steps=False): self.steps,self.epochs,self.each = steps,[],[]
    def after_step(self):
        if self.steps: self.each.append(weights(self.learn.model))
    def after_epoch(self):
        net,masks = plain(self.learn.model),vars(self.learn).get('_sparsify')
        chosen = masks.masks.fingerprint() if masks is not None else digest([tuple(p.shape) for p in net.parameters()])
        self.epochs.append([chosen, sum(p.numel() for p in net.parameters()), weights(net)])

def weights(net): return digest(*(p.detach().numpy().tobytes() for p in plain(net).parameters()))

def learner(seed=0, bs=32, **kwargs):
    set_seed(seed, reproducible=True)
    return Learner(digits(bs=bs, seed=seed, device='cpu', **kwargs), small_cnn(), metrics=accuracy)

def fit(cb, epochs=2, seed=0, steps=False, bs=None, own_seed=True, **kwargs):
    learn,watch = learner(seed, bs or 64//n_ranks(), **kwargs),Watch(steps)
    if own_seed: torch.manual_seed(1000*seed+dist.get_rank()) # random scores differ where nobody shares
    with warnings.catch_warnings(), distributed(learn), learn.no_bar(), learn.no_logging():
        warnings.filterwarnings('ignore', message='Nothing was cut')
        learn.fit_one_cycle(epochs, 1e-2, cbs=[*(cb if isinstance(cb, list) else [cb] if cb else []), watch])
    return learn,watch

def values(learn): return [[float(v) for v in o] for o in learn.recorder.values]

def message(f):
    "The error that `f` raises."
    try: f()
    except (RuntimeError, ValueError) as e: return str(e)
    return 'no error'

def primitives():
    rank = dist.get_rank()
    net = torch.nn.Linear(4, 3)
    def fail(): raise ValueError('no')
    masks = Masks(torch.nn.Sequential(torch.nn.Linear(16, 16)))
    masks.share(lambda: masks.update(lambda p: torch.rand(p.shape), .5))
    own = dict(shared=from_first(lambda: [rank, 'first']), error=message(lambda: from_first(fail)),
        agree=message(lambda: agree('ranks', 7)), differ=message(lambda: agree('ranks', rank)),
        mean=averaged(lambda p: torch.full(p.shape, float(rank)), dict(w=net.weight))(net.weight).mean().item(),
        masks=masks.fingerprint(), kept=masks.n_kept)
    if rank: masks.masks['0.weight'][0,0] ^= True
    return own | dict(drift=message(lambda: masks.share(lambda: masks.update(magnitude, .6))))

def all_recipes():
    found = {}
    for nm in RECIPES: found[nm] = fit(recipe(nm, .8), **FEW)[1].epochs
    for nm in NEURON_RECIPES:
        learn,watch = fit(recipe(nm, ratio=.5, trigger=AtEpoch(1)), 2, **FEW)
        found[nm] = watch.epochs
        assert learn.early_prune.done and type(learn.model) is type(small_cnn())
    both = [recipe('at_epoch', ratio=.5, trigger=AtEpoch(1)), recipe('granet', .8)]
    found['both'] = fit(both, 2, **FEW)[1].epochs
    return found

class Measured(Neurons):
    "A budget that every process measures differently, as times are."
    def meter(self, groups, model, inputs): return lambda stay: int(stay.sum())*(1+.2*dist.get_rank())

def around_the_cut():
    learn,watch = fit(EarlyPruneCallback(Neurons(.5), taylor_bn, AtEpoch(1), steps=4, burst=6), 3, steps=True)
    measured,again = fit(EarlyPruneCallback(Measured(.3), trigger=AtEpoch(1), steps=1), 2, **FEW)
    held,silent = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), physical=False), 2, **FEW)
    return dict(steps=watch.each, epochs=watch.epochs, values=values(learn), measured=again.epochs, silent=silent.epochs,
                share=float(learn.early_prune.training_cost().training_flops['share']),
                images=sum(o['images'] for o in learn.early_prune.costs), n=len(learn.dls.train)*3*32)

class Flip(Callback):
    order,run_valid = 70,False
    def after_batch(self):
        if self.train_iter==9 and dist.get_rank(): self.sparsify.masks.masks[self.sparsify.names[0]].view(-1)[0] ^= True

class Nan(Callback):
    order,run_valid = 0,False
    def before_step(self):
        if self.train_iter==9: next(self.learn.model.parameters()).data[0] = float('nan')

def mismatches():
    rank,cut = dist.get_rank(),callbacks.cut
    def other_cut(model, groups, keep, *args):
        first = next(iter(keep))
        return cut(model, groups, keep | ({first:keep[first][:-1]} if rank else {}), *args)
    def flipped():
        learn = learner()
        with distributed(learn), learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(2, 1e-2, cbs=[SparsifyCallback(.8), Flip()])
    def diverged():
        learn = learner()
        with distributed(learn), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2, cbs=[SparsifyCallback(.8), Nan()])
    found = dict(masks=message(flipped), nan=message(diverged))
    found['plans'] = message(lambda: fit(SparsifyCallback(.8, agp if rank else one_cycle)))
    callbacks.cut = other_cut
    found['widths'] = message(lambda: fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=1)))
    callbacks.cut = cut
    def first_fails(p):
        if rank==0: raise ValueError('no scores here')
        return p.detach().abs()
    return found | dict(first=message(lambda: fit(SparsifyCallback(.8, criterion=first_fails))))

def alone():
    "Processes that train networks of their own, with different recipes, side by side."
    learn = learner(dist.get_rank())
    cb = [recipe('one_cycle', .8), recipe('granet', .7)][dist.get_rank()%2]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2, cbs=cb)
    return learn.sparsify.masks.sparsity

def data():
    from fastai.distributed import DistributedDL
    learn = learner(bs=16)
    with distributed(learn):
        dl = DistributedDL(learn.dls.train)
        epochs = [dl.get_idxs() for _ in range(2) if dl.randomize() is None]
        batches = [len(yb) for _,yb in dl]
    return dict(epochs=epochs, batches=batches, n=len(dl))

def plain_context():
    "fastai's own context, nothing of ours but the callback."
    learn,watch = learner(),Watch()
    with learn.distrib_ctx(sync_bn=False, cpu=True), learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2, cbs=[SparsifyCallback(.8), watch])
        accuracies = list(map(float, learn.validate()))
    return dict(epochs=watch.epochs, values=values(learn), validated=accuracies)

class Stop(Callback):
    run_valid = False
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.train_iter==self.at: raise KeyboardInterrupt

def resumed():
    "Whole trainings, and the same interrupted at some batch and called again."
    def train(make, *cbs):
        learn,watch = learner(**FEW),Watch()
        torch.manual_seed(dist.get_rank())
        try:
            with distributed(learn), learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 1e-2, cbs=[make(), watch, *cbs])
        except KeyboardInterrupt: return dist.barrier()
        return watch.epochs[-1]
    def pair(nm, make, at):
        path = Path(sys.argv[1], f'{nm}_{at}.safetensors')
        train(make, CheckpointCallback(path, every=1), Stop(at))
        return train(make), train(make, CheckpointCallback(path, every=1, resume=True))
    cut = lambda: recipe('epi_gradient', ratio=.5, trigger=AtEpoch(1), steps=3, burst=3)
    return dict(granet=pair('granet', lambda: recipe('granet', .9), 6), before=pair('cut', cut, 3), within=pair('cut', cut, 6),
                after=pair('cut', cut, 13))

def seeds():
    "Ten seeds of some recipes, for the slow test."
    cuts,found = dict(trigger=AtEpoch(2)),{}
    for nm,amount,kwargs in [('one_cycle', .9, {}), ('granet', .9, {}), ('snip', .9, {}), ('epi', .5, cuts), ('epi_gradient', .5, cuts)]:
        for seed in range(10):
            learn,watch = fit(recipe(nm, amount, **kwargs), 6, seed)
            found[f'{nm} {seed}'] = dict(epochs=watch.epochs, accuracy=values(learn)[-1][2])
    return found

if __name__=='__main__':
    torch.set_num_threads(1)
    warnings.filterwarnings('error') # none of our own, and none that comes from what we ask of others
    dist.init_process_group('gloo')
    out,*checks = sys.argv[1:]
    found = {nm:globals()[nm]() for nm in checks}
    Path(out, f'{dist.get_rank()}.json').write_text(json.dumps(found))
    dist.destroy_process_group()
