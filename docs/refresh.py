"""Run notebooks again and store their outputs. Run in the root of the repository:

    python docs/refresh.py                                # every notebook below nbs/
    python docs/refresh.py nbs/03_criteria.ipynb          # one, or a folder
    python docs/refresh.py --flags slow nbs/studies       # with the cells that `tst_flags` leaves out

Each notebook gets a fresh kernel in its own folder. Cells marked `#| eval: false` or by a flag of `tst_flags` keep the
outputs they have, as do notebooks with `skip_exec: true`. A cell marked `#| measured` is run, but what it once stored
(a latency, say) stays until `--measure`. A second run changes nothing: hash seeds and threads are fixed, pictures carry
no date, standard error and progress bars are dropped, and a training table that differs in its times only is kept."""
import argparse
import copy
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbdev.clean import nbdev_clean
from nbdev.config import get_config

from bridge import directives, notebooks_in, text

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 100_000 # bytes of a picture as SVG; a heavier one is stored as PNG

KERNEL_CONFIG = """
c = get_config()
c.InlineBackend.figure_formats = {'svg', 'png'}
c.InlineBackend.print_figure_kwargs = {'bbox_inches': 'tight', 'metadata': {'Date': None}}
c.HistoryManager.enabled = False
"""

# The kernel ---------------------------------------------------------------------------------------

def environment(ipython_dir):
    "Variables of a kernel whose outputs depend on the notebook alone."
    keep = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'MPLBACKEND', 'PYTHONSTARTUP')}
    path = os.pathsep.join([str(ROOT)] + [o for o in [os.environ.get('PYTHONPATH')] if o])
    return keep | {'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'PYTHONHASHSEED': '0', 'PYTHONPATH': path,
                   'COLUMNS': '100', 'IPYTHONDIR': str(ipython_dir),
                   'PYTHONWARNINGS': 'ignore::FutureWarning,ignore::DeprecationWarning',
                   'JUPYTER_PLATFORM_DIRS': '1', 'PYDEVD_DISABLE_FILE_VALIDATION': '1'}

class Client(NotebookClient):
    "Runs the cells that are due and leaves the others as they are."
    skip = frozenset()

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.cell_type == 'code' and keeps_outputs(cell.source, self.skip): return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)

def keeps_outputs(source, flags):
    "Whether nbdev_test would pass over a cell, too."
    d, code = directives(source)
    return not code.strip() or 'nbdev_export(' in code or d.get('eval', '').lower() == 'false' or bool(flags & d.keys())

def skips(nb):
    "Whether a notebook asks, in its front matter, not to be run."
    first = next((c.source for c in nb.cells if c.cell_type in ('raw', 'markdown')), '')
    return bool(re.search(r'^(?:- )?skip_exec:\s*true', first, re.M | re.I))

# Outputs ------------------------------------------------------------------------------------------

def stable_html(html):
    "Without style sheets, and without the random names that a pandas Styler gives to its cells."
    html = re.sub(r'\s*<style\b.*?</style>\s*', '', html, flags=re.S)
    return re.sub(r' id="T_[0-9a-f]{5}[^"]*"', '', html)

def stable_svg(svg, seed):
    """With identifiers that depend on the place of the picture in the book.

    Those of matplotlib depend on positions to the last bit, which a constrained layout does not reproduce."""
    ids = dict.fromkeys(re.findall(r'\bid="([A-Za-z]+[0-9a-f]{10})"', svg))
    new = {o: o[:-10] + hashlib.sha1(f'{seed} {i}'.encode()).hexdigest()[:10] for i, o in enumerate(ids)}
    return re.sub(r'\b[A-Za-z]+[0-9a-f]{10}\b', lambda m: new.get(m[0], m[0]), svg)

def tidy(outputs, seed=''):
    "Outputs as they are stored; `seed` tells pictures of different cells apart."
    res = []
    for i, o in enumerate(outputs):
        if o.output_type == 'stream' and o.name == 'stderr': continue
        if 'data' in o:
            d = o.data
            o.metadata = nbformat.NotebookNode()
            if 'text/html' in d: d['text/html'] = stable_html(text(d['text/html']))
            if re.match(r'$|\s*(?:<div>\s*)?<progress', d.get('text/html', 'x')): continue
            if 'image/svg+xml' in d: d['image/svg+xml'] = stable_svg(text(d['image/svg+xml']), f'{seed} {i}')
            if 'image/svg+xml' in d and 'image/png' in d:
                del d['image/png' if len(text(d['image/svg+xml'])) <= LIMIT else 'image/svg+xml']
            if 'text/html' in d: d.pop('text/markdown', None) # fastprogress writes its table three times
            if len(d) > 1 and re.match(r'<(Figure size|IPython\.core|pandas\.io|div>)', text(d.get('text/plain', ''))):
                del d['text/plain']
        res.append(o)
    return res

TIME = re.compile(r'<td>\d+:\d\d(?::\d\d)?</td>')

def same_but_times(a, b):
    "Whether two lists of outputs differ in the time column of a training table at most."
    def plain(outs): return TIME.sub('', json.dumps([dict(o, execution_count=None) for o in outs], sort_keys=True))
    return plain(a) == plain(b)

