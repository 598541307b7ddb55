"""How the second moment of a weight that returns should begin: at zero, kept, or at the mean of its layer.

    python nbs/studies/returning.py     # 36 trainings on 5,000 images of CIFAR-10, into results/returning.jsonl

Stop it whenever you like: finished trainings are kept, and the next call goes on."""
import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import process_time

import torch
from fastai.callback.schedule import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed

from early_prune.callbacks import SparsifyCallback
from early_prune.compare import conditions
from early_prune.data import cifar10
from early_prune.distributions import erk
from early_prune.models import resnet
from early_prune.regrowth import by_gradient, kept_amount, mean_amount
from early_prune.schedules import Schedule, sched_cosine

RESULTS = Path(__file__).parent/'results'/'returning.jsonl'
AMOUNTS = dict(zero=None, kept=kept_amount, mean=mean_amount)
BUDGET = dict(data='cifar10', limit=5000, arch='resnet8, width 8', epochs=8, bs=128, lr=1e-2, sparsity=.95, every=10)

def method(name, amount):
    "The callback of a training."
    swaps = replace(by_gradient, amount=AMOUNTS[amount])
    if name=='granet': return SparsifyCallback(.95, regrowth=swaps, every=BUDGET['every'])
    swaps = replace(swaps, drop_fraction=.3, last=0., schedule=Schedule(sched_cosine, end_pct=.75))
    return SparsifyCallback(.95, distribution=erk, regrowth=swaps, every=BUDGET['every'], start=.95)

def train(name, amount, seed):
    "The record of one training."
    set_seed(seed, reproducible=True)
    dls = cifar10(bs=BUDGET['bs'], limit=BUDGET['limit'], valid_limit=2000, seed=seed)
    learn,start = Learner(dls, resnet(8, n_in=3, width=8), CrossEntropyLossFlat(), metrics=accuracy),process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(BUDGET['epochs'], BUDGET['lr'], cbs=method(name, amount))
    loss,acc = (float(o) for o in learn.recorder.values[-1][1:3])
    return dict(recipe=name, amount=amount, seed=seed, optimizer='Adam of fastai', accuracy=acc, valid_loss=loss,
                seconds=round(process_time()-start, 1), **BUDGET, conditions=conditions(torch.device('cpu')))

def main(argv=None):
    "Train what is missing."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=RESULTS)
    out = parser.parse_args(argv).out
    done = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    seen = {(r['recipe'], r['amount'], r['seed']) for r in done}
    for seed,name,amount in product(range(6), ('rigl', 'granet'), AMOUNTS):
        if (name, amount, seed) in seen: continue
        record = train(name, amount, seed)
        with open(out, 'a') as f: f.write(json.dumps(record)+'\n')

if __name__=='__main__': main()
