"Kills, full disks, lost memory, dead workers, Ctrl-C and NaN: the last good file stays, and the training goes on from it."
import errno
import hashlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed

from early_prune import checkpoint, cli, surgery
from early_prune.callbacks import EarlyPruneCallback
from early_prune.checkpoint import CheckpointCallback, read_state, write_state
from early_prune.cli import main
from early_prune.compare import Comparison
from early_prune.criteria import rms_magnitude
from early_prune.data import digits
from early_prune.dependency import trace
from early_prune.models import resnet, small_cnn
from early_prune.ranking import Neurons, rank, scores
from early_prune.recipes import recipe
from early_prune.surgery import cut, save
from early_prune.triggers import AtEpoch

EPOCHS,BATCHES,BS = 3,8,32

def cut_net():
    "A network that was cut before it is trained."
    net,x = resnet(8),torch.zeros(2, 1, 8, 8)
    groups = trace(net, x)
    cut(net, groups, rank(groups, scores(net, groups, rms_magnitude), Neurons(.4), net, (x,)))
    return net

def early(): return EarlyPruneCallback(Neurons(.4), trigger=AtEpoch(1), steps=5, burst=BATCHES-1)

# network, callback, and the batches after which it is killed: of 24, the burst takes 8 to 15
CASES = dict(one_cycle=(small_cnn, lambda: recipe('one_cycle', .9), (1, 23)), granet=(small_cnn, lambda: recipe('granet', .9), (1, 23)),
             before=(partial(resnet, 8), early, (1, 7)), within=(partial(resnet, 8), early, (8, 15)),
             after=(partial(resnet, 8), early, (17, 23)), was_cut=(cut_net, lambda: recipe('granet', .8), (1, 23)))

def learner(net):
    set_seed(0, reproducible=True)
    learn = Learner(digits(limit=BS*BATCHES, valid_limit=32, bs=BS), net(), CrossEntropyLossFlat(), metrics=accuracy)
    learn.remove_cbs(learn.cbs.filter(lambda cb: cb.name=='progress'))
    learn.logger = lambda row: None
    return learn

def digest(learn):
    "One number of all that the training has made."
    found = hashlib.sha256()
    def add(o):
        if isinstance(o, torch.Tensor): found.update(o.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(o, dict): [(add(str(k)), add(v)) for k,v in o.items()]
        elif isinstance(o, (list, tuple)): [add(v) for v in o]
        else: found.update(repr(o).encode())
    add(dict(learn.model.state_dict())); add(str(learn.recorder.values)); add([float(o) for o in learn.recorder.losses])
    add([dict(learn.opt.state[p]) for p in learn.opt.all_params().itemgot(0)])
    for nm in ('_sparsify', '_early_prune'):
        if (cb := vars(learn).get(nm)) is not None: add({k:v for k,v in cb.state().items() if k not in ('costs', 'elapsed')})
    return found.hexdigest()

class Report(Callback):
    "Say at each batch, to another process, that it is done and its checkpoint is about to be written."
    order = 95
    def __init__(self, pipe): self.pipe = pipe
    def after_batch(self):
        if self.training: os.write(self.pipe, bytes([self.train_iter]))

def script(path, case, pipe):
    "What the user's script does, from the beginning: the same after each kill."
    net,callback,_ = CASES[case]
    learn = learner(net)
    learn.fit_one_cycle(EPOCHS, 1e-2, cbs=[callback(), CheckpointCallback(path, every=1, resume=True), Report(pipe)])
    path.with_suffix('.done').write_text(digest(learn))

def process(path, case):
    "Start `script` in a process of its own; its number, and the end of a pipe that tells the batches."
    ours,theirs = os.pipe()
    if (pid := os.fork())==0:
        code = 1
        try:
            os.close(ours)
            script(path, case, theirs)
            code = 0
        finally: os._exit(code)
    os.close(theirs)
    return pid,ours

def finish(path, case):
    pid,pipe = process(path, case)
    while os.read(pipe, 1024): pass
    os.close(pipe)
    assert os.waitpid(pid, 0)[1]==0
    return path.with_suffix('.done').read_text()

def kill(path, case, at, delay):
    "Kill the training after batch `at` and `delay` seconds; whether a draft of a checkpoint was left half written."
    pid,pipe = process(path, case)
    while (seen := os.read(pipe, 1)) and seen[0]<at: pass
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pipe)
    return bool(list(path.parent.glob(f'.{path.name}.*.part')))

