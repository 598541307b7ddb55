"Curves against independent formulas, windows, and plans."
import math

import pytest
from fastai.callback.schedule import sched_cos, sched_lin
from hypothesis import given, settings
from hypothesis import strategies as st

from early_prune import schedules
from early_prune.schedules import SCHEDULES, Schedule, agp, dsd, one_cycle, one_shot, plan, sched_cubic, sched_one_cycle

unit = st.floats(0, 1)
share = st.floats(0, .99)

@settings(max_examples=300, deadline=None)
@given(a=share, b=share, pct=unit)
def test_between_its_ends(a, b, pct):
    "A schedule never leaves the interval between start and end, upwards and downwards."
    for nm,sched in SCHEDULES.items(): assert min(a,b)-1e-12<=sched(pct, end=b, start=a)<=max(a,b)+1e-12, nm

@settings(max_examples=100, deadline=None)
@given(a=share, b=share)
def test_ends_where_asked(a, b):
    for nm,sched in SCHEDULES.items(): assert sched(1., end=b, start=a)==pytest.approx(a if sched is dsd else b, abs=1e-12), nm

@given(a=share, b=share, pos=unit)
def test_fastai_curves(a, b, pos):
    assert schedules.sched_cosine(a, b, pos)==pytest.approx(sched_cos(a, b, pos), abs=1e-12)
    assert schedules.sched_linear(a, b, pos)==pytest.approx(sched_lin(a, b, pos), abs=1e-12)

def test_published_factors():
    "Factor of the one-cycle schedule at t = 0, .1, ... for both offsets in use (computed independently)."
    five = [.0067, .0266, .0998, .3101, .6457, .8809, .9678, .9920, .9981, .9996, 1]
    six = [.0025, .0100, .0392, .1419, .4014, .7313, .9171, .9784, .9948, .9990, 1]
    for beta,factors in ((5, five), (6, six)):
        assert [sched_one_cycle(0, 1, o/10, beta=beta) for o in range(11)]==pytest.approx(factors, abs=5.1e-5)
    assert one_cycle.func(0, 1, 5/14)==pytest.approx(.5, abs=1e-3)

@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(list(SCHEDULES)), n=st.integers(1, 5000), every=st.none() | st.integers(1, 700), a=share, b=share)
def test_plan(name, n, every, a, b):
    "Ascending steps within the training, at most as many as asked for, the last value is the final one."
    sched = SCHEDULES[name]
    updates = plan(sched, n, b, a, every)
    steps = [s for s,_ in updates]
    assert steps==sorted(set(steps)) and all(0<=s<n for s in steps)
    assert len(updates)<=math.ceil(n/(every or max(1, n//100)))+3
    final = a if sched is dsd else b
    assert (updates[-1][1] if updates else a)==pytest.approx(final, abs=1e-12)

def test_window_is_honoured():
    "Before the window nothing happens, whatever the curve (a neighbour's one-shot prunes in the first batch)."
    assert plan(one_shot, 100, .9)==[(40, .9)]
    assert plan(agp, 100, .9)[0][0]>=20
    assert plan(Schedule(sched_cubic, .3, .6), 1000, .9)[-1]==(600, .9)

def test_schedules_are_frozen():
    for sched in SCHEDULES.values():
        with pytest.raises(AttributeError): sched.begin_pct = .5

@pytest.mark.parametrize('window', [(.5,.5), (.8,.2), (-.1,1), (0,1.1), (float('nan'),1)])
def test_bad_window(window):
    with pytest.raises(ValueError, match='Need 0 <= begin_pct < end_pct <= 1'): Schedule(sched_cubic, *window)

@pytest.mark.parametrize('kwargs,error', [(dict(n_steps=0), '`n_steps`'), (dict(n_steps=5, every=0), '`every`')])
def test_bad_plan(kwargs, error):
    with pytest.raises(ValueError, match=error): plan(agp, end=.9, **kwargs)
