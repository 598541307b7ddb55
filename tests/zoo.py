"Trace, cut, train, save and load every network we know of, one JSON line each. `python tests/zoo.py --help`"
import argparse
import os
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore', message='.*torch.jit.script.*')
import torch  # noqa: E402
import zoo_transformers  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402
from torchvision import models  # noqa: E402

from early_prune.compare import Results, conditions  # noqa: E402
from early_prune.criteria import rms_magnitude  # noqa: E402
from early_prune.dependency import trace  # noqa: E402
from early_prune.ranking import Neurons, rank, scores  # noqa: E402
from early_prune.surgery import cut, load, prove, save, silence  # noqa: E402

NBS = Path(__file__).resolve().parent.parent/'nbs'
RESULTS = NBS/'studies'/'results'/'zoo.jsonl'
RATIO,BOUND = .3,1e-4 # share of neurons that go; the largest relative error of the law in float32

# The networks -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Entry:
    "A network of the zoo."
    name:str             # Name, the key in the file of results
    build:object         # `() -> nn.Module` without trained weights
    shape:tuple          # Shape of one input, `(3, 64, 64)`
    kind:str             # `classification`, `segmentation`, `video`, `detection`, `fastai`, `timm` or `transformers`
    inputs:object = None # `(n) -> arguments`; `None`: images of this shape
    real:bool = False    # Traced with numbers
    family:str = field(init=False)

    def __post_init__(self):
        name = self.name.rpartition('/')[2]
        found = next((f for f in FAMILIES if name.startswith(f)), None) or re.match(r'[a-z]+', name)[0]
        object.__setattr__(self, 'family', found)

    @property
    def detects(self): return self.kind=='detection'

FAMILIES = 'r3d','mc3','r2plus1d','s3d','swin3d','deeplabv3','tf_efficientnet_lite','mobilenetv4','resnetv2','convnextv2','res2net','dpn','wide_resnet'
# what a network needs to run on a small image; the others take 64 x 64
SMALL = dict(inception_v3=(299, dict(init_weights=False)), googlenet=(64, dict(init_weights=False)), maxvit_t=(224, {}),
             vit_h_14=(56, dict(image_size=56)), **{f'vit_{o}':(64, dict(image_size=64)) for o in ('b_16','b_32','l_16','l_32')})
CLIPS = dict(r3d_18=(8, 32), mc3_18=(8, 32), r2plus1d_18=(8, 32), s3d=(16, 224), mvit_v1_b=(16, 224), mvit_v2_s=(16, 224),
             swin3d_t=(4, 64), swin3d_s=(4, 64), swin3d_b=(4, 64))
SEGMENT = [nm for nm in models.list_models(module=models.segmentation)]
DETECT = [nm for nm in models.list_models(module=models.detection)]
XRESNETS = [nm for nm in import_module('fastai.vision.models.xresnet').__all__ if nm.startswith('x')]
TIMM = dict(resnetv2_50=64, nf_resnet50=64, resnest14d=64, tf_efficientnet_lite0=64, mobilenetv4_conv_small=64, ghostnet_100=64,
            regnety_002=64, convnextv2_atto=64, vit_tiny_patch16_224=64, deit_tiny_distilled_patch16_224=64, mixer_s16_224=64,
            coatnet_nano_rw_224=64, levit_128s=224, edgenext_xx_small=64, poolformer_s12=64, efficientformer_l1=224, res2net50_26w_4s=64,
            hrnet_w18_small=64, dla34=64, dpn68=64, repvgg_a0=64, cspresnet50=64, mobilevit_xxs=64, pvt_v2_b0=64,
            swin_tiny_patch4_window7_224=224)
