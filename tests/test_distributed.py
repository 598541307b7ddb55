"Several processes hold one network: the same masks, widths and weights at every epoch; a difference stops them all."
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from torch import nn

from early_prune.criteria import magnitude, random_scores
from early_prune.masks import Masks, agree, averaged, digest, from_first, n_ranks
from early_prune.models import small_cnn
from early_prune.recipes import NEURON_RECIPES, RECIPES
from early_prune.surgery import rewrap

HERE = Path(__file__).parent

def torchrun(folder, n, *checks, seconds):
    "What each process found."
    start(folder, n, 'ranks.py', *checks, seconds=seconds)
    return [json.loads(Path(folder, f'{i}.json').read_text()) for i in range(n)]

def start(folder, n, script, *checks, seconds):
    "Whoever hangs is killed with its children, and the test fails."
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}', HERE/script, folder, *checks]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try: out,_ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f'{n} processes hang after {seconds} s in {checks}: {process.communicate()[0][-3000:]}')
    assert process.returncode==0, out[-6000:]

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    checks = ('primitives', 'all_recipes', 'around_the_cut', 'mismatches', 'alone', 'data', 'plain_context', 'plain_loop', 'resumed', 'planted', 'unharmed', 'foreign', 'sharded')
    return torchrun(tmp_path_factory.mktemp('two'), 2, *checks, seconds=300)

def test_one_process_pays_nothing():
    net,calls = nn.Linear(8, 8),[]
    masks = Masks(net)
    assert n_ranks()==1 and from_first(lambda: 5)==5 and agree('o', 1) is None
    assert averaged(magnitude, masks.params) is magnitude and rewrap(net) is net
    masks.share(lambda: calls.append(1) or masks.update(magnitude, .5))
    assert calls==[1] and masks.compare() is masks and masks.sparsity==.5

