"""Two tutorials from top to bottom in JupyterLab, in headless Chromium, as a reader would run them: `make slow`.

Screenshots for review are left in `build/lab`."""
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parent.parent
SHOTS = ROOT/'build'/'lab'
BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'
MINUTES = 15 # a page may take, on a machine with other work to do

pytestmark = [pytest.mark.slow, pytest.mark.browser]

def _free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

SETTINGS = { # all cells are drawn, so that a progress bar above the screen can be seen; no questions about news
    '@jupyterlab/notebook-extension/tracker':{'windowingMode':'none'},
    '@jupyterlab/apputils-extension/notification':{'fetchNews':'false', 'checkForUpdates':False}}

def _write_settings(folder):
    for nm,values in SETTINGS.items():
        path = folder/f'{nm}.jupyterlab-settings'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))

def _without_outputs(path):
    nb = json.loads(path.read_text())
    for c in nb['cells']:
        if c['cell_type']=='code': c['outputs'],c['execution_count'] = [],None
    path.write_text(json.dumps(nb))

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "Address and folder of a JupyterLab with a copy of the book, without its outputs."
    home = tmp_path_factory.mktemp('lab')
    book,token,port = home/'nbs',secrets.token_hex(16),_free_port()
    shutil.copytree(ROOT/'nbs', book, ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for path in book.rglob('*.ipynb'): _without_outputs(path)
    folders = 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'JUPYTERLAB_WORKSPACES_DIR', 'JUPYTERLAB_SETTINGS_DIR'
    own = {nm:str(home/nm) for nm in folders}
    _write_settings(home/'JUPYTERLAB_SETTINGS_DIR')
    env = os.environ | own | {'PYTHONPATH':str(ROOT), 'PYDEVD_DISABLE_FILE_VALIDATION':'1'}
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}',
           f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={book}']
    with (home/'log').open('w') as log: server = subprocess.Popen(cmd, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(120):
            try:
                urlopen(f'http://127.0.0.1:{port}/api?token={token}', timeout=5).close()
                break
            except OSError: time.sleep(1)
        else: pytest.fail((home/'log').read_text()[-2000:])
        yield f'http://127.0.0.1:{port}/lab/workspaces/test/tree/{{}}?reset&token={token}', book
    finally:
        server.terminate()
        server.wait(30)

@pytest.fixture(scope='module')
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None) or pytest.fail('No Chromium found: apt-get install -y chromium', pytrace=False)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu'])
        yield b
        b.close()

STATUS = '.jp-Notebook-ExecutionIndicator[data-status="{}"]'

def _start(page):
    "Choose *Run All Cells* until the kernel is at work: a menu that opens before the kernel is there does nothing."
    page.wait_for_selector(STATUS.format('idle'), timeout=180_000)
    for _ in range(5):
        page.wait_for_timeout(3000)
        page.click('.lm-MenuBar-itemLabel:text-is("Run")')
        page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
        for _ in range(40):
            if page.locator(STATUS.format('busy')).count(): return
            page.wait_for_timeout(250)
    pytest.fail('the kernel did not begin')

def _run_all(page, name):
    "Run all cells; whether a progress bar was seen on the way."
    _start(page)
    bars,end = 0,time.time()+60*MINUTES
    while time.time()<end:
        if page.locator('.jp-OutputArea progress').count() and not bars:
            page.evaluate("document.querySelector('.jp-OutputArea progress')?.scrollIntoView()") # it may be gone by now
            page.screenshot(path=SHOTS/f'{name}-training.png')
            bars = 1
        if page.locator(STATUS.format('idle')).count() and not page.locator('.jp-InputPrompt:text-is("[*]:")').count(): return bars
        page.wait_for_timeout(300)
    pytest.fail(f'{name} did not end in {MINUTES} minutes')

def _outputs(path): return [o for c in json.loads(path.read_text())['cells'] if c['cell_type']=='code' for o in c['outputs']]

@pytest.mark.parametrize('name', ['five_minutes', 'one_cycle'])
def test_a_tutorial_runs_in_jupyterlab(lab, browser, name):
    url,book = lab
    SHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={'width':1400, 'height':1000})
    page.goto(url.format(f'tutorials/{name}.ipynb'))
    bars = _run_all(page, name)
    page.keyboard.press('Control+s')
    path,end = book/'tutorials'/f'{name}.ipynb',time.time()+60
    while time.time()<end and not any('data' in o for o in _outputs(path)): page.wait_for_timeout(500)
    for i,image in enumerate(page.locator('.jp-RenderedImage img, .jp-RenderedSVG img').all()[:4]):
        image.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        page.screenshot(path=SHOTS/f'{name}-plot-{i}.png')
    page.close()
    outputs = _outputs(path)
    errors = [f'{o["ename"]}: {o["evalue"]}' for o in outputs if o['output_type']=='error']
    errors += [''.join(o['text']) for o in outputs if o.get('name')=='stderr']
    pictures = [o for o in outputs if any(k.startswith('image/') for k in o.get('data', {}))]
    assert not errors
    assert bars, 'no progress bar was seen'
    assert len(pictures)>=3 and list(SHOTS.glob(f'{name}-plot-*.png'))
