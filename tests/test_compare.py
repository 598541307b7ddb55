"Runs, results that survive, and comparisons that do not repeat themselves."
import json
import multiprocessing
import os

import pytest
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler

from early_prune import compare as module
from early_prune.compare import (
    Comparison,
    Results,
    Run,
    compare,
    make_learner,
    make_runs,
    plasticity,
    plot_plasticity,
)
from early_prune.regrowth import by_gradient


def test_keys_tell_runs_apart():
    runs = make_runs(['dense', 'agp', 'one_cycle'], [.8, .9], seeds=3, epochs=2)
    assert len(runs)==3*(1+2*2)==len({r.key for r in runs})
    assert [r.seed for r in runs]==sorted(r.seed for r in runs), 'seed by seed, so that an unfinished comparison is balanced'
    assert Run('agp', .9).key!=Run('agp', .9, lr=2e-2).key

def _add(path):
    for i in range(200): Results(path).add(dict(who=os.getpid(), i=i, text='x'*500))

def test_two_processes_share_a_file(tmp_path):
    ctx = multiprocessing.get_context('fork')
    workers = [ctx.Process(target=_add, args=(tmp_path/'r.jsonl',)) for _ in range(2)]
    for w in workers: w.start()
    for w in workers: w.join()
    records = Results(tmp_path/'r.jsonl').read()
    assert len(records)==400 and len({(r['who'], r['i']) for r in records})==400

def test_finished_runs_are_kept_and_not_repeated(tmp_path, monkeypatch):
    trained,train_run = [],module.train_run
    def spy(learn, run):
        trained.append(run)
        if len(trained)==3: raise KeyboardInterrupt
        return train_run(learn, run)
    monkeypatch.setattr(module, 'train_run', spy)
    ask = dict(recipes=['dense', 'agp'], sparsities=[.9], seeds=2, epochs=1, arch='small_cnn', limit=100, path=tmp_path/'r.jsonl', show_progress=False)
    with pytest.raises(KeyboardInterrupt): compare(**ask)
    assert len(Results(ask['path']))==2
    comparison = compare(**ask)
    assert len(trained)==5 and len(comparison.records)==4
    compare(**ask)
    assert len(trained)==5
    wider = compare(**(ask | dict(seeds=3, recipes=['dense'])))
    assert len(trained)==6 and [r['seed'] for r in wider.records]==[0, 1, 2]

def test_same_run_same_result(tmp_path):
    ask = dict(recipes=['one_cycle'], sparsities=[.9], seeds=1, epochs=2, arch='small_cnn', limit=200, show_progress=False)
    a,b = (compare(path=tmp_path/f'{i}.jsonl', **ask).records[0] for i in range(2))
    assert a['accuracies']==b['accuracies'] and a['nonzeros']==b['nonzeros']

def test_table_is_mean_and_spread():
    records = [dict(recipe='agp', sparsity=.9, seed=i, accuracy=a, sparsity_reached=.9, seconds=1.) for i,a in enumerate([.5, .7, .9])]
    row = Comparison(records).table().iloc[0]
    assert row.seeds==3 and row.accuracy==pytest.approx(.7) and row.spread==pytest.approx(.2) and (row.least, row.most)==(.5, .9)
    assert len(Comparison(records).plot().lines)==2

@pytest.mark.parametrize('text,line', [('{"a": 1}\n{"b"', 2), ('no', 1)])
def test_broken_file(tmp_path, text, line):
    (tmp_path/'r.jsonl').write_text(text)
    with pytest.raises(ValueError, match=f'line {line} is not a result'): Results(tmp_path/'r.jsonl').read()

@pytest.mark.parametrize('kwargs,error', [(dict(recipes=['agpp']), "did you mean 'agp'"), (dict(sparsities=[90]), 'write 0.9 for 90 %'),
    (dict(seeds=0), '`seeds`'), (dict(epochs=0), '`epochs`'), (dict(data='digit'), "did you mean 'digits'")])
def test_mistakes_stop_before_training(tmp_path, kwargs, error):
    with pytest.raises(ValueError, match=error): compare(**(dict(recipes=['agp'], sparsities=[.9], path=tmp_path/'r.jsonl', show_progress=False) | kwargs))
    assert not (tmp_path/'r.jsonl').exists()

