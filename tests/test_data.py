"Data sets: files as they come, batches as they must be, and everything fastai does with loaders."
import gzip
import os
import pickle
import random
import struct
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback import progress, schedule  # noqa: F401  (adds `no_bar`, `fit_one_cycle`, `lr_find`)
from fastai.data.core import DataLoaders
from fastai.distributed import DistributedDL
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.metrics import accuracy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import early_prune.data as data
from early_prune.data import (
    ImageDL,
    ImageSet,
    balanced_subset,
    channel_stats,
    cifar10,
    cifar100,
    cutout,
    data_path,
    digits,
    fashion_mnist,
    get_data,
    image_folder,
    image_loaders,
    load_official,
    random_crop,
    random_flip,
    read_cifar_bin,
    read_cifar_pickle,
    read_idx,
    read_pngs,
    split_sets,
    stratified_split,
)
from early_prune.models import small_cnn


def gen(seed): return torch.Generator().manual_seed(seed)

def some_images(seed, n=6, c=3, h=9, w=7): return torch.randint(1, 256, (n,c,h,w), generator=gen(seed)).byte()

def some_set(n=60, c=3, size=8, n_classes=5):
    vocab = [f'class {i}' for i in range(n_classes)]
    return ImageSet(some_images(n, n, c, size, size), torch.arange(n)%n_classes, vocab)

def same(a, b): return all(x.equal(y) for p,q in zip(a, b, strict=True) for x,y in zip(p, q, strict=True))


# Augmentation

@pytest.mark.parametrize('by', [1, 2, 4, 8, 32])
def test_smaller_images_are_means_of_squares(by):
    ds = ImageSet(torch.randint(0, 256, (5000,1,32,32), dtype=torch.uint8), torch.arange(5000)%7, 'abcdefg')
    small = ds.shrink(by)
    want = ds.x.double().view(5000, 1, 32//by, by, 32//by, by).mean((3, 5))
    assert small.x.dtype==torch.uint8 and float((small.x-want).abs().max())<=.5 and small.y.equal(ds.y) and small.c==7

@pytest.mark.parametrize('by', [0, -1, 3, 64, 2., None])
def test_a_size_that_does_not_divide_is_refused(by):
    ds = ImageSet(torch.zeros(2, 1, 32, 16, dtype=torch.uint8), torch.zeros(2), 'a')
    with pytest.raises(ValueError, match=f'32x16 pixels become smaller by an integer that divides both, got {by}'): ds.shrink(by)

def test_smaller_sets_are_moved_less(tmp_path):
    "Shift and crop are in pixels of the smaller images, and the statistics are theirs."
    write_cifar(tmp_path/'cifar-10-batches-bin', 'bin', 10)
    for n,side in ((1, 32), (2, 16), (8, 4)):
        dls = cifar10(tmp_path, bs=2, shrink=n, device='cpu')
        assert dls.one_batch()[0].shape[2:]==(side, side)
        assert dls.train.augment[0].keywords['pad']==4//n

@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 6), st.booleans())
def test_crop_is_a_window_of_the_padded_image(seed, pad, reflect):
    x = some_images(seed)
    padded = F.pad(x.float(), (pad,)*4, mode='reflect' if reflect else 'constant').byte()
    for im,whole in zip(random_crop(x, pad, reflect, gen(seed)), padded):
        windows = whole.unfold(1, 9, 1).unfold(2, 7, 1).permute(1,2,0,3,4).reshape(-1,3,9,7)
        assert (windows==im).flatten(1).all(1).any()

def test_crop_uses_every_window_and_moves_each_image_on_its_own():
    x = torch.arange(1, 10).byte().view(1,1,3,3).expand(1000,1,3,3)
    got,counts = random_crop(x, 1, generator=gen(0)).flatten(1).unique(dim=0, return_counts=True)
    assert len(got)==9 and counts.min()>70

def test_augmentations_keep_the_input_and_the_type():
    for dtype in (torch.uint8, torch.float32):
        x = some_images(0).to(dtype)
        for f in (random_crop, random_flip, partial(cutout, size=3)):
            before,y = x.clone(),f(x, generator=gen(0))
            assert x.equal(before) and y.dtype==dtype and y.shape==x.shape
            assert y.equal(f(x, generator=gen(0))) and not y.equal(f(x, generator=gen(3)))

def test_flip_mirrors_each_image_or_not():
    x = some_images(0, 200)
    y = random_flip(x, generator=gen(0))
    mirrored = torch.tensor([a.equal(b.flip(-1)) for a,b in zip(x, y)])
    kept = torch.tensor([a.equal(b) for a,b in zip(x, y)])
    assert (mirrored ^ kept).all() and 70<mirrored.sum()<130
    assert random_flip(random_flip(x, 1.), 1.).equal(x)

@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_cutout_zeroes_one_square_clipped_at_the_border(seed, size):
    x = some_images(seed, 20)
    for im,out in zip(x, cutout(x, size, gen(seed))):
        hole = (out==0).all(0)
        assert out[:,~hole].equal(im[:,~hole])
        for length,line in ((9, hole.any(1)), (7, hole.any(0))):
            idx = line.nonzero().flatten()
            first,last = idx[0].item(),idx[-1].item()
            assert last-first+1==len(idx)<=size
            assert len(idx)==size or first==0 or last==length-1
        assert hole.sum()==hole.any(0).sum()*hole.any(1).sum()

