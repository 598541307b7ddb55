"Densities against an independent statement of the published procedure."
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import resnet50, vgg11

from early_prune.core import prunable
from early_prune.distributions import er, erk, global_, uniform

SHAPES = {nm:{k:tuple(p.shape) for k,p in prunable(f(weights=None)).items()} for nm,f in dict(resnet50=resnet50, vgg11=vgg11).items()}

def rigl_erk(shapes, density, kernels=True):
    "Solve for epsilon, make the layer with the largest raw probability dense when it exceeds 1, and solve again (RigL)."
    raw = {nm:sum(s)/math.prod(s) if kernels else (s[0]+s[1])/(s[0]*s[1]) for nm,s in shapes.items()}
    n,dense = {nm:math.prod(s) for nm,s in shapes.items()},set()
    while True:
        eps = (density*sum(n.values())-sum(n[nm] for nm in dense)) / sum(raw[nm]*n[nm] for nm in n if nm not in dense)
        worst = max((nm for nm in n if nm not in dense), key=raw.get)
        if raw[worst]*eps<=1: return {nm:1. if nm in dense else eps*raw[nm] for nm in n}
        dense.add(worst)

@pytest.mark.parametrize('net', SHAPES)
@pytest.mark.parametrize('density', [.5, .2, .1, .05, .02])
@pytest.mark.parametrize('dist,kernels', [(erk, True), (er, False)])
def test_densities_are_rigls(net, density, dist, kernels):
    expected = rigl_erk(SHAPES[net], density, kernels)
    for nm,s in dist(SHAPES[net], 1-density).items(): assert abs(1-s-expected[nm])<1e-6

shape = st.tuples(st.integers(1, 64), st.integers(1, 64)) | st.tuples(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1,3]), st.sampled_from([1,3]))

@settings(max_examples=200, deadline=None)
@given(shapes=st.dictionaries(st.text('abc', min_size=1, max_size=4), shape, min_size=1), sparsity=st.floats(0, .99), floor=st.sampled_from([0., .005, .01]))
def test_law(shapes, sparsity, floor):
    n = {nm:math.prod(s) for nm,s in shapes.items()}
    for dist in (uniform, lambda *a: er(*a, floor=floor), lambda *a: erk(*a, floor=floor)):
        sp = dist(shapes, sparsity)
        assert list(sp)==list(shapes) and all(0<=s<1 for s in sp.values())
        assert abs(sum(sp[nm]*n[nm] for nm in n)/sum(n.values()) - sparsity)<1e-9
    assert min(1-s for s in erk(shapes, sparsity, floor=floor).values())>=floor-1e-12

@pytest.mark.parametrize('dist', [uniform, global_, er, erk])
@pytest.mark.parametrize('bad', [1., -.1, 95, float('nan')])
def test_bad_sparsity(dist, bad):
    with pytest.raises(ValueError, match='`sparsity` is a fraction'): dist(SHAPES['vgg11'], bad)

def test_impossible_floor():
    with pytest.raises(ValueError, match='`floor` 0.2 cannot exceed'): erk(SHAPES['vgg11'], .9, floor=.2)
