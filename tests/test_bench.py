"The benchmarks run, with and without the other libraries; nothing here is timed."
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCH = Path(__file__).parent.parent/'bench'

@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import run
    return run

@pytest.fixture
def no_peers(monkeypatch):
    for nm in ('fasterai', 'timm', 'torch_pruning'): monkeypatch.setitem(sys.modules, nm, None)

def _contenders():
    from contenders import EarlyPrune, Fasterai, GraNet, TorchPrune, present
    return present((EarlyPrune, Fasterai, TorchPrune, GraNet))

def _run(bench, tmp_path, *args):
    out = tmp_path/'folder'/'record.json'
    assert bench.main([*args, '--quick', '--out', str(out)])==0
    return json.loads(out.read_text())

def test_runs_without_the_peers(bench, no_peers, tmp_path, capsys):
    "A missing library is named, its rows are left out, and the others are stored."
    r = _run(bench, tmp_path, 'select', 'upkeep', 'idle')
    text = capsys.readouterr().out
    assert r['missing_peers']==['fasterai', 'timm', 'torch_pruning'] and all(f'{nm} is not installed' in text for nm in r['missing_peers'])
    assert not [row for row in r['rows'] if 'fasterai' in row['what'] and row['table']!='idle']
    assert {row['table'] for row in r['rows']}=={'select', 'ties', 'upkeep', 'idle'}
    assert r['machine']['threads']==torch.get_num_threads() and r['machine']['versions']['torch']
    assert r['targets']==[] and 'smoke test' in text

def test_rows_are_sane(bench, no_peers, tmp_path):
    "Every time is positive, in order, and the reference has ratio one."
    for row in _run(bench, tmp_path, 'select', 'upkeep', 'idle')['rows']:
        if row['table']=='ties': continue
        lo,mid,hi = row['value']
        assert 0<lo<=mid<=hi and all(o>0 for o in row['ratio']), row
        if row['what']==row['against']: assert row['ratio']==[1, 1, 1]

def test_children_run(bench, no_peers, tmp_path):
    "Memory and import time are measured in processes of their own."
    r = _run(bench, tmp_path, 'memory', 'imports')
    took = {row['what']:row for row in r['rows'] if row['table']=='import'}
    assert took['torch']['note'].startswith('with torch') and took['early_prune.schedules']['note']=='alone'
    if 'not measured' in r['memory_method']: pytest.skip('this system tells no peak memory')
    held = {row['what']:row['value'][1] for row in r['rows'] if row['case'].endswith('after the first update')}
    assert 0<held['early_prune']<held["GraNet's procedure"]<held['torch.nn.utils.prune']

def test_ties(bench, no_peers, tmp_path):
    "With all weights equal, early_prune keeps what was asked for and a comparison with a threshold does not."
    rows = {row['what']:row['ratio'][1] for row in _run(bench, tmp_path, 'select')['rows'] if row['case'].endswith('different values: 1')}
    assert rows['early_prune']==rows['torch.nn.utils.prune']==1 and rows["GraNet's procedure"]==0