@pytest.mark.parametrize('size', [1, 3, 5])
def test_cutout_prefers_no_side(size):
    often = (cutout(torch.ones(4000,1,9,9), size, gen(0))==0).float().mean((0,1))
    for mirrored in (often.flip(0), often.flip(1), often.T): assert (often-mirrored).abs().max()<.05

@pytest.mark.parametrize('f,match', [
    (partial(random_crop, pad=-1), 'got -1'), (partial(random_crop, pad=7), 'got 7'),
    (partial(random_flip, p=1.5), 'got 1.5'), (partial(cutout, size=0), 'got 0'), (partial(cutout, size=8), 'got 8')])
def test_augmentation_refuses(f, match):
    with pytest.raises(ValueError, match=match): f(some_images(0))


# Sets and splits

@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_balanced_subset_is_even_and_first_come(labels, draw):
    y = torch.tensor(labels)
    n = draw.draw(st.integers(1, len(y)))
    idx = balanced_subset(y, n)
    counts,have = torch.bincount(y[idx], minlength=5),torch.bincount(y, minlength=5)
    assert len(idx)==n==len(idx.unique()) and idx.equal(idx.sort().values)
    assert ((counts>=counts.max()-1) | (counts==have)).all()
    for o in range(5): assert idx[y[idx]==o].equal((y==o).nonzero().flatten()[:counts[o]])

@pytest.mark.parametrize('n', [0, -1, 61])
def test_limit_must_be_there(n):
    with pytest.raises(ValueError, match=rf'\[1, 60\], got {n}'): split_sets(some_set(), some_set(), limit=n)

def test_split_is_a_stratified_partition():
    y = torch.arange(997)%7
    a,b = stratified_split(y, .3)
    assert torch.cat([a,b]).sort().values.equal(torch.arange(997))
    assert torch.bincount(y[b]).tolist()==[round(.3*o) for o in torch.bincount(y).tolist()]
    assert b.equal(stratified_split(y, .3)[1]) and not b.equal(stratified_split(y, .3, seed=1)[1])

@pytest.mark.parametrize('pct', [0, 1, -.1, 20, 1e-6])
def test_split_refuses(pct):
    with pytest.raises(ValueError, match='valid_pct'): stratified_split(torch.arange(50)%5, pct)

def test_split_sets_keeps_the_test_set_out():
    train,test = some_set(100),some_set(20)
    assert [len(o) for o in split_sets(train, test)]==[100,20]
    assert [len(o) for o in split_sets(train, test, .2)]==[80,20,20]
    assert [len(o) for o in split_sets(train, test, .2, limit=10, valid_limit=5)]==[10,5,20]
    assert split_sets(train, test, .2)[2] is test
    with pytest.raises(ValueError, match='valid_pct'): split_sets(train)

def test_image_set_refuses():
    x = some_images(0)
    with pytest.raises(ValueError, match='uint8'): ImageSet(x.float())
    with pytest.raises(ValueError, match='uint8'): ImageSet(x[0])
    with pytest.raises(ValueError, match='one label per image, got 5 for 6'): ImageSet(x, torch.zeros(5), ['a'])
    with pytest.raises(ValueError, match='class indices'): ImageSet(x, torch.full((6,), -1), ['a'])
    with pytest.raises(ValueError, match='got 0 to 1'): ImageSet(x, torch.arange(6)%2, ['a'])

def test_channel_stats_are_exact():
    x = some_images(0, 50)
    mean,std = channel_stats(x)
    f = x.double()/255
    assert mean==pytest.approx(f.mean((0,2,3)).tolist(), abs=1e-12)
    assert std==pytest.approx(f.std((0,2,3), unbiased=False).tolist(), abs=1e-12)
    assert channel_stats(torch.zeros(2,1,3,3).byte())==((0.,), (1/255,))


# Loaders

AUG = (partial(random_crop, pad=2), random_flip)

def test_same_seed_same_batches_other_epoch_others():
    make = partial(ImageDL, some_set(), bs=16, shuffle=True, drop_last=True, augment=AUG)
    a,b,c = make(seed=3),make(seed=3),make(seed=4)
    torch.manual_seed(1)
    epochs = [list(a) for _ in range(3)]
    torch.manual_seed(2)
    random.seed(2)
    assert all(same(e, list(b)) for e in epochs)
    assert not same(epochs[0], epochs[1]) and not same(epochs[0], list(c))
    b.epoch = 1
    assert same(epochs[1], list(b)), 'an interrupted run cannot go on'

def test_crops_change_even_when_the_order_does_not():
    dl = ImageDL(some_set(), bs=60, augment=AUG)
    (x,y),(x2,y2) = dl.one_batch(),dl.one_batch()
    assert x.equal(x2), 'looking at a batch changed the next one'
    (x,y),(x2,y2) = *dl,*dl
    assert y.equal(y2) and not x.equal(x2)

