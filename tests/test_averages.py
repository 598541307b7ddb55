"Averages that somebody keeps in an unusual form or place are masked and cut with the network, or named."
from collections import deque, namedtuple
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel

from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback
from early_prune.data import digits
from early_prune.models import small_cnn
from early_prune.ranking import Neurons
from early_prune.triggers import AtEpoch


def fit(*cbs, epochs=3, net=None, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW), prepare=lambda learn: None):
    torch.manual_seed(0)
    learn = Learner(digits(limit=128, valid_limit=32), net or small_cnn(), CrossEntropyLossFlat(), opt_func=opt_func)
    prepare(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3, cbs=list(cbs))
    return learn

# Forms: how it is made, how it is averaged, and its numbers in the order of the parameters ----------

def clones(net): return [p.detach().clone() for p in net.parameters()]
def arrays(net): return [p.detach().numpy().copy() for p in net.parameters()]
def vector(net): return parameters_to_vector(net.parameters()).detach().clone()
def divided(v, net): return [t.view(p.shape) for t,p in zip(v.split([p.numel() for p in net.parameters()]), net.parameters(), strict=True)]
def by_name(net): return {nm:p.detach().numpy().copy() for nm,p in net.named_parameters()}
def tensors(o, net): return [torch.from_numpy(t) if isinstance(t, np.ndarray) else t for t in o]
def turned(net): return sorted(net.parameters(), key=lambda p: -p.ndim) # matrices first, as in groups with and without decay

class Slotted:
    __slots__ = ('__shadow',)
    def __init__(self, net): self.__shadow = vector(net)
    def held(self): return self.__shadow
Pair = namedtuple('Pair', 'decay numbers')

def closed_over(net):
    numbers = vector(net)
    def held(): return numbers
    return held

FORMS = dict(
    vector=(vector, divided), row=(lambda net: vector(net)[None], lambda o,net: divided(o[0], net)),
    precise=(lambda net: vector(net).double(), divided), vectors=(lambda net: [torch.zeros(3), vector(net)], lambda o,net: divided(o[1], net)),
    array=(lambda net: vector(net).numpy(), lambda o,net: divided(torch.from_numpy(o), net)),
    array_in_tuple=(lambda net: (.9, vector(net).numpy(), 3), lambda o,net: divided(torch.from_numpy(o[1]), net)),
    arrays=(arrays, tensors), named_arrays=(by_name, lambda o,net: tensors(o.values(), net)),
    tupled_arrays=(lambda net: tuple(arrays(net)), tensors), named_tuple=(lambda net: Pair(.9, arrays(net)), lambda o,net: tensors(o.numbers, net)),
    queued_arrays=(lambda net: deque(arrays(net)), tensors), two_in_tuple=(lambda net: (vector(net).numpy()*0, tuple(arrays(net))), lambda o,net: tensors(o[1], net)),
    slots=(Slotted, lambda o,net: divided(o.held(), net)), closure=(closed_over, lambda o,net: divided(o(), net)),
    partly=(lambda net: partial(max, vector(net)), lambda o,net: divided(o.args[0], net)),
    deep=(lambda net: dict(a=[dict(b=SimpleNamespace(c=arrays(net)))]), lambda o,net: tensors(o['a'][0]['b'].c, net)))

class Keeper(Callback):
    "Keeps an average in some form from some epoch on, or only what it saw first."
    def __init__(self, form, moves=True, first=0, every='step'):
        self.moves,self.first,self.every,(self.make,self.numbers) = moves,first,every,FORMS[form]
        self.held = None
    def before_train(self):
        if self.held is None and self.epoch==self.first: self.held = self.make(self.learn.model)
    def mine(self, net): return self.numbers(self.held, net)
    @torch.no_grad()
    def update(self):
        if not self.moves or self.held is None: return
        for t,p in zip(self.mine(self.learn.model), self.learn.model.parameters(), strict=True): t.mul_(.9).add_(p, alpha=.1)
    def after_step(self):
        if self.every=='step': self.update()
    def after_epoch(self):
        if self.every=='epoch': self.update()

class Plain(Keeper):
    "The same in a dictionary by name."
    def __init__(self, **kwargs):
        super().__init__('vector', **kwargs)
        self.make,self.numbers = lambda net: {nm:p.detach().clone() for nm,p in net.named_parameters()}, lambda o,net: list(o.values())