def survive(tmp_path, case, chains, kills, seed=0):
    "Kill each of `chains` trainings `kills` times; how often a write was hit, and how many ended otherwise."
    chance,(first,last) = random.Random(seed),CASES[case][2]
    want,hits,differ = finish(tmp_path/'whole.safetensors', case),0,0
    for i in range(chains):
        path = tmp_path/f'{i}.safetensors'
        for at in sorted(chance.choices(range(first, last+1), k=kills)):
            hits += kill(path, case, at, chance.uniform(0, .03))
            if path.exists(): assert read_state(path)['place']['train_iter']>=at-1
        differ += finish(path, case)!=want
    return hits,differ

@pytest.mark.parametrize('case', ['granet', 'within'])
def test_kill(tmp_path, case): assert survive(tmp_path, case, 1, 2)[1]==0

@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_twenty_kills(tmp_path, case):
    hits,differ = survive(tmp_path, case, 5, 4, seed=1)
    print(f"{case}: 20 kills, {hits} of them within a write, {differ} trainings differ")
    assert differ==0

def trained(path, *cbs, learn=None, every=1):
    learn = learner(small_cnn) if learn is None else learn
    learn.fit_one_cycle(EPOCHS, 1e-2, cbs=[recipe('granet', .9), CheckpointCallback(path, every=every, resume=True), *cbs])
    return learn

@pytest.fixture(scope='module')
def whole(tmp_path_factory): return digest(trained(tmp_path_factory.mktemp('whole')/'x.safetensors'))

class RaiseAt(Callback):
    "Raise at an event of one batch, once."
    order = 90
    def __init__(self, event, at, error): self.event,self.at,self.error = event,at,error
    def __call__(self, event_name):
        if event_name==self.event and self.at is not None and getattr(self, 'training', False) and self.train_iter==self.at:
            self.at = None
            raise self.error

@pytest.mark.parametrize('event,error', [
    ('after_pred', torch.OutOfMemoryError('CUDA out of memory')), ('before_step', KeyboardInterrupt()),
    ('after_step', KeyboardInterrupt()), ('before_batch', KeyboardInterrupt()), ('after_batch', RuntimeError('a bug'))])
def test_the_same_learner_goes_on(tmp_path, whole, event, error):
    "After an error the cell is called again."
    path,learn = tmp_path/'x.safetensors',learner(small_cnn)
    with pytest.raises(type(error)): trained(path, RaiseAt(event, 13, error), learn=learn, every=3)
    assert read_state(path)['place']['train_iter']==12
    assert digest(trained(path, learn=learn, every=3))==whole

def test_ctrl_c_within_a_write(tmp_path, whole, monkeypatch):
    path,learn,write = tmp_path/'x.safetensors',learner(small_cnn),surgery._save_file
    def interrupted(tensors, draft, meta):
        write(tensors, draft, meta)
        os.truncate(draft, 1000)
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        def switch(*args):
            if path.exists() and read_state(path)['place']['train_iter']==9: interrupted(*args)
            write(*args)
        m.setattr(surgery, '_save_file', switch)
        with pytest.raises(KeyboardInterrupt): trained(path, learn=learn)
    assert [o.name for o in tmp_path.iterdir()]==['x.safetensors'] and read_state(path)['place']['train_iter']==9
    assert digest(trained(path, learn=learn))==whole

class Poison(Callback):
    def before_backward(self):
        if self.train_iter==12: self.learn.loss_grad = self.loss_grad*float('nan')

