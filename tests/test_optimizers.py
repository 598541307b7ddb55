"A pruned weight stays at zero under every optimizer, by masked gradients alone where that is promised."
import pytest
import torch
import torch.nn.functional as F
from fastai.optimizer import SGD, Adam, Lamb, Larc, Lookahead, OptimWrapper, QHAdam, RAdam, RMSProp, ranger
from torch import nn

from early_prune import callbacks  # noqa: F401  registers fastai's optimizers
from early_prune.criteria import magnitude
from early_prune.masks import ELEMENTWISE, Masks, holds_zero

CONSTANT = ('step_size', 'exp_inf') # Rprop's step and Adamax's bound go to a positive constant, which no zero gradient can use
WD = dict(SGD=dict(momentum=.9, weight_decay=.1, nesterov=True), Rprop={})
TORCH = {c.__name__:(lambda ps, c=c: c(ps, lr=.01, **WD.get(c.__name__, dict(weight_decay=.1)))) for c in ELEMENTWISE}
TORCH['Adam amsgrad'] = lambda ps: torch.optim.Adam(ps, .01, amsgrad=True)
TORCH['Adagrad with a start'] = lambda ps: torch.optim.Adagrad(ps, .01, initial_accumulator_value=.1)
TORCH['RMSprop centered'] = lambda ps: torch.optim.RMSprop(ps, .01, centered=True, momentum=.9)
FASTAI = dict(SGD=lambda ps: SGD(ps, .01, mom=.9, wd=.1), SGDplain=lambda ps: SGD(ps, .01), Adam=lambda ps: Adam(ps, .01, wd=.1),
              AdamL2=lambda ps: Adam(ps, .01, wd=.1, decouple_wd=False), RMSProp=lambda ps: RMSProp(ps, .01, mom=.9, wd=.1),
              RAdam=lambda ps: RAdam(ps, .01, wd=.1), QHAdam=lambda ps: QHAdam(ps, .01, wd=.1), Larc=lambda ps: Larc(ps, .01, wd=.1),
              wrapped=lambda ps: OptimWrapper(ps, torch.optim.AdamW, lr=.01, weight_decay=.1))
OTHERS = dict(Lookahead=lambda ps: Lookahead(SGD(ps, .01, mom=.9)), ranger=lambda ps: ranger(ps, .01), Lamb=lambda ps: Lamb(ps, .01))
MAKE = {f'torch {k}':v for k,v in TORCH.items()} | {f'fastai {k}':v for k,v in FASTAI.items()}

def _train(make, strict, steps=25):
    torch.manual_seed(1)
    model,x,y = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4)),torch.randn(64,12),torch.randint(0, 4, (64,))
    opt,masks = make(list(model.parameters())),Masks(model)
    def step():
        opt.zero_grad(); F.cross_entropy(model(x), y).backward()
        masks.mask_grads(); opt.step()
        if strict: masks.apply(opt)
    for _ in range(8): step()
    masks.update(magnitude, .7).apply(opt)
    for _ in range(steps): step()
    return opt,masks

def _off(opt, masks):
    "Everything an optimizer holds of pruned weights, and the weights."
    while 'opt' in vars(opt): opt = opt.opt
    for nm,p in masks.params.items():
        yield p.detach()[~masks[nm]]
        yield from (v[~masks[nm]] for k,v in opt.state.get(p, {}).items() if isinstance(v, torch.Tensor) and v.shape==p.shape and k not in CONSTANT)

@pytest.mark.parametrize('name', MAKE)
def test_masked_gradients_are_enough(name):
    "No pass over the weights: values and state of pruned weights are exactly zero after 25 steps, the others train."
    opt,masks = _train(MAKE[name], strict=False)
    assert holds_zero(opt)
    assert all(not o.any() for o in _off(opt, masks))
    assert all(p.detach()[masks[nm]].abs().min()>0 for nm,p in masks.params.items())

@pytest.mark.parametrize('name', OTHERS)
def test_other_optimizers_get_a_pass_after_the_step(name):
    opt,masks = _train(OTHERS[name], strict=True)
    assert not holds_zero(opt)
    assert all(not o.any() for o in _off(opt, masks))

def test_lookahead_shows_why():
    "Masked gradients alone would let pruned weights come back from the slow copy."
    opt,masks = _train(OTHERS['Lookahead'], strict=False)
    assert any(o.any() for o in _off(opt, masks))

def test_state_is_forgotten_when_pruned():
    "Without touching the optimizer, momentum would move a pruned weight."
    model,x = nn.Linear(8, 8, bias=False),torch.randn(16,8)
    opt = torch.optim.SGD(model.parameters(), .1, momentum=.9)
    for _ in range(5): opt.zero_grad(); model(x).square().sum().backward(); opt.step()
    masks = Masks(model).update(magnitude, .5).apply()
    opt.zero_grad(); model(x).square().sum().backward(); masks.mask_grads(); opt.step()
    assert model.weight.detach()[~masks['weight']].any()

def test_a_subclass_is_not_trusted():
    class Mine(torch.optim.SGD): "May do anything."
    assert not holds_zero(Mine([nn.Parameter(torch.ones(2))], .1))

def test_averaged_copies_are_masked():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    ema = torch.optim.swa_utils.AveragedModel(model)
    masks = Masks(model).update(magnitude, .5).apply(extras=(ema.module,))
    assert all(not dict(ema.module.named_parameters())[nm].detach()[~masks[nm]].any() for nm in masks.params)
