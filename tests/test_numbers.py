"Numbers that a network holds for others follow a cut, or stay where nobody can say what they count."
import copy
import json
from types import SimpleNamespace

import pytest
import torch
from constructed import Net
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from safetensors import safe_open
from torch import nn
from torch.utils.data import TensorDataset

from early_prune.callbacks import EarlyPruneCallback
from early_prune.checkpoint import resume, save_checkpoint
from early_prune.dependency import Groups, trace
from early_prune.ranking import Neurons
from early_prune.surgery import cut, load, save, write_tensors
from early_prune.triggers import AtEpoch


class Stages(nn.Module):
    "As the backbones of timm: a width for the head, and a list of what each stage returns."
    def __init__(self, classes=5):
        super().__init__()
        self.num_features = self.head_hidden_size = 12
        self.feature_info = [dict(num_chs=8, reduction=2, module='a'), dict(num_chs=12, reduction=4, module='b')]
        self.a,self.b,self.head = nn.Conv2d(3, 8, 3, 2),Inner(),nn.Linear(12, classes)

    def forward(self, x): return self.head(self.b(self.a(x).relu()).mean((2, 3)))

class Inner(nn.Module):
    "Has a layer inside that is as wide as what it returns, and is cut to another width."
    def __init__(self):
        super().__init__()
        self.up,self.out = nn.Conv2d(8, 12, 1),nn.Conv2d(12, 12, 1)

    def forward(self, x): return self.out(self.up(x).relu()).relu()

class Block(nn.Module):
    "A block with a configuration that others share."
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.up,self.down = nn.Linear(config.hidden, config.inner),nn.Linear(config.inner, config.hidden)

    def forward(self, x): return x + self.down(self.up(x).relu())

class Language(nn.Module):
    "Blocks with one configuration, as in transformers."
    def __init__(self, config):
        super().__init__()
        self.config,self.embed,self.out = config,nn.Linear(3, config.hidden),nn.Linear(config.hidden, 2)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(2)))

    def forward(self, x): return self.out(self.blocks(self.embed(x)))

def config(**more): return SimpleNamespace(hidden=8, inner=20, labels=2, name='x') if not more else SimpleNamespace(
    **vars(config()) | more)

