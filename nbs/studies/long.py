"""The regime of the papers on one core: long trainings of a narrow network on all images.

    python nbs/studies/long.py                        # SGD with steps, then one-cycle AdamW, into results/long_cifar10.jsonl
    python nbs/studies/long.py --data fashion_mnist

Stop it whenever you like: finished trainings are kept, and the next call goes on. Several processes may share a file.

The budget was written before the first run and not tuned, but for the size of the images: at 32 pixels one training took
ten minutes, and six of 66 were run and put aside; at 16 pixels, each the mean of a square of four, it takes three to four.
ResNet-8 with half its channels, because the full one takes twice as long; 15 epochs of 45,000 images in batches of 64 are
10,545 steps, 5,000 images are held out to choose by, and the test images are looked at once. SGD: the rate .1 of batches
of 128 (GraNet) is .05 for batches of 64. float32, because bfloat16 takes twice as long on a processor without
instructions for it."""
import argparse
from pathlib import Path

from early_prune.compare import Run, make_runs, train_runs

LONG = dict(arch='narrow_resnet8', epochs=15, bs=64, valid=.1, channels_last=True, shrink=2)
TRAININGS = {'sgd_steps':.05, 'one_cycle_adamw':1e-2} # largest learning rate of each
GRADUAL = ['dense', 'one_cycle', 'one_shot', 'iterative', 'agp']
KEPT = ['gmp', 'static_erk']                           # no interval between swaps in them
DYNAMIC = ['granet', 'rigl', 'set', 'granet_sparse']
MOMENTS = [0, 2, 5, 10, 15]

def masked(recipes, sparsity, seeds, training, **budget):
    "Trainings at one sparsity, seed by seed."
    return make_runs(recipes, sparsity, seeds, training=training, lr=TRAININGS[training], **(LONG | budget))

def cut(ratio, seeds, training, **budget):
    "EPI, cuts at fixed epochs with its criterion, and at initialisation; 30 epochs, so that the rule has room."
    where = LONG | dict(epochs=30, training=training, lr=TRAININGS[training]) | budget
    return [Run('epi', ratio, seed, at_epoch=at, **where) for seed in range(seeds) for at in (None, *MOMENTS)]

def in_order(seeds=3, **budget):
    "All trainings, the most telling first; within a part seed by seed."
    parts = [masked(GRADUAL+KEPT, .95, seeds, 'sgd_steps', **budget), masked(DYNAMIC, .95, seeds, 'sgd_steps', **budget),
             masked(GRADUAL+KEPT, .95, seeds, 'one_cycle_adamw', **budget),
             masked(DYNAMIC, .95, seeds, 'one_cycle_adamw', **budget)]
    for s in (.9, .98):
        parts += [masked(GRADUAL+KEPT+DYNAMIC, s, seeds, training, **budget) for training in TRAININGS]
    parts += [cut(ratio, seeds, 'sgd_steps', **budget) for ratio in (.5, .3, .7)]
    return list(dict.fromkeys(run for part in parts for run in part))

def main(argv=None):
    "Train what is missing."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='cifar10', help='`cifar10` or `fashion_mnist`')
    p.add_argument('--recipes', nargs='+', help='Only these')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--n-jobs', type=int, default=1, help='Processes, one thread each when there are several')
    p.add_argument('--out', type=Path, help='File of results; left out: named after the data')
    args = p.parse_args(argv)
    out = args.out or Path(__file__).parent/'results'/f'long_{args.data}.jsonl'
    runs = [r for r in in_order(args.seeds, data=args.data) if args.recipes is None or r.recipe in args.recipes]
    print(train_runs(runs, out, args.n_jobs, show_progress=False))

if __name__=='__main__': main()
