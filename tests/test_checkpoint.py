"A training that was stopped at any batch and called again ends as if it had not been: weights, masks, metrics, all bits."
import json
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD, OptimWrapper, ranger
from fastai.torch_core import set_seed
from safetensors.torch import load_file
from torch import nn

from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback
from early_prune.checkpoint import CheckpointCallback, contents, read_state, resume, save_checkpoint, write_state
from early_prune.criteria import Running, movement
from early_prune.data import digits, random_crop
from early_prune.masks import by_filter
from early_prune.models import resnet, small_cnn
from early_prune.ranking import Neurons, taylor_bn
from early_prune.recipes import recipe
from early_prune.regrowth import by_momentum
from early_prune.triggers import AtEpoch

EPOCHS,BATCHES = 3,4

class Stop(Exception): pass

class StopAt(Callback):
    "End the training after some batches, when the checkpoint is written."
    order = 110
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter==self.at: raise Stop('here')

class Average(Callback):
    "A running average of the network, as fastai's users write it."
    def before_fit(self):
        if not hasattr(self.learn, '_ema'): self.ema_model = small_cnn().to(next(self.model.parameters()).device)
    def after_step(self):
        for a,p in zip(self.ema_model.parameters(), self.model.parameters()): a.data.lerp_(p.data, .1)

def images(**kwargs): return digits(limit=64*BATCHES, valid_limit=64, augment=(partial(random_crop, pad=1),), **kwargs)

def fastai_images():
    "Ordinary loaders whose items are drawn at random from Python's, NumPy's and PyTorch's generators."
    dls = digits(limit=64*BATCHES, valid_limit=64)
    def noisy(o): return o[0].float()/255+np.random.rand()/10+torch.rand(1)/10,o[1]
    items = lambda dl: [(dl.dataset.x[i], dl.dataset.y[i]) for i in range(len(dl.dataset.x))]
    train = DataLoader(items(dls.train), bs=64, shuffle=True, drop_last=True, num_workers=0, after_item=noisy)
    valid = DataLoader(items(dls.valid), bs=64, num_workers=0, after_item=lambda o: (o[0].float()/255, o[1]))
    return DataLoaders(train, valid)

def torch_images():
    dls = digits(limit=64*BATCHES, valid_limit=64)
    make = lambda dl, **kw: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(dl.dataset.x.float()/255, dl.dataset.y), batch_size=64, **kw)
    return DataLoaders(make(dls.train, shuffle=True), make(dls.valid), device=torch.device('cpu'))

def dropout_net(): return nn.Sequential(*small_cnn(), nn.Dropout(.5), nn.Linear(10, 10))

def built(net, data, train_metrics=False, **kwargs):
    set_seed(0, reproducible=True)
    learn = Learner(data(), net(), CrossEntropyLossFlat(), metrics=accuracy, **kwargs)
    learn.remove_cbs(learn.cbs.filter(lambda cb: cb.name=='progress'))
    learn.logger,learn.recorder.train_metrics = lambda row: None,train_metrics
    return learn

def one_cycle(learn, cbs): learn.fit_one_cycle(EPOCHS, 1e-2, cbs=cbs)

def trained(file, cbs, stop=None, net=small_cnn, data=images, fit=one_cycle, every=1, **kwargs):
    "Train in a new learner, with the callbacks `cbs()` makes, and stop after batch `stop`."
    learn = built(net, data, **kwargs)
    stops = [] if stop is None else [StopAt(stop)]
    try: fit(learn, [*cbs(), CheckpointCallback(file, every, resume=True), *stops])
    except Stop: pass
    return learn

def bits(learn):
    "All that must be equal: weights, optimizer, masks, metrics, and what the callbacks recorded."
    state = {f'net {nm}':t for nm,t in learn.model.state_dict().items()}
    for nm in ('sparsify', 'early_prune'):
        cb = vars(learn).get(f'_{nm}')
        if cb is None: continue
        if nm=='sparsify': state |= {f'mask {k}':m for k,m in cb.masks.masks.items()} | dict(history=cb.history)
        else: state |= dict(groups=cb.groups.to_json(), history=str(cb.history), cut_at=cb.cut_at, flops=str(cb.flops))
    rec = learn.recorder
    return state | dict(values=str(rec.values), losses=[float(o) for o in rec.losses], lrs=list(map(float, rec.lrs)))

def same(a, b):
    a,b = bits(a),bits(b)
    assert a.keys()==b.keys()
    bad = [k for k in a if not (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k]==b[k])]
    assert not bad, bad[:5]

