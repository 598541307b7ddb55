"EarlyPruneCallback in the real life of a fastai `Learner`."
import copy

import numpy as np
import pytest
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import Learner as _Learner  # noqa: F401  patches `fit_one_cycle`, `fine_tune`, `lr_find`
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam, Lamb, Lookahead, OptimWrapper, RAdam
from fastai.torch_core import params, set_seed
from torch import nn

from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback
from early_prune.criteria import rms_magnitude
from early_prune.data import digits
from early_prune.dependency import trace
from early_prune.distributions import global_
from early_prune.masks import by_filter
from early_prune.models import resnet
from early_prune.ranking import Averaged, Flops, Neurons, Params, bn_scale, taylor_bn, taylor_fo
from early_prune.recipes import recipe
from early_prune.triggers import EPI, TAU_GRADIENT, TAU_MAGNITUDE, AtEpoch, EarlyBird, Never, epi


def learner(seed=0, tmp=None, net=None, **kwargs):
    set_seed(seed, reproducible=True)
    learn = Learner(digits(limit=256, valid_limit=128), resnet(8) if net is None else net(), metrics=accuracy, path=tmp, **kwargs)
    learn.remove_cb(learn.progress)
    learn.logger = lambda row: None
    return learn

short = pytest.mark.filterwarnings('ignore:.*epochs and one after the cut') # fits that are meant to end before the cut

def early(budget=Neurons(.5), at=1, **kwargs):
    return EarlyPruneCallback(budget, trigger=AtEpoch(at), **{'floor':2, 'burst':3, **kwargs})

def check(learn, ratio=.5):
    "The network has exactly the neurons that were asked for, and everything around it fits."
    cb = learn.early_prune
    assert cb.done and cb.groups.n_neurons==cb.dense-round(cb.dense*ratio)
    opt = learn.opt
    while 'opt' in vars(opt): opt = opt.opt
    ours = {id(p) for p in learn.model.parameters()}
    assert {id(p) for ps in learn.opt.param_lists for p in ps}==ours
    for p in learn.model.parameters():
        for k,v in opt.state.get(p, {}).items():
            if isinstance(v, torch.Tensor) and v.numel()>1: assert v.shape==p.shape, k
    assert trace(learn.model, *cb.inputs).n_neurons<=cb.groups.n_neurons
    assert [m.name for m in learn.metrics]==['accuracy']

def widths(learn): return [tuple(p.shape) for p in learn.model.parameters()]

# ---- watching

def test_what_no_callback_knows_is_refused():
    with pytest.raises(TypeError, match='`epoch` is no argument of `EarlyPruneCallback`'): recipe('at_epoch', ratio=.5, epoch=3)

def test_one_name_to_leave_alone():
    learn = Learner(digits(limit=128, valid_limit=64), resnet(8))
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(0), ignore='0'))
    assert len(learn.model[0].weight)==len(resnet(8)[0].weight)

def test_history_and_columns():
    learn = learner()
    learn.fit_one_cycle(4, 1e-2, cbs=early(at=2))
    check(learn)
    cb = learn.early_prune
    assert [o.epoch for o in cb.history]==[0, 1, 2] and cb.cut_at==2
    assert learn.recorder.metric_names[3:7]==['accuracy', 'epi', 'neurons', 'mflops']
    neurons,flops = ([row[i] for row in learn.recorder.values] for i in (4, 5))
    assert neurons[0]==neurons[1]==cb.dense and neurons[2]==neurons[3]==cb.groups.n_neurons
    assert flops[0]==flops[1]>flops[2]==flops[3]==cb.flops/1e6

def test_epi_column_and_trigger_agree_with_the_pure_functions():
    learn = learner()
    class Deaf(EPI):
        def __call__(self, history): return False
    with pytest.warns(UserWarning, match='Nothing was cut.*it came to'):
        learn.fit(6, 1e-3, cbs=EarlyPruneCallback(Neurons(.5), trigger=Deaf(1., window=2), floor=2))
    cb = learn.early_prune
    column = [row[3] for row in learn.recorder.values]
    want = [epi(cb.history[:i+2], 2) for i in range(6)]
    assert np.isnan(column[0]) and column[1:]==want[1:]
    assert widths(learn)==widths(learner())