@pytest.mark.parametrize('shape', [(3,5), (8,8), (4,3,3,3), (1,2)])
def test_packed_masks_come_back(shape):
    net = nn.Linear(*shape[1::-1]) if len(shape)==2 else nn.Conv2d(shape[1], shape[0], 3)
    masks = Masks(net).update(random_scores, .4)
    again = Masks(net).unpack(masks.pack())
    assert torch.equal(again['weight'], masks['weight']) and again.n_kept==masks.n_kept
    assert again.fingerprint()==masks.fingerprint() and len(masks.pack()['weight'])==-(-masks.n_units['weight']//8)

def test_packed_masks_of_another_network_are_refused():
    masks = Masks(nn.Linear(8, 8))
    with pytest.raises(ValueError, match='no maskable layer: other'): masks.unpack({'other':b''})
    with pytest.raises(ValueError, match='has 64 units'): masks.unpack({'weight':b'123'})

def test_digests_tell_values_apart():
    assert digest(1, 'a')==digest(1, 'a')!=digest(1, 'b') and len(digest())==16

def test_decisions_travel(two):
    a,b = (o['primitives'] for o in two)
    assert a['shared']==b['shared']==[0, 'first'] and a['agree']==b['agree']=='no error'
    assert a['error']=='no' and b['error']=='the process of rank 0 stopped with ValueError: no'
    assert a['differ']==b['differ']=='ranks differ between processes: rank 0 has 0, rank 1 has 1'
    assert a['mean']==b['mean']==.5 and a['masks']==b['masks'] and a['kept']==b['kept']
    assert a['drift']==b['drift'] and a['drift'].startswith('masks differ between processes: rank 0 has 128 of 256')

@pytest.mark.parametrize('name', [*RECIPES, *NEURON_RECIPES, 'both'])
def test_every_recipe_gives_the_same_network_to_both(two, name):
    "Masks or shapes, and weights, are equal after every epoch, though random numbers differ."
    a,b = (o['all_recipes'][name] for o in two)
    assert a==b and len(a)==2
    if name in RECIPES: assert a[-1][0].startswith('4765 of 23824 units')
    else: assert a[1][1]<a[0][1], 'nothing was cut'
    if name=='both': assert ' of ' in a[-1][0], 'no masks'

def test_gradients_are_averaged_in_every_step_around_a_cut(two):
    "The neighbour's wrapper trains one step unsynchronised after a cut."
    a,b = (o['around_the_cut'] for o in two)
    assert a['steps']==b['steps'] and len(set(a['steps']))==len(a['steps'])==66
    assert a['epochs']==b['epochs'] and a['epochs'][1][1]<a['epochs'][0][1]
    assert a['measured']==b['measured'] and a['measured'][1][1]<a['measured'][0][1]
    assert a['silent']==b['silent'] and a['share']==b['share']<1
    assert a['images']==a['n'], 'the books count the images of all processes'

def test_values_are_those_of_all_processes(two):
    a,b = (o['around_the_cut']['values'] for o in two)
    assert json.dumps(a)==json.dumps(b)
    a,b = (o['plain_context'] for o in two)
    assert a==b and a['validated']==a['values'][-1][-2:]

@pytest.mark.parametrize('way', ['granet', 'cut', 'gradient'])
def test_a_plain_loop_holds_the_same_in_both(two, way):
    "Weights, shapes and masks after every epoch; something was cut or masked."
    a,b = (o['plain_loop'][way] for o in two)
    dense = sum(p.numel() for p in small_cnn().parameters())
    assert a==b and (len(a[-1][2])==1 and a[-1][0]==dense if way=='granet' else a[-1][0]<dense)

@pytest.mark.parametrize('what', ['masks', 'plans'])
def test_a_difference_stops_both_with_both_values(two, what):
    a,b = (o['mismatches'][what] for o in two)
    assert a==b and f'{what}' in a and 'differ between processes: rank 0 has ' in a and ', rank 1 has ' in a

def all_noticed(ranks):
    "No difference goes unnoticed: all processes stop with the same words, which tell both values."
    first,*others = (o['planted'] for o in ranks)
    said = lambda found: {nm:o.partition('\n\t')[2] or o for nm,o in found.items()} # without the name of a callback, which may be what differs
    first,*others = map(said, (first, *others))
    assert all(o==first for o in others) and len(first)==19*len(ranks)
    for nm,o in first.items(): assert 'differ between processes: rank 0 has ' in o and ', rank ' in o, f'{nm}: {o}'
    kinds = dict(weight='weights', buffer='buffers', mask='masks', seed='settings', sparsity='settings', frozen='shapes')
    for nm,o in first.items(): assert o.startswith(kinds.get(nm.split()[0].split('_')[0], '')), f'{nm}: {o}'
    assert first['width 1'].startswith('widths') and first['width_before 1'].startswith('shapes')
    assert first['sparsity 1'].startswith('settings differ between processes: rank 0 has `sparsity` of SparsifyCallback: 0.8, rank 1 has `sparsity`')

def test_what_is_planted_in_either_of_two_processes_stops_both(two): all_noticed(two)

@pytest.mark.slow
def test_what_is_planted_in_any_of_four_processes_stops_all(tmp_path): all_noticed(torchrun(tmp_path, 4, 'planted', 'unharmed', seconds=900))

def test_what_differs_lawfully_stops_nobody(two):
    a,b = (o['unharmed'] for o in two)
    assert a==b and a[1]

def test_a_wrapper_that_nobody_handed_over_is_found(two):
    "The next step is refused where unused parameters are allowed; made anew, also in its place, the processes stay together."
    a,b = (o['foreign'] for o in two)
    assert a==b and 'go on with `model = rewrap(model)`' in a['plain'] and a['plain']==a['inside']
    assert len({o for nm,o in a.items() if nm.startswith('renewed')})==1

@pytest.mark.slow
@pytest.mark.parametrize('engine', ['lightning', 'transformers'])
def test_engines_of_others(tmp_path, engine):
    "A cut of the network inside stops them at the next step; with the wrapper renewed, as the tutorial shows, both processes hold one network."
    pytest.importorskip(engine)
    found = {}
    for renew in ('no', 'yes'):
        start(tmp_path, 2, 'engines.py', engine, renew, seconds=200)
        found[renew] = [Path(tmp_path, f'{i}.txt').read_text() for i in range(2)]
    assert all('go on with `model = rewrap(model)`' in o for o in found['no'])
    assert len(set(found['yes']))==1 and found['yes'][0].startswith('6274 ')

def test_an_error_of_the_first_process_reaches_all(two):
    a,b = (o['mismatches'] for o in two)
    assert 'no scores here' in a['first'] and 'rank 0 stopped with ValueError: no scores here' in b['first']
    assert 'not numbers (NaN)' in a['nan'] and 'not numbers (NaN)' in b['nan']

def test_learners_of_their_own_are_left_alone(two):
    assert [round(o['alone'], 3) for o in two]==[.8, .7]

def test_each_process_has_its_part_of_the_images(two):
    a,b = (o['data'] for o in two)
    for x,y in zip(a['epochs'], b['epochs']): assert not set(x) & set(y) and len(x)==len(y)
    assert a['epochs'][0]!=a['epochs'][1] and a['batches']==b['batches']

@pytest.mark.parametrize('when', ['granet', 'before', 'within', 'after'])
def test_two_processes_go_on_where_they_were(two, when):
    a,b = (o['resumed'][when] for o in two)
    assert a==b and a[0]==a[1]

@pytest.mark.slow
@pytest.mark.parametrize('n', [2, 4])
def test_ten_seeds_as_good_as_one_process(tmp_path, n):
    "Masks, widths and weights equal at every epoch for ten seeds; accuracy as in one process at the same global batch."
    for folder in ('one', 'many'): (tmp_path/folder).mkdir()
    one,*_ = torchrun(tmp_path/'one', 1, 'seeds', seconds=3600)
    many = torchrun(tmp_path/'many', n, 'seeds', seconds=3600)
    for nm,o in one['seeds'].items():
        assert all(rank['seeds'][nm]==many[0]['seeds'][nm] for rank in many), nm
        if nm.split()[0] in RECIPES: assert many[0]['seeds'][nm]['epochs'][-1][0].split()[0]==o['epochs'][-1][0].split()[0]
    for recipe in dict.fromkeys(nm.split()[0] for nm in one['seeds']):
        a,b = ([o['accuracy'] for nm,o in found['seeds'].items() if nm.split()[0]==recipe] for found in (one, many[0]))
        spread = (stdev(a)**2/10 + stdev(b)**2/10)**.5
        assert mean(b)>mean(a)-3*spread-.01, (recipe, mean(a), mean(b), spread)

def test_a_network_that_is_divided_among_processes(two):
    "Its zeros are counted over all of them; what needs the whole says so, also for masks from before."
    for o in (r['sharded'] for r in two):
        assert o['after']==pytest.approx(o['before'], abs=1e-9) and o['before'][0]==pytest.approx(20*16/(33*20), abs=1e-6)
        for nm in ('masks', 'trace', 'cost', 'save'): assert '0.weight is divided among processes, as by `fully_shard`' in o[nm] and '\n' not in o[nm]
        for nm in ('apply', 'update'): assert '0.weight was divided among processes after its mask was made' in o[nm]