# one more of each of its modules but deepseek_vit (412 M), the lightest, at its own size or at 224
TIMM_MODULES = dict(
    beit_base_patch16_224=224, halonet_h1=256, mobileone_s1=224, cait_xxs24_224=224, coat_tiny=224, convit_tiny=224,
    convmixer_768_32=224, convnext_atto_rms=224, cpubone_nano=224, crossvit_tiny_240=240, csatv2=224,
    cs3darknet_focus_s=224, cspnext_tiny=224, davit_tiny=224, deit3_small_patch16_224=224, densenet121=224,
    dla46x_c=224, dpn48b=224, efficientformerv2_s0=224, efficientnet_b0=224, efficientvim_m1=224, efficientvit_b0=224,
    efficientvit_m0=224, eva02_tiny_patch14_224=224, fasternet_t0=224, fastvit_t8=224, focalnet_tiny_srf=224,
    gcvit_xxtiny=224, gemma4_vit_167m=224, ghostnet_050=224, hardcorenas_b=224, hgnetv2_b0=224, hiera_tiny_224=224,
    sam2_hiera_tiny=224, iformer_t=224, inception_next_atto=224, inception_resnet_v2=224, inception_v3=224,
    inception_v4=224, lcnetv2_small=224, lowformer_b0=224, test_mambaout=160, coatnet_nano_cc_224=224,
    gmlp_ti16_224=224, mobilenetv3_small_050=224, mobilenetv5_base=224, mvitv2_tiny=224,
    naflexvit_base_patch16_parfac_gap=224, nasnetalarge=224, nest_tiny=224, nextvit_small=224,
    pit_ti_224=224, pnasnet5large=224, qwen3_vit_88m=224, rdnet_tiny=224, regnetx_002=224, repghostnet_050=224,
    repvit_m1=224, res2next50=224, resnet10t=176, resnetv2_18=224, rexnet_100=224, selecsls42=224,
    legacy_seresnet18=224, sequencer2d_s=224, shvit_s1=224, skresnet18=224, starnet_s050=224, swiftformer_xs=224,
    swinv2_tiny_window16_256=256, swinv2_cr_small_224=224, tiny_vit_5m_224=224, tnt_s_legacy_patch16_224=224,
    tresnet_m=224, twins_svt_small=224, vgg11=224, visformer_tiny=224, beit3_base_patch16_224=224,
    vit_tiny_r_s16_p8_224=224, test_vit_relpos=160, samvit_base_patch16_224=224, vitamin_small_224=224,
    volo_d1_224=224, ese_vovnet19b_slim_dw=224, legacy_xception=224, xception41p=224, xcit_nano_12_p8_224=224)

def classifiers():
    "All classification networks of torchvision, light ones first."
    names = models.list_models(module=models)
    return [nm for nm in names if nm not in HEAVY]+[nm for nm in names if nm in HEAVY]

HEAVY = 'vit_l_16','vit_l_32','regnet_y_128gf','vit_h_14'

def _classifier(nm):
    size,kwargs = SMALL.get(nm, (64, {}))
    return Entry(nm, partial(models.get_model, nm, weights=None, **kwargs), (3, size, size), 'classification')

def _densenet264():
    return models.DenseNet(32, (6, 12, 64, 48), 64)

def _segmenter(nm):
    return Entry(nm, partial(models.get_model, nm, weights=None, weights_backbone=None, num_classes=5), (3, 64, 64), 'segmentation')

def _video(nm):
    t,size = CLIPS[nm]
    return Entry(nm, partial(models.get_model, nm, weights=None), (3, t, size, size), 'video')

def _detector(nm):
    kwargs = dict(weights=None, weights_backbone=None, num_classes=5)
    if not nm.startswith('ssd'): kwargs |= dict(min_size=96, max_size=128)
    return Entry(nm, partial(models.get_model, nm, **kwargs), (3, 96, 128), 'detection', real=True)

def _xresnet(nm):
    return Entry(nm, getattr(import_module('fastai.vision.models.xresnet'), nm), (3, 64, 64), 'fastai')

def _unet(nm):
    from fastai.vision.learner import create_body
    from fastai.vision.models.unet import DynamicUnet
    return DynamicUnet(create_body(models.get_model(nm, weights=None), pretrained=False), 2, (64, 64))