def test_initial_subnetwork_of_a_gradient_criterion_comes_from_the_first_batch():
    learn,seen = learner(),[]
    class Look(Callback):
        order = 20
        def before_step(self):
            if self.train_iter==0 and self.epoch==0: seen.append((len(self.learn.early_prune.history), self.learn.early_prune.criterion.n))
    learn.fit(2, 1e-2, cbs=[early(criterion=taylor_bn), Look()])
    assert seen==[(1, 0)]
    check(learn)

def test_gradient_scores_are_averaged_over_the_epoch():
    learn,counts = learner(),[]
    class Spy(Averaged):
        def __call__(self, *args):
            counts.append(self.n)
            return super().__call__(*args)
    cb = EarlyPruneCallback(Neurons(.5), criterion=Spy(taylor_bn), trigger=Never(), floor=2)
    learn.fit(2, 1e-2, cbs=cb)
    n = len(learn.dls.train)
    assert counts==[1, n-1, n]

@pytest.mark.parametrize('criterion,threshold', [(rms_magnitude, TAU_MAGNITUDE), (bn_scale, TAU_MAGNITUDE), (taylor_bn, TAU_GRADIENT), (taylor_fo, TAU_GRADIENT)])
def test_threshold_follows_the_criterion(criterion, threshold):
    assert EarlyPruneCallback(Neurons(.5), criterion=criterion).trigger==EPI(threshold)

# ---- cutting

@pytest.mark.parametrize('opt_func', [Adam, SGD, RAdam, Lamb, lambda ps,lr: Lookahead(Adam(ps, lr=lr)),
    lambda ps,lr: OptimWrapper(ps, torch.optim.AdamW, lr=lr)], ids=['adam', 'sgd', 'radam', 'lamb', 'lookahead', 'adamw'])
def test_optimizers(opt_func):
    learn = learner(opt_func=opt_func)
    learn.fit(3, 1e-3, cbs=early())
    check(learn)
    assert all(np.isfinite(float(o)) for o in learn.recorder.losses)

@pytest.mark.parametrize('budget', [Neurons(.3), Params(.6), Flops(.5)], ids=str)
@pytest.mark.parametrize('criterion', [rms_magnitude, taylor_bn], ids=['magnitude', 'gradient'])
def test_budgets_are_met(budget, criterion):
    learn = learner()
    learn.fit(3, 1e-2, cbs=early(budget, criterion=criterion, steps=5))
    cb = learn.early_prune
    left = cb.budget.meter(cb.groups, learn.model, cb.inputs)(np.ones(cb.groups.n_neurons, bool))
    assert cb.dense*(1-budget.ratio)*.9<left<=cb.dense*(1-budget.ratio)+.5

def test_the_burst_is_exponential():
    learn,seen = learner(),[]
    class Count(Callback):
        order,run_valid = 20,False
        def before_batch(self): seen.append(self.learn.early_prune.groups.n_neurons)
    learn.fit(4, 1e-2, cbs=[early(at=1, steps=4, burst=6), Count()])
    n,dense = len(learn.dls.train),learn.early_prune.dense
    want = [dense-round(dense*(1-.5**(i/4))) for i in range(5)]
    assert sorted(set(seen), reverse=True)==want and seen[n-1]==dense and seen[n]==want[1] and seen[n+6]==want[4] and seen[n+5]>want[4]

def test_at_initialisation():
    for criterion in (rms_magnitude, taylor_bn):
        learn = learner()
        learn.fit(2, 1e-2, cbs=early(at=0, criterion=criterion))
        check(learn)
        assert learn.early_prune.cut_at==0 and len(learn.early_prune.history)==1

