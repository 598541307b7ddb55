"Recurrent layers: a hidden unit is a neuron, with the rows of all its gates and the columns that read it."
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from early_prune.dependency import trace
from early_prune.masks import Masks
from early_prune.ranking import l2_norm
from early_prune.surgery import cut, load, prove, save, silence

GATES = {nn.LSTM:4, nn.GRU:3, nn.RNN:1, nn.LSTMCell:4, nn.GRUCell:3, nn.RNNCell:1}
LAYERS,CELLS = [nn.LSTM, nn.GRU, nn.RNN],[nn.LSTMCell, nn.GRUCell, nn.RNNCell]

class Text(nn.Module):
    "Embedding, recurrent layer, head."
    def __init__(self, kind, hidden=6, width=5, **kwargs):
        super().__init__()
        self.embed,self.rnn = nn.Linear(3, width),kind(width, hidden, **kwargs)
        self.head = nn.Linear((self.rnn.proj_size or hidden)*(2 if self.rnn.bidirectional else 1), 2)

    def forward(self, x): return self.head(self.rnn(self.embed(x))[0])

class Stepped(nn.Module):
    "A cell and a loop, with the first state as PyTorch makes it or made here."
    def __init__(self, kind, own=False, hidden=6, **kwargs):
        super().__init__()
        self.embed,self.cell,self.head = nn.Linear(3, 5),kind(5, hidden, **kwargs),nn.Linear(hidden, 2)
        self.own = own

    def forward(self, x):
        state = None
        if self.own:
            state = x.new_zeros(len(x), self.cell.hidden_size)
            if isinstance(self.cell, nn.LSTMCell): state = state,state.clone()
        for step in self.embed(x).unbind(1): state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)

