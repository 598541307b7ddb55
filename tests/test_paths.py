"Paths that name no file, or one that is no regular file, or one of an odd name: one clear error or what is right, no hang, nothing left over."
import json
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager
from multiprocessing import get_context

import pytest
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.metrics import accuracy
from PIL import Image
from test_hostile import in_time

from early_prune.checkpoint import CheckpointCallback, contents, read_state, resume, save_checkpoint, write_state
from early_prune.cli import main
from early_prune.compare import Comparison, Results, Run, train_runs
from early_prune.data import digits, image_folder, load_official, read_cifar_bin, read_cifar_pickle, read_idx, read_pngs
from early_prune.models import small_cnn
from early_prune.surgery import load, lock_of, save, write_whole

RECORD = dict(key='a', recipe='agp', sparsity=.9, seed=0, accuracy=.5, accuracies=[.5], sparsity_reached=.9, seconds=1.)

def learner(): return Learner(digits(limit=64, valid_limit=32), small_cnn(), metrics=accuracy)

def fit(path, *cbs, epochs=1):
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, cbs=[CheckpointCallback(path, every=1, resume=True), *cbs])
    return learn

WRITERS = dict(save=lambda path: save(small_cnn(), path), state=lambda path: write_state(path, dict(a=1)), kept=lambda path: write_state(path, dict(a=1), 2),
               learner=lambda path: save_checkpoint(learner(), path), fit=fit, report=lambda path: Comparison([RECORD]).report(path),
               results=lambda path: Results(path).add(RECORD), whole=lambda path: write_whole(path, lambda o: o.write_text('x')))
READERS = dict(load=lambda path: load(small_cnn, path), state=read_state, contents=contents, resume=lambda path: resume(learner(), path),
               results=lambda path: Results(path).read(), idx=read_idx, bin=read_cifar_bin, pickle=read_cifar_pickle,
               pngs=lambda path: read_pngs(path, ['a']), official=lambda path: load_official('CIFAR10', path, download=False), folder=image_folder)

def a_socket(path):
    with socket.socket(socket.AF_UNIX) as s: s.bind(str(path))

def a_device(path): # writes to it find no room, and it is none of the system's own
    if os.geteuid(): pytest.skip('only root makes devices')
    os.mknod(path, 0o20600, os.makedev(1, 7))

def a_loop(path): os.symlink(path, path)
def a_link_to_a_pipe(path):
    os.mkfifo(path.with_name('pipe'))
    os.symlink('pipe', path)

ODD = dict(pipe=os.mkfifo, socket=a_socket, device=a_device, folder=os.mkdir, loop=a_loop, link=a_link_to_a_pipe)

def entries(folder): return {o.name:o.lstat().st_mode for o in folder.iterdir() if not o.name.endswith(('.claims', '.kept'))}

@pytest.mark.parametrize('kind', ODD)
@pytest.mark.parametrize('name', WRITERS)
def test_what_is_no_regular_file_is_never_replaced(tmp_path, name, kind):
    "A rename would put a file in its place: `/dev/null` of a container, say."
    path = tmp_path/'x.safetensors'
    ODD[kind](path)
    before = entries(tmp_path)
    with in_time(), pytest.raises(OSError, match='x.safetensors.*it is no regular file'): WRITERS[name](path)
    assert entries(tmp_path)==before and (name!='results' or [json.loads(o.read_text()) for o in tmp_path.glob('*.kept')]==[RECORD])

@pytest.mark.parametrize('kind', ODD)
@pytest.mark.parametrize('name', READERS)
def test_what_is_no_regular_file_is_not_read(tmp_path, name, kind):
    path = tmp_path/'x.safetensors'
    ODD[kind](path)
    if name=='results' and kind=='loop': return
    with in_time(), pytest.raises((ValueError, FileNotFoundError), match='x.safetensors'): READERS[name](path)

@pytest.mark.parametrize('name', WRITERS)
@pytest.mark.parametrize('at', ['missing/x.safetensors', 'file/x.safetensors', 'link.safetensors'])
def test_a_folder_that_is_not_there_is_not_made(tmp_path, name, at, monkeypatch):
    "A checkpoint is refused before the first batch, not after the training."
    monkeypatch.setattr(tempfile, 'gettempdir', lambda: str(tmp_path))
    (tmp_path/'file').write_text('x')
    os.symlink('missing/x.safetensors', tmp_path/'link.safetensors')
    before = entries(tmp_path)
    with pytest.raises(OSError, match=f'{at}.*there is no folder'): WRITERS[name](tmp_path/at)
    assert entries(tmp_path)==before
    if name=='results': assert [json.loads(o.read_text()) for o in tmp_path.glob('*.kept')]==[RECORD]

