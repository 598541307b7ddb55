"Studies on Ray, on Dask and on joblib's own processes; a parent that is gone."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from joblib import parallel_config, register_parallel_backend
from joblib._parallel_backends import ThreadingBackend

from early_prune.compare import Results, _train_one, make_runs, train_runs

HERE = Path(__file__).parent
SMALL = dict(arch='small_cnn', epochs=1, limit=128)

@pytest.mark.slow
@pytest.mark.parametrize('backend', ['loky', 'dask', 'ray'])
def test_a_study_on_a_cluster_of_this_machine(tmp_path, backend):
    if backend!='loky': pytest.importorskip(backend)
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]))
    command = [sys.executable, HERE/'cluster.py', backend, tmp_path/'runs.jsonl', '3', '1']
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.stdout.splitlines()[-1].endswith('3'), done.stderr[-3000:]
    assert len({json.loads(o)['key'] for o in (tmp_path/'runs.jsonl').read_text().splitlines()})==3

class Together(ThreadingBackend):
    "A backend that hands over all results at once, as Ray's does."
    supports_return_generator = False

def test_a_backend_without_a_generator(tmp_path):
    register_parallel_backend('together', Together)
    with parallel_config(backend='together'), pytest.warns(UserWarning, match='Together tells of no single training: all 2 come together'):
        found = train_runs(make_runs('one_cycle', .8, 2, **SMALL), tmp_path/'runs.jsonl', 2)
    assert len(found.records)==2 and not list(tmp_path.glob('.*.claims/parent*'))

@pytest.mark.parametrize('wait', [False, True])
def test_a_training_ends_when_its_parent_is_gone(tmp_path, wait):
    "While the lock of the parent is held the training runs; without it nothing is trained, recorded or waited for."
    path,(run,) = tmp_path/'runs.jsonl',make_runs('one_cycle', .8, 1, **SMALL)
    parent = str(tmp_path/'parent.lock')
    assert _train_one(run, path, wait, parent) is None and not path.exists()
    with Results(path).claim(run.key): assert _train_one(run, path, wait, parent) is None
    with FileLock(parent): assert _train_one(run, path, wait, parent)==run.key
    assert [o['key'] for o in Results(path).read()]==[run.key]
