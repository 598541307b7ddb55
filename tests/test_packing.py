"Files without their zeros: every form, every type, every bit, and files that lie."
import json
import random
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hostile import many, refused
from torch import nn
from torch.nn.utils import prune

from early_prune import packing, surgery
from early_prune.criteria import magnitude, rms_magnitude
from early_prune.dependency import trace
from early_prune.masks import Masks
from early_prune.models import resnet, small_cnn
from early_prune.packing import GAPS, NAMES, form_bytes, pack, unpack
from early_prune.ranking import Neurons, rank, scores
from early_prune.surgery import cut, load, save, weigh

SHAPES = [(), (0,), (1,), (7,), (3, 5), (4, 0, 2), (64, 33), (16, 3, 3, 3), (1000,)]
OPTIONS = [dict(), dict(sparse=True), *(dict(sparse=True, dtype=o) for o in (torch.float16, torch.bfloat16, torch.int8)),
           dict(dtype=torch.int8)]

def same_bits(a, b):
    return a.dtype==b.dtype and a.shape==b.shape and np.array_equal(*(o.reshape(-1).view(torch.uint8).numpy() for o in (a, b)))

def noise(dtype, shape, density, seed=0):
    "Random bits of a type, and zeros."
    g = torch.Generator().manual_seed(seed)
    n = int(np.prod(shape))
    kept = torch.rand(n, 1, generator=g)<density
    if dtype==torch.bool: return kept.view(shape)
    raw = torch.randint(0, 256, (n, dtype.itemsize), generator=g, dtype=torch.uint8)*kept
    return raw.contiguous().view(-1).view(dtype).view(shape) if n else torch.empty(shape, dtype=dtype)

def round_trip(t, **kwargs):
    packed,plan = pack({'t':t}, **kwargs)
    return unpack(packed, plan, {'t':t.shape})['t'],packed['t'],plan.get('t')

@pytest.mark.parametrize('dtype', NAMES, ids=str)
@pytest.mark.parametrize('density', [0, .01, .1, .4, 1])
def test_every_bit_of_every_type_comes_back(dtype, density):
    for shape in SHAPES:
        t = noise(dtype, shape, density)
        for sparse in (True, False):
            again,stored,entry = round_trip(t, sparse=sparse)
            assert same_bits(again, t) and stored.nbytes<=t.nbytes
            if entry: assert stored.nbytes==form_bytes(t)[entry['form']]==min(form_bytes(t).values())

@given(values=st.lists(st.sampled_from([0., 0., 0., -0., 1., float('nan'), float('inf'), 5e-324, 1e-40]), max_size=300))
@settings(deadline=None, max_examples=60)
def test_forms_agree_with_what_is_written(values):
    words = packing._words(t := torch.tensor(values, dtype=torch.float32))
    at = [i for i,o in enumerate(t.view(torch.int32).tolist()) if o] # by other means than NumPy's
    for form in ('bits', *GAPS):
        places = packing._places(words, form)
        found = packing._at(places, form, len(words))
        assert (np.flatnonzero(found) if form=='bits' else found).tolist()==at
        assert len(places)+4*len(at)==form_bytes(t)[form]

@pytest.mark.parametrize('n', [14, 15, 16, 30, 254, 255, 256, 510, 65534, 65535, 65536, 131070, 200_000])
def test_long_gaps(n):
    for at in ([n], [0, n], [n-1, n], [n, n+1], [n, 2*n+1]):
        t = torch.zeros(2*n+3)
        t[at] = 1.
        for form in GAPS:
            places = packing._places(packing._words(t), form)
            assert packing._at(places, form, len(t)).tolist()==at and len(places)+4*len(at)==form_bytes(t)[form]