NAMES = ['Grüße 剪枝', 'a b', 'a\nb', 'a\udcffb', '\u202e', '-rf', '*', 'é'*110]

@pytest.mark.parametrize('name', [*NAMES, 'x'*243, 'ü'*121+'x'])
def test_odd_and_long_names(tmp_path, name):
    "Up to the longest that the system allows, and with nothing left over."
    path,table,page = (tmp_path/f'{name}{o}' for o in ('.safetensors'[:255-len(os.fsencode(name))], '.jsonl', '.html'))
    assert type(load(small_cnn, save(small_cnn(), path))) is type(small_cnn())
    path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter('error') # a checkpoint that is not written is a warning
        fit(path)
    assert read_state(path)['place']['epochs']==1
    Results(table).add(RECORD)
    assert Results(table).read()==[RECORD]
    Comparison([RECORD]).report(page)
    assert sorted(o.name for o in tmp_path.iterdir() if o.is_file())==sorted(o.name for o in (path, table, page))

class Moves(Callback):
    "Another folder is the current one from a batch on."
    def __init__(self, to): self.to = to
    def after_batch(self): os.chdir(self.to)

def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    "A program that changes its folder while it trains finds all checkpoints in one place; a new start finds them too."
    for o in ('a', 'b'): (tmp_path/o).mkdir()
    monkeypatch.chdir(tmp_path/'a')
    fit('x.safetensors', Moves(tmp_path/'b'), epochs=2)
    assert [o.name for o in (tmp_path/'a').iterdir()]==['x.safetensors'] and not list((tmp_path/'b').iterdir())
    os.chdir(tmp_path/'a')
    results = Results('r.jsonl')
    os.chdir(tmp_path/'b')
    results.add(RECORD)
    assert Results(tmp_path/'a'/'r.jsonl').read()==[RECORD]

def test_workers_write_where_they_are_asked(tmp_path, monkeypatch):
    "The processes of one comparison go on for the next, in the folder where they began."
    for i,o in enumerate(('a', 'b')):
        (tmp_path/o).mkdir()
        monkeypatch.chdir(tmp_path/o)
        found = train_runs([Run('dense', seed=i, epochs=1, limit=64)], 'r.jsonl', n_jobs=2, show_progress=False)
        assert len(found.records)==1 and len(Results(tmp_path/o/'r.jsonl').read())==1

def _hold(path, key, ready, done):
    with Results(path).claim(key):
        ready.set()
        done.wait(30)

@pytest.mark.parametrize('way', ['relative', 'link', 'folder'])
def test_one_file_has_one_lock(tmp_path, way, monkeypatch):
    "By whatever way two processes come to it."
    (tmp_path/'real').mkdir()
    Results(tmp_path/'real'/'r.jsonl').add(RECORD)
    monkeypatch.chdir(tmp_path)
    os.symlink('real/r.jsonl', 'link.jsonl')
    os.symlink('real', 'folder')
    path = dict(relative='real/../real/r.jsonl', link='link.jsonl', folder='folder/r.jsonl')[way]
    context = get_context('fork')
    ready,done = context.Event(),context.Event()
    process = context.Process(target=_hold, args=(path, 'k', ready, done))
    process.start()
    try:
        assert ready.wait(30)
        claim = Results(tmp_path/'real'/'r.jsonl').claim('k')
        with pytest.raises(TimeoutError): claim.acquire(timeout=0)
        done.set()
        process.join(30)
        with claim.acquire(timeout=0): pass
    finally: process.kill()
    assert lock_of(path).lock_file==lock_of('real/r.jsonl').lock_file==str(tmp_path/'real'/'.r.jsonl.lock')

class Removes(Callback):
    def __init__(self, folder, at): self.folder,self.at = folder,at
    def before_batch(self):
        if self.training and self.train_iter==self.at:
            for o in self.folder.iterdir(): o.unlink()
            self.folder.rmdir()

def test_a_folder_that_vanishes_while_a_network_trains(tmp_path):
    "Each checkpoint that is not written is said, the training ends, and the folder is not made anew; where it comes back, so do the checkpoints."
    folder = tmp_path/'run'
    folder.mkdir()
    with pytest.warns(UserWarning, match=r'No checkpoint at batch \d: .*there is no folder .*run'): learn = fit(folder/'x.safetensors', Removes(folder, 1), epochs=3)
    assert not folder.exists() and len(learn.recorder.values)==3
    folder.mkdir()
    fit(folder/'x.safetensors')
    assert [o.name for o in folder.iterdir()]==['x.safetensors']

