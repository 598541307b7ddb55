"The script for a GPU, on the CPU: its slices end and go on, and its checks fail where something is wrong."
import json
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parent.parent/'bench'

@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu
    return gpu

def records(path): return {r['key']:r for r in map(json.loads, path.read_text().splitlines())}

def test_all_agrees_with_itself(gpu, tmp_path, capsys):
    "On the CPU every difference to the CPU is nothing, and no check runs twice."
    out = tmp_path/'checks.jsonl'
    for _ in range(2):
        gpu.checks('cpu', out)
        assert capsys.readouterr().out=='correctness: 8 of 8 as on the CPU\n'
    assert len(out.read_text().splitlines())==8 and all(r['difference']<=1e-6 for r in records(out).values())

def test_finds_a_device_that_chooses_otherwise(gpu, tmp_path, capsys, monkeypatch):
    "Scores that differ from one call to the next stand for a device that computes something else; what raises is a failure too."
    monkeypatch.setattr(gpu, 'magnitude', lambda p: torch.rand(p.shape, generator=draws))
    monkeypatch.setattr(gpu, 'trace', lambda *args: 1/0)
    draws = torch.Generator().manual_seed(0)
    gpu.checks('cpu', tmp_path/'checks.jsonl')
    assert capsys.readouterr().out=='correctness: 3 of 8 as on the CPU, not masks, channels_last, regrowth, surgery, one process\n'
    assert records(tmp_path/'checks.jsonl')['surgery']['said'].startswith('ZeroDivisionError')

def test_a_mask_that_is_not_upheld_is_found(gpu, monkeypatch):
    monkeypatch.setattr(gpu.Masks, 'mask_grads', lambda self: None)
    monkeypatch.setattr(gpu.Masks, 'apply', lambda self, *args, **kwargs: self)
    assert gpu._mixed('bf16')('cpu')>0

def test_slices_end_and_go_on(gpu, tmp_path, monkeypatch):
    "A training cut into slices, one epoch each, ends where the training in one go ends."
    runs = gpu.make_runs('granet', .9, 1, arch='small_cnn', epochs=3, limit=128, training='sgd_steps', lr=.05)
    monkeypatch.setattr(gpu, 'grid', lambda quick: runs)
    whole,sliced = tmp_path/'whole.jsonl',tmp_path/'sliced.jsonl'
    assert gpu.train('cpu', whole, True, lambda: 1)
    ends = []
    for _ in range(3):
        asked = iter([1]) # time enough to begin, and none after the first epoch
        ends.append(gpu.train('cpu', sliced, True, lambda: next(asked, 0)))
    assert ends==[False, False, True] and gpu.train('cpu', sliced, True, lambda: 0)
    (key,a),(_,b) = *records(whole).items(),*records(sliced).items()
    assert a['accuracies']==b['accuracies'] and a['sparsity_reached']==b['sparsity_reached']==pytest.approx(.9, abs=.01)
    assert b['seconds']>0 and [o.name for o in tmp_path.iterdir() if key in o.name]==[]

def test_a_training_that_raises_does_not_stop_the_others(gpu, tmp_path, monkeypatch):
    good,bad = (gpu.Run('agp', .9, seed, epochs=1, limit=128) for seed in (0, 1))
    monkeypatch.setattr(gpu, 'grid', lambda quick: [bad, good])
    clean = gpu.train_run
    def failing(learn, run):
        if run==bad: raise RuntimeError('CUDA out of memory')
        return clean(learn, run)
    monkeypatch.setattr(gpu, 'train_run', failing)
    for _ in range(2): assert gpu.train('cpu', tmp_path/'r.jsonl', True, lambda: 1)
    found = records(tmp_path/'r.jsonl')
    assert len((tmp_path/'r.jsonl').read_text().splitlines())==2 and 'out of memory' in found[bad.key]['error'] and found[good.key]['accuracy']

def test_says_in_one_line_what_is_missing(gpu, capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, 'is_available', lambda: False)
    asked = []
    monkeypatch.setattr(gpu, 'checks', lambda device, out: asked.append(device))
    monkeypatch.setattr(gpu, 'measure', lambda device, out, quick, left: asked.append(quick) or True)
    monkeypatch.setattr(gpu, 'train', lambda device, out, quick, left: True)
    gpu.main([])
    first,*rest = capsys.readouterr().out.splitlines()
    assert 'no CUDA device' in first and asked==['cpu', True] and rest==['all done']

def test_a_section_that_does_not_end_is_named(gpu, tmp_path, monkeypatch):
    def late(*args, timeout, **kwargs): raise gpu.TimeoutExpired('run.py', timeout)
    monkeypatch.setattr(gpu, 'run', late)
    assert gpu.measure('cpu', tmp_path, True, lambda: 5.)
    assert 'not finished' in json.loads((tmp_path/'idle.json').read_text())['failed'] and not list(tmp_path.glob('*.tmp'))

def test_the_grid_begins_with_what_tells_most(gpu):
    runs = gpu.grid(False)
    first = [r for r in runs if r.sparsity==.95]
    assert {r.arch for r in first}=={'cifar_resnet18', 'small_vgg16'} and runs.index(first[-1])<next(i for i,r in enumerate(runs) if r.sparsity==.98)
    assert all(r.training=='sgd_steps' and r.bf16 and r.limit is None and r.epochs==160 for r in runs) and len({r.key for r in runs})==len(runs)
