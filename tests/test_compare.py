"Runs, results that survive, and comparisons that do not repeat themselves."
import json
import multiprocessing
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler

from early_prune import compare as module
from early_prune.compare import (
    Comparison,
    Results,
    Run,
    compare,
    interval,
    make_learner,
    make_runs,
    plasticity,
    plot_plasticity,
    read_runs,
    train_run,
    train_runs,
    verdict,
    versus,
)
from early_prune.data import DATASETS, digits
from early_prune.regrowth import by_gradient


def test_keys_tell_runs_apart():
    runs = make_runs(['dense', 'agp', 'one_cycle'], [.8, .9], seeds=3, epochs=2)
    assert len(runs)==3*(1+2*2)==len({r.key for r in runs})
    assert [r.seed for r in runs]==sorted(r.seed for r in runs), 'seed by seed, so that an unfinished comparison is balanced'
    assert Run('agp', .9).key!=Run('agp', .9, lr=2e-2).key

STORED = Path(__file__).parent.parent/'nbs'/'studies'/'results'

def test_keys_of_stored_runs_stay_valid():
    "Fields that came later do not change the key of a run that does not use them."
    n = 0
    for path in STORED.glob('*.jsonl'):
        for r in map(json.loads, path.read_text().splitlines()):
            if not {'recipe', 'bs', 'key'}<=set(r): continue
            assert Run(**{k:v for k,v in r.items() if k in Run.__dataclass_fields__}).key==r['key']
            n += 1
    assert n>=190 and Run('agp', .9).key=='5fe356f0e95f'
    base = Run('epi', .5)
    later = [Run('epi', .5, **o) for o in (dict(valid=.1), dict(at_epoch=0), dict(bf16=True), dict(channels_last=True),
                                                 dict(training='sgd_steps'))]
    later += [Run('epi', .5, data='cifar10', shrink=n) for n in (1, 2)]
    assert len({r.key for r in [base, *later]})==8

def test_smaller_images(monkeypatch):
    "A run says how much smaller; only data with that argument have it."
    asked = []
    monkeypatch.setitem(DATASETS, 'little', lambda shrink=1, **kwargs: asked.append(shrink) or digits(**kwargs))
    for n in (1, 2): make_learner(Run(data='little', shrink=n))
    assert asked==[1, 2]
    for wrong in (dict(shrink=2), dict(data='image_folder', shrink=2), dict(data='little', shrink=0)):
        with pytest.raises(ValueError, match='`shrink` is at least 1, for data with that argument, got'): Run(**wrong)
    with pytest.raises(ValueError, match='data'): Run(data='nothing', shrink=2)

def test_the_test_images_are_looked_at_once(monkeypatch):
    "Epochs are judged on images held out of the training part; the test set is read once, after the last of them."
    run,seen = Run('agp', .9, arch='small_cnn', epochs=3, limit=200, valid=.1),[]
    learn = make_learner(run)
    class Look(Callback):
        def before_validate(self): seen.append(self.dl is self.dls.test)
    learn.add_cb(Look())
    with learn.no_bar(), learn.no_logging(): record = train_run(learn, run)
    assert seen==[False]*3+[True] and [len(o.dataset) for o in learn.dls.loaders]==[200, 20, 359]
    parts = [{o.numpy().tobytes() for o in dl.dataset.x} for dl in learn.dls.loaders]
    assert not parts[2] & (parts[0] | parts[1])
    hits = torch.cat([learn.model(x).argmax(1)==y for x,y in learn.dls.test])
    assert record['accuracy']==pytest.approx(float(hits.float().mean())) and len(record['accuracies'])==3

def test_bfloat16_ends_with_its_batch():
    "Also when the network raises; scores at initialisation are taken in float32."
    run,seen = Run('snip', .5, arch='resnet8', epochs=1, limit=128, bf16=True, channels_last=True),[]
    learn = make_learner(run)
    learn.model[0].register_forward_hook(lambda m, x, out: seen.append((out.dtype, out.is_contiguous(memory_format=torch.channels_last))))
    with learn.no_bar(), learn.no_logging(): train_run(learn, run)
    kinds = [dtype for dtype,_ in seen]
    assert kinds[:2]==[torch.float32]*2 and kinds.count(torch.bfloat16)==2+len(learn.dls.valid) and (torch.bfloat16, False) not in seen
    assert not torch.is_autocast_enabled('cpu')
    learn.model[-1].register_forward_hook(lambda *args: 1/0)
    with pytest.raises(ZeroDivisionError), learn.no_bar(), learn.no_logging(): train_run(learn, run)
    assert not torch.is_autocast_enabled('cpu')