def test_contenders_do_the_same(bench):
    "Where weights differ, all contenders prune the same ones, also in a second update."
    from contenders import GraNet
    nets = []
    for cls in _contenders():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
        contender = cls(net)
        for s in (.5, .75):
            contender.update(s)
            if cls is GraNet: contender.upkeep()
        nets.append((cls.name, contender.kept(), [net[i].weight!=0 for i in (0, 2)]))
    name,n,reference = nets[0]
    assert name=='early_prune' and n==1500//4
    for name,n,kept in nets[1:]:
        assert abs(n-1500//4)<=1, name
        assert sum(int((a!=b).sum()) for a,b in zip(kept, reference))<=1, name

def test_rounds_are_paired(bench, monkeypatch):
    "A ratio compares times of one round; warm-up rounds do not count; every contender is prepared anew."
    import measure
    calls,clock = [],iter(range(1, 100))
    monkeypatch.setattr(measure, 'timed', lambda f, inner: (calls.append(f()), next(clock))[1])
    times = measure.in_turns({'a':lambda: lambda: 'a', 'b':lambda: lambda: 'b'}, 3)
    assert len(calls)==8 and {nm:len(ts) for nm,ts in times.items()}=={'a':3, 'b':3} and min(sum(times.values(), []))==3
    a,b = measure.to_rows({'a':[1., 2., 3.], 'b':[4., 4., 3.]}, 'a', 'table', 'case', 's')
    assert a['ratio']==[1, 1, 1] and b['ratio']==[1, 2, 4] and b['value']==[3, 4, 4]

def test_targets(bench):
    "A target is met, missed, or not measured; the worst case decides."
    row = lambda table,what,case,value,ratio: dict(table=table, what=what, case=case, value=[value]*3, ratio=[ratio]*3)
    rows = [row('select', 'fasterai', 'x', 1, 9), row('select', 'fasterai', 'y', 1, 3), row('select', "GraNet's procedure", 'x', 1, 11),
            row('upkeep', 'early_prune', 'x', 2, 1.5), row('upkeep', 'fasterai', 'x', 3, 2),
            row('surgery', 'torch-pruning', 'densenet201, trace and first cut', 9e4, 30) | dict(note=''),
            row('surgery', 'torch-pruning', 'resnet50, trace and first cut', 9e3, 6) | dict(note='failed: RuntimeError'),
            row('surgery', 'early_prune', 'resnet50, trace and first cut', 400, 1) | dict(note=''),
            row('memory', 'early_prune', 'after', 1.04, .26), row('memory', 'early_prune', 'peak', 5, 1)]
    got = {t['what']:(t['got'], t['met']) for t in bench.targets(rows)}
    assert got['update, times faster than fasterai']==(3, False) and got['update, times faster than GraNet']==(11, True)
    assert got['upkeep, times faster than fasterai']==(1.5, True) and got['upkeep, times faster than GraNet']==(None, None)
    assert got['upkeep, ratio to one _foreach_mul_']==(1.5, True) and got['idle batch, microseconds']==(None, None)
    assert got['memory, bytes per maskable weight']==(1, True)
    assert got['trace and first cut of DenseNet-201, times faster than torch-pruning']==(30, True)
    assert got['trace and first cut of ResNet-50, times faster than torch-pruning']==(None, None), 'a failure is no time'
    assert got['trace and first cut of ResNet-50, milliseconds']==(400, True)

def test_unknown_section(bench, capsys):
    with pytest.raises(SystemExit) as e: bench.main(['nonsense'])
    assert e.value.code==2 and 'nonsense' in capsys.readouterr().err

@pytest.mark.slow
def test_runs_with_the_peers(bench, tmp_path):
    "With fasterai installed its rows are there, in each section."
    pytest.importorskip('fasterai')
    r = _run(bench, tmp_path, 'select', 'upkeep', 'memory')
    for table in ('select', 'ties', 'upkeep', 'memory'):
        assert [row for row in r['rows'] if row['table']==table and row['what'].startswith('fasterai')], table

def test_regrow_runs_and_does_the_same(bench, no_peers, tmp_path):
    "One swap: both contenders keep the same numbers and, but for rounding, the same weights."
    import regrow
    rows = [row for row in _run(bench, tmp_path, 'regrow')['rows'] if row['table']=='regrow']
    assert {row['what'] for row in rows}=={regrow.EARLY, regrow.GRANET}
    torch.manual_seed(0)
    net = regrow._with_grads(nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10)))
    ours,theirs = (cls(net_, .3) for cls,net_ in ((regrow.Early, _copy(net)), (regrow.GraNetRegrow, _copy(net))))
    before = ours.kept()
    assert theirs.kept()==before
    for contender in (ours, theirs): contender.update(.5)
    assert ours.kept()==before==theirs.kept()
    for nm,m in theirs.masks.items(): assert int((m.bool()!=ours.masks[nm]).sum())<=4, nm

def _copy(net):
    from copy import deepcopy
    copied = deepcopy(net)
    for a,b in zip(copied.parameters(), net.parameters()): a.grad = b.grad
    return copied