def test_a_loss_that_is_not_a_number(tmp_path):
    "A network of NaN does not replace the last good one."
    path = tmp_path/'x.safetensors'
    def fit(): learner(small_cnn).fit_one_cycle(EPOCHS, 1e-2, cbs=[recipe('one_cycle', .9), Poison(), CheckpointCallback(path, 1)])
    with pytest.warns(UserWarning, match='not finite'), pytest.raises(ValueError, match='NaN'): fit()
    state = read_state(path)
    assert state['place']['train_iter']==12 and all(t.isfinite().all() for t in state['network']['tensors'].values())

def test_a_full_disk(tmp_path, whole):
    "A file system of 800 kB, where it may be made; else a limit on the size of a file."
    disk = tmp_path/'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=800k', 'none', disk], capture_output=True).returncode: return full_by_limit(tmp_path)
    try: full(disk, lambda: (disk/'ballast').write_bytes(bytes(300_000)), (disk/'ballast').unlink, whole)
    finally: subprocess.run(['umount', disk], check=True)

def full(folder, fill, empty, whole):
    path,learn = folder/'x.safetensors',learner(small_cnn)
    def fill_at_six(): fill()
    class Fill(Callback):
        order = 95
        def before_batch(self):
            if self.training and self.train_iter==12: fill_at_six()
    with pytest.warns(UserWarning, match='No checkpoint at batch'): trained(path, Fill(), learn=learn, every=6)
    assert [o.name for o in folder.iterdir() if o.name!='ballast']==['x.safetensors']
    assert read_state(path)['place']['train_iter']==12 and digest(learn)==whole
    empty()
    assert digest(trained(path, every=6))==whole

@contextmanager
def little_room(tmp_path, size):
    "A folder where few bytes fit: a file system of its own where it may be made, else a limit on every file; in a process of its own."
    disk = tmp_path/'disk'
    disk.mkdir()
    mounted = not subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', disk], capture_output=True).returncode
    try: yield disk,(lambda: None) if mounted else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    finally:
        if mounted: subprocess.run(['umount', disk], check=True)

def apart(limit, f):
    "Run `f` in a process with a limit; what it asserts and raises comes back as words."
    ours,theirs = os.pipe()
    if (pid := os.fork())==0:
        said = 'no word'
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limit()
            said = f() or 'done'
        except BaseException as e: said = f'{type(e).__name__}: {e}'
        finally:
            os.write(theirs, said.encode()[:4000])
            os._exit(0)
    os.close(theirs)
    said = os.read(ours, 8000).decode()
    os.close(ours)
    os.waitpid(pid, 0)
    return said

def hidden(folder): return [o.name for o in folder.rglob('.*') if o.is_file()]

def test_a_network_that_finds_no_room(tmp_path):
    with little_room(tmp_path, 2**16) as (disk, limit):
        said = apart(limit, lambda: str(save(resnet(8), disk/'net.safetensors')))
        assert 'OSError' in said and 'net.safetensors could not be written' in said and '\n' not in said
        assert list(disk.iterdir())==[]

def test_a_report_that_finds_no_room(tmp_path):
    record = dict(recipe='dense', sparsity=0., seed=0, accuracy=.5, accuracies=[.5], seconds=1., sparsity_reached=0., key='a', error_text='x'*2**16)
    with little_room(tmp_path, 2**13) as (disk, limit):
        said = apart(limit, lambda: str(Comparison([record]).report(disk/'report.html')))
        assert 'OSError' in said and 'report.html could not be written' in said and '\n' not in said
        assert list(disk.iterdir())==[]

def trained_by_command(out):
    err = io.StringIO()
    with redirect_stderr(err), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='No checkpoint at batch')
        code = main(['train', '--arch', 'small_cnn', '--epochs', '1', '--limit', '128', '--out', str(out), '--json'])
    return f'{code} {err.getvalue().splitlines()[-1]}'