def test_runs_cut_at_the_epoch_asked_for():
    run = Run('epi_gradient', .5, arch='resnet8', epochs=3, limit=128, at_epoch=1)
    learn = make_learner(run)
    with learn.no_bar(), learn.no_logging(): record = train_run(learn, run)
    assert record['cut_at']==record['at_epoch']==1 and record['training_flops']==pytest.approx(
        3*record['training_share']*Run.__dataclass_fields__['bs'].default*2*3*learn.early_prune.dense_flops)

def test_the_training_of_the_papers():
    "SGD with Nesterov momentum and weight decay; the rate falls after half and three quarters, the masks hold."
    run,seen = Run('rigl', .9, epochs=4, limit=128, training='sgd_steps', lr=.05, every=2),[]
    learn = make_learner(run)
    class Look(Callback):
        order = 70 # after the scheduler of the rate (60)
        def before_batch(self):
            if self.training: seen.append((self.opt.opt.param_groups[0], self.opt.hypers[0]['lr'], len(self.learn.sparsify.history)))
    learn.add_cb(Look())
    with learn.no_bar(), learn.no_logging(): record = train_run(learn, run)
    groups,rates,_ = zip(*seen)
    assert type(learn.opt.opt) is torch.optim.SGD
    assert groups[0]['nesterov'] and groups[0]['momentum']==.9 and groups[0]['weight_decay']==5e-4
    assert rates==pytest.approx([.05]*4+[.005]*2+[.0005]*2) and record['sparsity_reached']==pytest.approx(.9, abs=.01)
    assert [step for step,*_ in learn.sparsify.exploration.history]==[0, 0, 2, 4]
    assert 0<record['cpu_seconds'] and record['every']==2 and record['training']=='sgd_steps'

@pytest.mark.parametrize('wrong,says', [(dict(training='sgd'), 'training'), (dict(every=0), '`every` is at least 1'),
                                        (dict(recipe='epi', every=5), 'for recipes that mask'), (dict(recipe='dense', sparsity=0., every=5), 'mask')])
def test_wrong_trainings_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says): Run(**(dict(recipe='agp', sparsity=.9) | wrong))

def test_a_lottery_ticket_pays_for_all_trainings(tmp_path):
    ask = dict(recipes=['dense', 'imp'], sparsities=[.3], path=tmp_path/'r.jsonl', seeds=1, epochs=1, limit=100, show_progress=False)
    dense,ticket = compare(**ask).records
    assert ticket['training_share']==3 and ticket['sparsity_reached']==pytest.approx(.3, abs=1e-3)
    assert ticket['training_flops']==3*dense['training_flops']

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

@pytest.mark.parametrize('text,line', [('{"a": 1}\n{"b"\n', 2), ('{"b"\n{"a": 1}', 1), ('no', 1)])
def test_broken_file(tmp_path, text, line):
    (tmp_path/'r.jsonl').write_text(text)
    with pytest.raises(ValueError, match=f'line {line} is not a result'): Results(tmp_path/'r.jsonl').read()

@pytest.mark.parametrize('left', ['{"recipe": "agp", "acc', '{', '{"key": "b"}'])
def test_a_torn_last_line_is_survived(tmp_path, left):
    "What a killed process left is not read, and is replaced by the next result; a whole line without its end is kept."
    results,whole = Results(tmp_path/'r.jsonl'),left.endswith('}')
    results.add(dict(key='a'))
    with results.path.open('a') as f: f.write(left)
    before = results.read()
    results.add(dict(key='c'))
    assert [r['key'] for r in before]==['a', 'b'][:1+whole] and [r['key'] for r in results.read()]==[*'abc'] if whole else [*'ac']
    assert all(map(json.loads, results.path.read_text().splitlines()))

ASK = dict(recipes=['dense', 'agp'], sparsities=[.9], seeds=3, epochs=2, arch='small_cnn', limit=400, show_progress=False)

def _start(path):
    child = multiprocessing.get_context('fork').Process(target=compare, kwargs=ASK | dict(path=path))
    child.start()
    return child

def _wait_for(path, n, child):
    while not path.exists() or len(path.read_bytes().splitlines())<n:
        assert child.is_alive()
        time.sleep(.005)

