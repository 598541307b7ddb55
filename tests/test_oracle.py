"Oracle sweeps: every epoch once, the rule beside them, nothing twice."
import json

import pytest

from early_prune import compare as module
from early_prune.compare import Results, Run, make_learner, oracle, plot_oracle, train_run
from early_prune.ranking import Neurons
from early_prune.recipes import NEURON_RECIPES, RECIPES, recipe
from early_prune.triggers import AtEpoch

RUN = Run(arch='resnet8', epochs=3, limit=128)
def train(learn, cbs): learn.fit_one_cycle(3, 1e-2, cbs=cbs)

def ask(tmp_path, **kwargs):
    return dict(learn_fn=lambda: make_learner(RUN), train=train, epochs=[0, 2], path=tmp_path/'oracle.jsonl', seed=0) | kwargs

def test_every_epoch_once(tmp_path, monkeypatch):
    calls,cut_once = [],module._cut_once
    monkeypatch.setattr(module, '_cut_once', lambda *args: calls.append(args[2]['when']) or cut_once(*args))
    records = oracle(**ask(tmp_path))
    assert calls==[0, 2, 'epi'] and [r['cut_at'] for r in records]==[0, 2, None]
    assert records[0]['training_share']<records[1]['training_share']<records[2]['training_share']==1
    assert oracle(**ask(tmp_path))==records and len(calls)==3
    more = oracle(**ask(tmp_path, epochs=[0, 1, 2]))
    assert len(calls)==4 and len(Results(tmp_path/'oracle.jsonl'))==4 and [more[i] for i in (0, 2, 3)]==records
    assert json.loads(json.dumps(records))==records and all(len(r['accuracies'])==3 for r in records)

def test_other_rules_ratios_and_tags_are_other_runs(tmp_path):
    n = 0
    for extra in ({}, dict(ratio=.3), dict(rule='epi_gradient'), dict(seed=1)):
        oracle(**ask(tmp_path, epochs=[1], **extra))
        n += 2
        assert len(Results(tmp_path/'oracle.jsonl'))==n

def test_plot(tmp_path):
    records = oracle(**ask(tmp_path))
    cut = [r for r in records if r['when']==r['rule'] and r['cut_at'] is not None]
    ax = plot_oracle(records)
    assert len(ax.lines)==1+bool(cut) and ax.get_xlabel()=='epoch of the cut', 'a star where the rule cut'
    assert len(plot_oracle([*records, dict(records[-1], when=records[-1]['rule'], cut_at=2)]).lines)==2

@pytest.mark.parametrize('name', NEURON_RECIPES)
def test_recipes_that_cut(name):
    learn = make_learner(RUN)
    trigger = {} if name=='at_epoch' else dict(trigger=AtEpoch(1))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2, cbs=recipe(name, ratio=.5, **{'trigger':AtEpoch(1), **trigger}))
    cb = learn.early_prune
    assert cb.done and cb.groups.n_neurons==cb.dense-round(.5*cb.dense)

def test_runs_that_cut(tmp_path):
    run = Run('at_epoch', .5, arch='resnet8', epochs=6, limit=128)
    learn = make_learner(run)
    with learn.no_bar(), learn.no_logging(): record = train_run(learn, run)
    assert record['cut_at']==5 and .7<record['training_share']<1 and record['params']<sum(p.numel() for p in make_learner(run).model.parameters())

def test_how_much_must_be_said_once():
    assert recipe('epi', .5).budget==recipe('epi', ratio=.5).budget==Neurons(.5)
    for args,kwargs in ((('epi',), {}), (('epi', .5), dict(ratio=.5)), (('agp',), {}), (('agp',), dict(ratio=.5))):
        with pytest.raises(ValueError, match='needs'): recipe(*args, **kwargs)
    assert not set(RECIPES) & set(NEURON_RECIPES)
