"What a cut saves of a whole training: images a second and peak memory of ResNet-50, dense and after cuts."
import json
import subprocess
import sys
from time import perf_counter

import torch
import torch.nn.functional as F
from measure import child_env, device, spread, sync
from memory import _status
from nets import build
from torch.profiler import ProfilerActivity, profile

from early_prune.criteria import rms_magnitude
from early_prune.dependency import trace
from early_prune.ranking import Flops, rank, scores
from early_prune.surgery import cut


def child(name, bs, size, ratio, n):
    "Measure in this process: seconds of each training step after a cut of `ratio` of the FLOPs, what is left, peak MB."
    net,x = build(name),torch.randn(bs, 3, size, size).to(device())
    optimizer,y = torch.optim.SGD(net.parameters(), lr=.01, momentum=.9),torch.randint(0, 10, (bs,)).to(device())
    left = _cut(net, x[:1], ratio, optimizer) if ratio else 1.
    cuda = device().type=='cuda'
    if cuda: torch.cuda.reset_peak_memory_stats()
    took = [_step(net, x, y, optimizer) for _ in range(n+2)][2:]
    peak = torch.cuda.max_memory_allocated()/1e6 if cuda else _status('VmHWM')/1e6
    return dict(seconds=took, left=left, peak=peak, params=sum(p.numel() for p in net.parameters()),
                parts=_parts(lambda: _step(net, x, y, optimizer)))

def _parts(step):
    "Milliseconds of one step by kind of operator; the profiler is on, so that their sum is more than a step."
    on = ProfilerActivity.CUDA if device().type=='cuda' else ProfilerActivity.CPU
    with profile(activities={ProfilerActivity.CPU, on}) as p: step()
    kinds,parts = dict(convolutions='conv', norms='batch_norm'),dict(convolutions=0, norms=0, rest=0)
    for e in p.key_averages():
        kind = next((k for k,part in kinds.items() if part in e.key), 'rest')
        parts[kind] += (e.self_device_time_total if on==ProfilerActivity.CUDA else e.self_cpu_time_total)/1e3
    return parts

def _cut(net, x, ratio, optimizer):
    groups = trace(net, x)
    keep = rank(groups, scores(net, groups, rms_magnitude), Flops(ratio), net, (x,), round_to=8, floor=.1)
    count = Flops(ratio).meter(groups, net, (x,))
    left = count(groups.stay(keep))/count(groups.stay({}))
    cut(net, groups, keep, optimizer)
    return left

def _step(net, x, y, optimizer):
    start = perf_counter()
    optimizer.zero_grad()
    F.cross_entropy(net(x)[:, :10], y).backward()
    optimizer.step()
    sync()
    return perf_counter()-start

def training(name='resnet50', bs=4, size=224, ratios=(0., .1, .3, .5, .7), n=5):
    "Rows of images a second, peak memory and kinds of operators, each case in a process of its own; the ratio is to the dense network."
    got = {}
    for ratio in ratios:
        cmd = [sys.executable, '-W', 'ignore', __file__, name, *map(str, (bs, size, ratio, n))]
        out = subprocess.run(cmd, env=child_env(), capture_output=True, text=True, check=True).stdout
        got[ratio] = json.loads(out.splitlines()[-1])
    rows,dense,case = [],got[ratios[0]],f'{name}, {bs} images of {size} x {size}, {device().type}'
    slow = sorted(dense['seconds'])[len(dense['seconds'])//2]
    for ratio,o in got.items():
        what = 'dense' if not ratio else f'after a cut of {ratio:.0%} of the FLOPs'
        note = f'{o["left"]:.3f} of the FLOPs, {o["params"]/dense["params"]:.3f} of the parameters'
        more = dict(table='training', what=what, against='dense', flops_left=o['left'], note=note)
        rows.append(dict(case=case, unit='images/s', value=spread([bs/s for s in o['seconds']]), rounds=n,
                         ratio=spread([slow/s for s in o['seconds']]), **more))
        rows.append(dict(case=f'{case}, peak memory', unit='MB', value=spread([o['peak']]), rounds=1,
                         ratio=spread([o['peak']/dense['peak']]), **more))
        rows += [dict(case=f'{case}, {kind}', unit='ms', value=spread([ms]), rounds=1,
                      ratio=spread([ms/dense['parts'][kind]]), **more) for kind,ms in o['parts'].items()]
    return rows

if __name__=='__main__':
    name,bs,size,ratio,n = sys.argv[1:]
    print(json.dumps(child(name, int(bs), int(size), float(ratio), int(n))))