@short
def test_a_trigger_that_fires_after_the_last_epoch_cuts_at_once():
    learn = learner()
    learn.fit(2, 1e-2, cbs=early(at=2))
    check(learn)

def test_early_bird():
    learn = learner()
    learn.fit(4, 1e-3, cbs=EarlyPruneCallback(Neurons(.5), bn_scale, EarlyBird(.9, window=2), steps=1, floor=2))
    check(learn)
    assert learn.early_prune.cut_at==1

def test_nothing_is_asked_after_the_cut():
    calls = []
    def trigger(history):
        calls.append(len(history))
        return len(history)==2
    learn = learner()
    learn.fit(5, 1e-2, cbs=EarlyPruneCallback(Neurons(.5), trigger=trigger, floor=2, burst=0))
    check(learn)
    assert calls==[1, 2]

def test_held_at_zero_equals_cut():
    "Without a physical cut the network computes what the cut one computes."
    learns = []
    for physical in (True, False):
        learn = learner(opt_func=lambda ps,lr: OptimWrapper(ps, torch.optim.SGD, lr=lr))
        learn.fit(3, 1e-2, cbs=early(physical=physical, steps=1))
        learns.append(learn)
    small,masked = learns
    assert widths(masked)==widths(learner()) and masked.early_prune.stay.sum()==small.early_prune.groups.n_neurons
    x = torch.randn(8, 1, 8, 8)
    with torch.no_grad(): torch.testing.assert_close(small.model.eval()(x), masked.model.eval()(x), rtol=1e-3, atol=1e-4)

# ---- a training's life

def test_second_fit_with_the_same_callback_does_nothing_more():
    learn,cb = learner(),early()
    learn.fit(2, 1e-2, cbs=cb)
    after = widths(learn)
    learn.fit(3, 1e-2, cbs=cb)
    assert widths(learn)==after and len(cb.history)==2
    check(learn)

def test_a_new_callback_does_not_compound():
    learn = learner()
    learn.fit(2, 1e-2, cbs=early())
    after,dense = widths(learn),learn.early_prune.dense
    learn.fit(2, 1e-2, cbs=early())
    assert widths(learn)==after and learn.early_prune.dense==dense and learn.early_prune.done
    learn.fit(2, 1e-2, cbs=early(Neurons(.6)))
    check(learn, .6)
    assert learn.early_prune.dense==dense

@short
def test_a_second_fit_goes_on_watching():
    learn,cb = learner(),early(at=3)
    with pytest.warns(UserWarning, match='Nothing was cut'): learn.fit(2, 1e-2, cbs=cb)
    learn.fit(2, 1e-2, cbs=cb)
    check(learn)
    assert [o.epoch for o in cb.history]==[0, 1, 2, 3] and cb.cut_at==3

def halves(model):
    parts = list(model.children())
    return [params(nn.Sequential(*parts[:-1])), params(parts[-1])]

@short
def test_fine_tune():
    learn,cb = learner(splitter=halves),early(at=1)
    learn.fine_tune(2, 1e-2, freeze_epochs=1, cbs=cb)
    check(learn)
    assert all(p.requires_grad for p in learn.model.parameters())

def test_frozen_parameters_stay_frozen():
    learn = learner(splitter=halves)
    learn.freeze()
    frozen = [p.requires_grad for p in learn.model.parameters()]
    assert not all(frozen)
    learn.fit(2, 1e-2, cbs=early(criterion=taylor_bn))
    check(learn)
    assert [p.requires_grad for p in learn.model.parameters()]==frozen

def test_lr_find_never_cuts(tmp_path):
    learn = learner(tmp=tmp_path)
    before = widths(learn)
    learn.add_cb(early(at=0))
    learn.lr_find(show_plot=False, num_it=12)
    assert widths(learn)==before and learn.early_prune.history==[]
    learn.fit(2, 1e-2)
    check(learn)

