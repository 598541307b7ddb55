"EPI and Early-Bird: laws, an independent rule, the authors' published curves, and errors."
import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from early_prune.triggers import (
    EPI,
    TAU_GRADIENT,
    TAU_MAGNITUDE,
    AtEpoch,
    EarlyBird,
    Never,
    Snapshot,
    check_trigger,
    dump_history,
    epi,
    fires_at,
    first_epoch,
    keep_of,
    load_history,
    mask_distance,
    plot_epi,
    plot_widths,
    shortfall,
    similarity,
    snapshot,
    too_late,
)

REFERENCE = Path(__file__).parent.parent/'nbs'/'reference'
PUBLISHED = json.loads((REFERENCE/'epi_curves.json').read_text())['curves']['magnitude']
ORACLE = json.loads((REFERENCE/'oracle_curves.json').read_text())
TARGETS = {'resnet34': [(15,15), (16,16), (19,19), (21,21), (24,27)], 'resnet50': [(15,15), (17,17), (18,18), (23,23), (26,26)]}

unit = st.floats(0, 1)
width = st.integers(0, 300)
pair = st.lists(st.tuples(width, width), min_size=1, max_size=20)
values = st.lists(st.none() | unit, max_size=30)

@st.composite
def histories(draw, most=14):
    "Histories of the same few groups, kept neurons drawn anew at each epoch."
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    n = draw(st.integers(0, most))
    subset = lambda size: draw(st.lists(st.integers(0, size-1), unique=True, max_size=size))
    return [snapshot(i, {g:subset(o) for g,o in enumerate(sizes)}, dict(enumerate(sizes))) for i in range(n)]

def plain_epi(history, window):
    "EPI of the last entry, written with NumPy and the formula."
    rows = np.array([o.widths for o in history[-window-1:]], dtype=float)
    if len(rows)<=window: return None
    now,total = rows[-1],0.
    for row in rows[:-1]:
        with np.errstate(invalid='ignore'): d = np.nan_to_num(np.abs(now-row)/(now+row))
        total += 1-d.mean()
    return total/window

def plain_rule(series, threshold, patience):
    "The rule as the two conditions say it."
    for i,now in enumerate(series):
        if now is None or now<threshold: continue
        if all(series[i-j] is None or now>=series[i-j] for j in range(1, patience+1) if i-j>=0): return i
    return None

# Similarity and EPI ----------------------------------------------------------------------------------

@settings(max_examples=300, deadline=None)
@given(pairs=pair)
def test_similarity(pairs):
    "Symmetric, in [0, 1], and 1 for equal widths only."
    a,b = zip(*pairs)
    s = similarity(a, b)
    assert s==similarity(b, a) and 0<=s<=1
    assert similarity(a, a)==1
    assert (s==1)==(a==b)

def test_similarity_by_hand():
    assert similarity((10,), (30,))==.5
    assert similarity((0,0), (0,7))==.5
    assert similarity((0,), (0,))==1
    assert similarity((0,), (1,))==0

@settings(max_examples=100, deadline=None)
@given(pairs=pair, k=st.integers(2, 9))
def test_similarity_has_no_scale(pairs, k):
    "Networks `k` times as wide are as similar."
    a,b = zip(*pairs)
    assert similarity([k*o for o in a], [k*o for o in b])==pytest.approx(similarity(a, b), abs=1e-12)

@settings(max_examples=150, deadline=None)
@given(history=histories(), window=st.integers(1, 8))
def test_epi(history, window):
    "EPI is the mean of the formula, `None` exactly until the window is full."
    series = [epi(history[:i+1], window) for i in range(len(history))]
    assert [o is None for o in series]==[i<window for i in range(len(history))]
    for i,o in enumerate(series):
        if o is not None: assert 0<=o<=1 and o==pytest.approx(plain_epi(history[:i+1], window), abs=1e-12)
    assert EPI(.9, window=window).series(history)==series

@given(widths=st.lists(width, min_size=1, max_size=9), window=st.integers(1, 9))
def test_constant_history(widths, window):
    history = [Snapshot(i, widths) for i in range(window+2)]
    assert [epi(history[:i], window) for i in range(window+3)]==[None]*(window+1) + [1.]*2
    assert fires_at(EPI(1., window=window), history)==window==EPI(1., window=window).earliest

def test_window_is_that_of_the_last_epochs():
    "What happened before the window is forgotten, and the sub-network at initialisation counts."
    history = [Snapshot(i, (20 if i<1 else 40,)) for i in range(8)]
    series = EPI(.9).series(history)
    assert series[:5]==[None]*5 and series[5]==pytest.approx(1-(20/60)/5) and series[6:]==[1,1]

