"Timing in turns, ratios within a round, and the record of a run."
import gc
import os
import platform
import random
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

ROOT = Path(__file__).resolve().parent.parent

def child_env(**more):
    "The environment of a child process: it finds early_prune, and may store byte code."
    env = {k:v for k,v in os.environ.items() if k!='PYTHONDONTWRITEBYTECODE'}
    path = [str(ROOT), *filter(None, [env.get('PYTHONPATH')])]
    return env | {'PYTHONPATH':os.pathsep.join(path)} | more

def device():
    "Where networks and images are: the environment variable `BENCH_DEVICE`, so that child processes see it; else the CPU."
    return torch.device(os.environ.get('BENCH_DEVICE', 'cpu'))

def sync():
    "Wait for the device."
    if device().type=='cuda': torch.cuda.synchronize(device())

def timed(f, inner=1):
    "Seconds that one of `inner` calls of `f` takes until the device is done, the garbage collector off."
    gc.collect()
    gc.disable()
    sync()
    start = perf_counter()
    for _ in range(inner): f()
    sync()
    took = (perf_counter()-start)/inner
    gc.enable()
    return took

def in_turns(contenders, n, inner=1, warm=1):
    "`{name: [seconds]}` of `n` rounds, each with every contender in a new order; `warm` more rounds do not count."
    times,shuffled = {nm:[] for nm in contenders},random.Random(0)
    for i in range(n+warm):
        for nm in shuffled.sample(list(contenders), len(contenders)):
            took = timed(contenders[nm](), inner)
            if i>=warm: times[nm].append(took)
    return times

def spread(values, digits=4):
    "`[min, median, max]`, rounded to significant digits."
    return [float(f'{v:.{digits}g}') for v in (min(values), median(values), max(values))]

def to_rows(times, against, table, case, unit='ms'):
    "One row for each contender: its time, and its ratio to that of `against` in the same round."
    scale = {'ms':1e3, 'us':1e6, 's':1}[unit]
    return [dict(table=table, case=case, what=nm, unit=unit, value=spread([t*scale for t in ts]), rounds=len(ts),
                 ratio=spread([t/r for t,r in zip(ts, times[against])]), against=against) for nm,ts in times.items()]

def find(rows, **where):
    "The rows whose fields are those of `where`."
    return [r for r in rows if all(r.get(k)==v for k,v in where.items())]

def _version(nm):
    try: return version(nm)
    except PackageNotFoundError: return None

def _cpu():
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    return next((ln.split(':', 1)[1].strip() for ln in lines if ln.startswith('model name')), platform.processor())

def _device(): return torch.cuda.get_device_name(device()) if device().type=='cuda' else device().type

def machine():
    "Where a run takes place, and with which versions."
    packages = ('torch', 'torchvision', 'fastai', 'numpy', 'fasterai', 'torch-pruning', 'timm')
    return dict(cpu=_cpu(), cores=os.cpu_count(), threads=torch.get_num_threads(), system=platform.system(),
                python=platform.python_version(), device=_device(), load=[round(o, 2) for o in os.getloadavg()],
                versions={nm:v for nm in packages if (v := _version(nm))})

def show(rows):
    "The rows as text, a block for each table and case."
    lines,seen = [],None
    for r in rows:
        if (r['table'], r['case'])!=seen:
            seen = r['table'],r['case']
            head = ''.join(f'{o:>10}' for o in ('min', 'median', 'max'))
            lines += ['', f'{r["table"]}: {r["case"]}', f'  {"":42}{head} {"unit":14}ratio to {r["against"]}']
        value = ''.join(f'{v:>10.4g}' for v in r['value'])
        ratio = '{1:.3g} ({0:.3g}-{2:.3g})'.format(*r['ratio'])
        lines.append(f'  {r["what"]:42}{value} {r["unit"]:14}{ratio} {r.get("note", "")}'.rstrip())
    return '\n'.join(lines)