def test_save_model_keeps_a_network_of_the_final_shape(tmp_path):
    learn = learner(tmp=tmp_path)
    learn.fit(5, 1e-2, cbs=[early(at=3), SaveModelCallback('accuracy')])
    check(learn)
    learn.load('model', with_opt=False)

def test_early_stopping_starts_anew_after_the_cut():
    learn = learner()
    learn.fit(8, 1e-2, cbs=[early(Neurons(.8), at=2), EarlyStoppingCallback('accuracy', min_delta=2., patience=3)])
    assert len(learn.recorder.values)==6

@pytest.mark.parametrize('n_acc', [100, 10_000])
def test_gradient_accumulation(n_acc):
    learn = learner()
    learn.fit(3, 1e-2, cbs=[early(criterion=taylor_bn) if n_acc<1000 else early(), GradientAccumulation(n_acc)])
    check(learn)

@pytest.mark.filterwarnings('ignore:.*CUDA is not available.*:UserWarning')
@pytest.mark.parametrize('mode', ['fp16', 'bf16'])
def test_mixed_precision(mode):
    learn = learner()
    learn.fit_one_cycle(3, 1e-2, cbs=[early(criterion=taylor_bn), MixedPrecision(mode)])
    check(learn)

def test_channels_last():
    learn = learner()
    learn.fit(3, 1e-2, cbs=[early(), ChannelsLast()])
    check(learn)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in learn.model.parameters() if p.ndim==4)

def test_averaged_copy_is_cut_alike():
    class EMA(Callback):
        run_valid = False
        def before_fit(self): self.ema_model = torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(.9))
        def after_step(self): self.ema_model.update_parameters(self.model)
    learn,ema = learner(),EMA()
    learn.fit(3, 1e-2, cbs=[early(), ema])
    check(learn)
    assert [p.shape for p in ema.ema_model.module.parameters()]==[p.shape for p in learn.model.parameters()]
    ema.ema_model.module.eval()(torch.randn(2, 1, 8, 8))

def test_with_masks_on_another_learner():
    "Two callbacks on two learners do not touch each other."
    a,b = learner(),learner()
    cb = early()
    a.fit(2, 1e-2, cbs=cb)
    b.fit(2, 1e-2, cbs=SparsifyCallback(.5))
    check(a)
    assert widths(b)==widths(learner())

@pytest.mark.parametrize('stop', [KeyboardInterrupt, CancelFitException, RuntimeError])
def test_interrupted_in_the_burst_and_continued(stop):
    class Stop(Callback):
        run_valid = False
        def after_step(self):
            if self.learn.early_prune.groups.n_neurons<self.learn.early_prune.dense: raise stop('by hand')
    learn,cb = learner(),early(steps=3)
    try: learn.fit(3, 1e-2, cbs=[cb, Stop()])
    except (KeyboardInterrupt, RuntimeError): pass
    assert cb.due and not cb.done and [m.name for m in learn.metrics]==['accuracy']
    learn.fit(2, 1e-2, cbs=cb)
    check(learn)

def test_same_seed_same_network():
    a,b = learner(),learner()
    for learn in (a, b): learn.fit_one_cycle(3, 1e-2, cbs=early(criterion=taylor_bn))
    assert all(p.equal(q) for p,q in zip(a.model.parameters(), b.model.parameters()))

def test_watching_does_not_change_the_training():
    "A network that is watched and never cut trains as one that is not watched."
    a,b = learner(),learner()
    a.fit_one_cycle(2, 1e-2)
    b.fit_one_cycle(2, 1e-2, cbs=EarlyPruneCallback(Neurons(.5), criterion=taylor_bn, trigger=Never(), floor=2))
    assert all(p.equal(q) for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values()))

def test_idle_batches_run_no_kernel():
    "With a criterion of weights, and after the cut with any, an event runs no operator."
    learn,cb,seen = learner(),early(at=1, burst=0),[]
    class Look(Callback):
        order,run_valid = 20,False
        def before_step(self):
            with torch.profiler.profile() as prof: [f() for f in (cb.before_batch, cb.before_step, cb.after_step)]
            cb.images -= len(self.xb[0])
            seen.append([e.key for e in prof.key_averages() if e.key.startswith('aten::')])
    learn.fit(3, 1e-2, cbs=[cb, Look()])
    assert len(seen)==3*len(learn.dls.train) and not any(seen)