@contextmanager
def another_system(tmp_path, *options):
    "A file system of its own."
    folder = tmp_path/'disk'
    folder.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'none', folder], capture_output=True).returncode: pytest.skip('nothing can be mounted')
    try: yield folder
    finally: subprocess.run(['umount', '-l', folder], check=True)

@pytest.mark.parametrize('name', WRITERS)
def test_a_file_system_that_can_only_be_read(tmp_path, name, monkeypatch):
    with another_system(tmp_path) as disk:
        WRITERS[name](disk/'x.safetensors')
        (disk/'.x.safetensors.claims'/'append.lock').unlink(missing_ok=True)
        before,old = entries(disk),(disk/'x.safetensors').read_bytes()
        subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
        with in_time(), pytest.raises(OSError, match='x.safetensors.*Read-only file system'): WRITERS[name](disk/'x.safetensors')
        assert entries(disk)==before and (disk/'x.safetensors').read_bytes()==old

@pytest.mark.parametrize('name', WRITERS)
def test_a_link_to_another_file_system(tmp_path, name):
    "The draft is made where the file is, for no name moves from one file system to another; the link stays."
    with another_system(tmp_path) as disk:
        os.symlink(disk/'x.safetensors', tmp_path/'x.safetensors')
        for _ in range(2): WRITERS[name](tmp_path/'x.safetensors')
        assert (tmp_path/'x.safetensors').is_symlink() and (disk/'x.safetensors').stat().st_size
        assert sorted(o.name for o in disk.iterdir() if o.is_file())==['x.1.safetensors']*(name=='kept')+['x.safetensors']

def test_pictures_that_are_pipes(tmp_path):
    for nm in ('a', 'b'): (tmp_path/nm).mkdir()
    for i in range(4): Image.new('RGB', (32, 32)).save(tmp_path/'ab'[i%2]/f'{i}.png')
    os.mkfifo(tmp_path/'a'/'pipe.png')
    for read in (lambda: read_pngs(tmp_path, ['a', 'b']), lambda: image_folder(tmp_path, size=32)):
        with in_time(), pytest.raises((ValueError, FileNotFoundError), match='pipe.png` is no regular file'): read()

def test_a_download_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    def fail(name, root): raise OSError('no network')
    monkeypatch.setattr('torchvision.datasets.CIFAR10', lambda root, download: fail('CIFAR10', root))
    with pytest.raises(FileNotFoundError, match='no network'): load_official('CIFAR10', tmp_path/'no'/'data')
    assert list(tmp_path.iterdir())==[]

@pytest.fixture
def said(capsys):
    def run(*argv):
        code = main([str(o) for o in argv])
        return code,capsys.readouterr()
    return run

def test_one_line_for_a_name_of_two_lines(said, tmp_path):
    code,texts = said('report', tmp_path/'a\nb.jsonl', '--out', tmp_path/'out')
    assert code==2 and texts.err==f'early_prune report: `results` {tmp_path}/a\\nb.jsonl is no file\n'

@pytest.mark.parametrize('argv', [('train', '--out', ''), ('train', '--path', ''), ('demo', '--out', ''), ('compare', 'agp', '--out', ''),
                                  ('report', 'x', '--out', '')])
def test_an_empty_path_is_refused(said, argv, capsys):
    "It comes from a variable that is not set; a training without a folder would be lost."
    with pytest.raises(SystemExit) as e: said(*argv)
    assert e.value.code==2 and f'argument {argv[-2]}: a path is not empty' in capsys.readouterr().err

@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
def test_names_that_cannot_be_printed(tmp_path, encoding):
    "A result is not lost because a terminal lacks its letters."
    Results(tmp_path/'r.jsonl').add(RECORD)
    out = os.fsdecode(bytes(tmp_path)+b'/\xff'+'ü'.encode())
    done = subprocess.run([sys.executable, '-m', 'early_prune', 'report', tmp_path/'r.jsonl', '--out', out], capture_output=True, text=True,
                          env=os.environ | dict(PYTHONIOENCODING=encoding))
    assert done.returncode==0 and '1 trainings; table, runs and pictures are in' in done.stdout, done.stderr[-500:]
