"Neurons that fall silent while a `Learner` trains, and come back, until the cut."
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import Learner as _Learner  # noqa: F401  patches `fit_one_cycle`, `lr_find`
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import SGD, Adam, Lookahead, OptimWrapper, RAdam
from hypothesis import given, settings
from hypothesis import strategies as st
from test_early_prune import halves, learner, short, widths
from torch import nn

from early_prune.callbacks import EarlyPruneCallback
from early_prune.criteria import gradient, rms_magnitude
from early_prune.dependency import Groups, trace
from early_prune.models import resnet
from early_prune.ranking import Flops, Neurons, Params, may_return, over_readers, scores, swap_neurons, taylor_bn
from early_prune.regrowth import Regrowth, by_gradient, by_momentum, by_random
from early_prune.schedules import Schedule, sched_cubic, sched_dsd
from early_prune.surgery import clear_slices, cut, forget_neurons, mute_slices
from early_prune.triggers import AtEpoch, EarlyBird, Never


def soft(budget=Neurons(.5), at=3, regrowth=by_gradient, **kwargs):
    trigger = Never() if at is None else AtEpoch(at)
    return EarlyPruneCallback(budget, trigger=trigger, regrowth=regrowth, **{'every':2, 'floor':2, 'burst':2, **kwargs})

class Check(Callback):
    "After every step: silent neurons are not heard, active ones fit the budget, groups keep their width in a swap."
    order,run_valid = 30,False
    def before_fit(self): self.seen = []
    def after_step(self):
        cb = self.learn.early_prune
        if cb.mute is None or not cb.record: return
        params,step = dict(self.model.named_parameters()),round(self.pct_train*cb._n_batches())
        for nm,d in cb.groups.read:
            mine = cb.groups.slots[nm, d]
            off = torch.from_numpy((mine>=0) & ~cb.stay[mine])
            assert not params[nm].movedim(d, 0)[off].any(), nm
        if cb.record[-1][0]!=step: return
        ratio = cb.schedule(step/cb._n_batches(), cb.budget.ratio, cb.begun)
        used,allowed = cb.budget.meter(cb.groups, self.model, cb.inputs)(cb.stay),cb.dense*(1-ratio)
        if isinstance(cb.budget, Neurons) and type(cb.budget) is Neurons: assert used==cb.dense-round(cb.dense*ratio)
        else: assert allowed*.85<used<=allowed+1e-6
        wide = np.bincount(cb.groups.group_of[cb.stay], minlength=len(cb.groups))
        assert all(w>=cb.within['floor'][g.name] for w,g in zip(wide, cb.groups))
        self.seen.append((step, used))

def returned(cb): return int(cb._again()[0].any(0).sum())

# ---- the pure functions

def table(*sizes):
    "Groups of these sizes, without a network."
    return Groups({('w', 0):np.arange(sum(sizes))}, np.repeat(np.arange(len(sizes)), sizes), (), {}, frozenset())

@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_sequence_of_swaps_keeps_every_width(data):
    sizes = data.draw(st.lists(st.integers(2, 12), min_size=1, max_size=5))
    groups,n = table(*sizes),sum(sizes)
    stay = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    count = lambda o: np.bincount(groups.group_of[o], minlength=len(groups)).tolist()
    want = count(stay)
    for _ in range(data.draw(st.integers(1, 5))):
        few = st.integers(0, 3) if data.draw(st.booleans()) else st.integers(-1000, 1000)
        worth,promise = (torch.tensor(data.draw(st.lists(few, min_size=n, max_size=n)), dtype=torch.float) for _ in range(2))
        fraction,again = data.draw(st.floats(0, 1)),data.draw(st.booleans())
        among = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        new = swap_neurons(groups, stay, fraction, worth, promise, again, among)
        assert count(new)==want
        for g in groups:
            at = slice(g.start, g.start+g.n)
            if not among[at].all() or stay[at].all(): assert (new[at]==stay[at]).all()
            if not again: assert (stay & ~new)[at].sum()==(new & ~stay)[at].sum()<=g.n-stay[at].sum()
        stay = new

