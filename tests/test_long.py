"The long trainings and the study of the interval: the order of value, and what counts as a survivor."
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

STUDIES = Path(__file__).parent.parent/'nbs'/'studies'

@pytest.fixture
def studies(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import interval
    import long
    return SimpleNamespace(long=long, interval=interval)

def test_the_order_of_value(studies):
    "At .95 with SGD first, seed by seed; every training once, each at least 10,000 steps of 45,000 images."
    runs = studies.long.in_order(3, data='cifar10')
    first = runs[:7*3]
    assert {r.recipe for r in first}=={'dense', 'one_cycle', 'one_shot', 'iterative', 'agp', 'gmp', 'static_erk'}
    assert [r.seed for r in first]==sorted(r.seed for r in first) and {(r.training, r.sparsity) for r in first}=={('sgd_steps', 0.), ('sgd_steps', .95)}
    assert all(r.recipe in studies.long.DYNAMIC and r.sparsity==.95 for r in runs[21:33])
    assert len({r.key for r in runs})==len(runs) and all(r.epochs*(45_000//r.bs)>=10_000 and r.limit is None for r in runs)

def test_a_survivor_is_active_after_the_next_swap(studies):
    watch = studies.interval.Survival()
    def see(*active):
        mask = torch.zeros(8, dtype=torch.bool)
        mask[list(active)] = True
        return dict(w=mask)
    record = SimpleNamespace(first=see(0, 1, 2), last=see(0, 1, 2), history=[0])
    watch.learn = SimpleNamespace(sparsify=SimpleNamespace(exploration=None))
    watch.before_step()
    watch.learn.sparsify.exploration = record
    for active in ((0, 3, 4), (0, 3, 5), (0, 5, 3)): # 3 and 4 come; 3 stays, and 5 comes; 5 stays
        record.last,record.history = see(*active),[*record.history, 0]
        watch.before_step()
        watch.before_step() # a batch without a swap changes nothing
    assert watch.fates==[(2, 1), (1, 1)] and int(watch.new['w'].sum())==0

def test_measures_held_out_images_and_all_swaps(studies):
    run = studies.interval.Run('rigl', .9, 0, 'digits', epochs=4, limit=256, valid=.25, every=3)
    r = studies.interval.measure(run)
    assert r['swaps']==4 and len(r['fates'])==3 and 0<r['survived']<r['newcomers'] and len(r['accuracies'])==4
    assert r['steps']==16 and r['accuracy']*64==pytest.approx(round(r['accuracy']*64), abs=1e-3) # 64 images are held out