@short
def test_validation_and_predictions_do_nothing():
    learn,cb = learner(),early()
    learn.add_cb(cb)
    learn.validate(); learn.get_preds()
    assert cb.groups is None
    learn.fit(2, 1e-2)
    check(learn)
    learn.validate(); learn.get_preds()

# ---- what it cost

def test_training_cost():
    learn = learner()
    with pytest.raises(ValueError, match='No epoch'): early().training_cost()
    learn.fit(4, 1e-2, cbs=early(Flops(.5), at=2, steps=1))
    cb,table = learn.early_prune,learn.early_prune.training_cost()
    n = len(learn.dls.train)*learn.dls.train.bs
    assert table.training_flops['dense']==3*cb.dense_flops*4*n
    assert table.training_flops['spent']==3*(2*cb.dense_flops+2*cb.flops)*n
    assert .7<table.training_flops['share']<.76 and table.seconds['spent']>0
    assert list(table)==['training_flops', 'seconds', 'peak_mb', 'image_flops'] and table.peak_mb['spent']>=table.peak_mb['dense']>=0

@pytest.mark.filterwarnings('ignore:.*torch.jit.script.*:FutureWarning')
def test_a_network_of_torchvision():
    "The whole method on images in memory: an ordinary `Learner`, EPI with its defaults, half of the neurons."
    from fastai.data.core import DataLoaders
    from torch.utils.data import TensorDataset
    from torchvision.models import resnet18
    set_seed(0, reproducible=True)
    x,y = torch.randn(12, 3, 32, 32),torch.arange(12)%3
    dls = DataLoaders.from_dsets(TensorDataset(x, y), TensorDataset(x, y), bs=6, num_workers=0, device='cpu')
    learn = Learner(dls, resnet18(num_classes=3), loss_func=nn.CrossEntropyLoss(), metrics=accuracy)
    learn.remove_cb(learn.progress)
    learn.logger = lambda row: None
    learn.fit_one_cycle(7, 1e-4, cbs=recipe('epi', ratio=.5))
    check(learn)
    assert learn.early_prune.cut_at==5 and learn.model(x).shape==(12, 3)

def test_plot_and_repr():
    learn,cb = learner(),EarlyPruneCallback(Neurons(.5), trigger=EPI(.5, window=1), floor=2)
    with pytest.raises(ValueError, match='Nothing to plot'): cb.plot()
    learn.fit(3, 1e-2, cbs=cb)
    axs = cb.plot()
    assert axs[1].lines and 'Neurons(ratio=0.5)' in repr(cb)

# ---- refusals

@short
def test_impossible_budgets_are_refused_before_the_first_batch():
    learn = learner()
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(ValueError, match='cannot be met: the least within the limits is'): learn.fit(2, 1e-2, cbs=EarlyPruneCallback(Neurons(.9), floor=.5))
    assert all(torch.equal(before[k], v) for k,v in learn.model.state_dict().items())

@pytest.mark.parametrize('ratio', [0, 1, 50, -.1])
def test_a_ratio_is_a_share(ratio):
    with pytest.raises(ValueError, match='`ratio` is the share to remove'): recipe('epi', ratio=ratio)