def same(a, b, net): return all(torch.equal(x.to(y), y) for x,y in zip(a.mine(net), b.mine(net), strict=True))
def alike(a, b, net): return all(torch.allclose(x.to(y), y, atol=1e-6) and torch.equal(x==0, y==0) for x,y in zip(a.mine(net), b.mine(net), strict=True))

@pytest.mark.parametrize('form', FORMS)
def test_an_average_in_any_form_is_masked(form):
    average,plain,first = Keeper(form),Plain(),Keeper(form, moves=False)
    learn = fit(SparsifyCallback(.8), average, plain, first)
    assert alike(average, plain, learn.model)
    for t,p in zip(average.mine(learn.model), learn.model.parameters(), strict=True): assert p.ndim<2 or torch.equal(t==0, p==0)
    assert not any(bool((t==0).any()) for t in first.mine(learn.model) if t.ndim>1)

@pytest.mark.parametrize('form', FORMS)
def test_an_average_in_any_form_is_cut(form):
    average,plain = Keeper(form),Plain()
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=1), average, plain)
    assert sum(p.numel() for p in learn.model.parameters())<sum(p.numel() for p in small_cnn().parameters())
    assert [t.shape for t in average.mine(learn.model)]==[p.shape for p in learn.model.parameters()]
    assert alike(average, plain, learn.model)

@pytest.mark.parametrize('form', ['vector', 'arrays', 'tupled_arrays'])
def test_an_average_in_any_form_falls_silent(form):
    "With `physical=False` too: what a neuron that was removed holds is zero in the average."
    average,plain = Keeper(form),Plain()
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=1, physical=False), average, plain)
    for cb in (average, plain):
        for t,p in zip(cb.mine(learn.model), learn.model.parameters(), strict=True): assert torch.equal(t==0, p==0)
    assert sum(int((p==0).sum()) for p in learn.model.parameters())>100

# Places -------------------------------------------------------------------------------------------

class Mover(Callback):
    "Averages what somebody else holds."
    def __init__(self, get): self.get = get
    @torch.no_grad()
    def after_step(self):
        for t,p in zip(divided(self.get(self.learn), self.learn.model), self.learn.model.parameters(), strict=True): t.mul_(.9).add_(p, alpha=.1)

PLACES = dict(
    fastai_callback=(lambda learn: setattr(learn.recorder, 'ema', vector(learn.model)), lambda learn: learn.recorder.ema),
    learner=(lambda learn: setattr(learn, 'ema', vector(learn.model)), lambda learn: learn.ema),
    loss=(lambda learn: setattr(learn.loss_func, 'ema', vector(learn.model)), lambda learn: learn.loss_func.ema),
    network=(lambda learn: setattr(learn.model, 'ema', vector(learn.model)), lambda learn: learn.model.ema),
    optimizer=(lambda learn: [learn.create_opt(), setattr(learn.opt, 'ema', vector(learn.model))], lambda learn: learn.opt.ema),
    inner_optimizer=(lambda learn: [learn.create_opt(), setattr(learn.opt.opt, 'ema', vector(learn.model))], lambda learn: learn.opt.opt.ema))

@pytest.mark.parametrize('place', PLACES)
def test_an_average_in_any_place(place):
    make,get = PLACES[place]
    learn = fit(SparsifyCallback(.8), Mover(get), prepare=make)
    for t,p in zip(divided(get(learn), learn.model), learn.model.parameters(), strict=True): assert p.ndim<2 or torch.equal(t==0, p==0)
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=1), Mover(get), prepare=make)
    assert get(learn).numel()==sum(p.numel() for p in learn.model.parameters())