@pytest.mark.parametrize('dtype,apart', [(torch.float16, 2**-11), (torch.bfloat16, 2**-8), (torch.int8, .5/127)], ids=str)
@pytest.mark.parametrize('density', [.05, .3, 1])
@pytest.mark.parametrize('own', [torch.float32, torch.float64])
def test_rounding_is_no_more_than_the_type_needs(dtype, apart, density, own):
    t = torch.randn(40, 8, 3, 3, dtype=own)*(torch.rand(40, 8, 3, 3)<density)
    again,stored,_ = round_trip(t, dtype=dtype)
    wrong = (again.to(own)-t).abs()
    limit = t.abs().amax((1, 2, 3), keepdim=True) if dtype==torch.int8 else t.abs()
    assert (wrong<=apart*limit*1.01).all() and (again[t==0]==0).all() and wrong.any()
    assert stored.nbytes<=t.numel()*dtype.itemsize+200

def test_what_rounding_would_spoil_stays():
    for t in (torch.tensor([1e-9, 1.]), torch.tensor([1e6, 1.]), torch.full((40, 40), 1e6), torch.tensor([1e-12, 1e6])):
        assert same_bits(round_trip(t, dtype=torch.float16)[0], t)
    odd = torch.randn(40, 40)
    odd[0,:3] = torch.tensor([float('nan'), float('inf'), -float('inf')])
    for dtype in (torch.float16, torch.bfloat16, torch.int8):
        again = round_trip(odd, dtype=dtype)[0].float()
        assert again[0,0].isnan() and again[0,1:3].tolist()==[float('inf'), -float('inf')] and again.isfinite().sum()==1597
    tiny = torch.full((40, 40), 1e-42)
    assert (round_trip(tiny, dtype=torch.int8)[0].float()-tiny).abs().max()<=1e-42
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e5m2, torch.float16):
        t = noise(dtype, (64, 33), .3)
        assert same_bits(round_trip(t, dtype=torch.float16)[0], t)

def test_other_types_and_a_missing_package_are_said(monkeypatch):
    for dtype in ('fp16', torch.float32, torch.float8_e4m3fn, torch.uint8):
        with pytest.raises(ValueError, match='`dtype` is torch.float16, torch.bfloat16, torch.int8 or None, got'): pack({}, dtype=dtype)
    monkeypatch.setitem(sys.modules, 'zstandard', None)
    with pytest.raises(ModuleNotFoundError, match=r'early_prune\[ship\]'): pack({'t':torch.zeros(9)}, compress=True)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.norm = nn.Linear(40, 40),nn.Linear(40, 40),nn.BatchNorm1d(40)
        self.b.weight = self.a.weight
        self.register_buffer('steps', torch.zeros(300, dtype=torch.int64))
        self.register_buffer('cache', torch.zeros(300), persistent=False)
        self.register_buffer('open', torch.zeros(300, dtype=torch.bool))
        self.register_parameter('nothing', nn.Parameter(torch.empty(0, 3)))
        self.scraps = nn.Parameter(torch.zeros(30, 30, dtype=torch.bfloat16))
    def forward(self, x): return self.b(self.norm(self.a(x)).relu()) + self.scraps.sum()

def thinned(build, x, neurons, sparsity):
    torch.manual_seed(0)
    net = build().eval()
    if neurons:
        groups = trace(net, x)
        cut(net, groups, rank(groups, scores(net, groups, rms_magnitude), Neurons(neurons), net, (x,), floor=.3))
    if sparsity: Masks(net).update(magnitude, sparsity).apply()
    return net

BUILDS = {'resnet':(partial(resnet, 8), torch.zeros(1, 1, 8, 8)), 'cnn':(small_cnn, torch.zeros(1, 1, 8, 8)), 'tied':(Tied, torch.zeros(2, 40))}

@pytest.mark.parametrize('name', BUILDS)
@pytest.mark.parametrize('neurons,sparsity', [(0, 0), (0, .9), (.5, 0), (.5, .9), (0, .99)])
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_networks_come_back(tmp_path, name, neurons, sparsity, options):
    build,x = BUILDS[name]
    net = thinned(build, x, neurons, sparsity)
    path = save(net, tmp_path/'net.safetensors', **options)
    again = load(build, path)
    assert path.stat().st_size==weigh(net, **options)
    for (nm,want),got in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        if options.get('dtype') is None or not want.is_floating_point(): assert same_bits(got, want), nm
        assert got.dtype==want.dtype and got.shape==want.shape and (got[want==0]==0).all()
        torch.testing.assert_close(got, want, rtol=.01, atol=.02)
    assert name!='tied' or again.a.weight is again.b.weight

