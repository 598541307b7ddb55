"What cannot go well is refused, or named, before the first batch."
import fastai.callback.schedule  # noqa: F401, it brings `fit_one_cycle`
import pytest
import torch
from fastai.basics import Callback, CancelStepException, Learner, set_seed
from torch import nn

from early_prune.callbacks import SparsifyCallback
from early_prune.core import prunable, sparsity_of
from early_prune.criteria import magnitude
from early_prune.data import digits
from early_prune.masks import Masks
from early_prune.models import resnet
from early_prune.recipes import recipe
from early_prune.triggers import AtEpoch


class Count(Callback):
    def __init__(self): self.n = 0
    def before_batch(self): self.n += 1

def fit(n_epoch, cbs, net):
    set_seed(0)
    learn = Learner(digits(limit=128), net)
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch, 1e-2, cbs=cbs)
    return learn

@pytest.mark.parametrize('n_epoch,make,message', [
    (1, lambda: [recipe('one_cycle', .5), recipe('agp', .5)], 'A fit has one `SparsifyCallback`, got 2'),
    (1, lambda: [recipe('at_epoch', ratio=.5, trigger=AtEpoch(0)), recipe('epi', ratio=.5)], 'A fit has one `EarlyPruneCallback`, got 2')], ids=['masks', 'neurons'])
def test_refused_before_the_first_batch(n_epoch, make, message):
    cbs,count = make(),Count()
    learn = Learner(digits(limit=128), resnet(8))
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match=message): learn.fit(n_epoch, 1e-2, cbs=[*cbs, count])
    assert count.n==0

def test_a_dictionary_is_no_distribution():
    for o in ({'0.weight':.5}, [.5]):
        with pytest.raises(TypeError, match='`distribution` is a function'): SparsifyCallback(.5, distribution=o)
    with pytest.raises(TypeError, match='write `lambda shapes, sparsity'): SparsifyCallback(.5, distribution={'0.weight':.5})

def test_a_sparse_network_says_that_its_zeros_wake_and_keeps_them_when_asked():
    net = resnet(8)
    Masks(net).update(magnitude, .9).apply()
    with pytest.warns(UserWarning, match='zeros that no mask holds.*adopt_zeros'): fit(1, [recipe('agp', .95)], net)
    net = resnet(8)
    Masks(net).update(magnitude, dict.fromkeys(prunable(net), .9)).apply()
    cb,zero = recipe('agp', .95),{nm:p.detach()==0 for nm,p in net.named_parameters()}
    cb.masks = Masks(net).adopt_zeros()
    learn = fit(1, [cb], net)
    assert all((p.detach()==0)[zero[nm]].all() for nm,p in learn.model.named_parameters() if nm in cb.masks.params)
    assert sparsity_of(net)==pytest.approx(.95, abs=1e-3)

def test_a_head_of_zeros_is_not_frozen_by_adopting_zeros():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    Masks(net).update(magnitude, .5).apply()
    nn.init.zeros_(net[2].weight)
    masks = Masks(net).adopt_zeros()
    assert list(masks.masks)==['0.weight'] and masks.n_kept['2.weight']==24

class Adapted(nn.Module):
    "As the layers of peft: a frozen layer, and a product of two that train and can be merged into it."
    def __init__(self, base): super().__init__(); self.base_layer,self.a,self.b = base.requires_grad_(False),nn.Linear(64, 4, bias=False),nn.Linear(4, 10, bias=False)
    def merge(self): self.base_layer.weight.data += self.b.weight@self.a.weight
    def unmerge(self): self.base_layer.weight.data -= self.b.weight@self.a.weight
    def forward(self, x): return self.base_layer(x)+self.b(self.a(x))

def test_adapters_are_named_as_such():
    with pytest.warns(UserWarning, match='Only adapters are masked'): fit(1, [recipe('one_cycle', .5)], nn.Sequential(nn.Flatten(), Adapted(nn.Linear(64, 10))))

@pytest.mark.parametrize('where', ['masked', 'kept'])
@pytest.mark.parametrize('name', ['one_shot', 'granet'])
def test_an_infinite_gradient_where_a_weight_is_masked_costs_no_step(name, where):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    skipped,scaler = [],torch.amp.GradScaler('cpu', init_scale=4., growth_interval=10_000)
    class Scaler(Callback):
        order = 10
        def __init__(self): self.scaler = scaler
        def before_backward(self): self.learn.loss_grad = scaler.scale(self.loss_grad)
        def before_step(self):
            plain = torch.optim.SGD(net.parameters(), 1.)
            scaler.unscale_(plain)
            skipped.append(any(v.item() for v in scaler._found_inf_per_device(plain).values()))
            scaler.update() # or the next optimizer at this address counts as unscaled
            if skipped[-1]: raise CancelStepException
    class Overflow(Callback):
        order = -1
        def after_backward(self):
            masks = self.learn.sparsify.masks
            if masks is None or not masks.masks: return
            places = (~masks['1.weight'] if where=='masked' else masks['1.weight']).nonzero()
            if len(places): masks.params['1.weight'].grad[tuple(places[0])] = torch.inf
    fit(3, [recipe(name, .8), Scaler(), Overflow()], net)
    assert any(skipped)==(where=='kept')
    assert all(p.isfinite().all() for p in net.parameters())