def test_killed_at_any_moment_loses_and_repeats_nothing(tmp_path):
    path = tmp_path/'r.jsonl'
    for n in (1, 3):
        child = _start(path)
        _wait_for(path, n, child)
        child.kill()
        child.join()
    before = path.read_bytes()
    kept = before[:before.rfind(b'\n')+1]
    comparison = compare(path=path, **ASK)
    assert path.read_bytes().startswith(kept) and len(kept.splitlines())>=3
    keys = [json.loads(o)['key'] for o in path.read_text().splitlines()]
    assert len(keys)==len(set(keys))==6 and len(comparison.records)==6

def test_two_processes_share_the_work(tmp_path):
    path = tmp_path/'r.jsonl'
    children = [_start(path) for _ in range(2)]
    for c in children: c.join()
    assert [c.exitcode for c in children]==[0, 0]
    keys = [json.loads(o)['key'] for o in path.read_text().splitlines()]
    assert len(keys)==len(set(keys))==6

def test_waits_for_the_claim_of_another_and_takes_over_from_the_dead(tmp_path, monkeypatch):
    path,run = tmp_path/'r.jsonl',Run(epochs=1, limit=100)
    claim = Results(path).claim(run.key)
    claim.acquire()
    trained,original = [],module._train_claimed
    monkeypatch.setattr(module, '_train_claimed', lambda *args: trained.append(args) or original(*args))
    other = Run(epochs=1, limit=100, seed=1)
    class Freed(Results):
        def add(self, record):
            super().add(record)
            claim.release()
    monkeypatch.setattr(module, 'Results', Freed)
    comparison = train_runs([run, other], path, show_progress=False)
    assert [args[0] for args in trained]==[other, run] and [r['seed'] for r in comparison.records]==[0, 1]

@pytest.mark.slow
def test_several_jobs_give_the_same(tmp_path):
    one,two = (compare(path=tmp_path/f'{n}.jsonl', n_jobs=n, **(ASK | dict(seeds=1))) for n in (1, 2))
    same = [[r[nm] for nm in ('recipe', 'accuracies', 'nonzeros', 'key')] for r in one.records]
    assert same==[[r[nm] for nm in ('recipe', 'accuracies', 'nonzeros', 'key')] for r in two.records]

def test_failed_runs_are_kept_apart_and_tried_again(tmp_path, monkeypatch):
    ask,train = ASK | dict(seeds=2, path=tmp_path/'r.jsonl'),module.train_run
    def broken(learn, run):
        if run.recipe=='agp' and run.seed==0: raise RuntimeError('CUDA out of memory\nTried to allocate')
        return train(learn, run)
    monkeypatch.setattr(module, 'train_run', broken)
    with pytest.warns(UserWarning, match='1 of 4 runs failed .* RuntimeError: Tried to allocate'): comparison = compare(**ask)
    assert repr(comparison)=='Comparison(3 of 4 runs, 1 failed)' and comparison.table().seeds.tolist()==[2, 1]
    assert 'Tried to allocate' in comparison._repr_html_() and len(Results(ask['path']))==3
    monkeypatch.setattr(module, 'train_run', train)
    again = compare(**ask)
    assert repr(again)=='Comparison(4 runs)' and not Results(ask['path']).failed()

def test_interrupts_and_bugs_outside_a_training_stop_the_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'make_learner', lambda run: 1/0)
    with pytest.raises(ZeroDivisionError): compare(path=tmp_path/'r.jsonl', **ASK)
    assert not (tmp_path/'r.jsonl').exists()

def _record(recipe, seed, accuracy, sparsity=.9, **kwargs):
    return dict(recipe=recipe, sparsity=sparsity, seed=seed, accuracy=accuracy, sparsity_reached=sparsity, seconds=1., data='digits', arch='a') | kwargs

def test_gains_are_paired_by_seed():
    "Seeds that one of the two lacks do not count; what the seed does to both cancels."
    a = [_record('agp', i, .5+.1*i) for i in (2, 0, 1, 3)]
    b = [_record('set', i, .48+.1*i) for i in (0, 1, 2)]
    d = [_record('dense', i, .9, 0.) for i in range(4)]
    table = Comparison(a+b+d).table('set').set_index('recipe')
    assert table.gain.agp==pytest.approx(.02) and table.verdict.to_dict()=={'agp':'confirmed', 'set':'', 'dense':''}
    assert versus(a+b, 'agp', 'set', sparsity=.9)['seeds']==3 and versus(a+b, 'agp', 'set', sparsity=.5)['verdict']==''
    assert Comparison(a+b+d).table('dense').set_index('recipe').gain.agp==pytest.approx(.5+.15-.9)
    with pytest.raises(ValueError, match="`baseline` has no finished run: 'gmp'"): Comparison(a).table('gmp')

