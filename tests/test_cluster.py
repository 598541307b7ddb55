"Studies on Ray, on Dask and on joblib's own processes; a parent that is gone."
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from filelock import FileLock
from joblib import parallel_config, register_parallel_backend
from joblib._parallel_backends import ThreadingBackend

from early_prune import compare
from early_prune.compare import Results, _train_one, make_runs, train_runs

HERE = Path(__file__).parent
BACKENDS = ['loky', 'dask', 'ray']
SMALL = dict(arch='small_cnn', epochs=1, limit=128)

def begin(backend, path, runs, epochs):
    "A study in a process of its own; its output lies beside."
    if backend!='loky': pytest.importorskip(backend)
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]))
    with open(path.with_name('out'), 'w') as out:
        command = [sys.executable, HERE/'cluster.py', backend, path, str(runs), str(epochs)]
        return subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)

def said(path): return path.with_name('out').read_text()
def keys(path): return [json.loads(o)['key'] for o in path.read_text().splitlines()] if path.exists() else []

@pytest.mark.slow
@pytest.mark.parametrize('backend', BACKENDS)
def test_a_study_on_a_cluster_of_this_machine(tmp_path, backend):
    path = tmp_path/'runs.jsonl'
    assert begin(backend, path, 3, 1).wait(500)==0, said(path)
    assert said(path).splitlines()[-1].endswith('3') and len(set(keys(path)))==len(keys(path))==3

def training(path):
    "Processes that hold the lock of a training, as the system lists them."
    claims = {o.stat().st_ino for o in path.parent.glob('.*.claims/*.lock') if len(o.stem)==12}
    held = [o.split() for o in Path('/proc/locks').read_text().splitlines() if '->' not in o]
    return {int(o[4]) for o in held if int(o[5].split(':')[2]) in claims}

def in_the_middle(path, study):
    "Wait until a training has ended and others run; who runs them."
    while not (keys(path) and training(path)):
        assert study.poll() is None, said(path)
        time.sleep(.05)
    time.sleep(1)
    return training(path)

needs_locks = pytest.mark.skipif(not Path('/proc/locks').exists(), reason='it asks Linux who holds a lock')

@needs_locks
@pytest.mark.slow
@pytest.mark.parametrize('backend', BACKENDS)
def test_a_worker_killed_in_the_middle(tmp_path, backend):
    "Dask gives its training to another worker, on Ray and loky the next attempt has it: nothing lost, nothing twice."
    path = tmp_path/'runs.jsonl'
    study = begin(backend, path, 4, 15)
    os.kill(min(in_the_middle(path, study)), signal.SIGKILL)
    assert study.wait(500)==0, said(path)
    assert said(path).splitlines()[-1].endswith('4') and len(set(keys(path)))==len(keys(path))==4
    assert ('a worker was killed' in said(path))==(backend!='dask')

@needs_locks
@pytest.mark.slow
@pytest.mark.parametrize('backend', BACKENDS)
def test_a_parent_killed_in_the_middle(tmp_path, backend):
    "No worker trains on; the next call trains what is missing."
    path = tmp_path/'runs.jsonl'
    study = begin(backend, path, 4, 40)
    workers,start = in_the_middle(path, study),time.monotonic()
    study.kill()
    study.wait()
    while (left := training(path)) and time.monotonic()<start+30: time.sleep(.05)
    print(f'{backend}: {len(workers)} workers, none trains {time.monotonic()-start:.1f} s after the parent was killed')
    assert workers and not left and time.monotonic()-start<15
    done = keys(path)
    assert 0<len(done)<4 and len(set(done))==len(done)
    train_runs(make_runs('one_cycle', .8, 4, arch='small_cnn', epochs=40, limit=256), path, show_progress=False)
    assert keys(path)[:len(done)]==done and len(set(keys(path)))==len(keys(path))==4

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

def killed_after(monkeypatch, n):
    "Backends whose workers are killed after `n` trainings, each time."
    def some(jobs, *args):
        for f,a,k in jobs[:n]: f(*a, **k)
        raise BrokenProcessPool('killed')
    monkeypatch.setattr(compare, '_in_parallel', some)

def test_what_a_killed_worker_leaves_is_done_by_the_next(tmp_path, monkeypatch):
    killed_after(monkeypatch, 1)
    with pytest.warns(UserWarning, match=r'a worker was killed \(BrokenProcessPool\): 1 of 2 trainings have ended'):
        found = train_runs(make_runs('one_cycle', .8, 2, **SMALL), tmp_path/'runs.jsonl', 2)
    assert len(found.records)==len((tmp_path/'runs.jsonl').read_text().splitlines())==2
    assert not list(tmp_path.glob('.*.claims/parent*'))

def test_workers_that_are_killed_again_and_again(tmp_path, monkeypatch):
    "What was finished stays, the message says how much that is, and the next call goes on."
    path,runs = tmp_path/'runs.jsonl',make_runs('one_cycle', .8, 2, **SMALL)
    train_runs(runs[:1], path)
    with monkeypatch.context() as patched:
        killed_after(patched, 0)
        with pytest.warns(UserWarning, match='the others go on') as warned, pytest.raises(
                ChildProcessError, match=r'a worker was killed .*: 0 of 1 trainings have ended and are kept in .*runs.jsonl, none in 3 attempts'):
            train_runs(runs, path, 2)
    assert len(warned)==2 and len(Results(path).read())==1
    assert len(train_runs(runs, path).records)==len(path.read_text().splitlines())==2