def test_loader_leaves_the_global_generators_alone():
    dl = ImageDL(some_set(), bs=16, shuffle=True, augment=AUG)
    states = torch.get_rng_state(),random.getstate()
    list(dl)
    assert torch.get_rng_state().equal(states[0]) and random.getstate()==states[1]

def test_every_image_once_and_normalised():
    ds = some_set()
    dl = ImageDL(ds, bs=16, shuffle=True)
    x,y = (torch.cat(o) for o in zip(*dl))
    assert len(dl)==4 and len(x)==60 and torch.bincount(y).tolist()==[12]*5
    assert x.mean((0,2,3)).abs().max()<1e-5 and (x.std((0,2,3), unbiased=False)-1).abs().max()<1e-5
    pictures = (dl.decode((x,y))[0]*255).round().byte().as_subclass(torch.Tensor)
    assert pictures.flatten(1).unique(dim=0).equal(ds.x.flatten(1).unique(dim=0))
    assert type(x) is torch.Tensor and x.dtype==torch.float32 and y.dtype==torch.int64

def test_drop_last_and_sizes():
    dls = image_loaders(some_set(), some_set(20), bs=16)
    assert [len(y) for _,y in dls.train]==[16]*3 and [len(y) for _,y in dls.valid]==[20]
    dl = dls.train.new(bs=7)
    assert dl.bs==7 and len(list(dl))==len(dl)==8 and dl.stats==dls.train.stats and dl.augment==dls.train.augment

@pytest.mark.parametrize('kw,match', [(dict(bs=0), r'\[1, 60\].*got 0'), (dict(bs=61), 'got 61'), (dict(seed=-1), 'seed')])
def test_loaders_refuse(kw, match):
    with pytest.raises(ValueError, match=match): image_loaders(some_set(), some_set(), **{'bs':16, **kw})

def test_two_or_three_sets():
    with pytest.raises(ValueError, match='got 1'): image_loaders(some_set())
    with pytest.raises(ValueError, match='No test set'): image_loaders(some_set(), some_set(), bs=16).test
    dls = image_loaders(*[some_set()]*3, bs=16)
    assert dls.test is dls[2] and dls.test.augment==()

def test_reseed_starts_over():
    dls = image_loaders(some_set(), some_set(), bs=16, augment=AUG)
    first = list(dls.train)
    list(dls.train)
    assert same(first, list(dls.reseed(0).train)) and not same(first, list(dls.reseed(1).train))
    with pytest.raises(ValueError, match='got -3'): dls.reseed(-3)

def test_unique_batch_shows_one_image():
    dl = ImageDL(some_set(), bs=4, augment=AUG)
    x,y,items = dl.show_batch(unique=True, show=False)
    assert y.unique().tolist()==[0] and len(items)==4

def test_distributed_loaders_share_the_order_between_ranks(monkeypatch):
    monkeypatch.setattr(DistributedDL, '_broadcast', lambda self,t,rank: t)
    def rank(i):
        monkeypatch.setenv('RANK', str(i))
        return list(DistributedDL(ImageDL(some_set(), bs=10, shuffle=True, augment=AUG), i, 2))
    a,b = rank(0),rank(1)
    crops = partial(random_crop, pad=2)
    alike = ImageSet(some_images(0, 1, 3, 8, 8).repeat(20,1,1,1), torch.zeros(20), ['a'])
    monkeypatch.setenv('RANK', '0')
    x0 = ImageDL(alike, bs=20, augment=[crops]).one_batch()[0]
    monkeypatch.setenv('RANK', '1')
    assert not x0.equal(ImageDL(alike, bs=20, augment=[crops]).one_batch()[0]), 'ranks draw the same crops'
    assert [len(y) for _,y in a]==[len(y) for _,y in b]==[10]*3
    assert torch.bincount(torch.cat([y for _,y in a+b])).tolist()==[12]*5

def test_moving_loaders_moves_the_images():
    dls = image_loaders(some_set(), some_set(), bs=16, device='cpu')
    assert dls.device==dls.train.device==torch.device('cpu')
    dls.to('meta')
    devices = [dls.device, dls.train.device, dls.train_ds.x.device, dls.valid_ds.y.device]
    assert [torch.device(o).type for o in devices]==['meta']*4

def test_augmentation_runs_where_the_images_are():
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    dl = ImageDL(some_set().to(device), bs=16, shuffle=True, augment=(*AUG, partial(random_crop, reflect=True), cutout))
    x,y = dl.one_batch()
    assert x.device.type==y.device.type==device.type


# fastai

@pytest.fixture
def learn(tmp_path):
    dls = digits(bs=64)
    torch.manual_seed(0)
    learn = Learner(dls, small_cnn(), metrics=accuracy, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): yield learn

def test_digits_are_learnt(learn):
    learn.fit_one_cycle(4, 1e-2)
    assert learn.validate()[1]>.95

def test_training_is_repeatable():
    def run():
        torch.manual_seed(0)
        learn = Learner(image_loaders(*split_sets(some_set(), None, .2), bs=16, augment=AUG), small_cnn(3, 5))
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
        return torch.cat([p.flatten() for p in learn.model.parameters()])
    assert run().equal(run())