def test_the_lowest_go_and_the_most_promising_come():
    groups,stay = table(6),np.array([1, 1, 1, 1, 0, 0], bool)
    worth,promise = torch.tensor([3., 1, 2, 4, 9, 9]),torch.tensor([9., 9, 9, 9, 1, 2])
    assert swap_neurons(groups, stay, .25, worth, promise, again=False).tolist()==[1, 0, 1, 1, 0, 1]
    assert swap_neurons(groups, stay, .25, worth, promise).tolist()==stay.tolist()

def backward(net, x):
    nn.functional.cross_entropy(net(x), torch.arange(len(x))%10).backward()
    return net

def test_promise_is_the_gradient_of_those_who_read():
    torch.manual_seed(0)
    net,x = resnet(8),torch.randn(16, 1, 8, 8)
    groups = trace(net, x)
    found,params = scores(backward(net, x), groups, over_readers(gradient)),dict(net.named_parameters())
    for g in groups:
        want = sum(params[nm].grad.abs().transpose(0, d).flatten(1).sum(1) for nm,d in groups.read if (nm, d) in g.places)
        torch.testing.assert_close(found[g.start:g.start+g.n], want)

def test_readers_of_a_network():
    groups = trace(resnet(8), torch.randn(1, 1, 8, 8))
    params = dict(resnet(8).named_parameters())
    assert all(d==1 and params[nm].ndim in (2, 4) for nm,d in groups.read) and not set(groups.read) & set(groups.made)
    assert Groups.from_json(groups.to_json()).read==groups.read
    read = np.zeros(groups.n_neurons, bool)
    for place in groups.read: read[groups.slots[place]] = True
    assert read.all()

def test_frozen_readers_do_not_return():
    net,x = resnet(8),torch.randn(1, 1, 8, 8)
    groups = trace(net, x)
    assert may_return(net, groups).all()
    next(o for nm,o in net.named_parameters() if nm==groups.read[1][0]).requires_grad_(False)
    able = may_return(net, groups)
    mine = groups.slots[groups.read[1]]
    assert not able[mine].any() and able.any()

def test_muted_equals_cut():
    torch.manual_seed(0)
    net,x = resnet(8).eval(),torch.randn(4, 1, 8, 8)
    groups,stay = trace(net, x),np.random.default_rng(0).random(trace(net, x).n_neurons)<.6
    before = [p.detach().clone() for p in net.parameters()]
    slices = mute_slices(net, groups, stay)
    assert all(p.equal(q) for p,q in zip(before, net.parameters()))
    clear_slices(dict(net.named_parameters()), slices)
    with torch.no_grad():
        muted = net(x)
        cut(net, groups, stay)
        torch.testing.assert_close(net(x), muted, rtol=1e-4, atol=1e-5)

def test_optimizer_forgets_only_what_it_should():
    net,x = resnet(8),torch.randn(16, 1, 8, 8)
    groups,opt = trace(net, x),torch.optim.Adam(net.parameters())
    backward(net, x); opt.step()
    before = {p:{k:v.clone() for k,v in o.items()} for p,o in opt.state.items()}
    gone = np.zeros(groups.n_neurons, bool)
    gone[[0, 5]] = True
    forget_neurons(opt, net, groups, gone)
    for nm,p in net.named_parameters():
        old,new = before[p]['exp_avg'],opt.state[p]['exp_avg']
        mask = torch.zeros_like(p, dtype=torch.bool)
        for d in range(p.ndim):
            mine = groups.slots.get((nm, d))
            if mine is not None: mask.index_fill_(d, torch.from_numpy(np.flatnonzero((mine>=0) & gone[mine])), True)
        assert not new[mask].any() and new[~mask].equal(old[~mask])
        assert opt.state[p]['step']==1

# ---- in a training