def test_records_are_plain(tmp_path):
    ask = dict(recipes=['agp'], sparsities=[.9], seeds=1, epochs=1, arch='small_cnn', limit=100, show_progress=False)
    record = compare(path=tmp_path/'r.jsonl', **ask).records[0]
    assert json.loads(json.dumps(record))==record and {'device', 'torch', 'fastai', 'threads'}<=set(record)

# Pruning plasticity

def _learn_fn(seed=0): return lambda: make_learner(Run(arch='small_cnn', epochs=3, limit=200, seed=seed))

def _steps(learn, cbs): learn.fit(3, 1e-2, cbs=[cbs, ParamScheduler({'lr': lambda pos: 1e-2 if pos<.5 else 1e-3})])

def test_plasticity_is_resumable_and_deterministic(tmp_path, monkeypatch):
    ask = dict(learn_fn=_learn_fn(), train=_steps, epochs=[1, 3], rates=[.5, .9], k=1, path=tmp_path/'p.jsonl', seed=0)
    calls,train_on = [],module._train_on
    def spy(*args):
        calls.append(args)
        if len(calls)==3: raise KeyboardInterrupt
        return train_on(*args)
    monkeypatch.setattr(module, '_train_on', spy)
    with pytest.raises(KeyboardInterrupt): plasticity(**ask)
    assert len(Results(ask['path']))==2
    records = plasticity(**ask)
    assert len(calls)==5 and [(r['epoch'], r['rate']) for r in records]==[(1, .5), (1, .9), (3, .5), (3, .9)]
    assert plasticity(**ask)==records and len(calls)==5
    again = plasticity(**(ask | dict(path=tmp_path/'q.jsonl')))
    assert [r['plasticity'] for r in again]==[r['plasticity'] for r in records]
    assert all(r['plasticity']==pytest.approx(r['after']-r['before']) for r in records)
    assert len(plasticity(**(ask | dict(regrow=by_gradient))))==4 and len(Results(ask['path']))==8

def test_plasticity_prunes_once_at_the_rate_of_the_moment(tmp_path):
    "Weights and optimizer of the moment, its learning rate held, one pruning, one swap."
    seen = []
    class Look(Callback):
        run_valid = False
        def before_fit(self): self.rates = set()
        def after_batch(self): self.rates.add(self.opt.hypers[-1]['lr'])
        def after_fit(self):
            cb = getattr(self.learn, 'sparsify', None)
            seen.append((self.rates, len(self.opt.state), cb and cb.history, cb and len(cb.exploration.history), cb and cb.masks.sparsity))
    def learn_fn():
        learn = _learn_fn()()
        learn.add_cb(Look())
        return learn
    records = plasticity(learn_fn, _steps, [1, 3], [.9], 2, tmp_path/'p.jsonl', by_gradient)
    dense,early,late = seen
    assert dense[0]=={1e-2, 1e-3} and early[0]=={1e-2} and late[0]=={1e-3} and [r['lr'] for r in records]==[1e-2, 1e-3]
    for _,_,history,n,s in (early, late): assert len(history)==1 and history[0][0]==0 and n==2 and s==pytest.approx(.9, abs=1e-3)

def test_plasticity_plot_and_mistakes(tmp_path):
    records = [dict(epoch=e, rate=r, regrow=b, plasticity=-r*e, seed=s) for e in (1, 2) for r in (.5, .9) for b in ('', 'gradient 0.5') for s in (0, 1)]
    assert len(plot_plasticity(records).lines)==6
    ask = dict(learn_fn=_learn_fn(), train=_steps, epochs=[1], rates=[.5], k=1, path=tmp_path/'p.jsonl')
    for bad,error in ((dict(k=0), '`k` is at least 1'), (dict(rates=[50]), 'write 0.5 for 50 %'), (dict(epochs=[4]), r'got \[4\]')):
        with pytest.raises(ValueError, match=error): plasticity(**(ask | bad))
    assert not (tmp_path/'p.jsonl').exists()