# The rule --------------------------------------------------------------------------------------------

@settings(max_examples=500, deadline=None)
@given(series=values, threshold=st.floats(.01, 1), patience=st.integers(0, 8))
def test_first_epoch(series, threshold, patience):
    found = first_epoch(series, threshold, patience)
    assert found==plain_rule(series, threshold, patience)
    assert found==next((i for i,o in enumerate(series) if o is not None and o>=threshold), None), 'patience cannot matter'

@settings(max_examples=200, deadline=None)
@given(history=histories(), threshold=st.floats(.3, 1), window=st.integers(1, 4), patience=st.integers(0, 4))
def test_trigger_is_the_rule(history, threshold, window, patience):
    "The trigger's answer at each epoch is the rule at that epoch, and the first yes is `first_epoch`."
    trigger = EPI(threshold, window, patience)
    series = trigger.series(history)
    for i,now in enumerate(series):
        recent = [o for o in series[max(0, i-patience):i] if o is not None]
        assert trigger(history[:i+1])==(now is not None and now>=threshold and all(now>=o for o in recent))
    assert fires_at(trigger, history)==first_epoch(series, threshold, patience)

def test_patience_matters_when_asked_late():
    "After a peak the trigger says no until EPI is as high again."
    history = [Snapshot(i, (w,)) for i,w in enumerate([50,50,50,49,49,49,49,50])]
    series = EPI(.9, window=1).series(history)
    assert series[2]==1 and series[3]<1
    assert [EPI(.9, window=1, patience=p)(history[:4]) for p in (0, 1, 5)]==[True, False, False]

TRIGGERS = [EPI(.8), EPI(TAU_GRADIENT), EPI(TAU_MAGNITUDE, 2, 3), EarlyBird(), EarlyBird(.5, 2), AtEpoch(0), AtEpoch(4), Never()]

@settings(max_examples=100, deadline=None)
@given(history=histories())
def test_asking_changes_nothing(history):
    before = deepcopy(history)
    for trigger in TRIGGERS:
        answers = [trigger(history[:i]) for i in range(len(history)+1)]
        assert all(isinstance(o, bool) for o in answers) and not answers[0]
        assert answers[::-1]==[trigger(history[:i]) for i in reversed(range(len(history)+1))]
        assert history==before
        earliest = len(history) if trigger.earliest is None else trigger.earliest
        assert not any(trigger(history[:i+1]) for i in range(min(earliest, len(history)))), 'fired before `earliest`'

@pytest.mark.parametrize('trigger', TRIGGERS[:-1], ids=str)
def test_earliest_is_reached(trigger):
    "With nothing changing, every trigger fires at its `earliest` epoch."
    still = [snapshot(i, {'a':(0,1)}, {'a':4}) for i in range(9)]
    assert fires_at(trigger, still)==trigger.earliest

def test_triggers_are_frozen_and_equal_by_value():
    assert EPI(.9)==EPI(.9) and hash(EarlyBird())==hash(EarlyBird()) and Never()==Never()
    for trigger,nm in ((EPI(.9), 'threshold'), (EarlyBird(), 'window'), (AtEpoch(1), 'epoch')):
        with pytest.raises(AttributeError): setattr(trigger, nm, 1)

# Published curves ------------------------------------------------------------------------------------

@pytest.mark.parametrize('net,ratio,target', [(net, ratio, t) for net,ts in TARGETS.items() for ratio,t in zip(PUBLISHED[net], ts)])
def test_published_curve(net, ratio, target):
    "On the authors' curves the rule fires within one epoch of the target, in the first third of the training."
    curve = PUBLISHED[net][ratio]
    fires = first_epoch([curve.get(str(o)) for o in range(90)], TAU_MAGNITUDE)
    assert target[0]-1<=fires<=target[1]+1
    assert fires<30

def test_published_oracle():
    "Every curve has its star, apart from the plain markers, and no marker is above it by more than the reading error."
    assert {c:sorted(nets) for c,nets in ORACLE['curves'].items()}=={c:sorted(nets) for c,nets in ORACLE['oracle'].items()}
    for c,nets in ORACLE['curves'].items():
        for net,curves in nets.items():
            assert curves.keys()==ORACLE['oracle'][c][net].keys()
            for ratio,curve in curves.items():
                epoch,top1 = ORACLE['oracle'][c][net][ratio]
                assert str(epoch) not in curve and max(curve.values())<=top1+.03 and top1<ORACLE['dense'][net]

# Records ---------------------------------------------------------------------------------------------

