"Networks: shapes, published sizes, names and errors."
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision import models as tvm

from early_prune import models
from early_prune.models import (
    BasicBlock,
    cifar_stem,
    get_model,
    init_weights_,
    list_models,
    resnet,
    set_n_in_,
    small_cnn,
    vgg,
)


def n_params(m): return sum(p.numel() for p in m.parameters())

SMALL = [o for o in models._OURS if not o.startswith('cifar_')]

@pytest.mark.parametrize('name', SMALL)
def test_any_image_size(name):
    with torch.device('meta'):
        for n_in,size in ((1,8), (1,28), (3,32), (2,9), (3,64), (1,4)):
            assert get_model(name, n_in, 7)(torch.randn(2,n_in,size,size)).shape==(2,7)

@pytest.mark.parametrize('name', ['small_cnn', 'resnet8', 'small_vgg11'])
def test_gradients_reach_every_parameter(name):
    net = get_model(name, 1)
    nn.functional.cross_entropy(net(torch.randn(8,1,8,8)), torch.arange(8)).backward()
    assert all(p.grad.abs().sum()>0 for p in net.parameters())

@pytest.mark.parametrize('depth', [8, 14, 20, 32, 44, 56, 110])
def test_depth_counts_layers_with_weights(depth):
    net = resnet(depth)
    layers = [m for nm,m in net.named_modules() if isinstance(m, (nn.Conv2d,nn.Linear)) and 'shortcut' not in nm]
    assert len(layers)==depth and sum(isinstance(m, BasicBlock) for m in net)==(depth-2)//2

def test_stages_halve_the_image_and_double_the_channels():
    net,x,shapes = resnet(14, 3).eval(),torch.randn(1,3,32,32),[]
    for m in net:
        x = m(x)
        if isinstance(m, BasicBlock): shapes.append(tuple(x.shape[1:]))
    assert shapes==[(16,32,32)]*2 + [(32,16,16)]*2 + [(64,8,8)]*2

@pytest.mark.parametrize('depth,million', [(20,.27), (32,.46), (44,.66), (56,.85), (110,1.7)])
def test_published_sizes(depth, million):
    "He et al. (2015), table 6, which has shortcuts without parameters."
    net = resnet(depth, n_in=3)
    dense = n_params(net) - sum(n_params(m.shortcut) for m in net if isinstance(m, BasicBlock))
    assert dense/1e6==pytest.approx(million, abs=.01 if depth<100 else .05)

def test_torchvision_sizes():
    assert n_params(get_model('resnet18', n_out=1000))==11_689_512
    assert n_params(get_model('cifar_resnet18'))==11_173_962

@pytest.mark.parametrize('depth', [11, 13, 16, 19])
def test_vgg_is_torchvisions_without_its_classifier(depth):
    with torch.device('meta'):
        ours,theirs = vgg(depth),tvm.get_model(f'vgg{depth}_bn')
    shapes = [[m.weight.shape for m in o.modules() if isinstance(m, nn.Conv2d)] for o in (ours,theirs)]
    assert shapes[0]==shapes[1]

def test_block_adds_its_input():
    block,x = BasicBlock(4, 4).eval(),torch.randn(2,4,6,6)
    change = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    torch.testing.assert_close(block(x), (x+change).relu())
    assert isinstance(BasicBlock(4, 4, 2).shortcut, nn.Sequential) and isinstance(BasicBlock(4, 8).shortcut, nn.Sequential)

def test_initial_weights():
    torch.manual_seed(0)
    net = resnet(8, width=64)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            fan_out = m.out_channels*m.kernel_size[0]**2
            assert m.weight.std().item()==pytest.approx((2/fan_out)**.5, rel=.1)
        if isinstance(m, nn.BatchNorm2d): assert (m.weight==1).all() and (m.bias==0).all()
    assert init_weights_(net) is net

def test_same_seed_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in small_cnn().parameters()])
    assert weights(0).equal(weights(0)) and not weights(0).equal(weights(1))

@pytest.mark.parametrize('depth,near', [(2,'8 and 14'), (7,'8 and 14'), (9,'8 and 14'), (18,'14 and 20'), (21,'20 and 26')])
def test_wrong_depth_names_the_nearest(depth, near):
    with pytest.raises(ValueError, match=f'6k\\+2.*got {depth}.*{near}'): resnet(depth)