@short
def test_other_errors():
    with pytest.raises(ValueError, match='`steps`'): EarlyPruneCallback(Neurons(.5), steps=0)
    with pytest.raises(ValueError, match='`burst`'): EarlyPruneCallback(Neurons(.5), burst=1.5)
    with pytest.raises(ValueError, match='`floor`'): EarlyPruneCallback(Neurons(.5), floor=0)
    learn = learner(net=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(ValueError, match='No neuron'): learn.fit(1, 1e-2, cbs=early())
    learn = learner(net=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
    with pytest.raises(ValueError, match='batch norm in every group'): learn.fit(1, 1e-2, cbs=early(criterion=taylor_bn))

# ---- other loaders and other networks than those of images

def _loaders(kind):
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from torch.utils.data import DataLoader as TorchLoader
    set_seed(0, reproducible=True)
    data = [(torch.randn(1, 8, 8), torch.tensor(i%2)) for i in range(32)]
    make = {'fastai':DataLoader, 'torch':TorchLoader}[kind]
    return DataLoaders(make(data, shuffle=True, batch_size=8) if kind=='torch' else make(data, shuffle=True, bs=8), make(data, 8))

@short
@pytest.mark.parametrize('kind', ['fastai', 'torch'])
@pytest.mark.parametrize('make', [early, lambda: recipe('granet_neurons', .5), lambda: SparsifyCallback(.5, granularity=by_filter)])
def test_plain_loaders(kind, make):
    "Loaders that do not say how many inputs a batch has, as `Learner` takes them."
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16*36, 2))
    learn = Learner(_loaders(kind), net, nn.CrossEntropyLoss())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 1e-2, cbs=make())
    assert np.isfinite(learn.recorder.values[-1][0])
    live = net[0].weight.abs().sum((1, 2, 3))>0
    assert live.sum()==8

class Undecided(nn.Module):
    "A network whose course depends on values."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(64, 32),nn.Linear(32, 32),nn.Linear(32, 10)
    def forward(self, x):
        x = self.a(x.flatten(1)).relu()
        return self.c(self.b(x).relu() if x.mean().item()>=0 else x)

@short
def test_a_course_that_depends_on_values():
    "Traced with numbers, it is cut; without, the error says how."
    with pytest.raises(ValueError, match='real=True'): learner(net=Undecided).fit(1, cbs=early())
    learn = learner(net=Undecided)
    learn.fit(3, 1e-2, cbs=early(real=True))
    assert learn.early_prune.done and learn.model.a.out_features+learn.model.b.out_features==32

# ---- neurons and weights in one training

def _sparse_and_small(learn, sparsity):
    "Masks have the shapes of the cut network, hold exactly what was asked for, and the weights obey."
    masks = learn.sparsify.masks
    for nm,p in masks.params.items():
        assert masks[nm].shape==p.shape and not p.detach()[~masks[nm]].any(), nm
        assert masks.n_units[nm]==p.numel() and masks.n_kept[nm]==int(masks[nm].sum())
        for v in learn.opt.state[p].values():
            if isinstance(v, torch.Tensor) and v.shape==p.shape: assert not v[~masks[nm]].any(), nm
    assert abs(masks.sparsity-sparsity)<len(masks)/sum(masks.n_units.values())

@pytest.mark.parametrize('name', ['one_cycle', 'agp', 'gmp', 'granet', 'snip', 'rigl', 'set'])
@pytest.mark.parametrize('at', [1, 4])
def test_weights_and_neurons(name, at):
    "Masks follow a cut in the same fit, and the sparsity asked for is reached also when the schedule has ended."
    learn = learner()
    learn.fit_one_cycle(6, 1e-2, cbs=[early(at=at), recipe(name, .8)])
    check(learn)
    if name!='snip': _sparse_and_small(learn, .8)

def test_masks_criteria_that_observe_start_anew():
    from early_prune.criteria import Running, movement
    learn = learner()
    learn.fit_one_cycle(4, 1e-2, cbs=[early(at=1), SparsifyCallback(.8, criterion=Running(movement))])
    _sparse_and_small(learn, .8)

def test_weights_then_neurons_then_weights():
    "Masks of an earlier fit follow a cut in which their callback took no part."
    learn = learner()
    learn.fit_one_cycle(2, 1e-2, cbs=recipe('one_cycle', .5))
    masks = learn.sparsify.masks
    learn.fit_one_cycle(3, 1e-2, cbs=early(at=1))
    assert learn.sparsify.masks is masks and all(masks[nm].shape==p.shape for nm,p in masks.params.items())
    learn.fit_one_cycle(2, 1e-2, cbs=recipe('one_cycle', .9))
    check(learn)
    _sparse_and_small(learn, .9)

