"""The studies on real images: which trainings, on which budget, in which order of value.

    python nbs/studies/protocol.py                                    # the budget of a CPU, into its file of results
    python nbs/studies/protocol.py --arch cifar_resnet18 --epochs 160 --bs 128 --limit 0 --out resnet18.jsonl

Stop it whenever you like: finished trainings are kept, and the next call goes on. Several processes may share a file."""
import argparse
from itertools import product
from pathlib import Path

from early_prune.compare import Run, make_runs, train_runs

# The budget of a CPU. Nothing in it was tuned.
SMALL = dict(data='cifar10', arch='resnet8', epochs=12, lr=1e-2, bs=64, limit=5000, valid=.1, bf16=True,
             channels_last=True)
ONE_CYCLE = ['dense', 'one_shot', 'iterative', 'agp', 'one_cycle']
GRANET = ['dense', 'static_erk', 'set', 'rigl', 'gmp', 'granet', 'granet_sparse', 'snip', 'grasp', 'synflow']
RULES,MOMENTS = ['epi', 'epi_gradient'],[0, 1, 2, 4, 8]

def one_cycle(sparsities, seeds=3, **budget):
    "Four schedules and the dense network (Hubens et al., 2022)."
    return make_runs(ONE_CYCLE, sparsities, seeds, **budget)

def granet(sparsities, seeds=3, **budget):
    "Sparse from the beginning, made sparse, and sparse before training (Liu et al., 2021; Evci et al., 2020)."
    return make_runs(GRANET, sparsities, seeds, **budget)

def when_to_prune(ratios, seeds=3, moments=MOMENTS, **budget):
    "Each rule, each fixed moment with the criterion of the rule, and Early-Bird (Shen et al., 2022)."
    cells = [(rule, at) for rule,at in product(RULES, [None, *moments])] + [('early_bird', None)]
    return [Run(nm, r, seed, at_epoch=at, **budget) for seed,r,(nm,at) in product(range(seeds), ratios, cells)]

def in_order(seeds=3, **budget):
    "All trainings of the studies, the most telling first; within a part seed by seed."
    parts = [(one_cycle, .95), (granet, .95), (when_to_prune, .5), (one_cycle, .9), (granet, .98), (one_cycle, .8),
             (when_to_prune, .3), (when_to_prune, .7), (granet, .9)]
    runs = [f([s], seeds, **budget) for f,s in parts]
    first = sorted(runs[0]+runs[1], key=lambda r: r.seed)
    return list(dict.fromkeys([*first, *(r for part in runs[2:] for r in part)]))

def parser():
    "Arguments: the budget, and where to put what comes out."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for nm in ('data', 'arch'): p.add_argument(f'--{nm}', default=SMALL[nm])
    for nm in ('epochs', 'bs', 'limit'): p.add_argument(f'--{nm}', type=int, default=SMALL[nm], help='0: all images' if nm=='limit' else None)
    for nm in ('lr', 'valid'): p.add_argument(f'--{nm}', type=float, default=SMALL[nm])
    for nm in ('bf16', 'channels-last'): p.add_argument(f'--{nm}', action=argparse.BooleanOptionalAction, default=True)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--n-jobs', type=int, default=1, help='processes, one thread each when there are several')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'cifar10_5000.jsonl')
    return p

def main(argv=None):
    "Train what is missing."
    args = vars(parser().parse_args(argv))
    seeds,n_jobs,out = (args.pop(nm) for nm in ('seeds', 'n_jobs', 'out'))
    runs = in_order(seeds, **(args | dict(limit=args['limit'] or None)))
    print(train_runs(runs, out, n_jobs))

if __name__=='__main__': main()