def test_without_options_the_file_is_what_it_was(tmp_path):
    net = small_cnn()
    meta,tensors = surgery.read_tensors(save(net, tmp_path/'net.safetensors'), surgery.FORMAT)
    assert 'packed' not in meta['early_prune'] and all(same_bits(tensors[nm], p.detach()) for nm,p in net.named_parameters())

def test_a_sparse_file_is_smaller_than_the_dense_one():
    net = thinned(partial(resnet, 20), torch.zeros(1, 1, 8, 8), 0, .9)
    dense = weigh(net, sparse=False)
    assert weigh(net, sparse=True)<.2*dense and (
        weigh(net, sparse=True, dtype=torch.int8)<weigh(net, sparse=True, dtype=torch.float16)<weigh(net, sparse=True))

def test_zstd(tmp_path):
    pytest.importorskip('zstandard')
    net = thinned(small_cnn, torch.zeros(1, 1, 8, 8), 0, .9)
    for options in OPTIONS:
        path = save(net, tmp_path/'net.safetensors', compress=True, **options)
        assert path.stat().st_size==weigh(net, compress=True, **options)<=weigh(net, **options)
        plain = load(small_cnn, save(net, tmp_path/'plain.safetensors', **options))
        for a,b in zip(load(small_cnn, path).state_dict().values(), plain.state_dict().values()): assert same_bits(a, b)

def a_sparse_network(path, **options): return save(thinned(small_cnn, torch.zeros(1, 1, 8, 8), 0, .9), path, sparse=True, **options)

def a_reader(**options): return partial(a_sparse_network, **options),lambda path: load(small_cnn, path)

KINDS = {'sparse':a_reader(), 'sparse int8':a_reader(dtype=torch.int8), 'sparse zstd':a_reader(dtype=torch.float16, compress=True)}

@pytest.mark.parametrize('kind', KINDS)
def test_mutated_files(tmp_path, kind):
    if 'zstd' in kind: pytest.importorskip('zstandard')
    assert many(tmp_path, kind, 150, readers=KINDS)[0]>75

@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_ten_thousand_mutated_files(tmp_path, kind):
    if 'zstd' in kind: pytest.importorskip('zstandard')
    count,spent,grown,size = many(tmp_path, kind, 10_000, seed=1, readers=KINDS)
    print(f'{kind}: {count} of 10000 refused, at most {spent:.3f} s and {grown} bytes for one, whole file {size} bytes')
    assert count>5000

HUGE = [-1, 2**31, 2**63, 10**30, True, None, 1.5, '8', [], {}]
EDITS = [dict(form=o) for o in ('dense', 'bits', *GAPS, 'gaps2', '', None, 4)] + [dict(dtype=o) for o in (*NAMES.values(), 'X', None, [])] + [
    {k:v} for k in ('values', 'scales', 'bytes', 'zstd') for v in (0, 1, 2, 9, *HUGE)] + [
    dict(shape=o) for o in ([], [0], [1], [-1, 1], [2**31]*4, [2**62]*2, [1]*40, ['8'], None, {}, [True]*4, [8.]*4)]

def with_plan(path, plan, tensors=None, **meta):
    "Write a whole file with a valid checksum around a plan that lies."
    old,found = surgery.read_tensors(path, surgery.FORMAT)
    header = json.loads(old['early_prune']) | dict(packed=plan)
    surgery.write_tensors(path, found | (tensors or {}), dict(format=surgery.FORMAT, early_prune=json.dumps(header)))
    return path