@pytest.mark.parametrize('budget', [Neurons(.5), Params(.6), Flops(.5)], ids=str)
@pytest.mark.parametrize('criterion', [rms_magnitude, taylor_bn], ids=['magnitude', 'gradient'])
def test_exact_after_every_update(budget, criterion):
    learn,check = learner(),Check()
    cb = soft(budget, 5, criterion=criterion)
    learn.fit_one_cycle(6, 1e-2, cbs=[cb, check])
    assert len(check.seen)>5 and returned(cb)>0 and cb.done
    left = cb.budget.meter(cb.groups, learn.model, cb.inputs)(np.ones(cb.groups.n_neurons, bool))
    assert left<=cb.dense*(1-budget.ratio)+.5 and widths(learn)!=widths(learner())

def test_ties_are_exact():
    from early_prune.ranking import of_neurons
    @of_neurons
    def same(model, groups): return torch.ones(groups.n_neurons)
    learn,check = learner(),Check()
    learn.fit(4, 1e-2, cbs=[soft(criterion=same, regrowth=Regrowth(lambda p: torch.ones_like(p))), check])
    assert len(check.seen)>5

def test_widths_are_multiples_and_floors_hold():
    learn = learner()
    learn.fit(4, 1e-2, cbs=soft(Flops(.5), 3, round_to=4, floor=.25))
    assert {m.out_channels%4 for m in learn.model.modules() if isinstance(m, nn.Conv2d)}=={0}

@pytest.mark.parametrize('opt_func', [Adam, SGD, RAdam, lambda ps,lr: Lookahead(Adam(ps, lr=lr)),
    lambda ps,lr: OptimWrapper(ps, torch.optim.AdamW, lr=lr), lambda ps,lr: OptimWrapper(ps, torch.optim.SGD, lr=lr, momentum=.9, nesterov=True)],
    ids=['adam', 'sgd', 'radam', 'lookahead', 'adamw', 'nesterov'])
def test_optimizers(opt_func):
    learn,check = learner(opt_func=opt_func),Check()
    learn.fit(4, 1e-3, cbs=[soft(), check])
    assert check.seen and learn.early_prune.done and all(np.isfinite(float(o)) for o in learn.recorder.losses)

@pytest.mark.parametrize('regrowth', [by_gradient, by_random, by_momentum, Regrowth(may_return=False)], ids=['gradient', 'random', 'momentum', 'no return'])
def test_ways_of_return(regrowth):
    learn,check = learner(),Check()
    learn.fit(4, 1e-2, cbs=[soft(regrowth=regrowth), check])
    assert check.seen and learn.early_prune.done and returned(learn.early_prune)

def test_without_regrowth_nobody_returns():
    learn,check = learner(),Check()
    learn.fit(4, 1e-2, cbs=[soft(regrowth=None, schedule=Schedule(sched_cubic, end_pct=.5)), check])
    assert check.seen and returned(learn.early_prune)==0 and 'returned' not in learn.recorder.metric_names

def test_the_schedule_may_go_back():
    learn,check = learner(),Check()
    learn.fit(4, 1e-2, cbs=[soft(at=None, regrowth=None, schedule=Schedule(sched_dsd, end_pct=.9)), check])
    cb = learn.early_prune
    assert cb.stay.all() and cb.reached==0 and min(int(o.sum()) for _,o in cb.record)<cb.dense

def test_a_returning_neuron_starts_at_zero_with_a_fresh_memory():
    learn,seen = learner(opt_func=Adam),[]
    class Look(Callback):
        order,run_valid = 10.45,False
        def before_step(self):
            cb = self.learn.early_prune
            if cb.mute is None or len(cb.record)<2: return
            back = cb.record[-1][1] & ~cb.record[-2][1]
            if cb.record[-1][0]!=round(self.pct_train*cb._n_batches()) or not back.any(): return
            params = dict(self.model.named_parameters())
            for nm,d in cb.groups.read:
                rows = torch.from_numpy(np.flatnonzero(back[cb.groups.slots[nm, d]]))
                state = self.opt.state[params[nm]]
                for t in (params[nm], *(v for v in state.values() if isinstance(v, torch.Tensor) and v.shape==params[nm].shape)):
                    assert not t.detach().movedim(d, 0)[rows].any()
                if len(rows): assert params[nm].grad.movedim(d, 0)[rows].any()
            seen.append(back.sum())
    learn.fit(4, 1e-2, cbs=[soft(), Look()])
    assert sum(seen)>0