def test_predictions_come_in_the_order_of_the_set(learn):
    preds,targs = learn.get_preds(ds_idx=1)
    assert targs.equal(learn.dls.valid_ds.y.cpu()) and preds.shape==(359,10)
    preds,targs = learn.get_preds(ds_idx=0)
    assert targs.equal(learn.dls.train_ds.y.cpu()), 'the training set is shuffled or cut short'

def test_predict_and_test_dl(learn):
    ds = learn.dls.valid_ds
    preds = learn.get_preds(ds_idx=1)[0]
    label,i,probs = learn.predict(ds.x[5].cpu().numpy())
    assert label==str(i.item()) and torch.allclose(probs, preds[5], atol=1e-5)
    dl = learn.dls.test_dl(ds.x[:70].cpu().numpy(), bs=32)
    got,targs = learn.get_preds(dl=dl)
    assert targs is None and torch.allclose(got, preds[:70], atol=1e-5)
    got,targs = learn.get_preds(dl=learn.dls.test_dl([ds[i] for i in range(9)], with_labels=True))
    assert targs.equal(ds.y[:9].cpu())
    with pytest.raises(ValueError, match='1 channels'): learn.dls.test_dl(np.zeros((4,3,8,8), np.uint8))

@pytest.mark.filterwarnings('ignore:numpy.core is deprecated:DeprecationWarning') # fastai's `load_model`
def test_lr_find_export_and_load(learn):
    learn.lr_find(show_plot=False, num_it=10)
    want = learn.get_preds(ds_idx=1)[0]
    ds = learn.dls.valid_ds
    learn.export('small.pkl')
    assert (learn.path/'small.pkl').stat().st_size<400_000, 'the images were exported'
    with pytest.warns(UserWarning, match='pickle'): loaded = load_learner(learn.path/'small.pkl')
    with loaded.no_bar(): got = loaded.get_preds(dl=loaded.dls.test_dl(ds.x.cpu()))[0]
    assert torch.allclose(got, want.cpu(), atol=1e-5) and loaded.dls.vocab==ds.vocab

@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning') # fastai's `show_image`
def test_pictures(learn):
    import matplotlib.pyplot as plt
    learn.dls.show_batch(max_n=4)
    learn.dls.show_batch(max_n=4, unique=True)
    assert len(plt.gcf().axes)==4
    learn.show_results(max_n=6, nrows=2)
    assert all(ax.get_title().count('\n')==1 for ax in plt.gcf().axes[:6])
    plt.close('all')

def test_interpretation(learn):
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum()==359 and len(interp.top_losses(5)[0])==5
    assert len(interp[[3,4]][0])==2

def test_digits_split_does_not_depend_on_the_seed():
    a,b = digits(),digits(seed=5)
    assert isinstance(a, DataLoaders) and a.c==10 and a.vocab==[str(i) for i in range(10)]
    assert a.train.n+a.valid.n==1797 and a.train.dataset.x.equal(b.train.dataset.x)
    assert not same([a.train.one_batch()], [b.train.one_batch()])
    c = digits(test_pct=.2, valid_limit=50)
    assert [o.n for o in c]==[1151,50,359]


# Files

def rows(n, n_classes=10, seed=0):
    r = np.random.default_rng(seed)
    return r.integers(0, 256, (n,3,32,32), dtype=np.uint8),(np.arange(n)%n_classes).astype(np.uint8)

def write_idx(path, a, compress=False):
    raw = bytes((0,0,8,a.ndim)) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes()
    path = path.with_name(path.name + '.gz'*compress)
    path.write_bytes(gzip.compress(raw) if compress else raw)
    return path

def python2_pickle(d):
    "The bytes which Python 2 wrote for CIFAR: strings of bytes, old NumPy names."
    def short(s): return b'U' + bytes([len(s)]) + s
    def num(i): return b'J' + struct.pack('<i', i)
    out = b'\x80\x02}('
    for k,v in d.items():
        out += short(k)
        if isinstance(v, np.ndarray):
            out += b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n' + num(0) + b'\x85' + short(b'b') + b'tR'
            out += b'(' + num(1) + b'(' + num(v.shape[0]) + num(v.shape[1]) + b't'
            out += b'cnumpy\ndtype\n(' + short(b'u1') + num(0) + num(1) + b'tR('
            out += num(3) + short(b'|') + b'NNN' + num(-1)*2 + num(0) + b'tb'
            out += b'\x89T' + struct.pack('<i', v.size) + v.tobytes() + b'tb'
        elif isinstance(v, list): out += b'](' + b''.join(map(num, v)) + b'e'
        else: out += short(v)
    return out + b'u.'

def write_pickle(path, x, y, key='labels', how='python 2'):
    d = {'data':x.reshape(len(x), -1), key:y.tolist(), 'batch_label':'one'}
    if how=='python 2': raw = python2_pickle({k.encode():v.encode() if isinstance(v, str) else v for k,v in d.items()})
    else: raw = pickle.dumps(d, protocol=how)
    path.write_bytes(raw)

FIVE = [f'data_batch_{i}' for i in range(1, 6)]

