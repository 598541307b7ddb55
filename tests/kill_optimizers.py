"Twelve trainings side by side that write a file after each step: `kill_optimizers.py FOLDER STEPS [slowly]`. It goes on where files are."
import sys
import time
from pathlib import Path

import optimizers_zoo as zoo
import torch

from early_prune.checkpoint import read_state, write_state
from early_prune.criteria import magnitude
from early_prune.masks import Masks
from early_prune.optimizers import load_memory, memory_state

# Chosen for what they keep: factors, a step size for each weight, lists of slow weights, two optimizers, groups, counters.
NAMES = ['torch/Adafactor', 'torch/Rprop', 'torch/ASGD', 'torch/RAdam', 'torch/AdamW amsgrad', 'torch/Muon and AdamW', 'torch/two groups',
         'fastai/ranger', 'fastai/Lookahead of OptimWrapper', 'fastai/Larc', 'fastai/QHAdam', 'torch/RMSprop centered']

def begin(entry, path):
    "The training, or what is left of it."
    training = zoo.begin(entry, torch.float64, False)
    training.masks = Masks(training.net).update(magnitude, .5).apply(training.opt)
    if not path.exists(): return training
    state = read_state(path)
    training.net.load_state_dict(state['net'])
    training.masks.adopt(state['masks'])
    load_memory(training.opt, state['optimizer'])
    training.n,training.masks.pending = state['n'],False
    return training

def main(folder, steps, slowly=''):
    paths = {nm:Path(folder, nm.replace('/', ' ')+'.safetensors') for nm in NAMES}
    known = zoo.zoo()
    trainings = {nm:begin(known[nm], path) for nm,path in paths.items()}
    while any(t.n<int(steps) for t in trainings.values()):
        for nm,t in trainings.items():
            if t.n>=int(steps): continue
            t.step()
            write_state(paths[nm], dict(optimizer=memory_state(t.opt), net=dict(t.net.state_dict()), masks=dict(t.masks.masks), n=t.n))
            if slowly: time.sleep(.02)

if __name__=='__main__': main(*sys.argv[1:])
