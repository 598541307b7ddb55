"The lines of the first page that are shown and not run there: from a folder of images to a small network in a file."
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

def lines():
    "The code of the section *Your own network* of README.md."
    return re.search(r'## Your own network.*?```python\n(.*?)```', (ROOT/'README.md').read_text(), re.S)[1]

def test_a_network_of_ones_own_takes_at_most_twelve_lines():
    assert len([o for o in lines().splitlines() if o.strip()])<=12

@pytest.mark.slow
@pytest.mark.filterwarnings('default')
def test_the_lines_run(tmp_path, monkeypatch):
    import torch
    from fastai.vision.all import Image
    monkeypatch.chdir(tmp_path)
    for i in range(80):
        folder = tmp_path/'images'/'ab'[i%2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8)
        Image.fromarray((pixels//2 + 100*(i%2)).numpy()).save(folder/f'{i}.png')
    code = lines().replace('Resize(128)', 'Resize(32), num_workers=0').replace('fit_one_cycle(30', 'fit_one_cycle(7')
    scope = {}
    exec(compile(code, 'README.md', 'exec'), scope)
    assert scope['learn'].early_prune.done and (tmp_path/'small.safetensors').exists()
    n = sum(p.numel() for p in scope['small'].parameters())
    assert n<.5*sum(p.numel() for p in scope['build']().parameters())
