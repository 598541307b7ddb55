"The numbers of the studies come from the stored files, and from nowhere else."
import json
import re
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from early_prune.compare import Comparison, Results, interval, plot_oracle, plot_plasticity, versus

ROOT = Path(__file__).parent.parent
STUDIES = ROOT/'nbs'/'studies'
STORED = sorted((STUDIES/'results').glob('*.jsonl'))

@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import evidence
    return evidence

@pytest.fixture
def protocol(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import protocol
    return protocol

def _outputs(page):
    "Text of all stored outputs of a page, without tags."
    cells = json.loads((STUDIES/page).read_text())['cells']
    data = [o.get('data', {}) for c in cells for o in c.get('outputs', [])]
    html = ' '.join(''.join(d.get('text/html', d.get('text/plain', ''))) for d in data)
    return re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', html))

def test_the_page_of_claims_says_what_the_files_say(evidence):
    "Every claim of every budget, with its gain, interval, seeds and verdict, as a row of the page."
    text,claims = _outputs('claims.ipynb'),evidence.all_claims()
    for r in claims.itertuples():
        ends = f'{100*r.low:+.1f} to {100*r.high:+.1f}' if r.seeds>1 else ''
        gain = f'{100*r.gain:+.1f}' if r.seeds else ''
        row = f'{r.claim} {r.sparsity:g} {r.verdict} {gain} {ends} {r.seeds} {r.paper}'
        assert re.sub(r'\s+', ' ', row) in text, row
    assert text.count('et al., 20')==len(claims)

@pytest.mark.parametrize('page,file', [('one_cycle', 'one_cycle'), ('granet', 'granet'), ('cifar10', 'cifar10_5000')])
def test_tables_of_means_say_what_the_files_say(page, file, protocol):
    text,records = _outputs(f'{page}.ipynb'),Results(STUDIES/'results'/f'{file}.jsonl').read()
    if page=='cifar10':
        parts = (protocol.one_cycle, [.8, .9, .95]), (protocol.granet, [.9, .95, .98]), (protocol.when_to_prune, [.5])
        asked = {r.key for f,levels in parts for r in f(levels, **protocol.SMALL)}
        records = [r for r in records if r['key'] in asked]
    for row in Comparison(records).table().to_dict('records'):
        numbers = f'{row["seeds"]} {row["accuracy"]:.4f} {"" if np.isnan(row["spread"]) else format(row["spread"], ".4f")} {row["least"]:.4f} {row["most"]:.4f}'
        assert re.sub(r'\s+', ' ', numbers) in text, (row, numbers)

def test_a_rule_that_never_cut_takes_no_part(evidence):
    "A dense network is better than any that was cut, and no answer to when to prune."
    dense = [r for r in evidence.trainings() if r['recipe'] in evidence.CUTS and r['at_epoch'] is None and r['cut_at'] is None]
    assert dense
    claims = evidence.moments(evidence.trainings())
    for r in dense:
        mine = [o for o in claims if o['claim'].startswith(f'{r["recipe"]} ') and (o['budget'], o['sparsity'])==(evidence.budget(r), r['sparsity'])]
        assert all(o['seeds']<3 for o in mine)
    assert any(o['verdict']=='never cut' and o['seeds']==0 for o in claims)

def test_no_accuracy_is_written_by_hand_on_the_page_of_claims(evidence):
    "Prose holds no result: all of them are in executed cells."
    cells = json.loads((STUDIES/'claims.ipynb').read_text())['cells']
    prose = ' '.join(''.join(c['source']) for c in cells if c['cell_type']=='markdown')
    assert not re.findall(r'\d\.\d+ (?:points|%)|[+-]\d+\.\d', prose)

@pytest.mark.parametrize('path', STORED, ids=lambda p: p.stem)
def test_stored_results_say_where_they_come_from(path):
    records = [json.loads(o) for o in path.read_text().splitlines()]
    keys = [r['key'] for r in records if 'key' in r and 'error' not in r]
    assert records and len(set(keys))==len(keys), 'a training is stored once'
    if not path.stem.endswith(('_why', '_pilot')): assert all({'device', 'threads', 'python', 'torch', 'fastai'}<=set(r | r.get('conditions', {})) for r in records)
    named = [p.name for p in STUDIES.glob('*.ipynb') if path.name in p.read_text()]
    assert named, 'no page shows it'

def test_the_protocol_on_photographs(protocol):
    "Nothing runs twice; stored runs are those of the protocol; the first part is balanced over the seeds."
    runs = protocol.in_order(3, **protocol.SMALL)
    keys,stored = [r.key for r in runs],Results(STUDIES/'results'/'cifar10_5000.jsonl').read()
    assert len(set(keys))==len(keys) and {r['key'] for r in stored}<=set(keys)
    first = runs[:3*14]
    assert {r.sparsity for r in first}=={0., .95} and [r.seed for r in first]==sorted(r.seed for r in first)
    assert all(r['valid']==.1 and r['limit']==5000 and len(r['accuracies'])==12 for r in stored)
    assert all(abs(r['sparsity_reached']-r['sparsity'])<2e-3 for r in stored if r['recipe'] not in ('epi', 'epi_gradient', 'early_bird'))
    assert all(round(r['accuracy']*1e4, 2)==pytest.approx(round(r['accuracy']*1e4), abs=.01) for r in stored), 'of 10,000 test images'

def test_claims_are_paired_by_seed_and_direction(evidence):
    "The module of the page agrees with `versus`; a claim turned round changes sign and verdict."
    records = evidence.trainings()
    for paper,a,b in evidence.ORDERS:
        for r in [o for o in evidence.orders(records) if o['claim']==f'{a} better than {b}']:
            cell = [o for o in records if evidence.budget(o)==r['budget'] and o['sparsity']==r['sparsity']]
            there,back = (versus(cell, *o) for o in ((a, b), (b, a)))
            assert there['gain']==pytest.approx(r['gain']) and there['seeds']==r['seeds'] and back['gain']==pytest.approx(-r['gain'])
            if r['seeds']>1: assert (there['low'], there['high'])==pytest.approx((r['low'], r['high']))
    assert interval([.1, .2, .4])[0]==pytest.approx(-interval([-.1, -.2, -.4])[1])

def test_rebuilding_tables_and_pictures_takes_less_than_two_minutes(evidence):
    "From the stored files, on one core; time of this process, so that a busy machine does not matter."
    start = time.process_time()
    evidence.all_claims()
    for nm in ('one_cycle', 'granet', 'cifar10_5000'):
        comparison = Comparison(Results(STUDIES/'results'/f'{nm}.jsonl').read())
        comparison.table()
        for draw in (comparison.plot, comparison.plot_runs, comparison.plot_cost): plt.close(draw().figure)
    plt.close(plot_oracle(Results(STUDIES/'results'/'when_to_prune.jsonl').read()).figure)
    plt.close(plot_plasticity(Results(STUDIES/'results'/'plasticity.jsonl').read()).figure)
    assert time.process_time()-start<120

def test_one_function_says_every_word(evidence):
    "No study has a rule of its own for what is confirmed; the word is that of `verdict`, in points."
    from early_prune.compare import interval, verdict
    for gains in ([.01, .012, .011], [-.01, -.012, -.011], [.01, -.01, .002]):
        low,high = interval(gains)
        assert evidence.word(evidence.stated(gains))==verdict(low, high) and f'{100*low:+.2f} to {100*high:+.2f}' in evidence.stated(gains)
    assert evidence.word(evidence.stated([-.005, -.006, -.004]))=='not confirmed' and evidence.word(evidence.stated([-.005, -.006, -.004], .01))=='confirmed'
    for page in STUDIES.glob('*.ipynb'):
        code = '\n'.join(''.join(c['source']) for c in json.loads(page.read_text())['cells'] if c['cell_type']=='code')
        assert 'half>0 else' not in code and 'half<0 else' not in code, page.name