def test_too_little_is_left_for_the_sparsity():
    "The cut says so, and not the last batch of the training."
    net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    learn,clock = learner(net=net),[]
    class Clock(Callback):
        order,run_valid = 11,False
        def after_batch(self): clock.append(self.train_iter)
    both = [EarlyPruneCallback(Neurons(.9), trigger=AtEpoch(1), burst=0, floor=1), SparsifyCallback(.9, distribution=global_, ignore=('1.weight',)), Clock()]
    with pytest.raises(ValueError, match='floors of 2 layers need 2'): learn.fit(4, 1e-2, cbs=both)
    assert len(clock)==len(learn.dls.train)

def test_masks_of_another_network_stay():
    "A learner that was given a new network remembers masks of the old one; a cut of the new one leaves them alone."
    learn = learner()
    learn.fit(1, 1e-2, cbs=recipe('one_cycle', .5))
    learn.model,masks = resnet(8, width=8),learn.sparsify.masks
    learn.create_opt()
    before = {nm:m.clone() for nm,m in masks.masks.items()}
    learn.fit(3, 1e-2, cbs=early(at=1))
    assert learn.early_prune.done and all(masks[nm].equal(m) for nm,m in before.items())


class Keyed(nn.Module):
    "Takes a tensor, or a dictionary that holds it beside a table that all images share."
    def __init__(self): super().__init__(); self.a,self.b,self.h = nn.Linear(6, 16),nn.Linear(16, 8),nn.Linear(8, 3)
    def forward(self, x): return self.h(self.b(self.a(x['x'] if isinstance(x, dict) else x).relu()).relu())

def test_batches_in_dictionaries_are_counted_as_tensors_are():
    def spent(keyed):
        set_seed(0)
        x,y = torch.randn(96, 6),torch.randint(0, 3, (96,))
        items = [(dict(x=o, z=torch.ones(2)) if keyed else o, t) for o,t in zip(x, y)]
        learn = Learner(DataLoaders(DataLoader(items, bs=8), DataLoader(items[:32], bs=8)), Keyed(), loss_func=nn.CrossEntropyLoss())
        with learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-2, cbs=(cb := EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(2))))
        return cb.training_cost().loc[:, ['training_flops', 'image_flops']].to_dict(),learn.model.a.out_features
    (by_key,width),(by_place,other) = spent(True),spent(False)
    assert by_key==by_place and width==other<16

@pytest.mark.parametrize('trigger,epochs', [(EPI(.9), 3), (EarlyBird(), 2), (AtEpoch(1), 1), (AtEpoch(4), 2)], ids=str)
def test_a_fit_that_cannot_hold_the_trigger_says_so_before_its_first_batch(trigger, epochs):
    class Stop(Callback):
        def before_batch(self): raise CancelFitException
    with pytest.warns(UserWarning) as told: learner().fit(epochs, 1e-2, cbs=[EarlyPruneCallback(Neurons(.5), trigger=trigger), Stop()])
    said = [str(o.message) for o in told if 'one after the cut' in str(o.message)]
    assert len(said)==1 and str(trigger) in said[0] and f'AtEpoch({epochs//3})' in said[0] and '\n' not in said[0]

def test_a_fit_that_can_hold_the_trigger_says_nothing():
    "Nor does the second fit, which has the epochs of the first, nor one after the cut, nor the finder."
    learn,cb = learner(),early(at=2)
    learn.add_cb(cb)
    learn.lr_find(num_it=12, show_plot=False)
    with pytest.warns(UserWarning, match='one after the cut'), pytest.warns(UserWarning, match='Nothing was cut'): learn.fit(1, 1e-2)
    learn.fit(2, 1e-2)
    assert cb.done
    learn.fit(1, 1e-2)