@settings(max_examples=150, deadline=None)
@given(history=histories())
def test_round_trip(history):
    text = dump_history(history)
    again = load_history(text)
    assert again==history and dump_history(again)==text and isinstance(json.loads(text), list)
    for trigger in TRIGGERS: assert fires_at(trigger, again)==fires_at(trigger, history)

@settings(max_examples=150, deadline=None)
@given(keep=st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=5))
def test_snapshot_keeps_indices(keep):
    "Whatever the number of neurons, the indices come back, ascending, and the widths count them."
    sizes = {i:max(o, default=0)+1+i for i,o in enumerate(keep)}
    snap = snapshot(3, {i:list(o) for i,o in enumerate(keep)}, sizes)
    assert [o.tolist() for o in keep_of(snap)]==[sorted(o) for o in keep]
    assert snap.widths==tuple(map(len, keep)) and snap.sizes==tuple(sizes.values())

def test_snapshot_takes_arrays_and_follows_sizes():
    "Indices may be arrays or tensors, and the order of groups is that of `sizes`."
    import torch
    sizes = {'a':3, 'b':9}
    snap = snapshot(0, {'b':torch.tensor([8,0]), 'a':np.array([1])}, sizes)
    assert snap.widths==(1,2) and snap==snapshot(0, {'a':(1,), 'b':(0,8)}, sizes)
    assert all(type(o) is int for o in (*snap.widths, *snap.sizes, Snapshot(np.int64(2), np.array([4])).epoch))

@settings(max_examples=150, deadline=None)
@given(history=histories(most=2).filter(lambda h: len(h)==2))
def test_mask_distance(history):
    "The share of neurons in one mask and not in the other."
    a,b = history
    differ = sum(len(set(x.tolist()) ^ set(y.tolist())) for x,y in zip(keep_of(a), keep_of(b)))
    assert mask_distance(a, b)==mask_distance(b, a)==differ/sum(a.sizes)
    assert mask_distance(a, a)==0

def test_early_bird_by_hand():
    "The last mask is compared with the four before: at most a tenth may differ, and a tenth is allowed."
    sizes = {'conv':20}
    def history(*lost): return [snapshot(i, {'conv':[o for o in range(20) if o not in ns]}, sizes) for i,ns in enumerate(lost)]
    assert EarlyBird()(history(*[()]*4, (0,1)))
    assert not EarlyBird()(history(*[()]*4, (0,1,2)))
    assert not EarlyBird()(history((0,1,2), *[()]*4))
    assert EarlyBird()(history((0,1,2), *[()]*5))
    assert not EarlyBird()(history(*[()]*4))
    assert EarlyBird().series(history(*[()]*4, (0,1)))==[None]*4 + [.1]

def test_at_epoch():
    history = [Snapshot(i, (4,)) for i in range(6)]
    assert [fires_at(AtEpoch(o), history) for o in (0, 1, 5, 6)]==[0, 1, 5, None]
    assert AtEpoch(2)(history), 'asked late, it is time'

# What a callback asks --------------------------------------------------------------------------------

def test_check_trigger():
    for trigger,n in ((EPI(.9), 6), (EarlyBird(), 5), (AtEpoch(0), 1), (Never(), 1), (lambda history: True, 1)): check_trigger(trigger, n)
    for trigger,n in ((EPI(.9), 5), (EarlyBird(), 4), (AtEpoch(3), 3)):
        with pytest.raises(ValueError, match='train longer') as e: check_trigger(trigger, n)
        assert str(trigger) in str(e.value) and '\n' not in str(e.value)

def test_too_late():
    history = [Snapshot(i, (4,)) for i in range(4)]
    assert too_late(EPI(.9), 3, history)=='' and too_late(AtEpoch(4), 1, history)
    assert 'has 5' in too_late(AtEpoch(5), 2, history) and 'AtEpoch(3)' in too_late(AtEpoch(5), 2, history)

def test_shortfall():
    history = [snapshot(i, {'conv':range(first, 10)}, {'conv':10}) for i,first in enumerate((0,5,2,1,0,3,4))]
    assert 'it came to 0.947 in 6 epochs. Train longer, or lower the threshold of 1' in shortfall(EPI(1., window=1), history)
    assert 'it came to 0.100 in 6 epochs. Train longer, or raise the threshold of 0.05' in shortfall(EarlyBird(.05, window=2), history)
    for trigger in (EPI(.9, window=9), AtEpoch(9), Never(), lambda history: False): assert 'did not fire in 7 snapshots' in shortfall(trigger, history)

