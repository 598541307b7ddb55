"Run every page of the book as a test, each in at most a minute. `python tests/notebooks.py [path...]`"
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

LIMIT = 60 # seconds a page may take

def test_page(page, **kwargs):
    "Run a page as a kernel does: modules beside it can be imported."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from nbdev.test import test_nb
    sys.path.insert(0, str(page.resolve().parent))
    return test_nb(page, **kwargs)

def main(paths):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from nbdev.config import get_config
    pages = [Path(o) for o in paths] or sorted(Path('nbs').rglob('[0-9a-z]*.ipynb'))
    pages = [p for p in pages if not p.name.startswith('.') and '.ipynb_checkpoints' not in p.parts]
    run = partial(test_page, skip_flags=get_config().tst_flags.split(), basepath=Path.cwd())
    with ProcessPoolExecutor(2, max_tasks_per_child=1) as pool: results = dict(zip(pages, pool.map(run, pages)))
    for page,(ok,seconds) in results.items(): print(f'{seconds:6.1f} s  {"ok  " if ok else "FAIL"}  {page}')
    slow = [str(p) for p,(_,seconds) in results.items() if seconds>LIMIT]
    failed = [str(p) for p,(ok,_) in results.items() if not ok]
    if slow: print(f'over {LIMIT} s: {slow}')
    print(f'{len(pages)-len(failed)} passed, {len(failed)} failed')
    return bool(failed or slow or not pages)

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
