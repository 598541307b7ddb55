"Every light classification network of torchvision is cut here; the file of results holds all of them, and the page shows it."
import json
import re
from dataclasses import replace

import pytest
import zoo
from torch import nn
from zoo import BOUND, NBS, Entry, newest, visit

from early_prune.surgery import shrink_to

ZOO,STORED = zoo.zoo(),newest()
ALSO = 'alexnet','vgg11_bn','vit_b_32','resnet152','wide_resnet50_2' # one of each family that has no small network
LIGHT = [nm for nm in zoo.classifiers() if nm in ALSO or STORED.get(nm, {}).get('params', 1e9)<3.2e7]
ATTENTION = 'vit','swin','maxvit'

def check(r):
    "What holds for every network of torchvision."
    assert 'failed' not in r, r['failed']
    assert r['trains'] and r['round_trip'] and r['ok']
    assert r.get('difference_exact', r['difference'])<BOUND, 'the law fails in exact groups'
    assert r['effect']>.05, 'masking changes nothing: this network does not test the law'
    assert .2<r['left']<.9
    if r['family'] not in ATTENTION: assert r['cuttable']>=.85, r['fixed_share']
    if not any('LayerNorm' in nm or 'GroupNorm' in nm for nm in r['norms']): assert r['inexact']==0

@pytest.mark.parametrize('name', LIGHT)
def test_network(name):
    "Trace, cut, forward, backward, save and load; the cut network equals the masked one."
    check(visit(ZOO[name]))

def test_every_family_is_tested():
    assert {ZOO[nm].family for nm in LIGHT}=={ZOO[nm].family for nm in zoo.classifiers()} and len(LIGHT)>=45

class Strange(nn.Module):
    "Refuses to run."
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
    def forward(self, x): raise RuntimeError('not today')

def tiny(): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8*16, 5))

ENTRY = Entry('tiny', tiny, (3, 8, 8), 'made here')

def test_a_failure_is_a_record():
    r = visit(replace(ENTRY, build=Strange))
    assert not r['ok'] and r['failed'].startswith('trace: ValueError') and 'not today' in r['failed']
    assert visit(ENTRY)['ok']

def test_a_broken_law_is_seen(monkeypatch):
    "Were masking to do nothing, or `load` to give other numbers, the record would say so."
    monkeypatch.setattr(zoo, 'silence', lambda model, groups, keep: model)
    r = visit(ENTRY)
    assert r['difference']>BOUND and not r['ok']
    monkeypatch.undo()
    monkeypatch.setattr(zoo, 'load', lambda build, path: shrink_to(build(), path).requires_grad_(False).apply(_nudge).eval())
    r = visit(ENTRY)
    assert r['difference']<BOUND and not r['round_trip'] and not r['ok']

def _nudge(m):
    if isinstance(m, nn.Linear): m.bias[0] = m.bias[0]*1.0001

def test_every_parameter_is_lively():
    "No scale of zero, no statistics of a fresh batch norm: a mistake in any of them would show."
    net = zoo.lively(ZOO['convnext_tiny'].build())
    assert all(p.std()>0 for p in net.parameters() if p.numel()>1)
    assert net.features[1][0].layer_scale.abs().mean()>.1
    norm = zoo.lively(tiny())[1]
    assert norm.running_mean.abs().min()>0 and norm.running_var.std()>0

def test_results_are_resumed(tmp_path, monkeypatch, capsys):
    "What is in the file is not done again, unless asked for; the newest line counts."
    monkeypatch.setattr(zoo, 'zoo', lambda: {'tiny':ENTRY})
    path = tmp_path/'zoo.jsonl'
    for n,args in ((1, []), (1, []), (2, ['--again']), (2, ['nonsense', '--again'])):
        assert zoo.main([*args, '--path', str(path)])==0
        assert len(path.read_text().splitlines())==n
    assert newest(path)['tiny']['ok'] and 'tiny' in capsys.readouterr().out

# The stored file and its page ---------------------------------------------------------------------

def test_stored_file_is_complete():
    "Every network of the zoo has a line; all of torchvision pass."
    assert {nm for nm in STORED if '/' not in nm}=={nm for nm in ZOO if '/' not in nm}
    assert {nm for nm in STORED if nm.startswith('transformers/')}=={f'transformers/{nm}' for nm in zoo.zoo_transformers.NETWORKS}
    assert {f'timm/{nm}' for nm in (zoo.TIMM | zoo.TIMM_MODULES)}=={nm for nm in STORED if nm.startswith('timm/')}
    assert set(zoo.classifiers())<=set(STORED) and len(zoo.classifiers())>=80
    assert len({r['family'] for r in STORED.values() if r['kind']=='timm'})>=10
    for nm in zoo.classifiers(): check(STORED[nm])

def test_stored_failures_are_known():
    "Nothing else fails: a network that its own library cannot build, and one in which nothing can be cut."
    assert {nm for nm,r in STORED.items() if not r['ok']}<={'xsenet154', 'timm/nf_resnet50', 'transformers/mixtral', 'transformers/wav2vec2', 'transformers/hubert'}

def _outputs(page):
    cells = json.loads((NBS/'studies'/page).read_text())['cells']
    return '\n'.join(''.join(o['data'].get('text/html', '')) for c in cells for o in c.get('outputs', []) if 'data' in o)

def test_page_shows_the_file():
    "The table of the page is made from the stored file: every network, with the numbers that the file has."
    rows = dict(re.findall(r'<th>([^<]+)</th>\s*(.*?)</tr>', _outputs('zoo.ipynb'), re.S))
    for nm,r in STORED.items():
        if 'difference' not in r: continue
        cells = re.findall(r'<td>([^<]*)</td>', rows[nm])
        want = f'{r["params"]/1e6:.1f}',str(r['groups']),f'{r["cuttable"]:.1%}',f'{r["difference"]:.0e}',f'{r["left"]:.2f}'
        assert set(want)<=set(cells), f'{nm}: the page is older than the file'