def _timm(nm, **kwargs):
    return import_module('timm').create_model(nm, pretrained=False, **kwargs)

def _transformer(nm):
    return Entry(f'transformers/{nm}', partial(zoo_transformers.build, nm), (), 'transformers',
                 partial(zoo_transformers.inputs, nm), nm in zoo_transformers.REAL)

def zoo():
    "`{name: Entry}`, in the order in which they are run."
    found = [_classifier(nm) for nm in classifiers() if nm not in HEAVY]
    found.append(Entry('densenet264', _densenet264, (3, 64, 64), 'made here'))
    found += [_segmenter(nm) for nm in SEGMENT]
    found += [_xresnet(nm) for nm in XRESNETS]
    found += [Entry(f'unet_{nm}', partial(_unet, nm), (3, 64, 64), 'fastai') for nm in ('resnet18', 'resnet34')]
    if find_spec('timm'):
        for nm,size in TIMM.items():
            kwargs = dict(img_size=size) if re.match('vit|deit|mixer|coatnet', nm) else {}
            found.append(Entry(f'timm/{nm}', partial(_timm, nm, **kwargs), (3, size, size), 'timm'))
        for nm,size in TIMM_MODULES.items(): found.append(Entry(f'timm/{nm}', partial(_timm, nm), (3, size, size), 'timm'))
    if find_spec('transformers'): found += [_transformer(nm) for nm in zoo_transformers.NETWORKS]
    found += [_detector(nm) for nm in DETECT]
    found += [_video(nm) for nm in CLIPS]
    found += [_classifier(nm) for nm in HEAVY]
    return {o.name:o for o in found}

# What is done with each ---------------------------------------------------------------------------

@torch.no_grad()
def lively(model):
    "Give every parameter and statistic a value that matters: also scales of zero, biases of zero, statistics of one."
    for nm,p in model.named_parameters():
        if p.ndim>1: p.normal_(0, prod(p.shape[1:])**-.5)
        elif nm.endswith('bias'): p.normal_(0, .3)
        else: p.uniform_(.5, 1.5)
    for nm,b in model.named_buffers():
        if nm.endswith('running_mean'): b.normal_(0, .3)
        if nm.endswith('running_var'): b.uniform_(.5, 1.5)
    return model.eval()

def example(entry, n=2):
    "Arguments of the network: a batch, or a list of images for a detector."
    if entry.inputs: return entry.inputs(n)
    return ([torch.rand(entry.shape) for _ in range(n)],) if entry.detects else (torch.randn(n, *entry.shape),)

def tensors(tree): return [o for o in tree_leaves(tree) if isinstance(o, Tensor)]

def outputs(entry, model, x):
    "Tensors to compare: what a network returns, of a detector what its layers compute."
    return tensors(dense_part(model, *x) if entry.detects else model(*x))

def dense_part(model, images):
    "All layers of a detector at fixed places, without the choices in between that depend on values."
    images,_ = model.transform(images)
    features = model.backbone(images.tensors)
    features = {'0':features} if isinstance(features, Tensor) else features
    if not hasattr(model, 'rpn'): return model.head(list(features.values()))
    found,heads = [model.rpn.head(list(features.values()))],model.roi_heads
    boxes = [torch.tensor([[8., 8., 40., 40.], [20., 4., 90., 80.]])]*len(images.image_sizes)
    for nm in ('box', 'mask', 'keypoint'):
        if (pool := getattr(heads, f'{nm}_roi_pool', None)) is not None:
            seen = getattr(heads, f'{nm}_head')(pool(features, boxes, images.image_sizes))
            found.append(getattr(heads, f'{nm}_predictor')(seen))
    return found

def distance(a, b):
    "Relative distance of two lists of tensors."
    a,b = (torch.cat([o.double().flatten() for o in os]) for os in (a, b))
    return ((a-b).norm()/b.norm()).item()

