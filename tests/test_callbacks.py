"SparsifyCallback in the real life of a fastai `Learner`."
import copy
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import Learner as _Learner  # noqa: F401  patches `fit_one_cycle`, `fine_tune`, `lr_find`
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Learner, load_learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam, Lookahead, OptimWrapper, RMSProp
from fastai.torch_core import params, set_seed
from torch import nn

from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback
from early_prune.core import sparsity_of
from early_prune.criteria import (
    AtInit,
    Running,
    gradient,
    grasp,
    magnitude,
    movement,
    random_scores,
    snip,
    synflow,
    taylor,
)
from early_prune.data import digits
from early_prune.distributions import erk, global_, uniform
from early_prune.masks import Masks, by_filter, by_kernel, two_four
from early_prune.models import small_cnn
from early_prune.ranking import Neurons
from early_prune.recipes import RECIPES, imp, recipe, ticket_sparsities
from early_prune.regrowth import by_gradient, by_momentum, by_random, mask_similarity
from early_prune.schedules import (
    Schedule,
    agp,
    dsd,
    iterative,
    linear,
    one_shot,
    sched_cosine,
    sched_cubic,
    sched_one_shot,
)
from early_prune.triggers import EPI


def halves(model): return [params(model[:-1]), params(model[-1])]

def learner(seed=0, limit=256, tmp=None, **kwargs):
    set_seed(seed, reproducible=True)
    learn = Learner(digits(limit=limit, valid_limit=128), small_cnn(), metrics=accuracy, path=tmp, **kwargs)
    learn.remove_cb(learn.progress)
    learn.logger = lambda row: None
    return learn

def zeros(learn):
    "Exact zeros of each prunable weight, by name."
    return {nm:(p.detach()==0).sum().item() for nm,p in learn.sparsify.masks.params.items()}

def check(learn, sparsity):
    "Every layer has its exact share of zeros, in the weights and in the optimizer's state."
    masks = learn.sparsify.masks
    assert {nm:p.numel()-round((1-sparsity)*p.numel()) for nm,p in masks.params.items()}==zeros(learn)
    held(learn)

def held(learn):
    masks,opt = learn.sparsify.masks,learn.opt
    while 'opt' in vars(opt): opt = opt.opt
    for nm,p in masks.params.items():
        assert not p.detach()[~masks[nm]].any()
        for k,v in opt.state.get(p, {}).items():
            if isinstance(v, torch.Tensor) and v.shape==p.shape: assert not v[~masks[nm]].any(), k

@pytest.mark.parametrize('name', RECIPES)
def test_recipes_reach_their_sparsity(name):
    learn = learner()
    learn.fit_one_cycle(3, 1e-2, cbs=recipe(name, .9))
    masks,r = learn.sparsify.masks,RECIPES[name]
    shares = r.distribution({nm:tuple(p.shape) for nm,p in masks.params.items()}, .9)
    if isinstance(shares, dict): assert masks.n_kept=={nm:round((1-s)*masks.n_units[nm]) for nm,s in shares.items()}
    else: assert sum(masks.n_kept.values())==sparse_total(masks, .9)
    off = {nm:n-masks.n_kept[nm] for nm,n in masks.n_units.items()}
    assert zeros(learn)==off if r.regrowth is None else all(zeros(learn)[nm]>=n for nm,n in off.items())
    held(learn)

@pytest.mark.parametrize('opt_func', [Adam, SGD, RMSProp, lambda ps,lr: SGD(ps, lr, mom=.9), lambda ps,lr: Lookahead(SGD(ps, lr, mom=.9)),
    lambda ps,**kw: OptimWrapper(ps, torch.optim.AdamW, **kw)], ids=['adam', 'sgd', 'rmsprop', 'momentum', 'lookahead', 'torch'])
def test_optimizers(opt_func):
    learn = learner(opt_func=opt_func)
    learn.fit_one_cycle(2, 1e-2, cbs=recipe('agp', .8))
    check(learn, .8)

def test_plain_fit_and_the_column():
    learn,cb = learner(),recipe('iterative', .9)
    learn.fit(3, 1e-2, cbs=cb)
    assert learn.recorder.metric_names[-2:]==['sparsity', 'time']
    column = [float(row[-1]) for row in learn.recorder.values]
    assert column==pytest.approx([.3, .6, .9], abs=1e-3)
    assert [m.name for m in learn.metrics]==['accuracy'] and learn.sparsify is cb
    learn.fit(1)
    assert 'sparsity' not in learn.recorder.metric_names

