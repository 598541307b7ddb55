"SparsifyCallback in the real life of a fastai `Learner`."
import copy
import time

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

from early_prune.callbacks import SparsifyCallback
from early_prune.core import sparsity_of
from early_prune.criteria import Running, gradient, magnitude, movement, random_scores, taylor
from early_prune.data import digits
from early_prune.distributions import erk, global_, uniform
from early_prune.masks import by_filter, by_kernel, two_four
from early_prune.models import small_cnn
from early_prune.recipes import RECIPES, recipe
from early_prune.schedules import agp, dsd, iterative, linear, one_shot


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
    if name=='gmp': assert sum(zeros(learn).values())==round(.9*sum(learn.sparsify.masks.n_units.values()))
    else: check(learn, .9)
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