def write_cifar(folder, kind, n_classes, how=None):
    "A small official folder; returns the images and labels of its training and test part."
    folder.mkdir(parents=True)
    ten = n_classes==10
    parts = {nm:rows(20 if ten else 100, n_classes, i) for i,nm in enumerate(FIVE if ten else ['train'])}
    parts['test_batch' if ten else 'test'] = rows(10 if ten else 100, n_classes, 9)
    for nm,(x,y) in parts.items():
        if kind=='pickle': write_pickle(folder/nm, x, y, 'labels' if ten else 'fine_labels', how)
        else:
            labels = [y] if ten else [y//5, y]
            (folder/f'{nm}.bin').write_bytes(np.concatenate([np.stack(labels, 1), x.reshape(len(x), -1)], 1).tobytes())
    *train,test = parts.values()
    return [np.concatenate(o) for o in zip(*train)],test

def write_pngs(folder, vocab, superclass=False):
    got = []
    for split in ('train','test'):
        x,y = rows(2*len(vocab), len(vocab), len(split))
        order = sorted(range(len(x)), key=lambda i: (f'group{y[i]//5}' if superclass else '', vocab[y[i]], i))
        for i in order:
            d = folder/split/(f'group{y[i]//5}' if superclass else '')/vocab[y[i]]
            d.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[i].transpose(1,2,0)).save(d/f'{i:04}.png')
        got.append((x[order], y[order]))
    return got

LAYOUTS = {
    'cifar-10-batches-bin':        ('CIFAR10', lambda p: write_cifar(p/'cifar-10-batches-bin', 'bin', 10)),
    'cifar-10-batches-py':         ('CIFAR10', lambda p: write_cifar(p/'cifar-10-batches-py', 'pickle', 10, 'python 2')),
    'cifar-10-batches-py, 2':      ('CIFAR10', lambda p: write_cifar(p/'cifar-10-batches-py', 'pickle', 10, 2)),
    'cifar-10-batches-py, 5':      ('CIFAR10', lambda p: write_cifar(p/'cifar-10-batches-py', 'pickle', 10, 5)),
    'cifar10 as pictures':         ('CIFAR10', lambda p: write_pngs(p/'cifar10', data._CIFAR10)),
    'cifar-100-binary':            ('CIFAR100', lambda p: write_cifar(p/'cifar-100-binary', 'bin', 100)),
    'cifar-100-python':            ('CIFAR100', lambda p: write_cifar(p/'cifar-100-python', 'pickle', 100, 'python 2')),
    'cifar-100-python, 4':         ('CIFAR100', lambda p: write_cifar(p/'cifar-100-python', 'pickle', 100, 4)),
    'cifar100 as pictures':        ('CIFAR100', lambda p: write_pngs(p/'cifar100', data._CIFAR100, superclass=True)),
    'FashionMNIST/raw':            ('FashionMNIST', lambda p: write_fashion(p, False)),
    'FashionMNIST/raw compressed': ('FashionMNIST', lambda p: write_fashion(p, True)),
}

def write_fashion(path, compress):
    folder,got = path/'FashionMNIST'/'raw',[]
    folder.mkdir(parents=True)
    for nm in ('train','t10k'):
        x,y = rows(30, seed=len(nm))
        x = np.ascontiguousarray(x[:,:1,:28,:28])
        write_idx(folder/f'{nm}-images-idx3-ubyte', x[:,0], compress)
        write_idx(folder/f'{nm}-labels-idx1-ubyte', y, compress)
        got.append((x, y))
    return got

@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_official_layout(layout, tmp_path, monkeypatch):
    name,write = LAYOUTS[layout]
    want = write(tmp_path)
    monkeypatch.setenv('EARLY_PRUNE_DATA', str(tmp_path))
    for path in (None, tmp_path, next(tmp_path.iterdir())):
        for ds,(x,y) in zip(load_official(name, path, download=False), want, strict=True):
            assert np.array_equal(ds.x.numpy(), x) and np.array_equal(ds.y.numpy(), y)

@pytest.mark.filterwarnings('ignore:numpy.core.multiarray is deprecated:DeprecationWarning')
def test_python2_pickle_is_what_numpy_reads(tmp_path):
    x,y = rows(3)
    write_pickle(tmp_path/'b', x, y)
    d = pickle.loads((tmp_path/'b').read_bytes(), encoding='latin1')
    assert np.array_equal(d['data'], x.reshape(3, -1)) and d['labels']==[0,1,2], 'the test writes no valid pickle'
    got = read_cifar_pickle(tmp_path/'b')
    assert np.array_equal(got[0], x) and got[1].tolist()==[0,1,2]