def test_weights_are_dense_shaped_and_loadable_in_mid_training():
    dense = {nm:t.shape for nm,t in small_cnn().state_dict().items()}
    class Look(Callback):
        run_valid = False
        def after_step(self):
            state = self.model.state_dict()
            assert {nm:t.shape for nm,t in state.items()}==dense
            if self.train_iter==5: small_cnn().load_state_dict(state, strict=True)
    learner().fit_one_cycle(2, 1e-2, cbs=[recipe('one_cycle', .9), Look()])

def test_second_fit_goes_on_and_does_not_compound():
    learn,cb = learner(),recipe('agp', .5)
    learn.add_cb(cb)
    learn.fit(2, 1e-2); check(learn, .5)
    masks = {nm:cb.masks[nm].clone() for nm in cb.masks.params}
    learn.fit(2, 1e-2); check(learn, .5)
    assert all(torch.equal(masks[nm], cb.masks[nm]) for nm in masks)
    learn.remove_cb(cb)
    learn.fit(2, 1e-2, cbs=recipe('agp', .8)); check(learn, .8)
    assert learn.sparsify.history[0][1]>=.5 and all((learn.sparsify.masks[nm]<=masks[nm]).all() for nm in masks)

def test_lower_target_in_a_second_fit():
    "Sparsity goes down as well, and weights that come back start at zero and train."
    learn = learner()
    learn.fit(1, 1e-2, cbs=SparsifyCallback(.9, linear))
    before = {nm:learn.sparsify.masks[nm].clone() for nm in learn.sparsify.masks.params}
    learn.fit(2, 1e-2, cbs=SparsifyCallback(.5, linear, criterion=gradient))
    masks = learn.sparsify.masks
    assert masks.sparsity==pytest.approx(.5, abs=1e-3) and all((before[nm]<=masks[nm]).all() for nm in before)
    back = torch.cat([p.detach()[masks[nm] & ~before[nm]] for nm,p in masks.params.items()])
    assert back.abs().gt(0).float().mean()>.9

def test_dense_sparse_dense():
    learn = learner()
    learn.fit(6, 1e-2, cbs=SparsifyCallback(.5, dsd))
    assert [float(r[-1]) for r in learn.recorder.values]==pytest.approx([0, 0, .5, .5, 0, 0], abs=1e-3)
    assert sparsity_of(learn.model)<.01

def test_two_learners_do_not_touch_each_other():
    def alone(name, s):
        learn = learner()
        learn.fit(2, 1e-2, cbs=recipe(name, s))
        return learn.model.state_dict()
    a,b = alone('one_cycle', .9),alone('one_cycle', .5)
    cb = recipe('one_cycle', .9)
    one,two = learner(),learner()
    one.fit(2, 1e-2, cbs=cb)
    set_seed(0, reproducible=True)
    two = learner()
    two.fit(2, 1e-2, cbs=recipe('one_cycle', .5))
    for expected,learn in ((a, one), (b, two)):
        for nm,t in learn.model.state_dict().items(): assert torch.equal(t, expected[nm])
    assert one.sparsify.masks is not two.sparsify.masks

def test_one_callback_on_two_learners_starts_anew():
    cb = recipe('agp', .8)
    for seed in (0, 1):
        learn = learner(seed)
        learn.fit(2, 1e-2, cbs=cb)
        check(learn, .8)
        assert cb.history[0][1]<.5

def test_fine_tune_prunes_the_head_first():
    learn,seen = learner(splitter=halves),[]
    class Look(Callback):
        def after_epoch(self): seen.append(zeros(self.learn))
    learn.fine_tune(2, 1e-2, freeze_epochs=1, cbs=[recipe('one_cycle', .8), Look()])
    head = '11.weight'
    assert {nm:n for nm,n in seen[0].items() if n}=={head:round(.8*640)}
    assert all(s[head]==round(.8*640) for s in seen)
    check(learn, .8)

def test_frozen_body_with_trainable_batch_norm():
    "fastai's standard frozen phase: frozen weights stay bit for bit, norms and head train."
    learn = learner(splitter=halves)
    learn.create_opt(); learn.freeze()
    body = {nm:p.detach().clone() for nm,p in learn.model.named_parameters() if not p.requires_grad}
    assert body and any(p.requires_grad for p in learn.model[1].parameters())
    learn.fit(2, 1e-2, cbs=recipe('agp', .5, distribution=global_))
    named = dict(learn.model.named_parameters())
    assert all(torch.equal(named[nm], t) and not named[nm].requires_grad for nm,t in body.items())
    assert zeros(learn)['11.weight']==320
    learn.unfreeze(); learn.fit(1, 1e-2, cbs=recipe('agp', .5))
    check(learn, .5)

def test_everything_frozen_is_an_error():
    learn = learner()
    for p in learn.model[:-1].parameters(): p.requires_grad_(False)
    learn.model[-1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match='No prunable layer is trainable'): learn.fit(1, cbs=recipe('agp', .5))