@pytest.mark.parametrize('f', [resnet, vgg, small_cnn, lambda **kw: get_model('resnet18', **kw)])
@pytest.mark.parametrize('kw', [dict(n_in=0), dict(n_out=0), dict(n_in=1.5), dict(n_out=None)])
def test_channels_are_positive_integers(f, kw):
    with pytest.raises(ValueError, match=f'`{next(iter(kw))}`'): f(**kw)

def test_stem_is_a_copy():
    net = tvm.resnet18(num_classes=10)
    small = cifar_stem(net)
    assert net.conv1.kernel_size==(7,7) and isinstance(net.maxpool, nn.MaxPool2d)
    assert small.conv1.kernel_size==(3,3) and small.conv1.stride==(1,1) and small.fc is not net.fc
    assert small.double().conv1.weight.dtype==cifar_stem(net.double()).conv1.weight.dtype==torch.float64
    for o in (resnet(8), tvm.mobilenet_v2()):
        with pytest.raises(ValueError, match=f'ResNet of torchvision, got {type(o).__name__}'): cifar_stem(o)

REAL = ('regnet_x_400mf', 'regnet_y_400mf') # RegNets compute their widths with tensors: no meta device, so two of them
NETS = [o for o in tvm.list_models(module=tvm) if not o.startswith('regnet') or o in REAL]

@pytest.mark.parametrize('name', NETS)
def test_every_torchvision_net_takes_grey_images(name):
    with torch.device('cpu' if name in REAL else 'meta'):
        net = get_model(name, n_in=1, n_out=5).eval()
        size = 299 if name=='inception_v3' else 224
        assert net(torch.randn(1, 1, size, size)).shape==(1,5)

def test_set_n_in_refuses():
    with pytest.raises(ValueError, match='Linear without one'): set_n_in_(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match='`0` is a grouped convolution'): set_n_in_(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), 2)
    net = small_cnn(3)
    first = net[0]
    assert set_n_in_(net, 3)[0] is first and set_n_in_(net, 2)[0].in_channels==2

def test_a_bare_convolution_has_no_parent():
    with pytest.raises(ValueError, match='part of a network'): set_n_in_(nn.Conv2d(3, 4, 3), 1)

def test_fastai_and_timm_by_name(monkeypatch):
    assert get_model('fastai/xresnet18', n_in=1, n_out=4)(torch.randn(2,1,32,32)).shape==(2,4)
    monkeypatch.setattr(models, 'find_spec', lambda o: None)
    with pytest.raises(ModuleNotFoundError, match='`timm/resnet18` needs the package timm'): get_model('timm/resnet18')
    assert list_models('timm/*')==[]

def test_timm_is_asked(monkeypatch):
    class Timm:
        is_model     = staticmethod(lambda o: o=='resnet18')
        list_models  = staticmethod(lambda: ['resnet18'])
        create_model = staticmethod(lambda name, **kw: (name, kw))
    monkeypatch.setattr(models, 'find_spec', lambda o: True)
    monkeypatch.setattr(models, 'import_module', lambda o: Timm)
    assert get_model('timm/resnet18', 1, 5)==('resnet18', dict(pretrained=False, in_chans=1, num_classes=5))
    assert list_models('timm/*')==['timm/resnet18']
    with pytest.raises(ValueError, match="'timm/resnet19'; did you mean 'timm/resnet18'"): get_model('timm/resnet19')

@pytest.mark.parametrize('name,near', [
    ('resent18', 'resnet18'), ('resnet9', 'resnet8'), ('smallcnn', 'small_cnn'), ('fastai/xresnet17', 'fastai/xresnet18')])
def test_names_are_suggested(name, near):
    with pytest.raises(ValueError, match=f"'{name}'; did you mean .*{near}"): get_model(name)

def test_strange_names():
    for name in ('', 'qqqqqq', '/', 'nolib/resnet18', None, 3):
        with pytest.raises(ValueError, match='`arch` is unknown'): get_model(name)

def test_list_models():
    names = list_models()
    assert names==sorted(set(names)) and {*models._OURS, 'resnet18', 'fastai/xresnet50'} <= set(names)
    assert list_models('resnet?')==['resnet8'] and list_models('nothing')==[]

def test_importing_models_leaves_fastai_alone():
    code = 'import sys, early_prune.models; sys.exit("fastai" in sys.modules or "timm" in sys.modules)'
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', code]).returncode==0
