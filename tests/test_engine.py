"The engine drives a plain loop, and what comes out is what a `Learner` gives."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.schedule import Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed

from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback
from early_prune.criteria import AtInit, Running, movement, snip
from early_prune.data import digits
from early_prune.dependency import trace
from early_prune.distributions import erk, global_
from early_prune.engine import EarlyPrune, Sparsify, Training
from early_prune.models import resnet, small_cnn
from early_prune.optimizers import load_memory, memory_state
from early_prune.ranking import Neurons, taylor_bn
from early_prune.recipes import recipe
from early_prune.regrowth import by_gradient, by_momentum
from early_prune.schedules import Schedule, agp, one_shot, sched_one_shot
from early_prune.triggers import AtEpoch

SGD,ADAM = partial(torch.optim.SGD, lr=.05, momentum=.9, nesterov=True, weight_decay=1e-4),partial(torch.optim.AdamW, lr=3e-3)

def begin(net):
    set_seed(0, reproducible=True)
    return digits(limit=320, valid_limit=64),net()

def in_a_learner(net, opt, cbs, epochs):
    dls,model = begin(net)
    learn = Learner(dls, model, opt_func=lambda params,lr,**_: OptimWrapper(params, opt), loss_func=F.cross_entropy)
    hypers = opt.keywords['lr'],opt.keywords.get('weight_decay', .01)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, hypers[0], wd=hypers[1], cbs=cbs)
    return learn.model

def loop(training, dls, model, opt, epochs, stop=None):
    "A plain loop, from where `training` is to the end, or until a step."
    table = []
    for _ in range(training.epoch, epochs):
        training.begin_epoch()
        model.train()
        for i,(x,y) in enumerate(dls.train):
            if i<training.step-training.epoch*training.batches: continue # done before a stop
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            training.before_step()
            opt.step()
            training.after_step(loss)
            opt.zero_grad()
            if stop==training.step: return table
        table.append(training.end_epoch())
    return table

def start(net, opt, pruners, epochs):
    dls,model = begin(net)
    x,y = dls.valid.one_batch()
    opt = opt(model.parameters())
    return Training(model, opt, pruners, x, epochs, len(dls.train), y, F.cross_entropy),dls,model,opt

def in_a_loop(net, opt, pruners, epochs):
    training,dls,model,opt = start(net, opt, pruners, epochs)
    loop(training, dls, model, opt, epochs)
    return model

def same(a, b):
    a,b = a.state_dict(),b.state_dict()
    return a.keys()==b.keys() and all(torch.equal(a[nm], b[nm]) for nm in a)

WAYS = {
    'one_cycle':(small_cnn, lambda: [recipe('one_cycle', .8)]),
    'granet':(small_cnn, lambda: [recipe('granet', .8, every=4)]),
    'sparse':(small_cnn, lambda: [SparsifyCallback(.8, Schedule(sched_one_shot), distribution=erk, start=.8, regrowth=by_momentum, every=3)]),
    'observed':(small_cnn, lambda: [SparsifyCallback(.8, agp, Running(movement))]),
    'epi':(lambda: resnet(8), lambda: [recipe('epi', ratio=.5, floor=.1, trigger=AtEpoch(1))]),
    'gradient':(lambda: resnet(8), lambda: [EarlyPruneCallback(Neurons(.4), taylor_bn, AtEpoch(1), steps=4, floor=.1)]),
    'silent':(lambda: resnet(8), lambda: [recipe('granet_neurons', ratio=.4, trigger=AtEpoch(2), floor=.1, every=3)]),
    'both':(lambda: resnet(8), lambda: [SparsifyCallback(.6), EarlyPruneCallback(Neurons(.4), trigger=AtEpoch(1), floor=.1)])}

@pytest.mark.parametrize('opt', [SGD, ADAM], ids=['SGD', 'AdamW'])
@pytest.mark.parametrize('way', WAYS)
def test_a_plain_loop_gives_the_bits_of_a_learner(way, opt):
    net,pruners = WAYS[way]
    fitted,looped = in_a_learner(net, opt, mine := pruners(), 4),in_a_loop(net, opt, ours := pruners(), 4)
    assert same(fitted, looped)
    for a,b in zip(mine, ours, strict=True):
        if isinstance(a, SparsifyCallback):
            assert a.masks.fingerprint()==b.masks.fingerprint() and a.history==b.history and a.masks.sparsity>.5
        else: assert a.done and b.done and a.history==b.history and a.groups.origin()==b.groups.origin() and a.cut_at==b.cut_at

def test_an_engine_is_what_its_callback_is():
    "The classes without fastai decide as those with it."
    a,b = in_a_loop(small_cnn, ADAM, Sparsify(.8, regrowth=by_gradient), 3),in_a_loop(small_cnn, ADAM, SparsifyCallback(.8, regrowth=by_gradient), 3)
    assert same(a, b)
    assert str(Sparsify(.8)).startswith('Sparsify(0.8') and str(EarlyPrune(Neurons(.5))).startswith('EarlyPrune(')

def test_a_callback_goes_from_a_loop_into_a_learner():
    cb = SparsifyCallback(.8)
    model = in_a_loop(small_cnn, ADAM, cb, 2)
    learn = Learner(digits(limit=320, valid_limit=64), model)
    more = SparsifyCallback(.9)
    more.masks = cb.masks
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=more)
    assert learn.sparsify.masks.sparsity==pytest.approx(.9, abs=1e-3)
    assert same(in_a_learner(small_cnn, ADAM, cb, 2), in_a_loop(small_cnn, ADAM, SparsifyCallback(.8), 2)) # the loop is forgotten