PRIVATE = [(re.compile(r'\bat 0x[0-9a-f]{6,}'), 'the address of an object'),
           (re.compile(r'(?<![\w.:/<-])/(?:home|root|Users|tmp|var|opt|mnt|usr|private)/[\w.-]+'), 'an absolute path'),
           (re.compile(r'\b[A-Z]:\\\\?Users\b'), 'an absolute path')]

# nbdev_clean drops the address of these
FUNCTION = re.compile(r'<(?:bound method|function|built-in function|class)[^>]* at 0x[0-9a-f]+>')

def private(outputs):
    "What in the outputs belongs to this machine or this run, or `None`."
    for o in outputs:
        data = {'text/plain': o['text']} if 'text' in o else o.get('data', {})
        for mime, s in data.items():
            if not mime.startswith('text'): continue
            s = FUNCTION.sub('', text(s))
            for own in (str(ROOT), str(Path.home())):
                if len(own) > 1 and own in s: return f'an absolute path: {own}'
            for pat, what in PRIVATE:
                if m := pat.search(s): return f'{what}: {m[0]}'

def warned(outputs):
    "What a reader would see on standard error; that this machine has a CUDA without a GPU is no news."
    lines = ''.join(text(o.text) for o in outputs if o.output_type == 'stream' and o.name == 'stderr').splitlines()
    return '\n'.join(o for o in lines if o.strip() and 'No CUDA runtime is found' not in o)

# A notebook ---------------------------------------------------------------------------------------

class Failed(Exception): pass

def name(path, cell, i): return f'{os.path.relpath(path, ROOT)}, cell {i} (id {cell.get("id", "?")})'

def refresh(path, flags, env, timeout, measure=False):
    "Run one notebook and write it back; the file is untouched when a cell fails."
    nb = nbformat.read(path, as_version=4)
    if skips(nb): return False
    old = [copy.deepcopy(c.get('outputs', [])) for c in nb.cells]
    client = Client(nb, timeout=timeout, resources={'metadata': {'path': str(path.parent)}}, kernel_name='python3')
    client.skip = flags
    km = client.create_kernel_manager()
    km.kernel_spec.argv = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}', '--log-level=ERROR']
    try: client.execute(env=env)
    except CellExecutionError as e:
        def failed(c): return any(o.output_type == 'error' for o in c.get('outputs', []))
        i, cell = next((i, c) for i, c in enumerate(nb.cells) if failed(c))
        raise Failed(f'{name(path, cell, i)} failed:\n{cell.source}\n\n{e.ename}: {e.evalue}') from None
    except (CellTimeoutError, DeadKernelError) as e:
        raise Failed(f'{os.path.relpath(path, ROOT)}: {e}') from None
    for i, (cell, before) in enumerate(zip(nb.cells, old)):
        if cell.cell_type != 'code': continue
        if keeps_outputs(cell.source, flags): continue
        if said := warned(cell.outputs): raise Failed(f'{name(path, cell, i)} warns:\n{said}\n\n{cell.source}')
        cell.outputs = tidy(cell.outputs, cell.id)
        if what := private(cell.outputs): raise Failed(f'{name(path, cell, i)} would store {what}\n\n{cell.source}')
        kept = before and 'measured' in directives(cell.source)[0] and not measure
        if kept or same_but_times(cell.outputs, before): cell.outputs = before
    return write(nb, path)

def write(nb, path):
    "Store a notebook as `nbdev_clean` leaves it; true if the file changed."
    before = path.read_bytes()
    nb.metadata.pop('language_info', None)
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(str(path))
    return path.read_bytes() != before

def notebooks(paths):
    "The notebooks meant by files and folders, in the order of the book."
    for p in paths:
        if not p.exists(): raise SystemExit(f'{p} does not exist')
        yield from (o.resolve() for o in ([p] if p.is_file() else notebooks_in(p)))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('paths', nargs='*', type=Path, default=[ROOT/'nbs'], help='notebooks or folders (default: nbs)')
    p.add_argument('--flags', default='', help='flags of `tst_flags` whose cells are run as well')
    p.add_argument('--measure', action='store_true', help='renew the outputs of cells marked `#| measured` as well')
    p.add_argument('--timeout', type=int, default=600, help='seconds a cell may take (default: %(default)s)')
    a = p.parse_args()
    flags, failed = frozenset(get_config(path=ROOT).tst_flags.split()) - set(a.flags.split()), 0
    with tempfile.TemporaryDirectory() as d:
        profile = Path(d)/'profile_default'
        profile.mkdir()
        (profile/'ipython_kernel_config.py').write_text(KERNEL_CONFIG)
        for path in notebooks(a.paths):
            start = time.time()
            try: state = 'changed' if refresh(path, flags, environment(d), a.timeout, a.measure) else 'same'
            except Failed as e:
                failed, state = failed+1, 'FAILED'
                print(e, file=sys.stderr)
            print(f'{os.path.relpath(path, ROOT)}: {state} ({time.time()-start:.0f} s)', flush=True)
    return 1 if failed else 0

if __name__ == '__main__': sys.exit(main())