def test_the_first_cut_changes_nothing():
    "At the end of the schedule the cut takes what nobody listens to."
    learn,outs = learner(),[]
    class Look(Callback):
        run_valid = False
        x = torch.randn(8, 1, 8, 8)
        def _out(self):
            self.model.eval()
            with torch.no_grad(): outs.append(self.model(self.x).clone())
            self.model.train()
        def before_batch(self):
            if self.epoch==3 and self.iter==0: self._out()
    class Before(Look): order = 10.3
    class After(Look): order = 10.5
    learn.fit(4, 1e-3, cbs=[Before(), soft(every=1), After()])
    cb = learn.early_prune
    assert cb.cut_at==3 and cb.done and cb.groups.n_neurons==cb.dense-round(cb.dense*.5)
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)

def test_a_trigger_in_the_middle_of_the_schedule_cuts_the_rest_in_the_burst():
    learn = learner()
    learn.fit(4, 1e-2, cbs=soft(at=1, steps=3))
    cb = learn.early_prune
    assert 0<cb.reached<.5 and cb.done and cb.groups.n_neurons==cb.dense-round(cb.dense*.5)

def test_history_excludes_silent_neurons_and_early_bird_sees_swaps():
    learn = learner()
    learn.fit(5, 1e-3, cbs=EarlyPruneCallback(Neurons(.5), trigger=EarlyBird(.3, 2), regrowth=by_gradient, every=2, floor=2))
    cb = learn.early_prune
    assert cb.done and sum(cb.history[-1].widths)==cb.dense-round(.5*cb.dense)

def test_columns_and_plot():
    learn,cb = learner(),soft()
    with pytest.raises(ValueError, match='Nothing to plot'): cb.plot_neurons()
    learn.fit(4, 1e-2, cbs=cb)
    assert learn.recorder.metric_names[4:8]==['epi', 'neurons', 'mflops', 'returned']
    flops = [row[5] for row in learn.recorder.values]
    assert flops[0]==flops[1]==flops[2]>flops[3]
    assert cb.plot_neurons().images and [m.name for m in learn.metrics]==['accuracy']

def test_training_costs_as_much_as_dense_until_the_cut():
    learn,cb = learner(),soft(steps=1)
    learn.fit(4, 1e-2, cbs=cb)
    n,table = len(learn.dls.train)*learn.dls.train.bs,cb.training_cost()
    assert table.training_flops['spent']==3*(3*cb.dense_flops+cb.flops)*n

def test_held_at_zero():
    learn = learner()
    learn.fit(4, 1e-2, cbs=soft(physical=False))
    cb = learn.early_prune
    assert cb.done and cb.mute is None and cb.stay.sum()==cb.dense-round(.5*cb.dense) and widths(learn)==widths(learner())

# ---- a training's life

@pytest.mark.filterwarnings('ignore:.*CUDA is not available.*:UserWarning')
@pytest.mark.parametrize('mode', ['fp16', 'bf16'])
def test_mixed_precision(mode):
    learn,check = learner(),Check()
    learn.fit(4, 1e-2, cbs=[soft(), check, MixedPrecision(mode)])
    assert check.seen and learn.early_prune.done

def test_gradient_accumulation():
    learn,check = learner(),Check()
    learn.fit(4, 1e-2, cbs=[soft(every=1), check, GradientAccumulation(100)])
    assert check.seen and learn.early_prune.done