def test_lr_find_never_prunes():
    learn,cb = learner(),recipe('one_shot', .9)
    learn.add_cb(cb)
    before = copy.deepcopy(learn.model.state_dict())
    learn.lr_find(show_plot=False, num_it=12)
    assert cb.masks is None and all(torch.equal(before[nm], t) for nm,t in learn.model.state_dict().items())
    learn.fit(2, 1e-2); check(learn, .9)
    before = copy.deepcopy(learn.model.state_dict())
    learn.lr_find(show_plot=False, num_it=12)
    assert all(torch.equal(before[nm], t) for nm,t in learn.model.state_dict().items())
    check(learn, .9)

def test_save_model_keeps_a_network_at_the_target(tmp_path):
    learn = learner(tmp=tmp_path)
    learn.fit(5, 1e-2, cbs=[recipe('iterative', .95), SaveModelCallback('accuracy')])
    check(learn, .95)
    final = {nm:t.clone() for nm,t in learn.model.state_dict().items()}
    small_cnn().load_state_dict(torch.load(tmp_path/'models/model.pth', weights_only=True), strict=True)
    learn.load('model', with_opt=False)
    assert all(torch.equal(final[nm], t) for nm,t in learn.model.state_dict().items())

def test_early_stopping_waits_for_the_target():
    "Accuracy falls when pruning strikes; training must not stop because of it."
    learn = learner()
    learn.fit(8, 1e-3, cbs=[SparsifyCallback(.98, one_shot), EarlyStoppingCallback('accuracy', patience=1)])
    check(learn, .98)
    first = learn.sparsify.history[0][0]//len(learn.dls.train)
    assert len(learn.recorder.values)>first

@pytest.mark.parametrize('n_acc', [100, 10_000])
def test_gradient_accumulation(n_acc):
    "Updates wait for complete gradients; the last one happens even when the last step is cancelled."
    seen = []
    class Steps(Callback):
        run_valid = False
        def after_step(self): seen.append(self.train_iter)
    learn = learner()
    learn.fit(3, 1e-2, cbs=[recipe('agp', .9, criterion=taylor), GradientAccumulation(n_acc), Steps()])
    check(learn, .9)
    at = [step for step,_ in learn.sparsify.history[:-1]]
    assert set(at)<=set(seen)

class Scaled(MixedPrecision):
    "Mixed precision's order of events on a CPU: gradients are scaled by 1024 until `before_step`."
    def before_fit(self): self.learn.scaler = self
    def before_batch(self): pass
    def after_pred(self): pass
    def after_loss(self): pass
    def before_backward(self): self.learn.loss_grad = self.loss_grad*1024
    def before_step(self):
        for p in self.model.parameters(): p.grad.div_(1024)
    def after_step(self): pass
    def after_fit(self): self.learn.scaler = None

def test_criteria_see_unscaled_gradients_and_clipping_sees_masked_ones():
    seen = {}
    def spy(p):
        seen['criterion'] = p.grad.abs().max().item()
        return gradient(p)
    class Norm(GradientClip):
        def before_step(self):
            masks = self.learn.sparsify.masks
            seen['masked'] = all(not p.grad[~masks[nm]].any() for nm,p in masks.params.items())
            super().before_step()
    learn = learner()
    learn.fit(1, 1e-2, cbs=[recipe('one_cycle', .5, criterion=spy), Scaled(), Norm(1.)])
    assert 0<seen['criterion']<10 and seen['masked']

@pytest.mark.filterwarnings('ignore:.*CUDA is not available.*:UserWarning')
@pytest.mark.parametrize('mode', ['fp16', 'bf16'])
def test_mixed_precision(mode):
    learn = learner()
    learn.fit_one_cycle(2, 1e-2, cbs=[recipe('one_cycle', .9), MixedPrecision(mode)])
    check(learn, .9)

def test_bfloat16_weights():
    learn = learner()
    learn.model.to(torch.bfloat16)
    class Cast(Callback):
        def before_batch(self): self.learn.xb = tuple(o.bfloat16() for o in self.xb)
        def after_pred(self): self.learn.pred = self.pred.float()
    learn.fit(2, 1e-2, cbs=[recipe('one_cycle', .9), Cast()])
    assert {p.dtype for p in learn.sparsify.masks.params.values()}=={torch.bfloat16}
    assert all(m.sum()==round(.1*m.numel()) for m in learn.sparsify.masks.masks.values())
    held(learn)

def test_channels_last():
    learn = learner()
    learn.fit(2, 1e-2, cbs=[recipe('one_cycle', .9), ChannelsLast()])
    check(learn, .9)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in learn.model.parameters() if p.ndim==4)
    assert all(learn.sparsify.masks[nm].stride()==p.stride() for nm,p in learn.sparsify.masks.params.items())