def survives(tmp_path, cbs, stops=(1, 6, 12), **kwargs):
    "Stop after each of `stops` batches, and compare what comes of going on with the whole training."
    whole = trained(tmp_path/'whole.safetensors', cbs, **kwargs)
    for stop in stops:
        path = tmp_path/f'{stop}.safetensors'
        trained(path, cbs, stop, **kwargs)
        same(trained(path, cbs, **kwargs), whole)

masked = dict(
    one_cycle=lambda: [recipe('one_cycle', .9)], granet=lambda: [recipe('granet', .9)],
    granet_sparse=lambda: [recipe('granet_sparse', .9)], snfs=lambda: [recipe('snfs', .9, every=.2)],
    set=lambda: [recipe('set', .9, every=.2)], snip=lambda: [recipe('snip', .9)],
    running=lambda: [SparsifyCallback(.9, criterion=Running(movement), regrowth=by_momentum, every=2)],
    filters=lambda: [SparsifyCallback(.5, granularity=by_filter)])

@pytest.mark.parametrize('name', masked)
def test_masks(tmp_path, name): survives(tmp_path, masked[name], (1, 7))

def early(**kwargs): return [EarlyPruneCallback(Neurons(.4), steps=3, burst=4, **kwargs)]

cuts = dict(magnitude=lambda: early(trigger=AtEpoch(1)), gradient=lambda: early(trigger=AtEpoch(1), criterion=taylor_bn),
            silent=lambda: early(trigger=AtEpoch(1), physical=False),
            and_weights=lambda: [*early(trigger=AtEpoch(1)), recipe('granet', .8)],
            return_=lambda: [recipe('granet_neurons', ratio=.4, trigger=AtEpoch(2), steps=3, burst=3, every=1)])

@pytest.mark.parametrize('name', cuts)
def test_cuts(tmp_path, name): # before the burst, within it, and after
    survives(tmp_path, cuts[name], (3, 6, 11), net=partial(resnet, 8))

optimizers = dict(sgd=partial(SGD, mom=.9), ranger=partial(ranger, k=3), torch=partial(OptimWrapper, opt=torch.optim.AdamW))

@pytest.mark.parametrize('name', optimizers)
def test_optimizers(tmp_path, name): survives(tmp_path, masked['granet'], (6,), opt_func=optimizers[name])

@pytest.mark.parametrize('data', [fastai_images, torch_images])
def test_other_loaders(tmp_path, data):
    survives(tmp_path, masked['granet'], (2, 8), net=dropout_net, data=data)

def test_accumulated_gradients(tmp_path):
    survives(tmp_path, lambda: [*masked['one_cycle'](), GradientAccumulation(128)], (5, 6))

def test_averaged_copy(tmp_path):
    survives(tmp_path, lambda: [*masked['granet'](), Average()], (6,))
    path = tmp_path/'ema.safetensors'
    cbs = []
    def keep(): cbs.append(Average()); return cbs[-1:]
    trained(tmp_path/'a.safetensors', keep)
    trained(path, keep, 6)
    trained(path, keep)
    first,_,last = (o.ema_model.state_dict() for o in cbs)
    assert all(torch.equal(first[k], last[k]) for k in first)

def test_metrics_of_the_training_set(tmp_path): survives(tmp_path, masked['one_cycle'], (6,), train_metrics=True)

def test_trackers(tmp_path):
    "The best value so far, and how long it is ago, are not forgotten."
    def cbs(): return [SaveModelCallback('accuracy'), EarlyStoppingCallback('accuracy', patience=9)]
    found = []
    def keep(): found.append(cbs()); return found[-1]
    whole = trained(tmp_path/'whole.safetensors', keep, path=tmp_path/'a')
    trained(tmp_path/'x.safetensors', keep, 9, path=tmp_path/'b')
    same(trained(tmp_path/'x.safetensors', keep, path=tmp_path/'b'), whole)
    assert [(o.best, o.new_best) for o in found[0]]==[(o.best, o.new_best) for o in found[-1]]
    assert found[0][1].wait==found[-1][1].wait

