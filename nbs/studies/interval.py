"""How long does a returned weight need? Trainings that differ in the steps between two swaps, and what becomes of newcomers.

    python nbs/studies/interval.py    # into results/interval.jsonl; stop it whenever you like, the next call goes on

5,000 images of CIFAR-10 at 32 pixels, 500 held out to judge by; the test images are not looked at. A newcomer of a swap
was inactive right before it and is active right after; it has survived when the next swap, and what is pruned before it,
leaves it active."""
import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from fastai.callback.core import Callback

from early_prune.compare import Results, Run, TRAININGS, conditions, make_learner
from early_prune.recipes import recipe

BUDGET = dict(data='cifar10', arch='narrow_resnet8', bs=64, limit=5000, valid=.1, channels_last=True)
RATES = {'one_cycle_adamw':1e-2, 'sgd_steps':.05}
INTERVALS = [15, 50, 100, 200, 400] # optimizer steps between two swaps
LENGTHS = [12, 36]                  # epochs of 78 steps: 936 and 2,808 steps

class Survival(Callback):
    "Count the newcomers of every swap, and how many of them the next one leaves active."
    order = 10.6 # right after the swap (10.5)
    def __init__(self): self.fates,self.new,self.seen = [],None,None
    def before_step(self):
        record = self.learn.sparsify.exploration
        if record is None: return
        now = {nm:m.clone() for nm,m in record.last.items()}
        if self.seen is not None and len(record.history)==self.seen[1]: return
        if self.new is not None:
            stayed = sum(int((self.new[nm] & now[nm]).sum()) for nm in now)
            self.fates.append((sum(int(m.sum()) for m in self.new.values()), stayed))
        last = record.first if self.seen is None else self.seen[0]
        self.new = {nm:now[nm] & ~last[nm] for nm in now}
        self.seen = now,len(record.history)

def measure(run):
    "Train once; accuracy on the images held out, and the survival of newcomers, mean over swaps weighted by their number."
    start,learn,watch = time.process_time(),make_learner(run),Survival()
    method = recipe(run.recipe, run.sparsity, **({} if run.every is None else dict(every=run.every)))
    with learn.no_bar(), learn.no_logging(): TRAININGS[run.training][1](learn, run.epochs, run.lr, cbs=[method, watch])
    came,stayed = (sum(o) for o in zip(*watch.fates)) if watch.fates else (0, 0)
    result = dict(accuracy=float(learn.recorder.values[-1][2]), accuracies=[float(o[2]) for o in learn.recorder.values],
                  swaps=len(watch.fates)+(watch.new is not None), newcomers=came, survived=stayed, fates=watch.fates,
                  steps=run.epochs*len(learn.dls.train), cpu_seconds=time.process_time()-start)
    return asdict(run) | dict(key=run.key) | result | conditions(torch.device('cpu'))

def in_order(seeds):
    "All trainings, seed by seed; swaps only where there is something to swap."
    for length in LENGTHS:
        for seed in range(seeds):
            for training,lr in RATES.items():
                base = Run('gmp', .95, seed, epochs=length, training=training, lr=lr, **BUDGET)
                yield from (base, replace(base, recipe='static_erk'))
                yield from (replace(base, recipe=nm, every=n) for n in INTERVALS for nm in ('granet', 'rigl'))

def main(argv=None):
    "Train what is missing."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'interval.jsonl')
    args = p.parse_args(argv)
    results = Results(args.out)
    for run in in_order(args.seeds):
        if run.key not in {r['key'] for r in results.read()}: results.add(measure(run))

if __name__=='__main__': main()