def test_averaged_copy_is_as_sparse():
    class EMA(Callback):
        "An exponential average, kept as fastxtend keeps it."
        run_valid = False
        def before_fit(self): self.ema_model = torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(.9))
        def after_step(self): self.ema_model.update_parameters(self.model)
    learn,ema = learner(),EMA()
    learn.fit(2, 1e-2, cbs=[recipe('one_cycle', .9), ema])
    named = dict(ema.ema_model.module.named_parameters())
    assert all(not named[nm].detach()[~learn.sparsify.masks[nm]].any() for nm in learn.sparsify.masks.params)

@pytest.mark.parametrize('stop', [KeyboardInterrupt, CancelFitException, RuntimeError])
def test_interrupted_and_continued(stop):
    class Stop(Callback):
        run_valid = False
        def after_step(self):
            if self.train_iter==6: raise stop('by hand')
    learn = learner()
    try: learn.fit(3, 1e-2, cbs=[recipe('agp', .9), Stop()])
    except (KeyboardInterrupt, RuntimeError): pass
    reached = learn.sparsify.masks.sparsity
    assert 0<reached<.9 and [m.name for m in learn.metrics]==['accuracy']
    held(learn)
    learn.fit(3, 1e-2, cbs=recipe('agp', .9))
    assert learn.sparsify.history[0][1]>=reached-1e-3
    check(learn, .9)

def test_validation_and_predictions_leave_the_plan_alone():
    learn,cb = learner(),recipe('agp', .8)
    learn.add_cb(cb)
    assert len(learn.validate())==3
    learn.get_preds()
    learn.fit(2, 1e-2); check(learn, .8)
    before,due = copy.deepcopy(learn.model.state_dict()),list(cb.due)
    learn.validate(); learn.get_preds()
    assert cb.due==due and all(torch.equal(before[nm], t) for nm,t in learn.model.state_dict().items())

@pytest.mark.filterwarnings('ignore:load_learner` uses:UserWarning')
def test_export_and_load(tmp_path):
    learn = learner(tmp=tmp_path)
    learn.fit(2, 1e-2, cbs=recipe('agp', .8))
    learn.logger = print
    learn.export('small.pkl')
    again = load_learner(tmp_path/'small.pkl')
    assert sparsity_of(again.model)==pytest.approx(.8, abs=1e-3)
    assert again.sparsify.masks.sparsity==learn.sparsify.masks.sparsity

@pytest.mark.parametrize('criterion', [magnitude, gradient, taylor, random_scores, Running(taylor), Running(movement, .9)],
                         ids=['magnitude', 'gradient', 'taylor', 'random', 'running taylor', 'movement'])
@pytest.mark.parametrize('distribution', [uniform, global_, erk])
def test_every_combination_is_exact(criterion, distribution):
    learn = learner()
    learn.fit(2, 1e-2, cbs=SparsifyCallback(.9, agp, criterion, distribution))
    n = sum(learn.sparsify.masks.n_units.values())
    assert abs(sum(learn.sparsify.masks.n_kept.values())-.1*n)<=.5*len(learn.sparsify.masks)
    held(learn)

@pytest.mark.parametrize('granularity,sparsity', [(by_kernel, .8), (by_filter, .5), (two_four, .5)])
def test_granularities(granularity, sparsity):
    learn = learner()
    learn.fit(2, 1e-2, cbs=recipe('one_cycle', sparsity, granularity=granularity, ignore=(learn.model[-1],)))
    assert learn.sparsify.masks.sparsity==pytest.approx(sparsity, abs=2e-2)
    held(learn)

def test_pruned_filters_stay_silent_in_training():
    "A neighbour zeroes the norm of a pruned filter only when masks change, and its shift grows back."
    learn = learner()
    learn.fit(3, 1e-2, cbs=recipe('one_shot', .5, granularity=by_filter, ignore=(learn.model[-1],)))
    masks = learn.sparsify.masks
    for i in (0, 3, 6):
        off = ~masks._units(f'{i}.weight')
        assert off.any() and not learn.model[i+1].weight.detach()[off].any() and not learn.model[i+1].bias.detach()[off].any()

def test_sparse_start():
    learn = learner()
    learn.fit(2, 1e-2, cbs=SparsifyCallback(.9, agp, start=.5))
    assert learn.sparsify.history[0]==(0, pytest.approx(.5, abs=1e-3))
    check(learn, .9)

