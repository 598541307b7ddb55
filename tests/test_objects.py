"What networks, losses, data and callbacks keep in attributes: a training that was stopped ends as if it had not been, or says why not."
import itertools
import random
import re
import warnings
from collections import deque, namedtuple

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorBase, set_seed
from torch import nn

from early_prune.checkpoint import CheckpointCallback, read_state, resume, save_checkpoint
from early_prune.models import small_cnn
from early_prune.recipes import recipe

X,Y = torch.randn(128, 1, 8, 8, generator=torch.Generator().manual_seed(0)),torch.arange(128)%10
GENERATOR = np.random.default_rng(3) # as many scripts have it

class Stop(Exception): pass

class StopAt(Callback):
    order = 110
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter==self.at: raise Stop('here')

# Networks -----------------------------------------------------------------------------------------

class Net(nn.Module):
    "Its output depends on what `step` keeps in `self`."
    def __init__(self):
        super().__init__()
        self.net = small_cnn()
        self.begin()

    def begin(self): pass
    def step(self, y): return y
    def forward(self, x):
        y = self.net(x)
        return self.step(y) if self.training else y

class Hidden(Net):
    state = None
    def step(self, y):
        if self.state is not None: y = y+.1*self.state
        self.state = y.detach().mean(0)
        return y

class Listed(Net):
    def begin(self): self.past = [(torch.zeros(10), torch.zeros(10)), deque([torch.zeros(10)], maxlen=3)]
    def step(self, y):
        y = y+.1*self.past[0][1]+.1*sum(self.past[1])
        self.past[0] = self.past[0][1],y.detach().mean(0)
        self.past[1].append(y.detach().mean(0))
        return y

class Counter(Net):
    def begin(self): self.n,self.of = 0,{'a':{1:0}}
    def step(self, y):
        self.n += 1
        self.of['a'][1] += self.n
        return y/(1+self.of['a'][1]/50)

class Inner(Net):
    def begin(self): self.block = nn.Sequential(nn.Identity(), Hidden())
    def step(self, y):
        keeper = self.block[1]
        keeper.state = y.detach().mean(0)+(0 if keeper.state is None else .5*keeper.state)
        return y+.1*keeper.state

class Buffers(Net):
    def begin(self): self.register_buffer('n', torch.tensor(0), persistent=False)
    def step(self, y):
        self.n += 1
        return y/(1+self.n/50)

class Drawn(Net):
    def begin(self): self.generators = dict(a=torch.Generator().manual_seed(1)),np.random.RandomState(2)
    def step(self, y):
        return y+.1*torch.randn(10, generator=self.generators[0]['a'])+.1*float(self.generators[1].normal())

class Arrays(Net):
    def begin(self): self.mean,self.low,self.typed = np.zeros(10),np.float32(0),TensorBase(torch.zeros(10))
    def step(self, y):
        self.mean,self.low = self.mean*.9+y.detach().mean(0).numpy()*.1,np.float32(self.low+.1)*np.float32(.9)
        self.typed = self.typed+.01
        return y+torch.tensor(self.mean, dtype=torch.float32)*float(self.low)+self.typed.as_subclass(torch.Tensor)

class Private: # its slot goes by another name than the one that is written
    __slots__ = '__half'
    def __init__(self): self.__half = torch.zeros(10)
    def halved(self, y):
        self.__half = self.__half/2+y
        return self.__half

class Slotted(Private):
    __slots__ = 'n'
    def __init__(self):
        super().__init__()
        self.n = 0

class Objects(Net):
    def begin(self): self.kept,self.steps = Slotted(),Steps()
    def step(self, y):
        self.kept.n += 1
        self.steps.told[self.kept.n%3] = self.kept.n
        return y*(1+self.kept.n/100)+.1*self.kept.halved(y.detach().mean(0))+sum(self.steps.told.values())/100

class Steps:
    def __init__(self): self.told = {}

def counting():
    n = 0
    def count(y):
        nonlocal n
        n += 1
        return y/(1+n/50)
    return count

class Closure(Net):
    def begin(self): self.count = counting()
    def step(self, y): return self.count(y)

NETS = dict(hidden=Hidden, listed=Listed, counter=Counter, inner=Inner, buffers=Buffers, drawn=Drawn, arrays=Arrays, objects=Objects,
            closure=Closure)

# Data and losses ----------------------------------------------------------------------------------

class Noisy:
    "Items with noise from `draw`."
    def __init__(self, draw): self.draw = draw
    def __len__(self): return len(X)
    def __getitem__(self, i): return X[i]+.1*self.draw(),Y[i]

class Lazy(Noisy):
    "The generator is made with the first item."
    def __init__(self): self.rng = None
    def draw(self):
        if self.rng is None: self.rng = random.Random(5)
        return self.rng.random()

class Older(Noisy):
    "Noise grows with what was drawn so far."
    def __init__(self): self.n = 0
    def draw(self):
        self.n += 1
        return self.n/100

