"A training step through fastai, without and with the callbacks, against a plain PyTorch loop on the same batches."
import random
from functools import partial
from time import perf_counter

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from measure import device, sync, to_rows

from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback
from early_prune.data import ImageSet, image_loaders, random_crop, random_flip
from early_prune.models import get_model
from early_prune.ranking import Neurons, taylor_bn
from early_prune.schedules import Schedule, sched_linear
from early_prune.triggers import Never

PLAIN,FASTAI,MASKS,WATCH = 'plain PyTorch loop','fastai Learner','Learner, masks updated once an epoch','Learner, EPI watches gradients'

def loaders(bs, n_batches, size):
    "Random images as CIFAR-10 has them, moved and mirrored on the device, with few for validation."
    torch.manual_seed(0)
    sets = [ImageSet(torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8), torch.arange(n)%10, map(str, range(10)))
            for n in (bs*n_batches, 10)]
    return image_loaders(*sets, bs=bs, augment=(random_crop, random_flip), device=device())

class _Clock(Callback):
    "Seconds of the last pass over the training data."
    order,run_valid = -90,False
    def before_train(self):
        sync()
        self.start = perf_counter()
    def after_train(self):
        sync()
        self.seconds = perf_counter()-self.start

def plain(net, dls, epochs=2):
    "Seconds of the last of some epochs of the loop that everybody writes."
    optimizer = torch.optim.SGD(net.parameters(), .01, momentum=.9)
    net.train()
    for _ in range(epochs):
        sync()
        start = perf_counter()
        for x,y in dls.train:
            loss = F.cross_entropy(net(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        sync()
    return perf_counter()-start

def through_fastai(make, net, dls, epochs=2):
    "Seconds of the last of some epochs of a `Learner` with the callbacks that `make` makes."
    clock = _Clock()
    learn = Learner(dls, net, opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9), cbs=[clock, *make()])
    learn.remove_cbs(learn.cbs.filter(lambda cb: cb.name=='progress'))
    with learn.no_logging(): learn.fit(epochs, .01)
    return clock.seconds

def _contenders(n_batches):
    masks = lambda: [SparsifyCallback(.9, Schedule(sched_linear), every=n_batches)]
    watch = lambda: [EarlyPruneCallback(Neurons(.5), taylor_bn, Never())]
    return {PLAIN:plain, FASTAI:partial(through_fastai, list), MASKS:partial(through_fastai, masks),
            WATCH:partial(through_fastai, watch)}

def step(name='cifar_resnet18', bs=32, n_batches=3, size=32, n=3, warm=1):
    "Seconds of a pass over the same batches, in turns; the first epoch of each fit does not count."
    dls,contenders,shuffled = loaders(bs, n_batches, size),_contenders(n_batches),random.Random(0)
    times = {nm:[] for nm in contenders}
    for i in range(n+warm):
        for nm in shuffled.sample(list(contenders), len(contenders)):
            torch.manual_seed(0)
            took = contenders[nm](get_model(name, n_in=3).to(device()), dls)
            if i>=warm: times[nm].append(took/n_batches)
    return to_rows(times, PLAIN, 'step', f'{name}, {bs} images of {size} x {size}, {device().type}')