def test_window_in_a_fit():
    learn = learner()
    learn.fit(5, 1e-2, cbs=SparsifyCallback(.9, one_shot))
    n = len(learn.dls.train)*5
    assert learn.sparsify.history==[(int(.4*n), pytest.approx(.9, abs=1e-3))]

def test_every():
    learn,cb = learner(),recipe('one_cycle', .9, every=7)
    learn.fit(3, 1e-2, cbs=cb)
    steps = [s for s,_ in cb.history]
    assert all(s%7==0 for s in steps[:-1]) and steps[-1]==len(learn.dls.train)*3-1

def test_nan_weights_are_named():
    learn = learner()
    with torch.no_grad(): learn.model[3].weight[0] = torch.nan
    with pytest.raises(ValueError, match='weight are not numbers'): learn.fit(1, cbs=recipe('one_shot', .9))

@pytest.mark.parametrize('make,error', [
    (lambda: SparsifyCallback(90), 'write 0.9 for 90 %'), (lambda: SparsifyCallback(1.), 'fraction'), (lambda: SparsifyCallback(0.), 'nothing would be pruned'),
    (lambda: SparsifyCallback(.5, start=.5), 'nothing would be pruned'), (lambda: SparsifyCallback(.5, start=2), '`start` is a fraction'),
    (lambda: recipe('one_cicle', .9), "did you mean 'one_cycle'")])
def test_bad_arguments(make, error):
    with pytest.raises(ValueError, match=error): make()

def test_impossible_targets_fail_before_training():
    learn = learner()
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(ValueError, match='n:m units is at most 0.5'): learn.fit(1, cbs=recipe('agp', .9, granularity=two_four))
    with pytest.raises(ValueError, match='floors of'): learn.fit(1, cbs=recipe('agp', .9, floor=.2))
    with pytest.raises(ValueError, match='has no prunable layer'): learn.fit(1, cbs=recipe('agp', .9, types=(nn.RNNBase,)))
    assert all(torch.equal(before[nm], t) for nm,t in learn.model.state_dict().items() if 'num_batches' not in nm)

def test_idle_batches_do_nothing():
    "Before the window there are no masks, no kernel runs, and an event costs microseconds."
    learn,cb,seen = learner(),recipe('one_shot', .9),[]
    class Time(Callback):
        order,run_valid = 20,False
        def before_step(self):
            if self.train_iter>=2: return
            with torch.profiler.profile() as prof: cb.before_step()
            seen.append([e.key for e in prof.key_averages() if e.key.startswith('aten::')])
            start = time.perf_counter()
            for _ in range(200): cb.before_step()
            seen.append((time.perf_counter()-start)/200)
    learn.fit(5, 1e-2, cbs=[cb, Time()])
    assert seen[0]==[] and seen[2]==[] and cb.history

def test_same_seed_same_network():
    nets = []
    for _ in range(2):
        learn = learner()
        learn.fit_one_cycle(2, 1e-2, cbs=recipe('gmp', .9))
        nets.append(learn.model.state_dict())
    assert all(torch.equal(t, nets[1][nm]) for nm,t in nets[0].items())

def test_plot():
    learn = learner()
    learn.fit(2, 1e-2, cbs=SparsifyCallback(.9, iterative))
    axs = learn.sparsify.plot()
    assert axs[0].get_ylabel()=='sparsity' and len(axs[1].lines[0].get_xdata())==2*len(learn.dls.train)
    assert axs[0].lines[0].get_ydata().max()==pytest.approx(.9, abs=1e-3)
    with pytest.raises(AttributeError, match='sparsify'): learner().sparsify
    assert np.isfinite(axs[1].lines[0].get_ydata()).all()

# Regrowth, and criteria before training

def sparse_total(masks, sparsity): return round((1-sparsity)*sum(masks.n_units.values()))

class Watch(Callback):
    "After every step: counts, zeros, and never more active weights than the schedule allows."
    order,run_valid = 60,False
    def before_fit(self): self.seen = []
    def after_step(self):
        cb = self.learn.sparsify
        masks = cb.masks
        active = {nm:masks[nm].sum().item() for nm in masks.params}
        assert active==masks.n_kept and min(active.values())>=1
        assert all(not p.detach()[~masks[nm]].any() for nm,p in masks.params.items())
        allowed = cb.target(cb.history[-1][0]/(self.n_iter*self.n_epoch)) if cb.history else 0.
        if not isinstance(allowed, dict): assert sum(active.values())<=sparse_total(masks, allowed)
        self.seen.append(dict(active))

@pytest.mark.parametrize('regrowth', [by_gradient, by_random, by_momentum, replace(by_gradient, may_return=False), replace(by_gradient, together=True)],
                         ids=['gradient', 'random', 'momentum', 'no return', 'together'])