class OfTorch(Noisy):
    def __init__(self): self.g = torch.Generator().manual_seed(4)
    def draw(self): return torch.rand(1, generator=self.g).item()

def in_closure():
    g = np.random.Generator(np.random.Philox(4))
    return lambda: g.normal()

DATA = dict(main=lambda: Noisy(lambda: torch.randn(1)), numpy=lambda: Noisy(np.random.default_rng(1).normal), lazy=Lazy,
            python=lambda: Noisy(random.Random(2).random), old=lambda: Noisy(np.random.RandomState(2).normal), older=Older,
            torch=OfTorch, within=lambda: Noisy(in_closure()), named=lambda: Noisy(lambda: GENERATOR.normal()))

class Sampled(torch.utils.data.Sampler):
    "An order of its own in every epoch."
    def __init__(self): self.rng = np.random.default_rng(0)
    def __len__(self): return len(X)
    def __iter__(self): return iter(self.rng.permutation(len(X)).tolist())

def tuples(dataset): return DataLoaders.from_dsets(dataset, list(zip(X, Y)), bs=32, num_workers=0, device='cpu')

def of_torch(dataset):
    make = lambda ds, **kw: torch.utils.data.DataLoader(ds, batch_size=32, **kw)
    return DataLoaders(make(dataset, sampler=Sampled()), make(list(zip(X, Y))), device=torch.device('cpu'))

def transformed(dataset):
    rng = np.random.default_rng(9)
    train = DataLoader(list(zip(X, Y)), bs=32, num_workers=0, after_item=lambda o: (o[0]+.1*float(rng.normal()), o[1]))
    return DataLoaders(train, DataLoader(list(zip(X, Y)), bs=32, num_workers=0), device=torch.device('cpu'))

class Smoothed(nn.Module):
    "A loss that keeps a mean in a buffer, a counter, and a weight that nobody trains."
    def __init__(self):
        super().__init__()
        self.n,self.scale = 0,nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer('mean', torch.zeros(()))
    def forward(self, y, target):
        loss = nn.functional.cross_entropy(y, target)
        if self.training and y.requires_grad:
            self.n += 1
            self.mean = .9*self.mean+.1*loss.detach()
            self.scale.mul_(.99)
        return loss*(1+self.mean)/(1+self.n/50)*self.scale

# The law ------------------------------------------------------------------------------------------

def trained(path, stop=None, net=small_cnn, data=lambda: list(zip(X, Y)), loaders=tuples, loss=CrossEntropyLossFlat, cbs=lambda: []):
    GENERATOR.bit_generator.state = np.random.default_rng(3).bit_generator.state # as in a new process
    set_seed(0, reproducible=True)
    learn = Learner(loaders(data()), net(), loss_func=loss())
    cbs = [recipe('one_cycle', .8), *cbs(), CheckpointCallback(path, every=1, resume=True), *([] if stop is None else [StopAt(stop)])]
    with learn.no_bar(), learn.no_logging():
        try: learn.fit_one_cycle(3, 1e-2, cbs=cbs)
        except Stop: pass
    return learn

def survives(tmp_path, stops=(2, 7), **kwargs):
    whole = trained(tmp_path/'whole.safetensors', **kwargs)
    for stop in stops:
        trained(tmp_path/f'{stop}.safetensors', stop, **kwargs)
        again = trained(tmp_path/f'{stop}.safetensors', **kwargs)
        assert all(torch.equal(a, b) for a,b in zip(whole.model.parameters(), again.model.parameters())), stop
        assert str(whole.recorder.values)==str(again.recorder.values)
    return whole

@pytest.mark.parametrize('name', NETS)
def test_networks(tmp_path, name): survives(tmp_path, net=NETS[name])

@pytest.mark.parametrize('name', DATA)
def test_data(tmp_path, name): survives(tmp_path, data=DATA[name])

@pytest.mark.parametrize('loaders', [of_torch, transformed])
def test_loaders(tmp_path, loaders): survives(tmp_path, loaders=loaders)

def test_losses(tmp_path): survives(tmp_path, loss=Smoothed)

def test_the_state_matters(tmp_path):
    "Without the state each of these is another training: the tests above can fail."
    for name,kwargs in [*((nm, dict(net=c)) for nm,c in NETS.items()), *((nm, dict(data=c)) for nm,c in DATA.items() if nm!='main'),
                        ('loss', dict(loss=Smoothed))]:
        whole = trained(tmp_path/f'{name}.safetensors', **kwargs)
        trained(path := tmp_path/f'{name}2.safetensors', 7, **kwargs)
        with pytest.MonkeyPatch.context() as m:
            m.setattr('early_prune.checkpoint._set_kept', lambda *args: None)
            again = trained(path, **kwargs)
        assert not all(torch.equal(a, b) for a,b in zip(whole.model.parameters(), again.model.parameters())), name