def loss_of(entry, model, x):
    "A loss that every output takes part in."
    if not entry.detects: return sum(o.square().mean() for o in tensors(model(*x)) if o.is_floating_point())
    _,h,w = entry.shape
    target = dict(boxes=torch.tensor([[8., 8., 72., 80.]]), labels=torch.tensor([1]), masks=torch.ones(1, h, w, dtype=torch.uint8),
                  keypoints=torch.tensor([[[30., 30., 1.]]*17]))
    return sum(model(*x, [target]*len(x[0])).values())

def cuttable(model, groups):
    "Share of the parameters whose tensor has a dimension that can be cut."
    named,free = dict(model.named_parameters()),{nm for nm,_ in groups.slots}
    return sum(p.numel() for nm,p in named.items() if nm in free)/sum(p.numel() for p in named.values())

def reasons(model, groups):
    "`{reason: share of all parameters}`: why tensors cannot be cut at all. `{operator: places}`: operators without a rule."
    named,free = dict(model.named_parameters()),{nm for nm,_ in groups.slots}
    first = {}
    for (nm,_),why in groups.fixed.items(): first.setdefault(nm, _plainly(why))
    total,share = sum(p.numel() for p in named.values()),Counter()
    for nm,p in named.items():
        if nm not in free: share[first.get(nm, 'no dimension has more than one slice')] += p.numel()/total
    places = Counter(_plainly(why) for why in groups.fixed.values())
    unknown = {why.split('`')[1]:n for why,n in places.items() if why.startswith('no rule')}
    return {why:round(o, 5) for why,o in share.most_common()},dict(places.most_common()),unknown

def _plainly(why): return re.sub(r' in [\w.]+$|(?<=stops when it shrinks):.*', '', why)

def norms(model):
    "Kinds of normalisation in a network."
    return sorted({type(m).__name__ for m in model.modules() if 'Norm' in type(m).__name__ and not list(m.children())})

def fastest(f, most=3, enough=2.):
    "The shortest of a few calls, in seconds of the processor, and what the last one returned."
    took = []
    while len(took)<most and sum(took)<enough:
        start = time.process_time()
        out = f()
        took.append(time.process_time()-start)
    return min(took),out

def law(entry, model, groups, keep, x):
    "Cut, and compare with the masked copy: seconds, relative error, and what masking changes."
    with torch.no_grad():
        dense = outputs(entry, model, x)
        masked = outputs(entry, silence(deepcopy(model), groups, keep), x)
        start = time.process_time()
        small = cut(model, groups, keep)
        seconds = time.process_time()-start
        return small,seconds,distance(outputs(entry, model, x), masked),distance(dense, masked)

def trains(entry, model, x):
    "A backward pass in training mode: the gradients fit, and they are finite."
    model.train()
    loss_of(entry, model, x).backward()
    model.eval()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    fit = all(p.grad is None or p.grad.shape==p.shape for p in model.parameters())
    model.zero_grad()
    return bool(grads) and fit and all(bool(g.isfinite().all()) for g in grads)

def round_trip(entry, model, groups, x):
    "Save, load into a new network, and compare: equal to the last bit."
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        again = load(entry.build, save(model, Path(folder)/'net.safetensors', groups))
        a,b = tensors(model(*x)),tensors(again(*x))
    return len(a)==len(b) and all(torch.equal(o, p) for o,p in zip(a, b))

def precise(entry, groups, keep, seed):
    "The law in float64, for networks in which numbers grow until the rounding of float32 shows."
    torch.manual_seed(seed)
    model,x = lively(entry.build()).double(),example(entry)
    return law(entry, model, groups, keep, tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, x))[2]