def test_surgery_runs_without_the_peer(bench, no_peers, tmp_path):
    "Two cuts and their peak memory; early_prune alone."
    rows = _run(bench, tmp_path, 'surgery')['rows']
    times = [row for row in rows if row['table']=='surgery']
    assert [(row['case'], row['what']) for row in times]==[(f'tiny, {o}', 'early_prune') for o in ('trace and first cut', 'second cut')]
    assert all(row['value'][0]>0 and row['ratio']==[1, 1, 1] for row in times)
    assert {row['what'] for row in rows}=={'early_prune'}

def test_surgery_contenders_do_the_same(bench):
    "Both libraries leave the same widths after each of two cuts, and networks that run."
    pytest.importorskip('torch_pruning')
    import surgery
    from nets import build
    torch.manual_seed(0)
    x,sizes = torch.randn(1, 3, 64, 64),{}
    for cls in surgery.present():
        o = cls(build('tiny').eval(), x)
        for step in ('first', 'second'):
            getattr(o, step)()
            o.net(x)
            sizes[cls.name, step] = [m.weight.shape[0] for m in o.net if isinstance(m, (nn.Conv2d, nn.Linear))]
    for step in ('first', 'second'):
        ours,theirs = (sizes[nm, step] for nm in ('early_prune', 'torch-pruning'))
        assert all(abs(a-b)<=2 for a,b in zip(ours, theirs)) and ours[-1]==theirs[-1]==10, (ours, theirs)
    assert sizes['early_prune', 'first'][0]==11 and sizes['early_prune', 'second'][0] in (7, 8)

def test_surgery_records_a_failure(bench, monkeypatch):
    "Where another library fails, the row says so; a failure of our own stops the run."
    import surgery
    def fails(self): raise RuntimeError('cannot')
    monkeypatch.setattr(surgery, 'present', lambda: [surgery.EarlyPrune, surgery.TorchPruning])
    monkeypatch.setattr(surgery.TorchPruning, 'first', fails)
    rows = {(row['what'], row['case']):row['note'] for row in surgery.one_net('tiny', 2, 0)}
    assert rows['torch-pruning', 'tiny, trace and first cut']=='failed: RuntimeError in the first cut: cannot'
    assert ('torch-pruning', 'tiny, second cut') not in rows and 'left' in rows['early_prune', 'tiny, second cut']
    monkeypatch.setattr(surgery.EarlyPrune, 'first', fails)
    with pytest.raises(RuntimeError, match='cannot'): surgery.one_net('tiny', 1, 0)

def test_training_steps_run(bench, no_peers, tmp_path):
    "The same batches through a plain loop and through fastai; a cut network trains faster than nothing."
    import step
    rows = _run(bench, tmp_path, 'step', 'training')['rows']
    assert {r['what'] for r in rows if r['table']=='step'}=={step.PLAIN, step.FASTAI, step.MASKS, step.WATCH}
    trained = [r for r in rows if r['table']=='training']
    assert [r['unit'] for r in trained]==2*['images/s', 'MB', 'ms', 'ms', 'ms'] and all(r['value'][0]>0 for r in trained)
    assert [r['flops_left']<=.51 for r in trained]==5*[False]+5*[True]

def test_examples_run_without_the_peers(bench, no_peers, tmp_path):
    "Our side of the neighbours' examples: everything survives a cut and a sparse training."
    rows = _run(bench, tmp_path, 'examples')['rows']
    details = {r['case']:r['details']['early_prune'] for r in rows if 'details' in r}
    assert len(details)==3 and all(all(o.get('survives', {}).values()) for o in details.values())
    assert {r['what'] for r in rows}=={'early_prune', 'dense'}

def test_checkpoints(bench, no_peers, tmp_path):
    "A checkpoint is written and weighed against the numbers in it."
    rows = _run(bench, tmp_path, 'checkpoint')['rows']
    assert {row['table'] for row in rows}=={'checkpoint', 'checkpoint size'} and all(row['value'][0]>0 for row in rows)