class Noise(Callback):
    "A callback with a generator and an object of its own."
    def before_fit(self): self.rng,self.kept = np.random.default_rng(0),Steps()
    def before_batch(self):
        self.kept.told['n'] = self.kept.told.get('n', 0)+1
        if self.training: self.learn.xb = (self.x+.1*float(self.rng.normal())+self.kept.told['n']/100,)

def test_callbacks(tmp_path): survives(tmp_path, cbs=lambda: [Noise()])

def test_language_model(tmp_path):
    "fastai's AWD_LSTM carries its hidden state in a list, and puts dropped weights where parameters were."
    from fastai.callback.rnn import rnn_cbs
    from fastai.text.models.awdlstm import AWD_LSTM
    from fastai.text.models.core import LinearDecoder, SequentialRNN
    words = torch.randint(0, 20, (16, 60), generator=torch.Generator().manual_seed(0))
    items = [(words[j, i:i+6], words[j, i+1:i+7]) for i in range(0, 54, 6) for j in range(16)]
    def loaders(_):
        make = lambda: DataLoader(items, bs=16, num_workers=0)
        return DataLoaders(make(), make(), device=torch.device('cpu'))
    def net():
        body = AWD_LSTM(20, 12, 16, 2)
        return SequentialRNN(body, LinearDecoder(20, 12, .1, tie_encoder=body.encoder))
    survives(tmp_path, net=net, loaders=loaders, cbs=rnn_cbs, stops=(3, 13))

def test_between_fits(tmp_path):
    def built(net=Counter):
        set_seed(0, reproducible=True)
        learn = Learner(tuples(Older()), net(), loss_func=CrossEntropyLossFlat())
        learn.remove_cbs(learn.cbs.filter(lambda cb: cb.name=='progress'))
        learn.logger = lambda row: None
        return learn
    learn = built()
    learn.fit(1)
    path = save_checkpoint(learn, tmp_path/'x.safetensors')
    learn.fit(1)
    again = resume(built(), path)
    assert again.model.n==4
    again.fit(1)
    assert all(torch.equal(a, b) for a,b in zip(learn.model.parameters(), again.model.parameters()))

# What no file can hold is named -------------------------------------------------------------------

class Iterating(Net):
    def begin(self): self.number = itertools.count()
    def step(self, y): return y/(1+next(self.number)/50)

class Made(Net):
    made = None
    def step(self, y):
        if self.made is None: self.made = Steps()
        self.made.told['n'] = self.made.told.get('n', 0)+1
        return y/(1+self.made.told['n']/50)

Pair = namedtuple('Pair', 'a b')
class Named(Net):
    def begin(self): self.pair = Pair(0, 0)
    def step(self, y):
        self.pair = Pair(self.pair.a+1, 0)
        return y/(1+self.pair.a/50)

class Sparse(Net):
    def begin(self): self.held = torch.zeros(10).to_sparse()
    def step(self, y):
        self.held = (self.held+y.detach().mean(0).to_sparse()).coalesce()
        return y+.1*self.held.to_dense()

@pytest.mark.parametrize('net,name', [(Iterating, 'network.number'), (Made, 'network.made'), (Named, 'network.pair'), (Sparse, 'network.held')])
def test_named(tmp_path, net, name):
    path = tmp_path/'x.safetensors'
    for stop,what in (7, f'is not complete: .*{name}'),(None, f'was not complete: .*{name}'):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            trained(path, stop, net=net)
        assert any(re.search(what, str(o.message)) for o in told)

def test_large_data(tmp_path):
    "Data is no state: what is long is not stored, and said to be missing when it has changed."
    class Table(Noisy):
        def __init__(self): self.x,self.names,self.root = torch.zeros(2**17),['a']*5000,str(tmp_path)
        def draw(self): return 0.
    trained(path := tmp_path/'x.safetensors', 7, data=Table)
    assert path.stat().st_size<2**19
    class Changing(Table):
        def draw(self):
            self.x += 1
            return 0.
    with pytest.warns(UserWarning, match='not complete: .*data 0.dataset.x'): trained(tmp_path/'y.safetensors', 7, data=Changing)

def test_settings_stay(tmp_path):
    "What has not changed since the learner was made is a setting of this process, not state of the file."
    class Rate(Net):
        rate = .1
        def __init__(self, rate): super().__init__(); self.rate = rate
    trained(path := tmp_path/'x.safetensors', 7, net=lambda: Rate(.1))
    assert trained(path, net=lambda: Rate(.3)).model.rate==.3
    assert not any(o['key']=='rate' for o in read_state(path)['now']['kept']['found'])

def test_put_back(tmp_path):
    "A file that does not fit changes no object."
    trained(path := tmp_path/'x.safetensors', 7, net=Counter, data=Older)
    set_seed(0)
    learn = Learner(tuples(Older()), Counter(), loss_func=CrossEntropyLossFlat())
    learn.model.net[0] = nn.Conv2d(1, 3, 3)
    with pytest.raises(ValueError): resume(learn, path)
    assert learn.model.n==0 and learn.model.of=={'a':{1:0}} and learn.dls.train.dataset.n==0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        survives(tmp_path, net=Counter)