def test_a_vector_in_the_order_of_the_groups():
    def make(learn):
        learn.create_opt()
        learn.ema = parameters_to_vector(turned(learn.model)).detach().clone()
    class Average(Callback):
        def after_step(self): self.learn.ema.mul_(.9).add_(parameters_to_vector(turned(self.learn.model)).detach(), alpha=.1)
    def two_groups(params, lr, **kwargs):
        params = list(params)
        groups = [dict(params=[p for p in params if p.ndim>1]), dict(params=[p for p in params if p.ndim<2], weight_decay=0.)]
        return OptimWrapper(opt=torch.optim.AdamW(groups, lr=lr))
    learn = fit(SparsifyCallback(.8), Average(), opt_func=lambda ps, lr, **kw: two_groups(ps[0] if isinstance(ps[0], (list, tuple)) else ps, lr), prepare=make)
    assert torch.equal(learn.ema==0, parameters_to_vector(turned(learn.model))==0) and int((learn.ema==0).sum())>100
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=1), Average(), opt_func=lambda ps, lr, **kw: two_groups(ps, lr), prepare=make)
    assert len(learn.ema)==sum(p.numel() for p in learn.model.parameters())

# Moments ------------------------------------------------------------------------------------------

def test_an_average_begun_after_a_cut():
    average = Keeper('vector', first=2)
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(0), steps=1), average, epochs=4)
    assert [t.shape for t in average.mine(learn.model)]==[p.shape for p in learn.model.parameters()]

class Late(Keeper):
    "Made before the training, averaged from an epoch on."
    def __init__(self, form, start, **kwargs):
        super().__init__(form, **kwargs)
        self.start = start
    def update(self):
        if self.epoch>=self.start: super().update()

@pytest.mark.parametrize('form', ['vector', 'arrays'])
def test_a_copy_that_has_not_moved_at_a_cut_is_named(form):
    with pytest.warns(UserWarning, match=r'Late\.held .*has not moved'), pytest.raises(Exception):
        fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(0), steps=1), Late(form, 2))

def test_torchs_own_average_is_one_before_it_moves():
    class SWA(Callback):
        def before_fit(self): self.net = AveragedModel(self.learn.model)
        def after_epoch(self):
            if self.epoch>=2: self.net.update_parameters(self.learn.model)
    swa = SWA()
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(0), steps=1), swa)
    assert all(torch.equal(a, b) for a,b in zip(swa.net.module.parameters(), learn.model.parameters(), strict=True))

@pytest.mark.parametrize('form', ['vector', 'arrays', 'deep'])
def test_an_average_that_first_moves_after_the_last_epoch_is_masked(form):
    average = Late(form, 2, every='epoch')
    learn = fit(SparsifyCallback(.8), average)
    for t,p in zip(average.mine(learn.model), learn.model.parameters(), strict=True): assert p.ndim<2 or torch.equal(t==0, p==0)

def test_tied_weights_are_listed_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_cnn()
            self.again = self.net
        def forward(self, x): return self.again(x)
    for form in ('vector', 'arrays'):
        average = Keeper(form)
        learn = fit(SparsifyCallback(.8), average, net=Tied())
        for t,p in zip(average.mine(learn.model), learn.model.parameters(), strict=True): assert p.ndim<2 or torch.equal(t==0, p==0)

def test_an_array_that_cannot_be_written_is_renewed():
    class Frozen(Keeper):
        def update(self):
            self.held = [.9*a+.1*p.detach().numpy() for a,p in zip(self.held, self.learn.model.parameters(), strict=True)]
            for a in self.held: a.flags.writeable = False
        def after_step(self): self.update()
    average = Frozen('arrays')
    learn = fit(SparsifyCallback(.8), average)
    for t,p in zip(average.held, learn.model.parameters(), strict=True): assert p.ndim<2 or torch.equal(torch.from_numpy(t.copy())==0, p==0)

@pytest.mark.parametrize('form', ['array', 'arrays', 'tupled_arrays', 'vector'])
def test_what_two_hold_is_cut_once_and_for_both(form):
    class Other(Callback):
        def __init__(self, cb): self.cb_of = lambda: cb
        def before_train(self): self.mine = self.cb_of().held
    class Parts(Callback):
        def __init__(self, cb): self.cb_of = lambda: cb
        def before_train(self): self.one = self.cb_of().held[0]
    average = Keeper(form)
    other,parts = Other(average),Parts(average)
    learn = fit(EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(1), steps=1), average, other, *([parts] if form!='vector' else []), epochs=2)
    assert all(torch.equal(a, b) for a,b in zip(average.mine(learn.model), average.numbers(other.mine, learn.model), strict=True))