@pytest.mark.parametrize('way', ['granet', 'epi', 'silent', 'both'])
@pytest.mark.parametrize('stop', [7, 8, 15])
def test_a_plain_loop_goes_on_where_it_was(way, stop, tmp_path):
    "Whole and stopped trainings end with the same bits; files are those of `torch.save`, read as weights only."
    net,pruners = WAYS[way]
    whole = in_a_loop(net, ADAM, pruners(), 4)
    training,dls,model,opt = start(net, ADAM, pruners(), 4)
    loop(training, dls, model, opt, 4, stop)
    known = dict(model=model.state_dict(), opt=memory_state(opt), training=training.state(), sizes=widths_of(model))
    torch.save(known, tmp_path/'state.pt')
    known = torch.load(tmp_path/'state.pt', weights_only=True)
    training,dls,model,opt = start(lambda: shaped(net(), known['sizes']), ADAM, pruners(), 4)
    model.load_state_dict(known['model'])
    load_memory(opt, known['opt'])
    training.load_state(known['training'])
    assert training.step==stop
    dls.train.epoch = training.epoch
    loop(training, dls, model, opt, 4)
    assert same(whole, model)

def widths_of(model): return {nm:tuple(p.shape) for nm,p in model.named_parameters()}

def shaped(model, sizes):
    "Give a network the shapes of another one that was cut: which neurons went is in its numbers."
    from early_prune.surgery import cut
    groups = trace(model, torch.randn(2, 1, 8, 8))
    keep = {}
    for g in groups:
        nm,d = next((nm, d) for (nm,d),mine in groups.slots.items() if (mine>=0).all() and groups.group_of[mine[0]]==list(groups).index(g))
        keep[g.name] = range(sizes[nm][d]*g.n//groups.slots[nm,d].shape[0])
    cut(model, groups, keep)
    assert widths_of(model)==sizes
    return model

def test_what_comes_at_the_wrong_place_is_refused():
    training,dls,model,opt = start(small_cnn, SGD, Sparsify(.8), 1)
    for call in (training.before_step, training.after_step, training.end_epoch):
        with pytest.raises(ValueError, match='comes after `begin_epoch`'): call()
    training.begin_epoch()
    with pytest.raises(ValueError, match='comes after `end_epoch`'): training.begin_epoch()
    with pytest.raises(ValueError, match='had 0 steps, and `steps` says 5'): training.end_epoch()
    with pytest.raises(ValueError, match='before the first'): training.load_state(training.state())
    for _ in range(5):
        F.cross_entropy(model(torch.randn(2, 1, 8, 8)), torch.tensor([0, 1])).backward()
        training.before_step()
        opt.step()
        training.after_step()
    with pytest.raises(ValueError, match='more steps than the 5'): training.after_step()
    assert training.end_epoch()['sparsity']==pytest.approx(.8, abs=1e-3)
    with pytest.raises(ValueError, match='All 1 epochs'): training.begin_epoch()

@pytest.mark.parametrize('pruners,error', [
    (.9, TypeError), ([], TypeError), ([Sparsify(.8), Sparsify(.9)], ValueError), ([Sparsify(.8), SparsifyCallback(.9)], ValueError)])
def test_what_cannot_be_driven_is_refused(pruners, error):
    with pytest.raises(error): start(small_cnn, SGD, pruners, 1)

def test_a_look_before_training_needs_a_batch():
    pruner = Sparsify(.8, Schedule(sched_one_shot), AtInit(snip), global_)
    dls,model = begin(small_cnn)
    training = Training(model, SGD(model.parameters()), pruner, dls.valid.one_batch()[0], 1, 5)
    with pytest.raises(ValueError, match='pass `targets` and `loss_func`'): training.begin_epoch()
    training = start(small_cnn, SGD, pruner, 1)[0]
    training.begin_epoch()
    assert pruner.masks.sparsity==pytest.approx(.8, abs=1e-3)

def test_averages_and_their_names():
    training,dls,model,opt = start(lambda: resnet(8), ADAM, [EarlyPrune(Neurons(.4), trigger=AtEpoch(1), floor=.1), Sparsify(.6)], 3)
    average = torch.optim.swa_utils.AveragedModel(model)
    training.averages.append(average)
    loop(training, dls, model, opt, 3)
    assert widths_of(average.module)==widths_of(model)
    masks = training.masks()[0]
    off = [not dict(average.module.named_parameters())[nm][~kept].any() for nm,kept in masks.masks.items()]
    assert off and all(off)

def test_infinite_gradients_of_pruned_weights_cost_no_step():
    training,dls,model,opt = start(small_cnn, SGD, pruner := Sparsify(.8, one_shot, distribution=global_), 2)
    loop(training, dls, model, opt, 2, 7)
    nm,kept = next((nm, kept) for nm,kept in pruner.masks.masks.items() if not kept.all())
    p = dict(model.named_parameters())[nm]
    p.grad = torch.where(kept, torch.ones_like(p), torch.inf)
    training.before_unscale()
    assert p.grad.isfinite().all()

def test_networks_and_masks_of_others_stay():
    "Two trainings at once know nothing of each other."
    one,two = start(small_cnn, SGD, Sparsify(.5), 1),start(small_cnn, SGD, Sparsify(.8), 1)
    for o in (one, two): loop(*o, 1)
    assert [round(o[0].pruners[0].masks.sparsity, 2) for o in (one, two)]==[.5, .8]