def test_interval_holds_the_bootstrap_and_students_t():
    "Exact values of t for three differences; never narrower than the bootstrap, whose ends are the extremes here."
    low,high = interval([.01, .02, .03])
    assert (low, high)==pytest.approx((.02-4.302653*.01/3**.5, .02+4.302653*.01/3**.5))
    skewed = [0.]*30+[1.]
    assert interval(skewed)[1]>=np.mean(skewed)+1e-3 and interval([.2, .2])==(.2, .2) and np.isnan(interval([.1])[0])
    assert [verdict(*o) for o in ((.1, .2), (-.2, -.1), (-.1, .1), interval([.1]))]==['confirmed', 'not confirmed', 'undecided', 'undecided']

def test_several_networks_are_several_rows(tmp_path):
    runs = make_runs(['dense', 'epi'], [.3], 2, arch=['small_cnn', 'resnet8'], epochs=1)
    assert len(runs)==8 and [r.arch for r in runs[:4]]==['small_cnn']*2+['resnet8']*2
    records = [_record(r.recipe, r.seed, .5, r.sparsity, arch=r.arch, accuracies=[.5]) for r in runs]
    table = Comparison(records).table('dense')
    assert len(table)==4 and table.arch.tolist()==['small_cnn']*2+['resnet8']*2 and (table.seeds==2).all() and table.gain[table.recipe=='epi'].eq(0).all()
    assert read_runs(runs, tmp_path/'none.jsonl').asked==8

def test_pictures_and_page(tmp_path):
    records = [_record(nm, i, .9-.1*s, 0. if nm=='dense' else s, accuracies=[.1, .9], **({} if nm!='epi' else dict(training_share=.5, at_epoch=None if s<.7 else 2)))
               for i in range(2) for s in (.5, .8) for nm in ('dense', 'agp', 'epi')]
    comparison = Comparison(records, [dict(recipe='set', sparsity=.9, seed=1, error='<Oops>')])
    assert [o.get_text() for o in comparison.plot().get_legend().get_texts()]==['dense', 'agp', 'epi', 'epi, cut after 2']
    assert len(comparison.plot_runs().get_yticks())==5 and comparison.plot_cost().get_xlim()[1]==pytest.approx(1.05)
    costs = [o.get_text() for o in comparison.plot_cost().get_legend().get_texts()]
    assert costs==['dense', 'agp, 0.5', 'epi, 0.5', 'agp, 0.8', 'epi, 0.8, cut after n epochs']
    assert len(comparison.plot_curves().lines)==5 and comparison.table().training_share.tolist()==[1, 1, .5, 1, .5]
    page = comparison.report(tmp_path/'r.html', 'agp', title='A & B').read_text()
    assert 'A &amp; B' in page and '&lt;Oops&gt;' in page and page.count('<svg')==4 and [p.name for p in tmp_path.iterdir()]==['r.html']

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

LINE = json.dumps(dict(key='a', recipe='agp', sparsity=.9, seed=0, accuracy=.5))

@pytest.mark.parametrize('end', ['\n', '\r', '\r\n'])
def test_other_line_ends(tmp_path, end):
    "Nothing is lost by the next `add`."
    path = tmp_path/'r.jsonl'
    path.write_bytes(end.join([LINE, LINE.replace('"a"', '"b"'), '']).encode())
    Results(path).add(dict(key='c'))
    assert [r['key'] for r in Results(path).read()]==['a', 'b', 'c']

@pytest.mark.parametrize('end', ['\n', '\r', '\r\n'])
@pytest.mark.parametrize('last', ['{"key": "b"', '{"key": "b"}'])
def test_what_add_replaces_is_kept(tmp_path, end, last):
    path = tmp_path/'r.jsonl'
    path.write_bytes((LINE+end+last).encode())
    Results(path).add(dict(key='c'))
    beside = path.with_name('r.jsonl.torn')
    assert [r['key'] for r in Results(path).read()]==['a', *'b'*last.endswith('}'), 'c']
    assert beside.exists()!=last.endswith('}') and (last.endswith('}') or beside.read_text()==last+'\n')

