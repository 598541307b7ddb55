"Find the neurons, cut 30 % of them, cut again: seconds and peak memory against Torch-Pruning."
import gc
import json
import random
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from time import perf_counter

import torch
from contenders import have
from measure import child_env, device, spread, timed, to_rows
from memory import _status, can_measure
from nets import build
from torch import nn

from early_prune.criteria import rms_magnitude
from early_prune.dependency import trace
from early_prune.ranking import Neurons, rank, scores
from early_prune.surgery import cut

RATIO = .3 # share of the neurons that each cut removes
NETS = dict(resnet18=7, resnet50=7, resnet152=5, densenet121=5, densenet201=3, mobilenet_v2=7, mobilenet_v3_large=7,
            convnext_tiny=5, vit_b_16=5, unet=5, dynamic_unet=5) # rounds; Torch-Pruning needs a minute for densenet201
PEAK = dict.fromkeys(NETS, 3) | dict(densenet121=1, densenet201=1)
NEED_224 = 'vit_b_16',

def example(name): return torch.randn(1, 3, *(2*[224 if name in NEED_224 else 64])).to(device())

class EarlyPrune:
    "`trace`, `scores`, `rank` and `cut`, the same share of each group; the second cut starts from the table that the first one left."
    name = 'early_prune'
    def __init__(self, net, x): self.net,self.x = net,x
    def first(self):
        self.groups = trace(self.net, self.x)
        self.second()
    def second(self):
        keep = rank(self.groups, scores(self.net, self.groups, rms_magnitude), Neurons(RATIO), per_group=True)
        self.groups = cut(self.net, self.groups, keep)

class TorchPruning:
    "`BasePruner` and its `step`, L2 magnitude, the same share of each group; the last layer is ignored, as it must be."
    name = 'torch-pruning'
    def __init__(self, net, x): self.net,self.x = net,x
    def first(self):
        import torch_pruning as tp
        heads = getattr(getattr(getattr(self.net, 'encoder', None), 'layers', [None])[0], 'num_heads', None)
        self.pruner = tp.pruner.BasePruner(
            self.net, self.x, tp.importance.GroupMagnitudeImportance(p=2), iterative_steps=2,
            pruning_ratio=1-(1-RATIO)**2, iterative_pruning_ratio_scheduler=lambda ratio, n: [0, RATIO, ratio],
            ignored_layers=last_layers(self.net), round_to=heads)
        self.second()
    def second(self):
        self.pruner.step()
        if hasattr(self.net, 'hidden_dim'): self.net.hidden_dim = self.net.conv_proj.out_channels # its forward needs it

ALL = {c.name:c for c in (EarlyPrune, TorchPruning)}

def last_layers(net):
    "The layer that makes the output."
    return [[m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]]

def present(): return [c for c in ALL.values() if c is EarlyPrune or have('torch_pruning')]

def _attempt(cls, net, x):
    "Seconds of the first and the second cut, and what went wrong, if anything."
    o,took,step = cls(deepcopy(net), x),{},''
    try:
        for step in ('first', 'second'):
            start = perf_counter()
            try: took[step] = timed(getattr(o, step))
            except Exception:
                took[step] = perf_counter()-start
                gc.enable()
                raise
            with torch.no_grad(): o.net.eval()(x)
    except Exception as e: # whatever another library raises is a result
        if cls is EarlyPrune: raise
        return took,f'{type(e).__name__} in the {step} cut: {(str(e).splitlines() or [""])[0][:120]}',o
    return took,'',o

def _left(o, net): return sum(p.numel() for p in o.net.parameters())/sum(p.numel() for p in net.parameters())

def one_net(name, n, warm=1):
    "Rounds in which each contender makes both cuts of one copy of the network, in a new order."
    net,x,shuffled = build(name).eval(),example(name),random.Random(0)
    times,notes = {'first':{}, 'second':{}},{}
    for i in range(n+warm):
        for cls in shuffled.sample(present(), len(present())):
            if cls.name in notes and 'failed' in notes[cls.name] and i>warm: continue
            took,error,o = _attempt(cls, net, x)
            notes[cls.name] = f'failed: {error}' if error else f'{_left(o, net):.2f} of the parameters left'
            if i>=warm:
                for step,s in took.items(): times[step].setdefault(cls.name, []).append(s)
    rows = []
    for step,case in (('first', 'trace and first cut'), ('second', 'second cut')):
        rows += [r | dict(note=notes[r['what']]) for r in to_rows(times[step], EarlyPrune.name, 'surgery', f'{name}, {case}')]
    return rows

def child(contender, name):
    "Measure in this process: MB more than before, at the peak of trace and first cut, and of the second cut."
    cls = ALL[contender]
    warm = cls(build('tiny').eval(), example('tiny'))
    warm.first()
    warm.second()
    o,got = cls(build(name).eval(), example(name)),{}
    with torch.no_grad(): o.net(o.x)
    for step in ('first', 'second'):
        before = _status('VmRSS')
        Path('/proc/self/clear_refs').write_text('5')
        getattr(o, step)()
        got[step] = (_status('VmHWM')-before)/1e6
    return got

def peaks(name, n):
    "Peak memory on top of the network, in a fresh process for each contender; one that fails is left out."
    env,got = child_env(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536'),{}
    for cls in present():
        cmd = [sys.executable, '-W', 'ignore', __file__, cls.name, name]
        done = [subprocess.run(cmd, env=env, capture_output=True, text=True) for _ in range(n)]
        if all(o.returncode==0 for o in done): got[cls.name] = [json.loads(o.stdout.splitlines()[-1]) for o in done]
    rows = []
    for step,case in (('first', 'trace and first cut'), ('second', 'second cut')):
        for nm,runs in got.items():
            values,least = [max(r[step], .1) for r in runs],max(.1, min(r[step] for r in got[EarlyPrune.name]))
            rows.append(dict(table='surgery memory', case=f'{name}, peak of {case}', what=nm, unit='MB', value=spread(values, 3),
                             rounds=n, ratio=spread([v/least for v in values], 3), against=EarlyPrune.name))
    return rows

def surgery(nets=NETS, peak=PEAK, warm=1):
    "Both cuts of each network, then their peak memory."
    rows = []
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=UserWarning)
        for name,n in nets.items(): rows += one_net(name, n, warm)
    for name,n in peak.items() if can_measure() else (): rows += peaks(name, n)
    return rows

if __name__=='__main__': print(json.dumps(child(*sys.argv[1:])))