def halves(groups, *names): return {g.name:range(g.n//2) for g in groups if not names or g.name in names}

def agree(groups, net):
    "Whether all numbers say what is there."
    return bool(groups.numbers(net).agrees.all())

X,IMAGE = torch.randn(4, 3),torch.randn(2, 3, 9, 9)

def test_a_new_head_of_a_cut_backbone(tmp_path):
    "Cut, new head, three steps, save and load."
    net = Stages()
    groups = trace(net, IMAGE)
    assert agree(groups, net)
    small = cut(net, groups, {'a':range(4), 'b.up':range(3), 'b.out':range(6)})
    assert (net.num_features, net.head_hidden_size, [o['num_chs'] for o in net.feature_info])==(6, 6, [4, 6])
    assert agree(small, net) and [o['reduction'] for o in net.feature_info]==[2, 4]
    net.head = nn.Linear(net.num_features, 7)
    optimizer = torch.optim.SGD(net.parameters(), .1)
    for _ in range(3):
        net(IMAGE).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    path = save(net.eval(), tmp_path/'small.safetensors')
    again = load(lambda: Stages(7), path)
    assert torch.equal(again(IMAGE), net(IMAGE))
    assert (again.num_features, [o['num_chs'] for o in again.feature_info])==(6, [4, 6])

def test_a_number_beside_a_module_counts_what_that_one_returns():
    "And nothing else: a width inside that is read and as large is no reason to change it."
    class Reads(Inner):
        def forward(self, x):
            y = self.up(x).relu()
            return self.out(y.reshape(len(y), self.width, *y.shape[2:])).relu()
    net = Stages()
    net.b = Reads()
    net.b.width = 12
    net.feature_info.append(dict(num_chs=12, module='head'))
    cut(net, trace(net, IMAGE), {'b.up':range(3), 'b.out':range(6)})
    assert [o['num_chs'] for o in net.feature_info]==[8, 6, 12]
    assert (net.b.width, net.num_features)==(3, 6), 'a number that the network does not need was tried with one that it needs'

def test_a_body_whose_forward_is_never_called():
    "As those of timm in fastai: something else calls `forward_features`."
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Stages()
            self.model.head = nn.Identity()
        def forward(self, x): return self.model.b(self.model.a(x).relu())
    net = nn.Sequential(Body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    cut(net, trace(net, IMAGE), {'0.model.b.out':range(6)})
    assert net[0].model.num_features==6

def test_a_second_cut():
    net = Stages()
    groups = cut(net, trace(net, IMAGE), {'b.out':range(6)})
    cut(net, groups, {'b.out':range(2)})
    assert net.num_features==2 and net.feature_info[1]['num_chs']==2

def test_the_table_comes_back_from_text():
    net = Stages()
    groups = Groups.from_json(trace(net, IMAGE).to_json())
    cut(net, groups, {'b.out':range(6)})
    assert net.num_features==6

def test_an_average_follows():
    net = Stages()
    average = copy.deepcopy(net)
    cut(net, trace(net, IMAGE), {'b.out':range(6)}, extras=(average,))
    assert average.num_features==6

def test_a_configuration_where_all_layers_are_cut_alike():
    given = config()
    net,other = Language(given),Language(given)
    groups = trace(net, X)
    cut(net, groups, halves(groups))
    assert (net.config.hidden, net.config.inner, net.config.labels)==(4, 10, 2)
    assert all(b.config is net.config for b in net.blocks), 'what modules share they share after the cut'
    assert other.config is given and given.hidden==8, 'the configuration of another network'
    assert [tuple(p.shape) for p in Language(net.config).parameters()]==[tuple(p.shape) for p in net.parameters()]

def test_a_configuration_where_layers_differ():
    "It says what it said, and the table says that it does not agree."
    net = Language(config())
    groups = trace(net, X)
    small = cut(net, groups, halves(groups, 'blocks.0.up'))
    said = small.numbers(net)
    assert net.config.inner==20 and said.loc['config.inner'].tolist()==[20, '10, 20', False]
    assert said.loc['config.hidden', 'agrees']

def test_a_configuration_comes_back_from_a_file(tmp_path):
    net = Language(config())
    groups = trace(net, X)
    cut(net, groups, halves(groups))
    again = load(lambda: Language(config()), save(net, tmp_path/'a.safetensors'))
    assert again.config.inner==10 and again.blocks[1].config is again.config

@pytest.mark.parametrize('more', [dict(longest=20), dict(nested=SimpleNamespace(words={str(i):20 for i in range(100)})),
                                  dict(data=torch.zeros(20))])
def test_what_nobody_can_explain_stays(more):
    "A second number that is as large, a table of words, and an object that holds more than a configuration."
    net = Language(config(**more))
    groups = trace(net, X)
    cut(net, groups, halves(groups))
    if 'nested' in more: assert net.config.inner==10 and set(net.config.nested.words.values())=={20}
    else: assert (net.config.inner, net.config.hidden)==(20, 8), 'half a configuration would describe another network'

def test_a_size_that_is_fixed_may_be_what_is_meant():
    "The number of positions is as large as the width."
    net = Net(lambda m,x: m.b((m.a(x)+m.shift).relu()), a=nn.Linear(3, 12), b=nn.Linear(12, 2))
    net.shift,net.positions,net.width = nn.Parameter(torch.zeros(5, 1)),5,12
    groups = trace(net, torch.randn(5, 3))
    cut(net, groups, {'a':range(6)})
    assert (net.positions, net.width)==(5, 6)
    net = Net(lambda m,x: m.b(m.a(x)[None].relu()), a=nn.Linear(3, 12), b=nn.Linear(12, 2))
    net.there = 12
    small = cut(net, trace(net, torch.randn(12, 3)), {'a':range(6)})
    assert net.there==12 and not small.numbers(net).loc['there', 'agrees']

def test_a_number_that_is_read_after_all():
    "It is no width: the network calculates with it."
    net = Net(lambda m,x: m.b(m.a(x)*m.scale), a=nn.Linear(3, 12), b=nn.Linear(12, 2))
    net.scale = 12
    groups = trace(net, X)
    before = net(X)
    cut(net, groups, {'a':range(12)})
    assert torch.equal(before, net(X))
    cut(net, groups, {'a':range(6)})
    assert net.scale==12

def test_a_file_that_knows_other_numbers_is_refused(tmp_path):
    net = Stages()
    cut(net, trace(net, IMAGE), {'b.out':range(6)})
    path = save(net, tmp_path/'a.safetensors')
    with safe_open(path, 'pt') as f:
        meta,tensors = f.metadata(),{k:f.get_tensor(k) for k in f.keys()}
    header = json.loads(meta['early_prune'])
    assert header['told']['']['feature_info.1.num_chs']==6
    for nm,attr,n in (('', '__class__', 3), ('', 'num_features', 99), ('b.up', 'weight.grad', 1), ('', 'num_features', '6')):
        told = {nm:{attr:n}}
        write_tensors(path, tensors, meta | {'early_prune':json.dumps(header | dict(told=told))})
        with pytest.raises(ValueError, match='unknown numbers'): load(Stages, path)

def test_a_number_that_a_constant_was_made_from_stays():
    "A network that is built again from the smaller number would scale otherwise, and answer otherwise."
    class Scaled(Language):
        def __init__(self, config):
            super().__init__(config)
            self.register_buffer('shrink', torch.tensor(1/config.inner), persistent=False)
        def forward(self, x): return self.out(self.blocks(self.embed(x))*self.shrink)
    net = Scaled(config())
    groups = trace(net, X)
    cut(net, groups, halves(groups))
    assert vars(net.config)==vars(config()) and net.embed.out_features==4

def test_a_number_whose_name_says_that_it_counts_something_else_stays():
    "It does not keep the width from following either, although it is as large."
    net = Language(config(max_position_embeddings=8, vocab_size=20))
    net.base_width = net.width = 8
    groups = trace(net, X)
    cut(net, groups, halves(groups))
    assert (net.config.hidden, net.config.inner, net.width)==(4, 10, 4)
    assert (net.config.max_position_embeddings, net.config.vocab_size, net.base_width)==(8, 20, 8)

def test_a_learner_that_goes_on_knows_the_numbers(tmp_path):
    "A checkpoint holds the numbers of a cut network, and that they were cut."
    def learner():
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(8, 3, 16, 16), torch.randint(0, 5, (8,)))
        dls = DataLoaders(DataLoader(data, bs=4, num_workers=0), DataLoader(data, bs=4, num_workers=0))
        return Learner(dls, Stages(), loss_func=nn.CrossEntropyLoss())
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=EarlyPruneCallback(Neurons(.5), trigger=AtEpoch(0), floor=.2, per_group=True))
    path = save_checkpoint(learn, tmp_path/'learner.safetensors')
    again = resume(learner(), path)
    assert learn.model.num_features==learn.model.head.in_features==6
    assert (again.model.num_features, again.model.feature_info)==(learn.model.num_features, learn.model.feature_info)
    small = load(Stages, save(again.model, tmp_path/'small.safetensors'))
    assert (small.num_features, small.feature_info)==(6, learn.model.feature_info)