def test_fine_tune(tmp_path):
    "Two fits, one callback: fits that have ended are passed over."
    halves = lambda model: [list(o.parameters()) for o in (model[:-1], model[-1])]
    def fit(learn, cbs): learn.fine_tune(2, 1e-3, cbs=cbs)
    survives(tmp_path, masked['one_cycle'], (2, 5), fit=fit, splitter=halves)
    whole = trained(tmp_path/'whole2.safetensors', masked['one_cycle'], fit=fit, splitter=halves)
    path,late = tmp_path/'late.safetensors',[]
    class StopLate(StopAt):
        def after_batch(self):
            late.append(self.n_epoch)
            if late.count(2)==6: raise Stop('here')
    trained(path, lambda: [*masked['one_cycle'](), StopLate(0)], fit=fit, splitter=halves)
    assert late.count(2)==6 and read_state(path)['place']['fit']==1
    same(trained(path, masked['one_cycle'], fit=fit, splitter=halves), whole)

def test_the_same_cell_again(tmp_path):
    "A fit that ended is not repeated in another process, and is a new one in the same."
    path = tmp_path/'x.safetensors'
    learn = trained(path, masked['one_cycle'])
    values = list(learn.recorder.values)
    again = trained(path, masked['one_cycle'])
    assert again.train_iter==EPOCHS*BATCHES and str(again.recorder.values)==str(values)
    assert len(again.recorder.losses)==len(learn.recorder.losses)==EPOCHS*BATCHES
    one_cycle(learn, [recipe('one_cycle', .95), CheckpointCallback(path, resume=True)])
    assert learn.sparsify.masks.sparsity>.94 and len(learn.recorder.values)==EPOCHS

def test_by_hand(tmp_path):
    "`resume`, then the fit that was interrupted."
    path,whole = tmp_path/'x.safetensors',trained(tmp_path/'whole.safetensors', masked['granet'])
    trained(path, masked['granet'], 6)
    learn = resume(built(small_cnn, images), path)
    weights = read_state(path)['network']['tensors']
    assert all(torch.equal(t, weights[nm]) for nm,t in learn.model.named_parameters())
    learn.validate()
    one_cycle(learn, masked['granet']())
    same(learn, whole)
    assert [type(cb).__name__ for cb in learn.cbs]==['TrainEvalCallback', 'Recorder', 'CastToTensor']

def test_between_fits(tmp_path):
    learn = built(small_cnn, images)
    learn.fit_one_cycle(1, 1e-2)
    path = save_checkpoint(learn, tmp_path/'x.safetensors')
    learn.fit_one_cycle(1, 1e-2)
    again = resume(built(small_cnn, images), path)
    again.fit_one_cycle(1, 1e-2)
    same(again, learn)

looked_into = dict(dense=lambda: [], granet=masked['granet'], filters=masked['filters'], early=lambda: early(trigger=AtEpoch(1)),
                   both=lambda: [recipe('one_cycle', .9), *early(trigger=AtEpoch(1))])