def test_sets_by_function(tmp_path, monkeypatch):
    monkeypatch.setenv('EARLY_PRUNE_DATA', str(tmp_path))
    for o in ('cifar-10-batches-bin', 'cifar-100-python', 'FashionMNIST/raw compressed'): LAYOUTS[o][1](tmp_path)
    for f,n,shape,c in ((cifar10,(100,10),(3,32,32),10), (cifar100,(100,100),(3,32,32),100), (fashion_mnist,(30,30),(1,28,28),10)):
        dls = f(bs=10)
        assert ([o.n for o in dls],dls.c)==([*n],c) and dls.one_batch()[0].shape==(10,*shape)
        assert dls.train.augment and not dls.valid.augment and not f(bs=10, augment=()).train.augment
    dls = cifar10(bs=10, valid_pct=.2, limit=40, valid_limit=10)
    assert [o.n for o in dls]==[40,10,10] and torch.bincount(dls.train_ds.y).tolist()==[4]*10
    assert get_data('cifar10', bs=10, limit=50).train.n==50

def real_sets():
    found = []
    for f,name in ((cifar10,'CIFAR10'), (cifar100,'CIFAR100'), (fashion_mnist,'FashionMNIST')):
        root = os.environ.get('EARLY_PRUNE_DATA')
        if root and data._find(data.Path(root), data._OFFICIAL[name][1]): found.append(f)
    return found

STATS = {cifar10:(.4914,.4822,.4465), cifar100:(.5071,.4865,.4409), fashion_mnist:(.2860,)}

def test_real_sets_when_there_are_any():
    for f in real_sets():
        dls = f(device='cpu')
        assert dls.train.n in (50_000, 60_000) and dls.valid.n==10_000
        assert dls.train.stats[0]==pytest.approx(STATS[f], abs=1e-4)
        assert len(torch.bincount(dls.train_ds.y).unique())==1


# Files which are not what they claim

class Hostile:
    def __init__(self, func, *args): self.func,self.args = func,args
    def __reduce__(self): return self.func,self.args

def pickled(path, **kw):
    x,y = rows(4)
    path.write_bytes(pickle.dumps({'data':x.reshape(4, -1), 'labels':y.tolist(), **kw}))
    return path

@pytest.mark.parametrize('func', [os.mkdir, os.system, eval, exec, getattr, __import__, np.load, np.ndarray.tofile, np.zeros])
@pytest.mark.parametrize('key', ['data', 'labels', 'anything'])
def test_a_pickle_runs_nothing(func, key, tmp_path):
    target = tmp_path/'owned'
    arg = {os.mkdir:str(target), os.system:f'mkdir {target}'}.get(func, f"__import__('os').mkdir({str(target)!r})")
    with pytest.raises(ValueError, match='which a file of images does not need'):
        read_cifar_pickle(pickled(tmp_path/'b', **{key:Hostile(func, arg)}))
    assert not target.exists()

@pytest.mark.parametrize('raw', [b'', b'.', b'\x80\x02.', b'not a pickle', b'}.', b'N.', b'\x80\x04\x95' + b'\xff'*8, b'r\xff\xff\xff\xff.',
    b'(lp0\n0' * 50 + b'.', b'cnumpy\nndarray\n}b.', b'cnumpy\nndarray\n(}}tb.', b'cnumpy\nndarray\n)\x81.',
    b'Pname\n.', b'\x82\x01.', b'B\xff\xff\xff\x7f.', b'\x8e' + b'\xff'*7 + b'\x7f.'])
def test_a_damaged_pickle_is_refused_without_taking_memory(raw, tmp_path):
    (tmp_path/'b').write_bytes(raw)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf'`.*b` is damaged.*found {len(raw)} bytes'): read_cifar_pickle(tmp_path/'b')
    assert tracemalloc.get_traced_memory()[1]<5e6
    tracemalloc.stop()

