"What a notebook shows: pictures while a network trains, and objects drawn where they are named."
import subprocess
import sys

import pytest
import torch
from fastai.callback.schedule import Learner
from fastai.metrics import accuracy

from early_prune.callbacks import EarlyPruneCallback, ShowPruning, SparsifyCallback
from early_prune.criteria import rms_magnitude
from early_prune.data import digits
from early_prune.dependency import trace
from early_prune.masks import Masks
from early_prune.models import small_cnn
from early_prune.ranking import Neurons, plot_kept, rank, scores, widths
from early_prune.schedules import SCHEDULES, Schedule, plan
from early_prune.triggers import AtEpoch


def fit(*cbs, epochs=3):
    learn = Learner(digits(limit=128), small_cnn(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2, cbs=list(cbs))
    return learn

class Shown:
    "Stands in for IPython's display: what was shown, and how often it was updated."
    def __init__(self): self.n = 0
    def __call__(self, figure, display_id): return self
    def update(self, figure): self.n += 1

@pytest.mark.parametrize('cb', [lambda: SparsifyCallback(.5), lambda: EarlyPruneCallback(Neurons(.3), trigger=AtEpoch(1))])
def test_one_picture_is_redrawn(cb, monkeypatch):
    import IPython.display

    import early_prune.callbacks as callbacks
    shown = Shown()
    monkeypatch.setattr(callbacks, 'IN_NOTEBOOK', True)
    monkeypatch.setattr(IPython.display, 'display', shown)
    show = ShowPruning()
    fit(cb(), show)
    assert shown.n==2 and show.handle is shown and show.figure is not None

def test_without_a_notebook_the_figure_is_kept():
    show = ShowPruning(every=2)
    fit(SparsifyCallback(.5), show)
    assert show.figure is not None and show.handle is None

def test_nothing_to_watch_is_an_error():
    with pytest.raises(ValueError, match='beside it'): fit(ShowPruning())
    with pytest.raises(ValueError, match='at least 1 epoch'): ShowPruning(every=0)

@pytest.mark.parametrize('sched', [*SCHEDULES.values(), Schedule(lambda start, end, pos: end)])
def test_a_schedule_is_valid_svg(sched):
    from xml.dom.minidom import parseString
    assert parseString(sched._repr_svg_()).documentElement.tagName=='svg'

def test_a_table_of_groups_says_its_size():
    assert repr(trace(small_cnn(), torch.zeros(1, 1, 8, 8))).startswith('Groups(3 groups, 112 neurons')

def test_a_network_with_an_attribute_called_groups_raises_no_warning():
    net = small_cnn()
    net.groups = 1 # as torchvision's ResNet has
    learn = Learner(digits(limit=128), net, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=EarlyPruneCallback(Neurons(.3), trigger=AtEpoch(1)))
    assert learn.early_prune.done

def test_the_first_line_of_a_notebook_warns_of_nothing():
    code = 'import warnings; warnings.simplefilter("error", FutureWarning); import early_prune.all'
    assert subprocess.run([sys.executable, '-c', code]).returncode==0

def test_a_plan_is_a_list_and_shows_its_ends():
    found = plan(SCHEDULES['agp'], 100, .9)
    assert found==list(found) and dict(found)[99]==.9
    assert found._repr_html_().count('<tr>')==10 and '<td>...</td>' in found._repr_html_()
    assert plan(SCHEDULES['one_shot'], 100, .9)._repr_html_().count('<tr>')==2

def test_masks_say_their_size_above_the_table():
    assert Masks(small_cnn())._repr_html_().startswith('<p>Masks(4 layers, weight, sparsity 0.0000)</p><table')

@pytest.mark.parametrize('floor', [1, .25])
def test_what_is_drawn_as_kept_is_kept(floor):
    net = small_cnn()
    groups = trace(net, torch.zeros(1, 1, 8, 8))
    keep = rank(groups, scores(net, groups, rms_magnitude), Neurons(.5), floor=floor)
    bars = [round(o.get_height()) for o in plot_kept(groups, keep).patches]
    assert bars==[g.n for g in groups]+list(widths(keep))
    assert [round(o.get_height()) for o in plot_kept(groups, {}).patches]==[g.n for g in groups]*2
