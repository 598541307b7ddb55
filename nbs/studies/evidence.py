"The papers' claims, tested on the stored trainings: differences paired by seed, with intervals."
import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from early_prune.compare import interval, verdict

RESULTS = Path(__file__).parent/'results'
HUBENS,LIU,EVCI,SHEN = 'Hubens et al., 2022','Liu et al., 2021','Evci et al., 2020','Shen et al., 2022'

# (paper, recipe that is claimed to be better, recipe that is claimed to be worse)
ORDERS = [(HUBENS, 'one_cycle', 'one_shot'), (HUBENS, 'one_cycle', 'iterative'), (HUBENS, 'one_cycle', 'agp'),
          (LIU, 'granet', 'gmp'), (LIU, 'granet', 'rigl'), (LIU, 'granet_sparse', 'rigl'), (LIU, 'gmp', 'rigl'),
          (EVCI, 'rigl', 'set'), (EVCI, 'rigl', 'static_erk'), (EVCI, 'rigl', 'snip'), (LIU, 'rigl', 'grasp'), (LIU, 'rigl', 'synflow')]
CUTS = 'epi','epi_gradient','early_bird' # rules that may never cut
MARGIN = .01 # of accuracy: how far below the best fixed epoch a rule may stay and still count as as good

def _plain(r):
    "A record of a sweep in the fields of a run."
    if 'when' not in r: return dict(limit=None, at_epoch=None) | r
    at = None if r['when']==r['rule'] else r['when']
    return r | dict(recipe=r['rule'], sparsity=r['ratio'], epochs=r['n_epochs'], limit=None, at_epoch=at)

def _read(name): return [json.loads(o) for o in (RESULTS/name).read_text().splitlines()]

def trainings():
    "Every finished training of the studies, once."
    names = ['one_cycle.jsonl', 'granet.jsonl', 'when_to_prune.jsonl',
             *sorted(p.name for shape in ('cifar10*.jsonl', 'long_*.jsonl') for p in RESULTS.glob(shape))]
    records = [_plain(r) for nm in names for r in _read(nm) if 'error' not in r]
    return list({r['key']:r for r in records}.values())

def budget(r):
    "Name of data, network and length, and of the training where it is not the one-cycle AdamW of the book."
    images = '' if r['limit'] is None else f', {r["limit"]:,} images'
    pixels = '' if r.get('shrink', 1)==1 else f', pixels averaged {r["shrink"]}x{r["shrink"]}'
    how = ', SGD with steps' if r.get('training')=='sgd_steps' else ''
    return f'{r["data"]}{images}{pixels}, {r["arch"]}, {r["epochs"]} epochs{how}'

def stated(gains, margin=0.):
    "The word for paired gains of accuracy, their mean and their interval in points: what every page says."
    low,high = interval(list(gains))
    return f'{verdict(low+margin, high+margin)} ({100*np.mean(gains):+.2f}, {100*low:+.2f} to {100*high:+.2f})'

def word(statement): return statement.split(' (')[0]

def _row(paper, claim, level, where, gains, margin=0.):
    if not gains: return dict(paper=paper, claim=claim, sparsity=level, budget=where, seeds=0, verdict='never cut')
    low,high = interval(gains)
    said = word(stated(gains, margin)) if len(gains)>1 else 'one seed only'
    return dict(paper=paper, claim=claim, sparsity=level, budget=where, seeds=len(gains), gain=float(np.mean(gains)),
                low=low, high=high, verdict=said)

def _by_seed(records, recipe, at=None):
    "Accuracy for each seed. A rule that never cut left a dense network, which is no answer to when to prune."
    mine = [r for r in records if r['recipe']==recipe and r['at_epoch']==at]
    return {r['seed']:r['accuracy'] for r in mine if recipe not in CUTS or r['cut_at'] is not None}

def _paired(a, b): return [a[s]-b[s] for s in sorted(a.keys() & b.keys())]

def _cells(records):
    "Records of each budget and sparsity."
    found = {}
    for r in records: found.setdefault((budget(r), r['sparsity']), []).append(r)
    return {k:v for k,v in found.items() if k[1]}

def orders(records):
    "One row for each claim that a recipe is better than another, where both have a seed in common."
    rows = []
    for (paper,a,b),((where,level),cell) in product(ORDERS, _cells(records).items()):
        if gains := _paired(_by_seed(cell, a), _by_seed(cell, b)): rows.append(_row(paper, f'{a} better than {b}', level, where, gains))
    return rows

def moments(records):
    "EPI against a cut at initialisation, against the best fixed epoch of its sweep, and against Early-Bird."
    rows = []
    for rule,((where,level),cell) in product(('epi', 'epi_gradient'), _cells(records).items()):
        asked = [r for r in cell if r['recipe']==rule and r['at_epoch'] is None]
        mine,fixed = _by_seed(cell, rule),{r['at_epoch'] for r in cell if r['recipe']==rule} - {None}
        swept = {at:o for at in sorted(fixed) if len(o := _by_seed(cell, rule, at))==len(asked)}
        if swept and asked:
            best = max(swept, key=lambda at: np.mean(list(swept[at].values())))
            rows.append(_row(SHEN, f'{rule} within {100*MARGIN:.0f} point of the best fixed epoch', level, where, _paired(mine, swept[best]), MARGIN))
        if 0 in swept and asked: rows.append(_row(SHEN, f'{rule} better than a cut at initialisation', level, where, _paired(mine, swept[0])))
        if asked and (early := _by_seed(cell, 'early_bird')):
            rows.append(_row(SHEN, f'{rule} better than early_bird', level, where, _paired(mine, early)))
    return rows

def plasticity_claims():
    "Plasticity before against after each drop of the learning rate, and with against without regrowth."
    frame = pd.DataFrame(_read('plasticity.jsonl'))
    by = frame.pivot_table(index=['rate', 'seed'], columns=['regrow', 'epoch'], values='plasticity')
    where,rows = 'digits, resnet8, 20 + 4 epochs',[]
    for level in by.index.levels[0]:
        plain,back = by.loc[level][''],by.loc[level]['gradient 0.5']
        for a,b,nm in ((10, 12, 'first'), (15, 17, 'second')):
            rows.append(_row(LIU, f'plasticity falls with the {nm} drop of the learning rate', level, where, list(plain[a]-plain[b])))
        rows.append(_row(LIU, 'regrowth raises plasticity, mean over the moments', level, where, list((back-plain).mean(axis=1))))
    return rows

def all_claims():
    "Every claim on every budget that has run: one row each, budgets in the order of their files."
    records = trainings()
    frame = pd.DataFrame(orders(records)+moments(records)+plasticity_claims())
    for nm in ('budget', 'claim'): frame[nm] = pd.Categorical(frame[nm], list(dict.fromkeys(frame[nm])), ordered=True)
    return frame.sort_values(['budget', 'claim', 'sparsity'], ignore_index=True)

def shown(claims):
    "The claims of one budget for a reader: gain and interval in points."
    ends = [f'{100*r.low:+.1f} to {100*r.high:+.1f}' if r.seeds>1 else '' for r in claims.itertuples()]
    columns = dict(claim=claims.claim.astype(str), sparsity=claims.sparsity, verdict=claims.verdict,
                   gain=[f'{100*o:+.1f}' if o==o else '' for o in claims.gain], interval=ends, seeds=claims.seeds, paper=claims.paper)
    return pd.DataFrame(columns).style.format({'sparsity':'{:g}'}).hide(axis='index')
