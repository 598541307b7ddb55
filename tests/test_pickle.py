"Whatever trains can be pickled, copied and exported, before, within and after a fit."
import copy
import pickle

import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import load_learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.learner import Learner
from torch import nn

from early_prune.callbacks import ShowPruning
from early_prune.checkpoint import CheckpointCallback
from early_prune.criteria import Running, magnitude
from early_prune.data import digits
from early_prune.dependency import plain
from early_prune.models import small_cnn
from early_prune.recipes import NEURON_RECIPES, RECIPES, recipe
from early_prune.triggers import AtEpoch

EVERY = [*RECIPES, *NEURON_RECIPES]

def method(name):
    if name in RECIPES: return recipe(name, .8)
    return recipe(name, ratio=.5, trigger=AtEpoch(1))

def learner(cbs):
    set_seed(0, reproducible=True)
    learn = Learner(digits(limit=128, valid_limit=64, bs=32), small_cnn(), metrics=accuracy, cbs=cbs)
    learn.remove_cbs(learn.cbs.filter(lambda cb: cb.name=='progress'))
    learn.logger = Quiet()
    return learn

class Quiet:
    def __call__(self, row): pass

class Through(Callback):
    "Pickle the learner within a fit, before and after a change; PyTorch itself copies no loss with its graph."
    order = 99
    def __init__(self): self.at = []
    def after_batch(self):
        if not (self.training and self.train_iter in (2, 6)): return
        again = pickle.loads(pickle.dumps(self.learn))
        for a,b in zip(plain(again.model).parameters(), plain(self.learn.model).parameters(), strict=True): assert torch.equal(a, b)
        self.at.append(self.train_iter)

def same(a, b):
    for x,y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True): assert torch.equal(x, y)

def fit(learn, epochs, **kwargs):
    set_seed(1, reproducible=True)
    learn.fit(epochs, 1e-2, **kwargs)

@pytest.mark.parametrize('name', EVERY)
def test_learners_travel(tmp_path, name):
    "Copies train as the learner itself does, and the export says what the network says."
    learn = learner([method(name)])
    copies = [pickle.loads(pickle.dumps(learn)), copy.deepcopy(learn)]
    fit(learn, 2, cbs=(through := Through()))
    assert through.at==[2, 6]
    for other in copies:
        fit(other, 2)
        same(learn, other)
    copies = [pickle.loads(pickle.dumps(learn)), copy.deepcopy(learn)]
    learn.export(tmp_path/'learner.pkl')
    with pytest.warns(UserWarning, match='load_learner'): other = load_learner(tmp_path/'learner.pkl') # fastai warns of pickles
    x = torch.zeros(2, 1, 8, 8)
    assert torch.equal(other.model.eval()(x), learn.model.eval()(x))
    fit(learn, 1)
    for other in copies:
        fit(other, 1)
        same(learn, other)

@pytest.mark.parametrize('name', EVERY)
def test_a_callback_travels_alone(name):
    learn,cb = learner([]),method(name)
    assert repr(pickle.loads(pickle.dumps(cb)))==repr(copy.deepcopy(cb))==repr(cb)
    fit(learn, 2, cbs=cb)
    assert repr(pickle.loads(pickle.dumps(cb)))==repr(copy.deepcopy(cb))==repr(cb)

def test_sums_travel_with_their_weights():
    "A copy of a criterion knows the copied weights, and not the first ones."
    net = nn.Linear(3, 2)
    criterion = Running(magnitude)
    criterion.observe(net.weight)
    for again,other in (copy.deepcopy((net, criterion)), pickle.loads(pickle.dumps((net, criterion)))):
        assert torch.equal(other(again.weight), criterion(net.weight))
        with pytest.raises(ValueError, match='has observed no batch'): other(net.weight)

def test_a_checkpoint_and_a_plot_travel(tmp_path):
    "What a copy does not take along: the lock of a file, and the place on a page."
    learn = learner([recipe('snfs', .8, every=2), CheckpointCallback(tmp_path/'x.safetensors', every=1), ShowPruning()])
    fit(learn, 2, cbs=(through := Through()))
    assert through.at==[2, 6]
    for other in (pickle.loads(pickle.dumps(learn)), copy.deepcopy(learn)): fit(other, 1)
    learn.export(tmp_path/'learner.pkl')
    assert sorted(o.name for o in tmp_path.iterdir())==['learner.pkl', 'x.safetensors']