def visit(entry, seed=0):
    "Everything for one network; what fails is in the record, and so is how far it came."
    r,step,start = dict(name=entry.name, kind=entry.kind, family=entry.family, shape=list(entry.shape), ok=False),'build',time.process_time()
    try:
        torch.manual_seed(seed)
        model,x = lively(entry.build()),example(entry)
        n = sum(p.numel() for p in model.parameters())
        r |= dict(params=n, layers=sum(p.ndim>1 for p in model.parameters()), norms=norms(model))
        step = 'trace'
        seconds,groups = fastest(lambda: trace(model, *x, real=entry.real))
        share,places,unknown = reasons(model, groups)
        r |= dict(trace_s=seconds, groups=len(groups), neurons=groups.n_neurons, inexact=len(groups.inexact),
                  cuttable=cuttable(model, groups), fixed_share=share, fixed_places=places, no_rule=unknown)
        if not entry.detects: # what a detector returns is a choice, and jumps
            step,by_rule = 'proof',len(groups.inexact)
            proof_s,groups = fastest(lambda: prove(model, groups, *x), 1)
            r |= dict(proof_s=proof_s, proven=len(groups.proven), inexact=len(groups.inexact), inexact_by_rule=by_rule)
        step = 'rank'
        keep = rank(groups, scores(model, groups, rms_magnitude), Neurons(RATIO), per_group=True)
        step = 'cut of the exact groups'
        exact = {g.name:keep[g.name] for g in groups if g.exact}
        if groups.inexact and exact: r['difference_exact'] = law(entry, deepcopy(model), groups, exact, x)[2]
        step = 'cut'
        small,seconds,error,effect = law(entry, model, groups, keep, x)
        r |= dict(cut_s=seconds, difference=error, effect=effect, left=sum(p.numel() for p in model.parameters())/n)
        step = 'backward'
        r['trains'] = trains(entry, model, x)
        step = 'round trip'
        r['round_trip'] = round_trip(entry, model, small, x)
        found = r.get('difference_exact', 0) if r['inexact'] else error
        if found>BOUND: found = r['difference_float64'] = precise(entry, groups, exact, seed)
        r['ok'] = r['trains'] and r['round_trip'] and found<BOUND
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError) as e:
        r['failed'] = f'{step}: {type(e).__name__}: {(str(e).splitlines() or [""])[0][:300]}'
    if entry.kind in ('timm', 'transformers'): r[entry.kind] = version(entry.kind)
    return r | dict(seconds=time.process_time()-start) | conditions(torch.device('cpu'))

def newest(path=RESULTS):
    "`{name: record}` of a file of results; a later line replaces an earlier one."
    return {r['name']:r for r in Results(path).read()}

def line(r):
    "A record as a line for a terminal."
    if 'failed' in r: return f'{r["name"]:38} FAILED {r["failed"]}'
    return (f'{r["name"]:38} {"ok  " if r["ok"] else "BAD "} {r["params"]/1e6:7.1f} M  trace {r["trace_s"]:6.2f} s  cut {1e3*r["cut_s"]:6.0f} ms  '
            f'{r["groups"]:4} groups  cuttable {r["cuttable"]:6.1%}  law {r["difference"]:.1e} of {r["effect"]:.1e}  '
            f'inexact {r["inexact"]:3}  left {r["left"]:.2f}')

def main(argv=None):
    "Read the command line and visit what is not in the file."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', help='networks to visit, as regular expressions; default: all')
    parser.add_argument('--path', type=Path, default=RESULTS, help='file of results; finished networks in it are not repeated')
    parser.add_argument('--again', action='store_true', help='visit networks again that are in the file')
    parser.add_argument('--limit', type=float, default=float('inf'), help='leave out networks with more million parameters')
    args = parser.parse_args(argv)
    done = set() if args.again else set(newest(args.path))
    todo = [o for nm,o in zoo().items() if nm not in done and (not args.names or any(re.fullmatch(p, nm) for p in args.names))]
    bad = 0
    for entry in todo:
        r = visit(entry)
        bad += not r['ok']
        Results(args.path).add(r)
        print(line(r), flush=True)
    return int(bad>0)

if __name__=='__main__': sys.exit(main())