def test_plots():
    import matplotlib.pyplot as plt
    _,ax = plt.subplots()
    series = [None, .9, .96, .99]
    assert plot_epi(series, EPI(.95), ax) is ax and plot_epi(series, EPI(.95), ax, label='curve') is ax
    assert ax.lines[0].get_xydata().tolist()==[[1,.9], [2,.96], [3,.99]]
    assert 'curve: 2' in [o.get_label() for o in ax.lines] and [o.get_text().strip() for o in ax.texts]==['threshold', 'prune: 2']
    assert [o.get_text() for o in plot_epi([None,.5], EPI(.95)).texts]==['threshold']
    ax = plot_widths([snapshot(i, {'a':(0,1), 'b':(0,)}, {'a':4, 'b':1}) for i in range(3)])
    assert ax.images[0].get_array().tolist()==[[.5]*3, [1.]*3] and ax.images[0].get_extent()==[-.5, 2.5, 1.5, -.5]
    assert plot_widths([Snapshot(i, (i, 0)) for i in range(3)]).images[0].get_array().tolist()==[[0, .5, 1], [0, 0, 0]]
    plt.close('all')

# Errors ----------------------------------------------------------------------------------------------

WIDE = Snapshot(0, (4,))

@pytest.mark.parametrize('call,error,text', [
    (lambda: similarity((1,2), (1,)), ValueError, 'same layers, got 2 and 1'),
    (lambda: similarity((), ()), ValueError, 'same layers, got 0 and 0'),
    (lambda: similarity((1,), (-2,)), ValueError, 'got -2'),
    (lambda: epi([WIDE], 0), ValueError, '`window` is at least 1, got 0'),
    (lambda: first_epoch([.5], 0), ValueError, '`threshold` is in (0, 1], got 0'),
    (lambda: first_epoch([.5], float('nan')), ValueError, 'got nan'),
    (lambda: first_epoch([float('nan')], .5), ValueError, 'EPI is in [0, 1], got nan'),
    (lambda: first_epoch([.5], .5, -1), ValueError, '`patience` is at least 0, got -1'),
    (lambda: EPI(94.4), ValueError, 'write 0.944 for 94.4 %'),
    (lambda: EPI(.9, 0), ValueError, '`window` is at least 1'),
    (lambda: EPI(.9, 5.), TypeError, '`window` is a whole number, got 5.0'),
    (lambda: EPI(.9, True), TypeError, '`window` is a whole number, got True'),
    (lambda: EarlyBird(1.), ValueError, '`threshold` is a fraction in [0, 1), got 1'),
    (lambda: EarlyBird(.1, 1), ValueError, '`window` is at least 2, got 1'),
    (lambda: EarlyBird()([Snapshot(i, (4,)) for i in range(5)]), ValueError, 'widths only'),
    (lambda: mask_distance(snapshot(0, {0:()}, {0:2}), snapshot(0, {0:()}, {0:3})), ValueError, 'sizes (2,) and (3,)'),
    (lambda: AtEpoch(-1), ValueError, '`epoch` is at least 0'),
    (lambda: AtEpoch(1.5), TypeError, '`epoch` is a whole number, got 1.5'),
    (lambda: Snapshot(-1, (4,)), ValueError, '`epoch` is >= 0, got -1'),
    (lambda: Snapshot(0, (4.5,)), TypeError, 'float'),
    (lambda: Snapshot(0, (4,), (4,4)), ValueError, '`sizes` has 2 groups and `widths` 1'),
    (lambda: Snapshot(0, (4,), (3,)), ValueError, 'between 0 and `sizes`'),
    (lambda: Snapshot(0, (2,), (4,), ('f0',)), ValueError, '`kept` has other widths than (2,)'),
    (lambda: snapshot(0, {}, {}), ValueError, 'no group of neurons can be cut'),
    (lambda: snapshot(0, {'a':(0,)}, {'b':1}), ValueError, "got 'a' in one only"),
    (lambda: snapshot(0, {'a':(-1,)}, {'a':4}), ValueError, 'indices in [0, 4), got -1 to -1'),
    (lambda: keep_of(WIDE), ValueError, 'widths only'),
    (lambda: load_history('[1]'), ValueError, '`text` is not a history'),
    (lambda: load_history('{"a": 1}'), ValueError, '`text` is not a history'),
    (lambda: load_history('[{"epoch": 0, "widths": [-1], "sizes": [3]}]'), ValueError, '`text` is not a history'),
    (lambda: plot_widths([]), ValueError, '`history` has no snapshot'),
])
def test_errors(call, error, text):
    with pytest.raises(error) as e: call()
    assert text in str(e.value)