WRONG = ['{"key": 3}', '{"key": "a", "accuracy": "high"}', '{"key": "a", "accuracy": true}', '{"key": "a", "seed": 1.5}', '[1]', '"a"', '3',
         *(json.dumps(dict(key='a') | {nm:v}) for nm,v in dict(lr=[1], limit={}, valid='x', at_epoch=1.5, bf16=[1], channels_last=0, training=[], every='',
             device=[1], threads={}, python=3, accuracy=10**400, seconds=float('inf'), sparsity=-10**30, accuracies=[[.5]], recipe='\ud800').items()),
         '{"key": "a", "accuracies": {}}', '{"key": "a", "error": 1}', '{"key": "a", "sparsity": null}', '{"a":'*5000+'1'+'}'*5000, '\x00', 'no']

@pytest.mark.parametrize('wrong', WRONG, ids=range(len(WRONG)))
def test_lines_of_wrong_types(tmp_path, wrong):
    path = tmp_path/'r.jsonl'
    path.write_text(f'{LINE}\n{wrong}\n')
    for read in (Results(path).read, Results(path).failed, lambda: read_runs([Run('agp', .9)], path)):
        with pytest.raises(ValueError, match='r.jsonl` line 2 is not a result'): read()
    before = path.read_bytes()
    Results(path).add(dict(key='c'))
    assert path.read_bytes().startswith(before)

def test_lines_without_a_key_and_files_that_are_none(tmp_path):
    path = tmp_path/'r.jsonl'
    path.write_text(f'{LINE}\n{{"accuracy": 0.5}}\n')
    for read in (Results(path).finished, lambda: read_runs([Run('agp', .9)], path),
                 lambda: compare(['agp'], [.9], path, show_progress=False)):
        with pytest.raises(ValueError, match='r.jsonl` line 2 is not the result of a run: it has no `key`'): read()
    assert Results(path).failed()==[] # who finished needs no key to be shown
    path.write_text(f'{LINE}\n{{"error": "no"}}\n')
    with pytest.raises(ValueError, match='line 2 is not the result of a run'): Results(path).failed()
    os.mkfifo(tmp_path/'pipe')
    for path in (tmp_path/'pipe', tmp_path):
        with pytest.raises(ValueError, match=f'{path.name}` is no regular file'): Results(path).read()
        with pytest.raises(OSError, match=f'{path.name}` could not take a result, kept in .*kept: .* it is no regular file') as e:
            Results(path).add(dict(key='a'))
        kept = Path(re.search('kept in (.*kept): ', str(e.value))[1])
        assert json.loads(kept.read_text())==dict(key='a')
        kept.unlink()

@pytest.mark.parametrize('where', ['write', 'fsync', 'short'])
def test_a_full_disk_loses_no_training(tmp_path, monkeypatch, where):
    "The result that could not be appended lies beside, and the error says where; the file is as it was."
    path,write = tmp_path/'r.jsonl',os.write
    path.write_text(LINE+'\n')
    def full(file, *data):
        if where!='short': raise OSError(28, 'No space left on device')
        return write(file, *(o[:5] for o in data))
    monkeypatch.setattr(os, 'fsync' if where=='fsync' else 'write', full)
    with pytest.raises(OSError, match='could not take a result, kept in .*r.jsonl.*kept') as e: Results(path).add(dict(key='b'))
    kept = next(tmp_path.glob('*.kept'))
    assert kept.name in str(e.value) and json.loads(kept.read_text())==dict(key='b')
    if where!='fsync': assert path.read_text()==LINE+'\n'

def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    records = [dict(recipe='agp', sparsity=.9, seed=i, accuracy=.5, sparsity_reached=.9, seconds=1.) for i in range(2)]
    def full(self, *args, **kwargs):
        self.touch()
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(OSError, match='r.html could not be written: .*No space'): Comparison(records).report(tmp_path/'r.html')
    assert not list(tmp_path.iterdir())

def test_a_page_shows_names_as_text(tmp_path):
    "They come from a file, and a browser takes none of them for its own words; curves of other lengths are drawn as far as both go."
    record = dict(key='a', recipe='<b>x</b>', sparsity=.9, seed=0, accuracy=.5, accuracies=[.4, .5], sparsity_reached=.9, seconds=1.)
    failed = record | dict(error='<i>no</i> \ud800')
    page = Comparison([record, record | dict(seed=1, accuracies=[.4])], [failed]).report(tmp_path/'r.html', title='<u>t</u>').read_text(encoding='utf-8')
    assert '&lt;b&gt;x&lt;/b&gt;' in page and not any(o in page for o in ('<b>', '<i>', '<u>'))