@pytest.mark.parametrize('opt_func', [Adam, lambda ps,lr: SGD(ps, lr, mom=.9), lambda ps,**kw: OptimWrapper(ps, torch.optim.AdamW, **kw)], ids=['adam', 'momentum', 'torch adamw'])
def test_regrowth_keeps_every_count(regrowth, opt_func):
    learn = learner(opt_func=opt_func)
    cb = SparsifyCallback(.9, Schedule(sched_cubic, end_pct=.5), distribution=global_, every=2, regrowth=regrowth)
    learn.fit_one_cycle(4, 1e-2, cbs=[cb, Watch()])
    assert sum(zeros(learn).values())>=sum(cb.masks.n_units.values())-sparse_total(cb.masks, .9)
    assert sum(cb.masks.n_kept.values())==sparse_total(cb.masks, .9) and len(cb.exploration.history)>5
    held(learn)

def test_regrowth_swaps_at_constant_sparsity():
    "A random ERK start at the final sparsity, counts constant from the first step, masks moving, fresh weights training."
    learn,watch = learner(),Watch()
    cb = SparsifyCallback(.9, start=.9, distribution=erk, every=4, regrowth=replace(by_gradient, drop_fraction=.3, last=0., schedule=Schedule(sched_cosine, end_pct=.75)))
    learn.fit(5, 1e-2, cbs=[cb, watch])
    shapes = {nm:tuple(p.shape) for nm,p in cb.masks.params.items()}
    expected = {nm:round((1-s)*cb.masks.n_units[nm]) for nm,s in erk(shapes, .9).items()}
    assert all(o==expected for o in watch.seen)
    steps = [o[0] for o in cb.exploration.history[1:]]
    n = len(learn.dls.train)*5
    assert steps==[s for s in range(0, n-1, 4) if s/n<.75] and cb.exploration.rate>.12
    assert cb.exploration.history[-1][3]<.9
    assert learn.recorder.metric_names[-3:]==['sparsity', 'explored', 'time']
    assert float(learn.recorder.values[-1][-1])==pytest.approx(cb.exploration.rate) and [m.name for m in learn.metrics]==['accuracy']
    held(learn)

def test_sparse_start_is_random_erk_then_global():
    learn = learner()
    cb = SparsifyCallback(.95, Schedule(sched_cubic, end_pct=.5), distribution=global_, start=.5, every=3, regrowth=by_gradient)
    first = {}
    class Look(Callback):
        run_valid = False
        def before_batch(self):
            if self.train_iter==0: first.update(self.learn.sparsify.masks.n_kept, zeros=sum(zeros(self.learn).values()))
    learn.fit(4, 1e-2, cbs=[cb, Look()])
    shapes = {nm:tuple(p.shape) for nm,p in cb.masks.params.items()}
    assert {nm:first[nm] for nm in shapes}=={nm:round((1-s)*cb.masks.n_units[nm]) for nm,s in erk(shapes, .5).items()}
    assert first['zeros']==sum(cb.masks.n_units[nm]-first[nm] for nm in shapes)
    assert sum(cb.masks.n_kept.values())==sparse_total(cb.masks, .95)
    sparsities = [s for _,s in cb.history]
    assert sparsities==sorted(sparsities)

def test_swaps_read_dense_accumulated_gradients():
    "With accumulation a swap waits for the step and sees the sum over all batches, of pruned weights too."
    sums,seen = {},[]
    def spy(p):
        seen.append(torch.equal(p.grad, sums[p]))
        return gradient(p)
    class Sum(Callback):
        order,run_valid = 9,False
        def after_backward(self):
            for p in self.model.parameters(): sums[p] = p.grad.clone()
    learn = learner()
    cb = SparsifyCallback(.8, start=.8, distribution=erk, every=3, regrowth=replace(by_gradient, grow=spy))
    learn.fit(4, 1e-2, cbs=[cb, GradientAccumulation(100), Sum(), Watch()])
    assert seen and all(seen) and cb.exploration.rate>.2
    held(learn)

def test_momentum_sees_every_batch_and_gradient_only_updates():
    "Until the last swap, at batch 10."
    for regrowth,batches in ((by_momentum, 11), (by_gradient, 0)):
        learn,calls = learner(),[]
        cb = SparsifyCallback(.8, start=.8, distribution=erk, every=5, regrowth=regrowth)
        class Count(Callback):
            order,run_valid = 9,False
            def before_step(self):
                if not calls and hasattr(cb.grow, 'observe'):
                    observe = cb.grow.observe
                    cb.grow.observe = lambda p: (calls.append(1), observe(p))
        learn.fit(3, 1e-2, cbs=[cb, Count()])
        assert len(calls)==batches*len(cb.masks)