def test_a_training_whose_network_finds_no_room(tmp_path):
    "The record comes first, and stays."
    with little_room(tmp_path, 2**16) as (disk, limit):
        said = apart(limit, lambda: trained_by_command(disk))
        assert said.startswith('2 early_prune train: ') and 'model.safetensors could not be written' in said
        assert json.loads((disk/'record.json').read_text())['accuracy']>0 and [o.name for o in disk.iterdir()]==['record.json']

@pytest.mark.parametrize('also', [False, True])
def test_a_training_whose_record_finds_no_room(tmp_path, monkeypatch, also):
    "It is kept elsewhere and named, or printed where there is no room at all."
    def no(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(cli, 'write_whole', no)
    monkeypatch.setattr(tempfile, 'gettempdir', lambda: str(tmp_path/('missing' if also else '')))
    if also: monkeypatch.setattr(Path, 'write_bytes', no)
    said = trained_by_command(tmp_path/'out')
    assert said.startswith('2 early_prune train: ') and 'No space left' in said
    if also: assert '"accuracy"' in said
    else:
        kept, = (tmp_path/'out').glob('record.json.*.kept')
        assert str(kept) in said and json.loads(kept.read_text())['epochs']==1

def full_by_limit(tmp_path):
    if (pid := os.fork())==0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            path = write_state(tmp_path/'x.safetensors', dict(a=1))
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            try: write_state(path, dict(a=2, t=torch.zeros(10_000)))
            except OSError: code = int(read_state(path)!=dict(a=1) or len(list(tmp_path.glob('.*.part'))))
        finally: os._exit(code)
    assert os.waitpid(pid, 0)[1]==0

def test_no_space_is_an_os_error(tmp_path, monkeypatch):
    path = write_state(tmp_path/'x.safetensors', dict(a=1))
    def sync(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'fsync', sync)
    with pytest.raises(OSError, match='No space'): write_state(path, dict(a=2))
    assert read_state(path)==dict(a=1) and len(list(tmp_path.iterdir()))==1
    with pytest.raises(OSError, match='missing.x.safetensors'): write_state(tmp_path/'missing'/'x.safetensors', dict(a=1))

@pytest.mark.parametrize('permanent', [False, True])
@pytest.mark.parametrize('error', [RuntimeError('a bug'), KeyboardInterrupt()])
def test_the_lock_goes_with_the_fit(tmp_path, whole, permanent, error):
    "Also when the callback belongs to the learner for good; called again, the fit goes on."
    path,learn = tmp_path/'x.safetensors',learner(small_cnn)
    cb = CheckpointCallback(path, every=1, resume=True)
    if permanent: learn.add_cb(cb)
    fit = lambda *cbs: learn.fit_one_cycle(EPOCHS, 1e-2, cbs=[recipe('granet', .9), *cbs, *([] if permanent else [cb])])
    with pytest.raises(type(error)): fit(RaiseAt('after_step', 13, error))
    assert [o.name for o in tmp_path.iterdir()]==['x.safetensors'] and '_with_events' not in vars(learn)
    with surgery.lock_of(path): pass
    fit()
    assert digest(learn)==whole and '_with_events' not in vars(learn) and cb.claimed is None

class Items:
    def __init__(self, dl, flag): self.x,self.y,self.flag = dl.dataset.x,dl.dataset.y,flag
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        if self.flag.exists() and torch.utils.data.get_worker_info() and i==7: os._exit(1)
        return self.x[i].float()/255 + torch.rand(1)/10,self.y[i]

@pytest.mark.slow
def test_a_worker_that_dies(tmp_path, capfd):
    "The error, of the loader or of the pipe to the worker, ends the process wherever it is; called again, it goes on."
    flag,dls = tmp_path/'flag',digits(limit=128, valid_limit=32)
    def fit(name):
        set_seed(0, reproducible=True)
        make = lambda dl, **kw: DataLoader(Items(dl, flag), bs=32, **kw)
        loaders = DataLoaders(make(dls.train, shuffle=True, num_workers=1), make(dls.valid))
        learn = Learner(loaders, small_cnn(), CrossEntropyLossFlat(), metrics=accuracy)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(2, 1e-2, cbs=[recipe('one_cycle', .9), CheckpointCallback(tmp_path/name, every=1, resume=True)])
        return digest(learn)
    want = fit('whole.safetensors')
    flag.touch()
    dying = get_context('fork').Process(target=fit, args=['x.safetensors'])
    dying.start()
    dying.join(100)
    said = capfd.readouterr().err
    assert dying.exitcode==1 and ('DataLoader worker' in said or 'ConnectionResetError' in said)
    flag.unlink()
    assert fit('x.safetensors')==want

def writes(path, keep, seed, until):
    "A process that writes states of its own, over and over."
    if (pid := os.fork())==0:
        try:
            chance = torch.Generator().manual_seed(seed)
            while True: write_state(path, dict(seed=seed, x=torch.rand(int(until), generator=chance)), keep)
        finally: os._exit(1)
    return pid

def two_writers(path, keep, kills, seed=0):
    "Kill one of two writers, again and again; how often no whole newest file lay under its name."
    chance,damaged = random.Random(seed),0
    write_state(path, dict(seed=0))
    pids = [writes(path, keep, i, 2e4) for i in (1, 2)]
    for i in range(kills):
        time.sleep(chance.uniform(.01, .06))
        os.kill(pids[i%2], signal.SIGKILL)
        os.waitpid(pids[i%2], 0)
        for _ in range(3):
            try: surgery.read_tensors(path, checkpoint._FORMAT) # not the older one, as `read_state` would where it is missing
            except (ValueError, OSError): damaged += 1
        pids[i%2] = writes(path, keep, 3+i, 2e4)
    for pid in pids: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    for o in path.parent.glob(f'{path.stem}*.safetensors'): read_state(o)
    write_state(path, dict(a=1), keep)
    assert not list(path.parent.glob('.*.part')), 'drafts of the dead are left'
    return damaged

@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_a_writer_that_dies_between_rotation_and_rename(tmp_path, monkeypatch, error):
    "What it has turned is not turned again: older files stay different, and no second name is left over."
    path,replace = tmp_path/'x.safetensors',os.replace
    def die(a, b):
        if Path(b)==path: raise error('dies')
        replace(a, b)
    for i in range(3): write_state(path, dict(i=i), 3)
    for _ in range(2):
        with monkeypatch.context() as patched, pytest.raises(error):
            patched.setattr(os, 'replace', die)
            write_state(path, dict(i=-1), 3)
    assert [read_state(surgery._older(path, i))['i'] for i in range(3)]==[2, 2, 1]
    write_state(path, dict(i=3), 3)
    assert [read_state(surgery._older(path, i))['i'] for i in range(3)]==[3, 2, 1]
    assert not list(tmp_path.glob('.*.part'))

@pytest.mark.parametrize('keep', [1, 2, 3])
def test_two_writers(tmp_path, keep): assert two_writers(tmp_path/'x.safetensors', keep, 6)==0

@pytest.mark.slow
@pytest.mark.parametrize('keep', [1, 2, 3])
def test_two_hundred_kills_of_two_writers(tmp_path, keep):
    damaged = two_writers(tmp_path/'x.safetensors', keep, 200, 1)
    print(f'keep={keep}: 200 kills, {damaged} reads of a damaged or missing file')
    assert damaged==0

def test_a_second_training_of_one_path_is_refused(tmp_path, monkeypatch):
    "In another process; in the same one it is the same training that goes on. The lock dies with its process."
    path,(ours,theirs) = tmp_path/'x.safetensors',os.pipe()
    if (pid := os.fork())==0:
        try:
            hold = surgery.lock_of(path).acquire()
            os.write(theirs, b'1')
            time.sleep(60)
        finally: os._exit(int(hold is None))
    os.read(ours, 1)
    monkeypatch.setattr(surgery, 'PATIENCE', .2)
    with pytest.raises(OSError, match='another training that runs: .*x.safetensors'): trained(path)
    with pytest.raises(OSError, match='another process writes it'): write_state(path, dict(a=1))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    trained(path)
    assert [o.name for o in tmp_path.iterdir()]==['x.safetensors']

@pytest.mark.parametrize('linked', [False, True])
def test_a_link_stays_a_link_and_modes_follow_the_umask(tmp_path, linked, monkeypatch):
    (tmp_path/'far').mkdir()
    path,far = tmp_path/'x.safetensors',tmp_path/'far'/'y.safetensors'
    if not linked:
        def link(*args): raise OSError(errno.EPERM, 'no hard links here')
        monkeypatch.setattr(os, 'link', link)
    os.symlink(far, path)
    old = os.umask(0o027)
    try:
        for i in range(3): write_state(path, dict(i=i), keep=2)
        save(small_cnn(), tmp_path/'net.safetensors')
    finally: os.umask(old)
    assert path.is_symlink() and read_state(path)==dict(i=2) and read_state(far.with_name('y.1.safetensors'))==dict(i=1)
    assert sorted(o.name for o in far.parent.iterdir())==['y.1.safetensors', 'y.safetensors']
    assert [o.stat().st_mode&0o777 for o in (far, tmp_path/'net.safetensors')]==[0o640]*2

def test_the_whole_file_before_a_damaged_one(tmp_path, whole):
    "It is named, and a training goes on from it and says so."
    path,learn = tmp_path/'x.safetensors',learner(small_cnn)
    cbs = [recipe('granet', .9), CheckpointCallback(path, 3, keep=3), RaiseAt('after_batch', 13, RuntimeError('stop'))]
    with pytest.raises(RuntimeError, match='stop'): learn.fit_one_cycle(EPOCHS, 1e-2, cbs=cbs)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r'x.1.safetensors is whole'): read_state(path)
    with pytest.warns(UserWarning, match='going on from .*x.1.safetensors'): again = trained(path)
    assert digest(again)==whole
    path.write_bytes(data[:-100])
    (tmp_path/'x.1.safetensors').write_bytes(b'')
    with pytest.raises(ValueError, match='x.2.safetensors is whole'): read_state(path)

