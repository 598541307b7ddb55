"Optimizers around optimizers, memory that begins late, lies elsewhere or in another form: right, or refused before the first batch."
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper
from optimizers_zoo import Entry, check_cut, check_masks, check_resume
from torch import optim

from early_prune.callbacks import SparsifyCallback
from early_prune.data import digits
from early_prune.models import small_cnn
from early_prune.optimizers import Unreadable, layout_of

F64 = torch.float64,False

class Around(optim.Optimizer):
    "Holds another, whose groups it shares."
    def __init__(self, opt, name='optimizer'):
        super().__init__([torch.nn.Parameter(torch.zeros(1))], {})
        vars(self)[name],self.param_groups,self.inner = opt,opt.param_groups,name
    def weights(self): return [p for g in self.param_groups for p in g['params']]

class Sharpness(Around):
    "SAM: climbs, asks for gradients there, goes back, steps."
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.weights():
            self.state[p]['away'] = .05*p.grad/(p.grad.norm()+1e-12)
            p.add_(self.state[p]['away'])
        with torch.enable_grad(): closure()
        for p in self.weights(): p.sub_(self.state[p]['away'])
        vars(self)[self.inner].step()

class Slow(Around):
    "Lookahead: every third step the weights go back to half way."
    n = 0
    @torch.no_grad()
    def step(self, closure=None):
        vars(self)[self.inner].step(closure)
        self.n += 1
        for p in self.weights():
            slow = self.state[p].setdefault('slow', p.clone())
            if self.n%3==0: p.copy_(slow.lerp_(p, .5))

class Gather(Around):
    "Adds up gradients, and steps with the sum at every fourth call."
    n = 0
    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad(): closure()
        self.n += 1
        for p in self.weights(): self.state[p] = p.grad+self.state[p] if p in self.state else p.grad.clone()
        if self.n%4: return
        for p in self.weights(): p.grad = self.state[p]
        vars(self)[self.inner].step()
        self.state.clear()

class Scaler:
    "No optimizer, but called like one."
    def __init__(self, opt): self.opt = opt
    @property
    def param_groups(self): return self.opt.param_groups
    def zero_grad(self): self.opt.zero_grad()
    def step(self, *closure): return self.opt.step(*closure)

class Own(optim.Optimizer):
    def __init__(self, params, lr=1e-2): super().__init__(params, dict(lr=lr))
    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad(): closure()
        for g in self.param_groups:
            for p in g['params']:
                if p.grad is not None: p.sub_(g['lr']*self.move(p, self.state[p]))

class Master(Own):
    "Trains a copy on the host in double precision."
    def move(self, p, s):
        s.setdefault('master', p.detach().cpu().double().clone()).sub_(.01*p.grad.cpu().double())
        return (p-s['master'].to(p))*100

class Late(Own):
    "A momentum that begins at the fifth step."
    def move(self, p, s):
        s['n'] = s.get('n', 0)+1
        return p.grad if s['n']<5 else s.setdefault('late', torch.zeros_like(p)).mul_(.9).add_(p.grad)

class LateRows(Own):
    "One number for each filter, from the sixth step on."
    def move(self, p, s):
        s['n'] = s.get('n', 0)+1
        if s['n']<6 or p.ndim<2: return p.grad
        s['rows'] = s.get('rows', 0)*.9+p.grad.flatten(1).square().mean(1)
        return p.grad/(s['rows'].sqrt()+1e-3).view(-1, *[1]*(p.ndim-1))

class Complex(Own):
    def move(self, p, s):
        z = s.setdefault('z', torch.zeros_like(p, dtype=torch.complex128)).mul_(.9).add_(torch.complex(p.grad, p.grad**2))
        return z.real/(z.imag.sqrt()+1)

class Stacked(Own):
    "The last three gradients in one tensor."
    def move(self, p, s):
        s['last'] = torch.cat([s.get('last', torch.zeros(3, *p.shape, dtype=p.dtype))[1:], p.grad[None]])
        return s['last'].mean(0)

def groups_of(net):
    ps = list(net.parameters())
    return [dict(params=[p for p in ps if p.ndim>1], momentum=.9, nesterov=True), dict(params=[p for p in ps if p.ndim<2], weight_decay=.1, lr=.02)]

def halves(net):
    ps = list(net.parameters())
    return [Slow(optim.SGD(ps[:4], .01, momentum=.9)), Gather(optim.AdamW(ps[4:], 1e-3))]

MAKE = {
    'Lookahead of SAM of SGD':lambda net: Slow(Sharpness(optim.SGD(net.parameters(), .01, momentum=.9), 'base_optimizer')),
    'SAM of Lookahead of Adam':lambda net: Sharpness(Slow(optim.Adam(net.parameters(), 1e-3), 'inside')),
    'groups with options of their own':lambda net: optim.SGD(groups_of(net), .01), 'two wrappers in a list':halves,
    'accumulation':lambda net: Gather(optim.Adam(net.parameters(), 1e-3)), 'scaler':lambda net: Scaler(optim.AdamW(net.parameters())),
    'maximize':lambda net: optim.Adam(net.parameters(), maximize=True, amsgrad=True), 'foreach':lambda net: optim.NAdam(net.parameters(), foreach=True),
    'fused':lambda net: optim.AdamW(net.parameters(), fused=True)}
MAKE |= {c.__name__:(lambda net, c=c: c(net.parameters())) for c in (Master, Late, LateRows, Complex, Stacked)}

@pytest.mark.parametrize('name', MAKE)
def test_constellation(name):
    "Zeros stay, a cut goes on as the small network, a file as the training."
    entry,closed = Entry(f'here/{name}', MAKE[name]),'SAM' in name
    masks,cut = check_masks(entry, torch.float64, closed),check_cut(entry, torch.float64, closed)
    assert (masks['how'],masks['finite'],cut['how'])==('zero', True, 'equal'), (masks, cut)
    assert check_resume(entry, torch.float64, closed)['how']=='same bits'

# Refused ------------------------------------------------------------------------------------------

class Arrays(Own):
    def move(self, p, s):
        s['m'] = .9*s.get('m', np.zeros(p.shape))+p.grad.numpy()
        return torch.from_numpy(s['m']).to(p)

class Vector(optim.Optimizer):
    "One momentum for all weights."
    def __init__(self, params, lr=1e-2):
        super().__init__(params, dict(lr=lr))
        self.momentum = None
    @torch.no_grad()
    def step(self, closure=None):
        ps = [p for g in self.param_groups for p in g['params'] if p.grad is not None]
        g = torch.cat([p.grad.flatten() for p in ps])
        self.momentum = g if self.momentum is None else .9*self.momentum+g
        for p,m in zip(ps, self.momentum.split([p.numel() for p in ps])): p.sub_(.01*m.view_as(p))

@pytest.mark.parametrize('make,why', [(Arrays, 'arrays of NumPy'), (Vector, '`momentum` is one vector'), (optim.LBFGS, 'LBFGS')])
def test_refused_before_the_first_batch(make, why):
    class Count(Callback):
        n = 0
        def before_batch(self): self.n += self.training
    count = Count()
    learn = Learner(digits(limit=64, valid_limit=32), small_cnn(), CrossEntropyLossFlat(), opt_func=lambda ps, lr, **kw: OptimWrapper(opt=make(ps, lr=lr)))
    with pytest.raises(Unreadable, match=why), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=[SparsifyCallback(.8), count])
    assert count.n==0
    with pytest.raises(Unreadable, match=make.__name__): layout_of(make(list(small_cnn().parameters())))