@pytest.mark.filterwarnings('ignore:.*CUDA is not available.*:UserWarning')
def test_mixed_precision_with_regrowth():
    learn = learner()
    learn.fit(3, 1e-2, cbs=[SparsifyCallback(.9, start=.9, distribution=erk, every=3, regrowth=by_gradient), MixedPrecision('bf16'), Watch()])
    held(learn)

def test_unscaled_gradients_regrow():
    seen = []
    def spy(p):
        seen.append(p.grad.abs().max().item())
        return gradient(p)
    learn = learner()
    learn.fit(1, 1e-2, cbs=[SparsifyCallback(.5, start=.5, distribution=erk, every=2, regrowth=replace(by_gradient, grow=spy)), Scaled()])
    assert 0<max(seen)<10

def test_frozen_layers_do_not_swap():
    learn = learner(splitter=halves)
    learn.create_opt(); learn.freeze()
    body = {nm:p.detach().clone() for nm,p in learn.model.named_parameters() if not p.requires_grad}
    learn.fit(2, 1e-2, cbs=SparsifyCallback(.8, start=.8, every=2, regrowth=by_random))
    assert all(torch.equal(dict(learn.model.named_parameters())[nm], t) for nm,t in body.items())
    assert zeros(learn)['11.weight']>=512

def test_second_fit_with_regrowth_goes_on():
    learn = learner()
    learn.fit(2, 1e-2, cbs=SparsifyCallback(.9, start=.9, distribution=erk, every=2, regrowth=by_gradient))
    first = {nm:learn.sparsify.masks[nm].clone() for nm in learn.sparsify.masks.params}
    learn.fit(2, 1e-2, cbs=SparsifyCallback(.95, start=.5, distribution=erk, every=2, regrowth=by_gradient))
    assert mask_similarity(first, learn.sparsify.exploration.first)>.3
    assert sum(learn.sparsify.masks.n_kept.values())<sum(m.sum().item() for m in first.values())

def test_lr_find_neither_swaps_nor_looks():
    learn = learner()
    learn.add_cb(SparsifyCallback(.9, start=.9, distribution=erk, regrowth=by_gradient))
    before = copy.deepcopy(learn.model.state_dict())
    learn.lr_find(show_plot=False, num_it=12)
    assert all(torch.equal(before[nm], t) for nm,t in learn.model.state_dict().items())
    learn.remove_cb(learn.sparsify)
    learn.add_cb(SparsifyCallback(.9, Schedule(sched_one_shot), AtInit(snip), global_))
    learn.lr_find(show_plot=False, num_it=12)
    assert all(torch.equal(before[nm], t) for nm,t in learn.model.state_dict().items())

def test_save_model_may_choose_while_weights_swap(tmp_path):
    "Swaps leave the sparsity as it is, so scores compare and trackers keep the best."
    learn = learner(tmp=tmp_path)
    tracker = SaveModelCallback('accuracy')
    learn.fit(4, 1e-2, cbs=[SparsifyCallback(.9, start=.9, distribution=erk, every=3, regrowth=by_gradient), tracker])
    assert tracker.best==max(float(o[2]) for o in learn.recorder.values[1:])

@pytest.mark.parametrize('func,steps', [(snip, 1), (grasp, 1), (synflow, 20)])
def test_criteria_at_initialisation(func, steps):
    "Pruned on the first batch, before the first step, by the scores of the untouched network; trained sparse from there on."
    learn,seen = learner(),{}
    cb = SparsifyCallback(.9, Schedule(sched_one_shot), AtInit(func, steps), global_)
    class Look(Callback):
        order,run_valid = 5,False
        def before_batch(self):
            if self.train_iter==0: seen.update(scores=func(self.model, self.loss_func, self.xb, self.yb))
        def after_pred(self):
            if self.train_iter==0: seen.update(zeros=sum(zeros(self.learn).values()))
    learn.fit(2, 1e-2, cbs=[cb, Look(), Watch()])
    n = sum(cb.masks.n_units.values())
    assert seen['zeros']==n-sparse_total(cb.masks, .9) and sum(cb.masks.n_kept.values())==sparse_total(cb.masks, .9)
    if steps==1:
        ref = Masks(learner().model)
        named = {id(p):nm for nm,p in ref.params.items()}
        expected = ref.update(lambda p: seen['scores'][named[id(p)]], .9)
        assert all(torch.equal(cb.masks[nm], expected[nm]) for nm in expected.params)
    held(learn)