def test_a_full_disk_when_a_network_is_saved(tmp_path, monkeypatch):
    "One line with the path, and no leftover; the old file stays."
    path = save(small_cnn(), tmp_path/'net.safetensors')
    before = path.read_bytes()
    def sync(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'fsync', sync)
    with pytest.raises(OSError, match='net.safetensors could not be written: .*No space'): save(small_cnn(), path)
    assert path.read_bytes()==before and [o.name for o in tmp_path.iterdir()]==['net.safetensors']
    with pytest.raises(OSError, match='missing.net.safetensors'): save(small_cnn(), tmp_path/'missing'/'net.safetensors')

@pytest.mark.parametrize('out', [True, False])
def test_ctrl_c_in_a_command(tmp_path, out):
    "One line, exit code 130, and the way to go on."
    where = ['--out', str(tmp_path/'out')] if out else []
    command = [sys.executable, '-m', 'early_prune', 'train', '--arch', 'small_cnn', '--limit', '128', '--epochs', '10000', *where]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL) # what a shell starts in the background ignores it
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds) as process:
        try:
            lines = [process.stderr.readline() for _ in range(4)] # two epochs are done
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[1].splitlines()
        finally: process.kill()
    assert process.returncode==130 and '0.' in lines[-1] and 'Traceback' not in '\n'.join(rest), rest
    want = f'the same command with --resume goes on from {tmp_path/"out"/"checkpoint.safetensors"}' if out else 'nothing was kept'
    assert rest[-1]==f'early_prune train: stopped; {want}'
    assert not out or [o.name for o in (tmp_path/'out').iterdir()]==['checkpoint.safetensors']