def some(groups, seed=0):
    "About half of each group, not in order of the file."
    g = torch.Generator().manual_seed(seed)
    return {o.name:sorted(torch.randperm(o.n, generator=g)[:max(o.least, o.n//2)].tolist()) for o in groups if o.n>o.least}

def answers(net, x, trains):
    "Outputs and gradients of the input."
    net.train(trains)
    out = net(*x)
    return out[0] if isinstance(out, tuple) else out

def law(net, *x, expected=None):
    "Cut equals masked, in evaluation and in training; returns the table and the cut network."
    net = net.double()
    x = [o.double() if torch.is_tensor(o) and o.is_floating_point() else o for o in x]
    groups = trace(net, *x)
    if expected is not None: assert {g.name:g.n for g in groups}==expected, groups.why_fixed()
    assert all(g.exact for g in groups), groups.table()
    keep = some(groups)
    masked,small = silence(copy.deepcopy(net), groups, keep),copy.deepcopy(net)
    cut(small, groups, keep)
    for trains in (False, True):
        torch.testing.assert_close(answers(small, x, trains), answers(masked, x, trains), rtol=0, atol=1e-10)
    assert len(trace(small, *x))==len(groups), 'the cut network has the same neurons'
    assert all(prove(net, groups, *x)[g.name].exact for g in groups)
    return groups,keep,small

X = torch.randn(4, 7, 3)

@pytest.mark.parametrize('more', [{}, dict(num_layers=2), dict(bidirectional=True), dict(num_layers=3, bidirectional=True, bias=False),
                                  dict(batch_first=True), dict(num_layers=2, dropout=0.)])
@pytest.mark.parametrize('kind', LAYERS)
def test_a_hidden_unit_is_a_neuron(kind, more):
    "Units of all layers and directions of one module share their number."
    _,keep,small = law(Text(kind, **more), X, expected={'embed':5, 'rnn':6})
    assert (small.rnn.hidden_size, small.rnn.input_size)==(3, 2)
    directions,layers = 1+more.get('bidirectional', False),more.get('num_layers', 1)
    for nm,p in small.rnn.named_parameters():
        first = 3*GATES[kind]
        assert p.shape[0]==first and (p.ndim==1 or p.shape[1] in ({2} if 'ih_l0' in nm else {3, 3*directions}))
    assert small.head.in_features==3*directions and layers==small.rnn.num_layers

@pytest.mark.parametrize('more', [{}, dict(num_layers=2), dict(num_layers=2, bidirectional=True, bias=False)])
def test_projections(more):
    "PyTorch would take a state that is cut to the width of its projection for one without: only the input is free."
    groups,_,small = law(Text(nn.LSTM, proj_size=4, **more), X, expected={'embed':5})
    assert (small.rnn.hidden_size, small.rnn.proj_size, small.rnn.input_size)==(6, 4, 2)
    assert any('projection' in why for why in groups.why_fixed().index)

@pytest.mark.parametrize('own', [False, True])
@pytest.mark.parametrize('kind', CELLS)
def test_cells(kind, own):
    _,_,small = law(Stepped(kind, own), X, expected={'embed':5, 'cell':6})
    assert (small.cell.hidden_size, small.cell.input_size)==(3, 2)

@pytest.mark.parametrize('kind', [nn.RNN, nn.RNNCell])
def test_relu_as_nonlinearity(kind):
    law(Text(kind, nonlinearity='relu') if kind is nn.RNN else Stepped(kind, nonlinearity='relu'), X)

@pytest.mark.parametrize('kind', LAYERS)
def test_one_sequence_without_a_batch(kind): law(Text(kind), torch.randn(7, 3))

@pytest.mark.parametrize('kind', LAYERS)
def test_as_the_first_layer(kind):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.head = kind(3, 6),nn.Linear(6, 2)
        def forward(self, x): return self.head(self.rnn(x)[0][-1])
    law(First(), X)

@pytest.mark.parametrize('kind', LAYERS)
def test_two_modules_one_after_the_other(kind):
    "Each has its own width."
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.head = kind(3, 6, bidirectional=True),kind(12, 8),nn.Linear(8, 2)
        def forward(self, x): return self.head(self.b(self.a(x)[0])[0])
    _,_,small = law(Two(), X)
    assert (small.a.hidden_size, small.b.hidden_size, small.b.input_size)==(3, 4, 6)

class Packed(Text):
    def forward(self, x):
        packed = pack_padded_sequence(self.embed(x), torch.tensor([7, 5, 2, 2]), batch_first=True)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])

@pytest.mark.parametrize('more', [{}, dict(num_layers=2, bidirectional=True)])
@pytest.mark.parametrize('kind', LAYERS)
def test_packed_sequences(kind, more): law(Packed(kind, **more), X, expected={'embed':5, 'rnn':6})

@pytest.mark.parametrize('kind', LAYERS)
def test_the_last_state_is_read(kind):
    "A classifier of sequences reads the last state of the last layer, in both directions."
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.head = kind(3, 6, num_layers=2, bidirectional=True),nn.Linear(12, 2)
        def forward(self, x):
            state = self.rnn(x)[1]
            h = state[0] if isinstance(state, tuple) else state
            return self.head(torch.cat([h[-2], h[-1]], 1))
    law(Last(), X)

@pytest.mark.parametrize('kind', LAYERS)
def test_a_state_that_is_handed_on(kind):
    "The decoder begins where the encoder ends: they share their neurons."
    class Translate(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.head = kind(3, 6),kind(3, 6),nn.Linear(6, 2)
        def forward(self, x):
            _,state = self.a(x)
            return self.head(self.b(x, state)[0])
    _,_,small = law(Translate(), X)
    assert small.a.hidden_size==small.b.hidden_size==3

def test_a_state_that_is_learned():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.head,self.start = nn.GRU(3, 6),nn.Linear(6, 2),nn.Parameter(torch.randn(1, 1, 6))
        def forward(self, x): return self.head(self.rnn(x, self.start.expand(-1, x.shape[1], -1).contiguous())[0])
    _,_,small = law(Learned(), X)
    assert small.start.shape==(1, 1, 3)

@pytest.mark.parametrize('kind', LAYERS)
def test_a_state_from_outside_keeps_the_size(kind):
    "Zeros or not: whoever calls the network hands in a state of the old size."
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed,self.rnn,self.head = nn.Linear(3, 5),kind(5, 6),nn.Linear(6, 2)
        def forward(self, x, h): return self.head(self.rnn(self.embed(x), (h, h) if kind is nn.LSTM else h)[0])
    for h in torch.zeros(1, 7, 6), torch.randn(1, 7, 6):
        groups,_,small = law(Given(), X, h, expected={'embed':5})
        assert small.rnn.hidden_size==6
    assert any('state' in why for why in groups.why_fixed().index)

def test_a_state_of_ones_is_no_zero():
    "A unit whose weights are all zero would keep what the first state was."
    class Ones(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.head = nn.GRU(3, 6),nn.Linear(6, 2)
        def forward(self, x): return self.head(self.rnn(x, torch.ones(1, x.shape[1], self.rnn.hidden_size, dtype=x.dtype))[0])
    groups = trace(Ones(), X)
    assert not [g for g in groups if 'rnn' in g.name] or not groups['rnn'].exact

def test_a_state_that_is_returned_keeps_the_size():
    class Returns(Text):
        def forward(self, x): return self.rnn(self.embed(x))
    groups = trace(Returns(nn.LSTM), X)
    assert [g.name for g in groups]==['embed'] and any('output of the network' in why for why in groups.why_fixed().index)

def gate_rows(kind, hidden, kept): return [g*hidden+i for g in range(GATES[kind]) for i in kept]

@pytest.mark.parametrize('make', [torch.optim.Adam, lambda p: torch.optim.SGD(p, .1, momentum=.9)])
@pytest.mark.parametrize('kind', LAYERS)
def test_a_training_goes_on_as_that_of_the_small_layer(kind, make):
    "Memory of the optimizer included: the expectation is sliced by hand from what was there before."
    torch.manual_seed(0)
    net = Text(kind, num_layers=2, bidirectional=True).double()
    optimizer,x,y = make(net.parameters()),X.double(),torch.randn(4, 7, 2).double()
    def step(net, optimizer):
        optimizer.zero_grad()
        loss = (net(x)-y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()
    for _ in range(3): step(net, optimizer)
    groups = trace(net, x)
    kept = [0, 2, 5]
    rows,wide = gate_rows(kind, 6, kept),[*kept, *(6+i for i in kept)]
    def sliced(nm, t):
        if nm=='head.weight': return t[:, wide]
        if not nm.startswith('rnn'): return t
        t = t[rows]
        return t[:, kept] if 'weight_hh' in nm else t[:, wide] if 'weight_ih_l1' in nm else t
    native = Text(kind, hidden=3, num_layers=2, bidirectional=True).double()
    native.load_state_dict({nm:sliced(nm, p.detach()).clone() for nm,p in net.named_parameters()})
    other = make(native.parameters())
    for (nm,p),q in zip(net.named_parameters(), native.parameters()):
        other.state[q] = {k:(sliced(nm, v) if v.ndim else v).clone() for k,v in optimizer.state[p].items()}
    cut(net, groups, {'rnn':kept}, optimizer)
    for _ in range(4): assert step(net, optimizer)==pytest.approx(step(native, other), rel=1e-12)
    for p,q in zip(net.parameters(), native.parameters()): torch.testing.assert_close(p, q, rtol=0, atol=1e-12)

@pytest.mark.parametrize('kind', LAYERS)
def test_a_file_brings_it_back(kind, tmp_path):
    def build(): return Text(kind, num_layers=2, bidirectional=True)
    net = build()
    groups = trace(net, X)
    cut(net, groups, some(groups))
    again = load(build, save(net.eval(), tmp_path/'a.safetensors'))
    assert torch.equal(again(X), net(X)) and again.rnn.hidden_size==net.rnn.hidden_size==3
    net.load_state_dict(again.state_dict())

@pytest.mark.parametrize('kind', LAYERS)
def test_a_score_sums_over_all_gates(kind):
    "In both layers: the rows of each gate, the columns that read it, and no others."
    net = Text(kind, num_layers=2)
    groups = trace(net, X)
    with torch.no_grad():
        for p in net.parameters(): p.fill_(1.)
        net.rnn.weight_hh_l1[gate_rows(kind, 6, [2])[-1]] = 0.
        net.rnn.weight_ih_l0[gate_rows(kind, 6, [4])[0]] = -3.
    scores = l2_norm(net, groups)
    mine = scores[groups['rnn'].start:groups['rnn'].start+6]
    assert mine.argmin()==2 and mine.argmax()==4

def test_masks_see_every_matrix():
    masks = Masks(Text(nn.LSTM, num_layers=2, bidirectional=True, proj_size=4)) # cells: see `test_matrices`
    for kind in ('weight_ih', 'weight_hh', 'weight_hr'):
        assert {f'rnn.{kind}_l{i}{d}' for i in range(2) for d in ('', '_reverse')}<=set(masks.params)

def test_what_packs_them():
    "`pack_sequence` of sequences of different lengths, which have no size of their own."
    class Ragged(Text):
        def forward(self, *xs): return self.head(self.rnn(pack_sequence([self.embed(x) for x in xs]))[0].data)
    law(Ragged(nn.GRU), torch.randn(5, 3), torch.randn(3, 3))

def test_long_sequences_take_no_longer():
    "All steps are alike: a trace looks at a few."
    calls = []
    class Counts(nn.LSTM):
        def forward(self, *args):
            calls.append(len(args[0]))
            return super().forward(*args)
    net = Text(Counts)
    assert len(trace(net, torch.randn(2000, 1, 3)))==2 and set(calls)=={2000}

def test_weights_lie_in_one_piece_of_memory_again(monkeypatch):
    "Kernels of a GPU want them so, and would copy them in every step."
    net,seen = Text(nn.GRU),[]
    groups = trace(net, X)
    monkeypatch.setattr(nn.RNNBase, 'flatten_parameters', lambda m: seen.append(tuple(m.weight_hh_l0.shape)))
    cut(net, groups, {'rnn':[0, 1, 4]})
    assert seen==[(9, 3)]

def test_the_kernels_are_as_before():
    was = torch._C._get_mkldnn_enabled(),torch._C._get_cudnn_enabled()
    with pytest.raises(ValueError): trace(Text(nn.GRU), torch.randn(4, 7, 9))
    trace(Text(nn.GRU), X, real=True)
    assert (torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled())==was

@pytest.mark.parametrize('kind', LAYERS)
def test_traced_with_numbers(kind):
    "The same table."
    for net in Text(kind, num_layers=2, bidirectional=True),Packed(kind):
        found,real = trace(net, X),trace(net, X, real=True)
        assert [(g.name, g.n, g.places, g.exact) for g in found]==[(g.name, g.n, g.places, g.exact) for g in real]

def test_an_input_of_zeros_is_left_as_it_was():
    class Given(Text):
        def forward(self, x, h): return self.head(self.rnn(self.embed(x), h)[0])
    h = torch.zeros(1, 7, 6)
    trace(Given(nn.GRU), X, h)
    assert not vars(h)

def test_awd_lstm_is_left_alone():
    "Its dropout masks and the state that it keeps have sizes of their own; it is as it was, and says why."
    from fastai.text.models.awdlstm import AWD_LSTM
    from fastai.text.models.core import LinearDecoder, SequentialRNN
    body = AWD_LSTM(20, 12, 16, 2)
    net = SequentialRNN(body, LinearDecoder(20, 12, .1, tie_encoder=body.encoder))
    words,held = torch.randint(0, 20, (4, 9)),body.hidden
    groups = trace(net, words)
    assert not len(groups) and any('input_dp' in why for why in groups.why_fixed().index)
    assert body.hidden is held and held[0][0].shape==(1, 1, 16)
    assert {'0.rnns.0.module.weight_ih_l0', '0.rnns.0.weight_hh_l0_raw'}<=set(Masks(net).params)

@pytest.mark.parametrize('value', [0., 1.])
def test_a_state_in_a_buffer_is_cut(value):
    "It has slices like any tensor; its readers are silent with the unit, whatever it holds."
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn,self.head = nn.GRU(3, 6),nn.Linear(6, 2)
            self.register_buffer('start', torch.full((1, 1, 6), value))
        def forward(self, x): return self.head(self.rnn(x, self.start.expand(-1, x.shape[1], -1).contiguous())[0])
    _,_,small = law(Held(), X)
    assert small.start.shape==(1, 1, 3)