def test_sparse_checkpoint_goes_on():
    learn = learner()
    learn.fit(1, 1e-2, cbs=recipe('agp', .8))
    state = copy.deepcopy(learn.model.state_dict())
    again = learner(1)
    again.model.load_state_dict(state)
    cb = recipe('agp', .9)
    cb.masks = Masks(again.model).adopt_zeros()
    first = {nm:cb.masks[nm].clone() for nm in cb.masks.params}
    again.fit(2, 1e-2, cbs=[cb, Watch()])
    assert all((cb.masks[nm]<=first[nm]).all() for nm in first)
    check(again, .9)

@pytest.mark.parametrize('every', [0., 0, 1.5, -3])
def test_bad_interval(every):
    with pytest.raises(ValueError, match='`every` is a number of batches or a share'): SparsifyCallback(.9, every=every)

@pytest.mark.parametrize('parts,said', [
    (dict(schedule='agp'), '`schedule` is a `Schedule`'), (dict(criterion='magnitude'), '`criterion` is a function'),
    (dict(distribution=.5), '`distribution` is a function'), (dict(regrowth=True), '`regrowth` is a `Regrowth`'),
    (dict(evry=.1), '`evry` is no argument')])
def test_wrong_parts_are_refused_before_training(parts, said):
    with pytest.raises(TypeError, match=said): SparsifyCallback(.9, **parts)

@pytest.mark.parametrize('parts,said', [
    (dict(budget=.5), r'write `Neurons\(0.5\)`'), (dict(budget=Neurons), '`budget` is a number of'),
    (dict(trigger=3), '`trigger` is a function'), (dict(trigger=EPI), '`trigger` is a function'),
    (dict(criterion=lambda model, groups: None), 'with `of_neurons`')])
def test_wrong_parts_of_a_cut_are_refused_before_training(parts, said):
    with pytest.raises(TypeError, match=said): EarlyPruneCallback(**(dict(budget=Neurons(.5)) | parts))

# Lottery tickets

def test_ticket_sparsities():
    for s,rate in ((.95, .2), (.5, .5), (.98, .2), (.1, .2), (1-.8**7, .2)):
        steps = ticket_sparsities(s, rate)
        kept = [1-o for o in (0., *steps)]
        ratios = [b/a for a,b in zip(kept, kept[1:])]
        assert steps[-1]==s and min(ratios)>=1-rate-1e-9 and max(ratios)-min(ratios)<1e-9
    assert len(ticket_sparsities(1-.8**7))==7
    with pytest.raises(ValueError, match='`rate` is in'): ticket_sparsities(.9, 1.)
    with pytest.raises(ValueError, match='nothing would be pruned'): ticket_sparsities(0.)

@pytest.mark.parametrize('rewind', [0, 1])
def test_tickets_are_rewound(rewind):
    "Every cycle starts at the weights of the first training, nested masks, exact counts, a new optimizer, the schedule going on."
    learn,starts,kept,state = learner(),[],[],{}
    class Look(Callback):
        order,run_valid = 20,False
        def before_batch(self):
            if not state and self.epoch==rewind and self.iter==0: state.update({nm:t.detach().clone() for nm,t in self.model.state_dict().items()})
            if self.iter==0 and self.epoch==rewind:
                starts.append({nm:t.detach().clone() for nm,t in self.model.state_dict().items()})
                kept.append(({nm:self.learn.sparsify.masks[nm].clone() for nm in self.learn.sparsify.masks.params} if hasattr(self.learn, 'sparsify') else {}, round(self.pct_train, 6), len(self.opt.state)))
    learn.add_cb(Look())
    log = imp(learn, .8, lambda learn, **kw: Learner.fit_one_cycle(learn, 2, 1e-2, **kw), rate=.5, rewind=rewind)
    assert [round(o[0], 2) for o in log]==[0, .42, .66, .8] and len(starts)==4
    n = sum(learn.sparsify.masks.n_units.values())
    for start,(masks,pct,_) in zip(starts[1:], kept[1:]):
        assert pct==pytest.approx(rewind/2)
        for nm,t in start.items():
            expected = torch.where(masks[nm], state[nm], 0.) if nm in masks else state[nm]
            assert torch.equal(t, expected) or 'num_batches' in nm or 'running' in nm
    for (a,*_),(b,*_) in zip(kept[1:], kept[2:]): assert all((b[nm]<=a[nm]).all() for nm in a)
    assert sum(zeros(learn).values())==n-round(.2*n)
    held(learn)

def test_tickets_with_plain_fit_and_a_bad_epoch():
    learn = learner()
    assert len(imp(learn, .5, lambda learn, **kw: learn.fit(1, 1e-2, **kw), rate=.5, ignore=(learn.model[-1],)))==2
    assert '11.weight' not in learn.sparsify.masks.params
    with pytest.raises(ValueError, match='`rewind` is an epoch of the training, got 3'): imp(learner(), .5, lambda learn, **kw: learn.fit(1, 1e-2, **kw), rewind=3)