@pytest.mark.parametrize('name', looked_into)
@pytest.mark.parametrize('data', [images, torch_images])
@pytest.mark.parametrize('stop', [2, 9])
def test_contents(tmp_path, name, data, stop):
    "What a reader is told is what the learner had; nothing is needed to build it, and nothing is changed."
    path = tmp_path/'x.safetensors'
    learn = trained(path, looked_into[name], stop, data=data)
    before,found = path.read_bytes(),contents(path)
    assert path.read_bytes()==before and found.path==path and found.megabytes==len(before)/1e6
    params = [p for p in learn.model.parameters() if p.requires_grad]
    assert found.trained==sum(p.numel() for p in params)
    assert found.zeros==pytest.approx(1 - sum(int(p.count_nonzero()) for p in params)/found.trained)
    assert found.widths=={nm:len(m.weight) for nm,m in learn.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    masks = learn.sparsify.masks.masks if hasattr(learn, 'sparsify') else {}
    assert bool(found.masks)==bool(masks) # those of filters also cover biases, and are not stored twice
    assert found.masks=={nm:pytest.approx(1-float(masks[nm].float().mean())) for nm in found.masks}
    assert found.place==f'fit 1, epoch {(stop-1)//BATCHES+1} of {EPOCHS}, batch {(stop-1)%BATCHES+1} of {BATCHES}'
    assert len(found.table)==(stop-1)//BATCHES and 'accuracy' in found.table
    assert found._repr_html_().count('<table')==2 and found.place in repr(found)

def test_contents_of_other_files(tmp_path):
    "Between two fits, of a network whose layers are frozen; an older file; and files of something else."
    learn = built(small_cnn, images)
    learn.fit_one_cycle(1, 1e-2)
    learn.model[0].requires_grad_(False)
    path = save_checkpoint(learn, tmp_path/'x.safetensors')
    assert contents(path).place=='between two fits' and len(contents(path).table)==1
    assert contents(path).trained==sum(p.numel() for p in learn.model[1:].parameters())
    learn.model.requires_grad_(False)
    assert (found := contents(save_checkpoint(learn, path, keep=2))).trained==found.zeros==0
    path.unlink()
    assert contents(path).path.name=='x.1.safetensors'
    with pytest.raises(ValueError, match='no checkpoint of a learner'): contents(write_state(path, dict(a=1)))
    with pytest.raises(FileNotFoundError): contents(tmp_path/'none.safetensors')

def test_left_alone(tmp_path):
    "Validation, predictions and `lr_find` neither write nor resume."
    path = tmp_path/'x.safetensors'
    trained(path, lambda: [], 6)
    learn,before = built(small_cnn, images, path=tmp_path, cbs=CheckpointCallback(path, resume=True)),path.read_bytes()
    first = learn.model[0].weight.detach().clone() if hasattr(learn.model[0], 'weight') else next(learn.model.parameters()).clone()
    learn.validate(); learn.get_preds(); learn.lr_find(num_it=6, show_plot=False)
    assert torch.equal(first, next(learn.model.parameters())) and path.read_bytes()==before
    one_cycle(learn, [])
    same(learn, trained(tmp_path/'w.safetensors', lambda: []))

@pytest.mark.parametrize('every,n', [(None, 3), (5, 3), (.25, 4), (1, 12)])
def test_every_and_keep(tmp_path, every, n):
    path,places = tmp_path/'x.safetensors',[]
    class Watch(Callback):
        order = 110
        def after_batch(self):
            if path.exists() and (at := read_state(path)['place']['train_iter']) not in places: places.append(at)
    one_cycle(built(small_cnn, images), [Watch(), CheckpointCallback(path, every, keep=2)])
    assert len(places)==n and places[-1]==EPOCHS*BATCHES
    assert sorted(o.name for o in tmp_path.iterdir())==['x.1.safetensors', 'x.safetensors']
    assert read_state(tmp_path/'x.1.safetensors')['place']['train_iter']==places[-2]

def test_what_does_not_fit(tmp_path):
    path = tmp_path/'x.safetensors'
    trained(path, masked['one_cycle'], 6)
    for cbs,what,kwargs in [(lambda: [], "the state of 'sparsify'", {}), (lambda: [recipe('one_cycle', .8)], '`sparsity` is 0.8', {}),
                            (masked['one_cycle'], 'batches an epoch', dict(data=lambda: digits(limit=128, valid_limit=64))),
                            (masked['one_cycle'], 'names differ', dict(net=partial(resnet, 8)))]:
        with pytest.raises(ValueError, match=what): trained(path, cbs, **kwargs)
    learn = built(partial(small_cnn), images)
    before = {k:t.clone() for k,t in learn.model.state_dict().items()}
    with pytest.raises(ValueError): one_cycle(learn, [recipe('one_cycle', .8), CheckpointCallback(path, resume=True)])
    assert all(torch.equal(t, before[k]) for k,t in learn.model.state_dict().items())
    one_cycle(learn, masked['one_cycle']())
    same(learn, trained(tmp_path/'w.safetensors', masked['one_cycle']))

def test_from_the_shell(tmp_path, capsys, monkeypatch):
    "A training that is stopped in its second epoch, and the same words with `--resume`."
    from early_prune import cli
    def run(out, *more):
        words = 'train --recipe granet --sparsity .9 --arch small_cnn --limit 256 --epochs 3 --json --device cpu --out'
        assert cli.main([*words.split(), str(tmp_path/out), *more])==0
        return json.loads(capsys.readouterr().out)
    whole = run('whole')
    with monkeypatch.context() as m:
        m.setattr(cli.PrintEpochs, 'after_batch', lambda self: StopAt.after_batch(self), raising=False)
        m.setattr(cli.PrintEpochs, 'at', 7, raising=False)
        with pytest.raises(Stop): run('killed')
    again = run('killed', '--resume')
    assert {k:v for k,v in again.items() if 'seconds' not in k}=={k:v for k,v in whole.items() if 'seconds' not in k}
    first,second = (load_file(tmp_path/o/'model.safetensors') for o in ('whole', 'killed'))
    assert first.keys()==second.keys() and all(torch.equal(first[k], second[k]) for k in first)
