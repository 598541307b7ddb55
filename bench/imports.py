"How long an import takes in a fresh process, and what it drags in."
import re
import subprocess
import sys

from contenders import have
from measure import child_env, to_rows

MODULES = ('torch', 'early_prune', 'early_prune.schedules', 'early_prune.core', 'early_prune.criteria',
           'early_prune.masks', 'early_prune.callbacks', 'early_prune.all', 'fastai.callback.core', 'fasterai.sparse.all')
HEAVY = 'torch', 'fastai', 'torchvision', 'matplotlib', 'pandas', 'scipy', 'numpy', 'timm'
ASK = ('import time; start = time.perf_counter(); import {}; took = time.perf_counter()-start; import sys; '
       'print(took, *[m for m in {!r} if m in sys.modules])')

def _run(*args):
    cmd = [sys.executable, '-W', 'ignore', *args]
    return subprocess.run(cmd, env=child_env(), capture_output=True, text=True, check=True)

def once(module):
    "Seconds to import `module`, and the heavy packages that came along."
    took,*along = _run('-c', ASK.format(module, HEAVY)).stdout.split()
    return float(took),along

def longest(module, n=5):
    "The packages that take longest below `module`, `{name: seconds}`, from `python -X importtime`."
    log = _run('-X', 'importtime', '-c', f'import {module}').stderr
    found = re.findall(r'import time:\s*\d+ \|\s*(\d+) \|\s+([\w.]+)$', log, re.M)
    tops = [(int(us)/1e6, nm) for us,nm in found if '.' not in nm or nm.startswith('early_prune')]
    return {nm:round(s, 3) for s,nm in sorted(tops, reverse=True)[:n]}

def imports(modules=MODULES, n=7):
    "The import of each module, in turns; the first round writes byte code and does not count."
    modules = [m for m in modules if not m.startswith('fasterai') or have('fasterai')]
    times,along = {m:[] for m in modules},{}
    for i in range(n+1):
        for m in modules:
            took,along[m] = once(m)
            if i: times[m].append(took)
    rows = to_rows(times, 'torch', 'import', 'fresh process', 's')
    for r in rows: r['note'] = 'with ' + ', '.join(along[r['what']]) if along[r['what']] else 'alone'
    return rows