def test_averaged_copy_is_muted_alike():
    class EMA(Callback):
        run_valid = False
        def before_fit(self): self.ema_model = torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(.9))
        def after_step(self):
            self.ema_model.update_parameters(self.model)
            cb = self.learn.early_prune
            if not cb.mute or cb.record[-1][0]!=round(self.pct_train*cb._n_batches()): return
            copy = dict(self.ema_model.module.named_parameters())
            for nm,d,idxs in cb.mute: assert not copy[nm].detach().movedim(d, 0)[idxs].any()
    learn,ema = learner(),EMA()
    learn.fit(4, 1e-2, cbs=[soft(), ema])
    assert [p.shape for p in ema.ema_model.module.parameters()]==[p.shape for p in learn.model.parameters()]

def test_lr_find_silences_nobody_and_wakes_nobody(tmp_path):
    learn,check = learner(tmp=tmp_path),Check()
    learn.add_cbs([soft(at=None), check])
    learn.lr_find(show_plot=False, num_it=12)
    assert not learn.early_prune.record and widths(learn)==widths(learner())
    learn.fit(3, 1e-2)
    stay,n = learn.early_prune.stay.copy(),len(learn.early_prune.record)
    learn.lr_find(show_plot=False, num_it=12)
    assert (learn.early_prune.stay==stay).all() and len(learn.early_prune.record)==n

@short
def test_second_fit_goes_on():
    learn,check,cb = learner(),Check(),soft(at=6)
    with pytest.warns(UserWarning, match='Nothing was cut.*neurons are silent'): learn.fit(3, 1e-2, cbs=[cb, check])
    silent,n = (~cb.stay).sum(),len(cb.record)
    assert silent==round(.5*cb.dense)
    learn.fit(4, 1e-2, cbs=[cb, check])
    assert cb.done and cb.cut_at==6 and all((~o).sum()==silent for _,o in cb.record[n:])

def test_another_callback_goes_on():
    learn,check = learner(),Check()
    learn.fit(3, 1e-2, cbs=soft(at=None))
    silent = (~learn.early_prune.stay).sum()
    learn.fit(2, 1e-2, cbs=[soft(Neurons(.6), at=None), check])
    cb = learn.early_prune
    assert all((~o).sum()>=silent for _,o in cb.record) and (~cb.stay).sum()==round(.6*cb.dense)
    learn.fit(2, 1e-2, cbs=EarlyPruneCallback(Neurons(.6), trigger=AtEpoch(1), floor=2, burst=0))
    assert learn.early_prune.groups.n_neurons==cb.dense-round(.6*cb.dense)

@short
def test_freeze_and_unfreeze():
    learn,cb = learner(splitter=halves),soft(at=4)
    learn.freeze()
    with pytest.warns(UserWarning, match='Nothing was cut'): learn.fit(2, 1e-2, cbs=cb)
    learn.unfreeze()
    learn.fit(3, 1e-2, cbs=cb)
    assert cb.done and cb.groups.n_neurons==cb.dense-round(.5*cb.dense)

def test_save_model(tmp_path):
    learn = learner(tmp=tmp_path)
    learn.fit(5, 1e-2, cbs=[soft(at=3), SaveModelCallback('accuracy')])
    learn.load('model', with_opt=False)
    assert learn.early_prune.done

def test_same_seed_same_network():
    nets = []
    for _ in range(2):
        learn = learner()
        learn.fit_one_cycle(4, 1e-2, cbs=soft(regrowth=by_random))
        nets.append(learn.model)
    assert all(p.equal(q) for p,q in zip(*(o.parameters() for o in nets)))

def test_refusals():
    for kwargs in (dict(together=True), dict(drop=gradient)):
        with pytest.raises(ValueError, match='is for weights'): soft(regrowth=Regrowth(**kwargs))
    with pytest.raises(ValueError, match='`every`'): soft(every=1.5)
    with pytest.raises(ValueError, match='`every`'): soft(every=0)