@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_change_to_a_pickle_gives_images_or_a_value_error(tmp_path_factory, draw):
    x,y = rows(2)
    raw = bytearray(python2_pickle({b'data':x.reshape(2, -1), b'labels':y.tolist()}))
    places = [*range(140), *range(len(raw)-40, len(raw))]
    for _ in range(draw.draw(st.integers(1, 4))): raw[draw.draw(st.sampled_from(places))] = draw.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp()/'fuzzed'
    path.write_bytes(raw[:draw.draw(st.sampled_from([len(raw), len(raw)//2, 100]))])
    try: got = read_cifar_pickle(path)
    except ValueError as e: assert 'is damaged' in str(e)
    else: assert got[0].shape[1:]==(3,32,32) and len(got[0])==len(got[1])

@pytest.mark.parametrize('kw,match', [
    (dict(labels=[0,1]), '2 labels'), (dict(labels=[0,1,2,10]), r'\[0, 10\)'), (dict(labels=[0,1,2,-1]), r'\[0, 10\)'),
    (dict(labels=['a']*4), r'\[0, 10\)'), (dict(data=np.zeros((4,3072), np.int16)), 'not of bytes'),
    (dict(data=np.zeros((4,3000), np.uint8)), '3000'), (dict(data=[1,2]), 'damaged')])
def test_wrong_content_of_a_pickle(kw, match, tmp_path):
    with pytest.raises(ValueError, match=match): read_cifar_pickle(pickled(tmp_path/'b', **kw))

def test_fortran_order_is_understood(tmp_path):
    x,y = rows(4)
    got = read_cifar_pickle(pickled(tmp_path/'b', data=np.asfortranarray(x.reshape(4, -1))))
    assert np.array_equal(got[0], x)

def test_oversize_files_are_refused_by_their_size(tmp_path):
    def sparse(nm, size):
        with open(tmp_path/nm, 'wb') as f: f.truncate(size)
        return tmp_path/nm
    with pytest.raises(ValueError, match='found 9000000000 bytes'): read_cifar_pickle(sparse('a', 9*10**9))
    with pytest.raises(ValueError, match=f'found {3073*10**6} bytes'): read_cifar_bin(sparse('b', 3073*10**6))
    with pytest.raises(ValueError, match='found 9000000000 bytes'): read_idx(sparse('c.gz', 9*10**9))

@pytest.mark.parametrize('size', [0, 1, 3072, 3074, 2*3073-1, 10_001*3073])
def test_wrong_size_of_a_binary_file(size, tmp_path):
    (tmp_path/'b.bin').write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf'b.bin.*multiple of 3073 bytes from 3073 to 30730000, found {size} bytes'):
        read_cifar_bin(tmp_path/'b.bin')

def test_labels_beyond_the_classes(tmp_path):
    (tmp_path/'b.bin').write_bytes(bytes([10]+[0]*3072))
    with pytest.raises(ValueError, match=r'labels in \[0, 10\), found label 10'): read_cifar_bin(tmp_path/'b.bin')
    (tmp_path/'c.bin').write_bytes(bytes([0,100]+[0]*3072))
    with pytest.raises(ValueError, match='found label 100'): read_cifar_bin(tmp_path/'c.bin', n_classes=100)

@pytest.mark.parametrize('compress', [False, True])
def test_idx_files_which_lie(compress, tmp_path):
    a = np.arange(5*28*28, dtype=np.uint8).reshape(5,28,28)
    good = write_idx(tmp_path/'good', a, compress)
    assert np.array_equal(read_idx(good), a)
    raw = gzip.decompress(good.read_bytes()) if compress else good.read_bytes()
    def expect(raw, match):
        bad = tmp_path/('bad' + '.gz'*compress)
        bad.write_bytes(gzip.compress(raw) if compress else raw)
        tracemalloc.start()
        with pytest.raises(ValueError, match=f'bad.*{match}'): read_idx(bad)
        assert tracemalloc.get_traced_memory()[1]<5e6
        tracemalloc.stop()
    expect(b'', 'found nothing')
    expect(raw[:6], '16 bytes, found 6')
    expect(raw[:-1], f'{len(raw)} bytes, found {len(raw)-1}')
    expect(raw+b'x', f'{len(raw)} bytes, found {len(raw)+1}')
    expect(b'\0\0\x09\x03'+raw[4:], 'begins with 00000803, found 00000903')
    expect(raw[:4]+struct.pack('>3I', 4*10**9, 28, 28)+raw[16:], 'found 4000000000 of shape')
    expect(raw[:4]+struct.pack('>3I', 60_000, 28, 28)+raw[16:], f'47040016 bytes, found {len(raw)}')
    expect(raw[:4]+struct.pack('>3I', 5, 784, 1)+raw[16:], 'of shape')

def test_damaged_gzip(tmp_path):
    good = write_idx(tmp_path/'good', np.zeros((5,28,28), np.uint8), True).read_bytes()
    size = good[-4:]
    for raw in (good[:-20], b'no gzip at all', good[:30]+b'\xff\xff\xff'+good[33:], good[:20]+size, good[:-5]+b'\0'+size):
        (tmp_path/'bad.gz').write_bytes(raw)
        with pytest.raises(ValueError, match='bad.gz` is damaged'): read_idx(tmp_path/'bad.gz')

def test_gzip_bomb_with_a_lying_size(tmp_path):
    a = np.zeros((5,28,28), np.uint8)
    head = bytes((0,0,8,3)) + struct.pack('>3I', *a.shape)
    bomb = gzip.compress(head + bytes(50_000_000))
    (tmp_path/'bomb.gz').write_bytes(bomb[:-4] + struct.pack('<I', 16+a.size))
    tracemalloc.start()
    with pytest.raises(ValueError, match='damaged'): read_idx(tmp_path/'bomb.gz')
    assert tracemalloc.get_traced_memory()[1]<5e6
    tracemalloc.stop()

def test_pictures_which_are_none(tmp_path):
    d = tmp_path/'cat'
    d.mkdir()
    with pytest.raises(ValueError, match='1 to 60000 .png files, found 0'): read_pngs(tmp_path, ['cat'])
    Image.new('RGB', (33,32)).save(d/'a.png')
    with pytest.raises(ValueError, match='a.png.*32x32 pixels, found 33x32'): read_pngs(tmp_path, ['cat'])
    (d/'a.png').write_bytes((d/'a.png').read_bytes()[:40])
    with pytest.raises(ValueError, match='a.png.*found 40 bytes'): read_pngs(tmp_path, ['cat'])
    (d/'a.png').write_bytes(b'')
    with pytest.raises(ValueError, match='a.png.*found 0 bytes'): read_pngs(tmp_path, ['cat'])
    with pytest.raises(ValueError, match='also `cat`'): read_pngs(tmp_path, ['dog'])

def test_a_missing_part_is_named(tmp_path):
    write_cifar(tmp_path/'cifar-10-batches-bin', 'bin', 10)
    (tmp_path/'cifar-10-batches-bin'/'data_batch_3.bin').unlink()
    with pytest.raises(FileNotFoundError, match='data_batch_3.bin` is missing'): load_official('CIFAR10', tmp_path)
    write_fashion(tmp_path, False)
    write_idx(tmp_path/'FashionMNIST'/'raw'/'train-labels-idx1-ubyte', np.zeros(7, np.uint8))
    with pytest.raises(ValueError, match='30 labels of `train`, found 7'): load_official('FashionMNIST', tmp_path)


# Where the data is

def test_data_path(tmp_path, monkeypatch):
    monkeypatch.setenv('EARLY_PRUNE_DATA', str(tmp_path/'env'))
    assert data_path(tmp_path/'arg')==tmp_path/'arg' and data_path()==tmp_path/'env'
    monkeypatch.delenv('EARLY_PRUNE_DATA')
    monkeypatch.setattr(data, 'fastai_path', lambda o: tmp_path/'fastai'/o)
    assert data_path()==tmp_path/'fastai'/'data'

@pytest.mark.parametrize('error', [OSError('no network'), RuntimeError('no network')])
def test_absent_and_offline(error, tmp_path, monkeypatch):
    def fail(*args): raise error
    monkeypatch.setattr(data, '_download', fail)
    for f,folder in ((cifar10,'cifar-10-batches-py'), (cifar100,'cifar-100-python'), (fashion_mnist,'FashionMNIST/raw')):
        with pytest.raises(FileNotFoundError) as e: f(tmp_path/'none')
        for part in (str(tmp_path/'none'), folder, 'EARLY_PRUNE_DATA', 'no network'): assert part in str(e.value)

def test_an_empty_folder_is_no_data(tmp_path, monkeypatch):
    "torchvision makes the folder before it finds out that there is no network."
    def fail(name, root):
        (root/'FashionMNIST'/'raw').mkdir(parents=True)
        raise RuntimeError('no network')
    monkeypatch.setattr(data, '_download', fail)
    with pytest.raises(FileNotFoundError, match='put one of the folders.*no network'): fashion_mnist(tmp_path)
    monkeypatch.setattr(data, '_download', lambda name,root: write_fashion(tmp_path/'new', False))
    with pytest.raises(FileNotFoundError, match='EARLY_PRUNE_DATA'): fashion_mnist(tmp_path)

def test_a_broken_download_is_completed(tmp_path, monkeypatch):
    x,y = write_fashion(tmp_path, True)[0]
    part = tmp_path/'FashionMNIST'/'raw'/'train-labels-idx1-ubyte'
    part.with_name(part.name+'.gz').unlink()
    with pytest.raises(FileNotFoundError, match='train-labels-idx1-ubyte.gz` is missing$'):
        load_official('FashionMNIST', tmp_path, download=False)
    monkeypatch.setattr(data, '_download', lambda name,root: write_idx(part, y, True))
    assert len(load_official('FashionMNIST', tmp_path)[0])==30

def test_download_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data, '_download', lambda name,root: write_cifar(root/'cifar-10-batches-py', 'pickle', 10, 'python 2'))
    assert cifar10(tmp_path, bs=10).train.n==100

def test_names_are_suggested():
    with pytest.raises(ValueError, match="`data` is unknown: 'cifar01'; did you mean 'cifar10'"): get_data('cifar01')
    with pytest.raises(ValueError, match="'xyz'; known are 'digits'"): get_data('xyz')
    with pytest.raises(ValueError, match='CIFAR10, CIFAR100, FashionMNIST'): load_official('MNIST')


# Your own pictures

@pytest.fixture
def folder(tmp_path):
    for split in ('train','val'):
        for nm in ('a','b'):
            (tmp_path/split/nm).mkdir(parents=True)
            for i in range(6): Image.new('RGB', (20+i,30), (40*i,0,0)).save(tmp_path/split/nm/f'{i}.png')
    return tmp_path

def test_image_folder(folder, monkeypatch):
    monkeypatch.delenv('EARLY_PRUNE_DATA', raising=False)
    dls = image_folder(folder, size=16, bs=4, num_workers=0)
    assert (dls.train.n,dls.valid.n,dls.vocab)==(12,12,['a','b'])
    dls = image_folder(folder/'train', size=16, bs=4, valid_pct=.25, num_workers=0)
    assert (dls.train.n,dls.valid.n)==(9,3) and dls.one_batch()[0].shape==(4,3,16,16)
    same = image_folder(folder/'train', size=16, bs=4, valid_pct=.25, num_workers=0)
    assert list(same.valid_ds.items)==list(dls.valid_ds.items)
    with pytest.raises(ValueError, match='fraction'): image_folder(folder, valid_pct=25)
    with pytest.raises(ValueError, match='folder with pictures'): image_folder(folder/'none')
    with pytest.raises(ValueError, match='EARLY_PRUNE_DATA is not set'): image_folder()
    monkeypatch.setenv('EARLY_PRUNE_DATA', str(folder))
    assert len(image_folder(size=16, bs=4, num_workers=0).train_ds)
