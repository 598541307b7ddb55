"Bytes that masks need, from the resident memory of a fresh process for each contender."
import json
import os
import subprocess
import sys
from pathlib import Path

from contenders import ALL, EarlyPrune, Fasterai, GraNet, TorchPrune, layers, present
from measure import child_env, device, spread
from nets import build

METHOD = ('VmRSS and VmHWM of a fresh process; glibc returns every block over 64 KiB at once (MALLOC_MMAP_THRESHOLD_, '
          'MALLOC_TRIM_THRESHOLD_); VmHWM is reset before the update through /proc/self/clear_refs')

def _status(field):
    for ln in Path('/proc/self/status').read_text().splitlines():
        if ln.startswith(field): return int(ln.split()[1])*1024

def can_measure():
    "Whether the networks are in the memory of the process, and this system tells it and lets its peak be reset."
    return device().type=='cpu' and os.access('/proc/self/status', os.R_OK) and os.access('/proc/self/clear_refs', os.W_OK)

def child(contender, net, sparsity):
    "Measure in this process: bytes more than before for each maskable weight, and the peak during the first update."
    cls = ALL[contender]
    warm = cls(build('wide'))
    for s in (.5, .6): warm.update(s)
    del warm
    model = build(net)
    n,before = sum(m.weight.numel() for m in layers(model).values()),_status('VmRSS')
    o = cls(model)
    got = {'after construction':_status('VmRSS')}
    Path('/proc/self/clear_refs').write_text('5')
    o.update(sparsity)
    got |= {'peak of the first update':_status('VmHWM'), 'after the first update':_status('VmRSS')}
    o.update(1-.9*(1-sparsity))
    got['after a following update'] = _status('VmRSS')
    return {nm:(v-before)/n for nm,v in got.items()}

def memory(name='resnet50', n=3, sparsity=.5):
    "Bytes per maskable weight on top of the network; a copy of the weights is 4."
    env = child_env(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536')
    if not can_measure(): return []
    rows,got = [],{}
    for cls in present((EarlyPrune, Fasterai, TorchPrune, GraNet)):
        cmd = [sys.executable, '-W', 'ignore', __file__, cls.name, name, str(sparsity)]
        outs = [subprocess.run(cmd, env=env, capture_output=True, text=True, check=True).stdout for _ in range(n)]
        got[cls.name] = [json.loads(out.splitlines()[-1]) for out in outs]
    for moment in got[EarlyPrune.name][0]:
        for nm,runs in got.items():
            values = [r[moment] for r in runs]
            rows.append(dict(table='memory', case=f'{name}, sparsity {sparsity:g}, {moment}', what=nm, unit='bytes/weight',
                             value=spread(values, 3), rounds=n, ratio=spread([v/4 for v in values], 3),
                             against='a float32 copy of the weights'))
    return rows

if __name__=='__main__': print(json.dumps(child(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
