"""What a CPU gains by zeros: a perceptron and 1x1 convolutions, dense and with their zeros left out, in turns in one run.

    python bench/zeros.py [THREADS]

Prints, for each sparsity and batch, how many times as fast the network is, the median of rounds, and their spread."""
import copy
import sys
from statistics import median
from time import perf_counter

import torch
from torch import nn

from early_prune.criteria import magnitude
from early_prune.distributions import uniform
from early_prune.masks import Masks
from early_prune.products import skip_zeros


def mlp(): return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)), (784,)

def pointwise(): return nn.Sequential(nn.Conv2d(256, 512, 1), nn.ReLU(), nn.Conv2d(512, 256, 1)), (256, 14, 14)

def gain(build, sparsity, bs, rounds=31):
    torch.manual_seed(0)
    dense,shape = build()
    masks = Masks(dense.eval())
    masks.update(magnitude, uniform({nm:p.shape for nm,p in masks.params.items()}, sparsity)).apply()
    fast,x,times = copy.deepcopy(dense),torch.randn(bs, *shape),{}
    skips = int(skip_zeros(fast, x).skips.sum())
    with torch.inference_mode():
        for i in range(rounds+1):
            for net in (dense, fast):
                start = perf_counter()
                for _ in range(5): net(x)
                if i: times.setdefault(net, []).append(perf_counter()-start)
    each = sorted(a/b for a,b in zip(times[dense], times[fast]))
    return median(times[dense])/median(times[fast]),each[len(each)//10],each[-len(each)//10],skips

def main(threads=1):
    torch.set_num_threads(int(threads))
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}')
    for build in (mlp, pointwise):
        for sparsity in (.8, .9, .95, .98):
            for bs in (1, 32, 256) if build is mlp else (1, 8):
                times,low,high,skips = gain(build, sparsity, bs)
                print(f'{build.__name__:10} {sparsity} batch {bs:3}: {times:.2f} times as fast ({low:.2f} to {high:.2f}), {skips} layers skip')

if __name__=='__main__': main(*sys.argv[1:])
