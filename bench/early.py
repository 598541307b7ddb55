"What watching a training costs, and what a cut saves: a training step dense, watched, and after a cut."
import torch
import torch.nn.functional as F
from measure import device, in_turns, timed, to_rows
from nets import build

from early_prune.criteria import rms_magnitude
from early_prune.dependency import trace
from early_prune.ranking import Averaged, Flops, Neurons, rank, scores, taylor_bn
from early_prune.surgery import cut

DENSE,WATCHED,RANKED = 'dense step','dense step, gradients observed','ranking at the end of an epoch'
AFTER = 'after a cut of {:.0%} of the FLOPs'

def _trainer(name, bs, size, n_classes=10):
    torch.manual_seed(0)
    net = build(name)
    x,y = torch.randn(bs, 3, size, size).to(device()),torch.randint(0, n_classes, (bs,)).to(device())
    optimizer = torch.optim.SGD(net.parameters(), lr=.01, momentum=.9)
    def step():
        optimizer.zero_grad()
        F.cross_entropy(net(x)[:, :n_classes], y).backward()
        optimizer.step()
    return net,x[:2],optimizer,step

def _watched(name, bs, size, criterion):
    net,x,_,step = _trainer(name, bs, size)
    groups,average = trace(net, x),Averaged(criterion)
    def watched():
        step()
        average.observe(net, groups)
    return watched

def _ranking(name, bs, size):
    net,x,_,_ = _trainer(name, bs, size)
    groups = trace(net, x)
    return lambda: rank(groups, scores(net, groups, rms_magnitude), Neurons(.5))

def _cut(name, bs, size, ratio, round_to):
    net,x,optimizer,step = _trainer(name, bs, size)
    step()
    groups = trace(net, x)
    keep = rank(groups, scores(net, groups, rms_magnitude), Flops(ratio), net, (x,), round_to=round_to, floor=.1)
    count = Flops(ratio).meter(groups, net, (x,))
    left = count(groups.stay(keep))/count(groups.stay({}))
    cut(net, groups, keep, optimizer)
    return step,left

def early(cases=(('resnet18', 64, 32), ('resnet50', 16, 64)), ratios=(.3, .5, .7), n=7, round_to=8, criterion=taylor_bn):
    "A training step on CPU: dense, watched, and after cuts; the note says what the FLOPs promise."
    rows = []
    for name,bs,size in cases:
        steps,left = {DENSE:_trainer(name, bs, size)[3], WATCHED:_watched(name, bs, size, criterion)},{}
        for ratio in ratios:
            what = AFTER.format(ratio)
            steps[what],left[what] = _cut(name, bs, size, ratio, round_to)
        times = in_turns({nm:(lambda f=f: f) for nm,f in steps.items()}, n)
        found = to_rows(times, DENSE, 'early', f'{name}, {bs} images of {size} x {size}')
        for row in found:
            if row['what'] in left:
                saved,promised = 1-row['ratio'][1],1-left[row['what']]
                row['note'] = f'{left[row["what"]]:.3f} of the FLOPs left; {saved/promised:.0%} of the saving they promise'
        ranking = _ranking(name, bs, size)
        times[RANKED] = [timed(ranking) for _ in times[DENSE]]
        rows += found + [r for r in to_rows(times, DENSE, 'early', found[0]['case']) if r['what']==RANKED]
    return rows