@pytest.mark.parametrize('kind', KINDS)
def test_plans_that_lie(tmp_path, kind):
    "Every edit of an entry is refused by the error that names the file, or means the same."
    if 'zstd' in kind: pytest.importorskip('zstandard')
    make,read = KINDS[kind]
    path = make(tmp_path/'x.safetensors')
    meta,_ = surgery.read_tensors(path, surgery.FORMAT)
    plan,good = json.loads(meta['early_prune'])['packed'],path.read_bytes()
    want = read(path).state_dict()
    for nm,entry in list(plan.items())[:2]:
        for edit in (*EDITS, *({k:None} for k in entry)):
            path.write_bytes(good)
            new = entry | edit
            if refused(read, with_plan(path, plan | {nm:new})): continue
            got = read(path).state_dict()
            if new==entry: assert all(same_bits(got[o], want[o]) for o in want)
            assert all(got[o].shape==want[o].shape for o in want) # the checks of sizes hold for what was read
    for wrong in ([], None, 3, 'x', {o:None for o in plan}, {o:[] for o in plan}, dict(plan, more=3)):
        path.write_bytes(good)
        assert refused(read, with_plan(path, wrong)) or wrong==dict(plan, more=3)

def test_bytes_that_lie(tmp_path):
    "Places that count other values, lead out of the tensor or stand in another type are refused."
    path = a_sparse_network(tmp_path/'x.safetensors')
    meta,tensors = surgery.read_tensors(path, surgery.FORMAT)
    plan,good = json.loads(meta['early_prune'])['packed'],path.read_bytes()
    nm,entry = max(plan.items(), key=lambda o: o[1]['bytes'])
    t,n = tensors[nm],plan[nm]['bytes']-4*plan[nm]['values']
    ways = dict(zeros=torch.zeros_like(t), ones=torch.full_like(t, 255), short=t[:-1], longer=torch.cat([t, t[:1]]), empty=t[:0],
                flat=t.view(1, -1), other=t.view(torch.int8), far=torch.cat([torch.full((n,), 0xEE, dtype=torch.uint8), t[n:]]))
    for way,data in ways.items():
        path.write_bytes(good)
        assert refused(lambda p: load(small_cnn, p), with_plan(path, plan, {nm:data})), way

def test_zstd_that_lies(tmp_path):
    "Frames that announce other sizes, none, or more than one are refused before anything is made of them."
    zstandard = pytest.importorskip('zstandard')
    path = a_sparse_network(tmp_path/'x.safetensors', compress=True)
    meta,tensors = surgery.read_tensors(path, surgery.FORMAT)
    plan,good = json.loads(meta['early_prune'])['packed'],path.read_bytes()
    nm,entry = next((nm,o) for nm,o in plan.items() if o['zstd'])
    raw = zstandard.decompress(tensors[nm].numpy())
    squeeze = lambda data, **kw: zstandard.ZstdCompressor(**kw).compress(data)
    ways = dict(bomb=squeeze(bytes(10**8)), unsaid=squeeze(raw, write_content_size=False), two=squeeze(raw)+squeeze(raw), shorter=squeeze(raw[:-1]),
                none=b'', noise=random.Random(0).randbytes(300), skipped=b'\x50\x2a\x4d\x18\x04\0\0\0abcd'+squeeze(raw), cut=squeeze(raw)[:-5])
    for way,data in ways.items():
        path.write_bytes(good)
        assert refused(lambda p: load(small_cnn, p), with_plan(path, plan, {nm:torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)})), way

def test_a_sparse_file_of_another_network_is_refused(tmp_path):
    path = a_sparse_network(tmp_path/'x.safetensors')
    for build in (partial(resnet, 8), lambda: small_cnn(width=2), lambda: nn.Linear(3, 3)):
        with pytest.raises(ValueError, match='x.safetensors.*does not fit|x.safetensors.*has shape'): load(build, path)

def test_masks_by_multiplication_keep_their_sign(tmp_path):
    "Minus zero is a value; plain zeros are not, whoever wrote them."
    net = small_cnn()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    for m in convs: prune.l1_unstructured(m, 'weight', .9); prune.remove(m, 'weight')
    again = load(small_cnn, save(net, tmp_path/'x.safetensors', sparse=True))
    for a,b in zip(net.state_dict().values(), again.state_dict().values()): assert same_bits(a, b)
