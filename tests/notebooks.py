"Run every page of the book as a test, a chapter in at most a minute. `python tests/notebooks.py [path...]`"
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

CHAPTER,PAGE = 60,180 # seconds of the processor that a chapter may take, and a tutorial or study

def limit(page): return CHAPTER if page.name[0].isdigit() else PAGE

def test_page(page, **kwargs):
    "Run a page as a kernel does: modules beside it can be imported."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from nbdev.test import test_nb
    sys.path.insert(0, str(page.resolve().parent))
    start = time.process_time()
    ok,seconds = test_nb(page, **kwargs)
    return ok,seconds,time.process_time()-start

def main(paths):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from nbdev.config import get_config
    pages = [Path(o) for o in paths] or sorted(Path('nbs').rglob('[0-9a-z]*.ipynb'))
    pages = [p for p in pages if not p.name.startswith('.') and '.ipynb_checkpoints' not in p.parts]
    run = partial(test_page, skip_flags=get_config().tst_flags.split(), basepath=Path.cwd())
    with ProcessPoolExecutor(2, max_tasks_per_child=1) as pool: results = dict(zip(pages, pool.map(run, pages)))
    for page,(ok,seconds,cpu) in results.items():
        print(f'{seconds:6.1f} s, {cpu:5.1f} of the processor  {"ok  " if ok else "FAIL"}  {page}')
    slow = [f'{p} ({limit(p)} s)' for p,(_,_,cpu) in results.items() if cpu>limit(p)]
    failed = [str(p) for p,(ok,*_) in results.items() if not ok]
    if slow: print(f'over the limit: {slow}')
    print(f'{len(pages)-len(failed)} passed, {len(failed)} failed')
    return bool(failed or slow or not pages)

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
