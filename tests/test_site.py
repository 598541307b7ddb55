"The built site in a real browser: `pytest -m browser`."
import functools
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'docs'))

import build
import check

pytestmark = pytest.mark.browser
PAGES = sorted(f'{p}.html' for p in build.site().pages.values())
EXTRA = ['search.html', 'symbols.html', '_modules/core.html']
BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']
WIDTHS = 1280, 390

def chromium():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or pytest.fail('No Chromium found: apt-get install -y chromium', pytrace=False)

def is_fresh():
    "Whether the site is newer than everything it is made from."
    made = build.OUT/'index.html'
    parts = [ROOT/'settings.ini', *(ROOT/f for f in build.FILES),
             *ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('early_prune/[!_]*.py'),
             *(p for p in build.DOCS.rglob('*') if p.suffix in ('.py', '.css', '.js', '.html'))]
    return made.exists() and made.stat().st_mtime > max(p.stat().st_mtime for p in parts if p.exists())

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def url():
    "Address of the site, built if it is not fresh."
    if not is_fresh(): subprocess.run([sys.executable, str(build.DOCS/'build.py')], cwd=ROOT, check=True)
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(build.OUT)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    thread.join()
    server.server_close()

@pytest.fixture(scope='module')
def browser():
    path = chromium()
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=FLAGS)
        yield b
        b.close()

FACTS = r"""async () => {
  const images = [...document.images].filter(i => getComputedStyle(i).display != 'none');
  images.forEach(i => i.loading = 'eager');
  await Promise.all(images.map(i => i.decode().catch(() => {})));
  const hidden = 'code, pre, script, style, noscript, .math, .headerlink';
  const walk = document.createTreeWalker(document.querySelector('article') || document.body, NodeFilter.SHOW_TEXT);
  const raw = [], tex = /\$[^$\s][^$]*\$|\\\(|\\\[|\\(?:frac|sum|begin|mathcal|cdot)\b/;
  for (let n; n = walk.nextNode();)
    if (!n.parentElement.closest(hidden) && tex.test(n.data)) raw.push(n.data.trim());
  const maths = [...document.querySelectorAll('.math')];
  const drawn = m => m.querySelector('.katex') && !m.querySelector('.katex-error');
  for (let i = 0; i < 100 && !maths.every(drawn); i++) await new Promise(r => setTimeout(r, 100)); // on a busy machine
  const src = f => images.filter(f).map(i => i.src);
  return {broken: src(i => !i.naturalWidth), silent: src(i => !i.alt), raw,
          maths: maths.length, undrawn: maths.filter(m => !drawn(m)).map(m => m.textContent)};
}"""

TOO_WIDE = r"""() => {
  const content = document.querySelector('.content'); // it would scroll, and the text with what is too wide
  const dragged = content ? content.scrollWidth - content.clientWidth : 0;
  if (document.documentElement.scrollWidth <= innerWidth && dragged <= 0) return [];
  const right = e => e.getBoundingClientRect().right;
  const wide = [...document.querySelectorAll('article *')].filter(e => right(e) > innerWidth + 1);
  return [`page ${document.documentElement.scrollWidth}, text ${dragged}`, ...wide.slice(0, 5).map(e => e.outerHTML.slice(0, 120))];
}"""

AXE = """async () => {
  const one = async rules => (await axe.run(document, rules)).violations
    .flatMap(v => v.nodes.slice(0, 5).map(n => `${v.id}: ${n.target} ${n.html.slice(0, 100)}`));
  const found = await one({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']});
  document.body.dataset.theme = 'dark';
  const dark = await one({runOnly: ['color-contrast']});
  document.body.dataset.theme = 'auto';
  return [...found, ...dark.map(o => 'dark ' + o)];
}"""

@pytest.fixture(scope='module')
def visit(browser, url):
    "Facts about a page; each page is opened once."
    @functools.cache
    def f(name):
        page, errors, failed, foreign = browser.new_page(viewport={'width':1280, 'height':900}), [], [], []
        page.on('console', lambda m: errors.append(m.text) if m.type in ('error', 'warning') else None)
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.on('requestfailed', lambda r: failed.append(r.url))
        page.on('response', lambda r: failed.append(f'{r.status} {r.url}') if r.status >= 400 else None)
        page.on('request', lambda r: None if r.url.startswith((url, 'data:')) else foreign.append(r.url))
        status = page.goto(f'{url}/{name}', wait_until='networkidle').status
        facts, wide = page.evaluate(FACTS), {}
        for w in WIDTHS:
            page.set_viewport_size({'width':w, 'height':844})
            wide[w] = page.evaluate(TOO_WIDE)
        page.close()
        return facts | {'status':status, 'errors':errors, 'failed':failed, 'foreign':foreign, 'wide':wide}
    return f

@pytest.mark.parametrize('name', PAGES+EXTRA)
def test_page_loads(visit, name):
    o = visit(name)
    assert (o['status'], o['errors'], o['failed']) == (200, [], [])

@pytest.mark.parametrize('name', PAGES+EXTRA)
def test_page_asks_no_other_host(visit, name): assert visit(name)['foreign'] == []

@pytest.mark.parametrize('name', PAGES)
def test_pictures_are_drawn_and_named(visit, name): assert (visit(name)['broken'], visit(name)['silent']) == ([], [])

@pytest.mark.slow
@pytest.mark.parametrize('name', PAGES+EXTRA)
def test_page_has_no_barriers(browser, url, name):
    "What axe-core finds against WCAG 2.1 A and AA, in light and dark."
    page = browser.new_page(viewport={'width':1280, 'height':900})
    page.goto(f'{url}/{name}', wait_until='load')
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate(AXE)
    page.close()
    assert found == []

@pytest.mark.parametrize('name', PAGES)
def test_maths_is_rendered(visit, name): assert (visit(name)['undrawn'], visit(name)['raw']) == ([], [])

def test_some_page_has_maths(visit): assert any(visit(o)['maths'] for o in PAGES)

@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize('name', PAGES+EXTRA)
def test_page_is_not_wider_than_the_screen(visit, name, width): assert visit(name)['wide'][width] == []

PHONE = r"""() => {
  document.querySelectorAll('.api details').forEach(d => { d.open = true; });
  const box = e => e.getBoundingClientRect();
  const texts = [...document.querySelectorAll('h3 code, h4 code')].map(box);
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const covered = [...document.querySelectorAll('a.source')].map(box).filter(b => texts.some(a => meet(a, b)));
  const cut = [...document.querySelectorAll('.output table.dataframe')].map(t => t.closest('.output'))
    .filter(o => o.scrollWidth > o.clientWidth).map(o => o.textContent.slice(0, 80));
  const first = document.createRange();
  const late = [...document.querySelectorAll('pre > .line > i:first-child')].filter(i => {
    if (!i.nextSibling) return false;
    first.selectNodeContents(i.nextSibling);
    return first.getClientRects()[0]?.top > box(i.parentElement).top + 12;
  });
  return {covered: covered.length, cut, late: late.map(i => i.parentElement.textContent)};
}"""

@pytest.mark.parametrize('name', ['callbacks', 'ranking', 'tutorials/grow_back'])
def test_a_phone_shows_what_a_desk_shows(browser, url, name):
    "No link on a heading, no table cut, and no line of code that begins below its own indent."
    page = browser.new_page(viewport={'width':390, 'height':844})
    page.goto(f'{url}/{name}.html', wait_until='load')
    found = page.evaluate(PHONE)
    page.close()
    assert found=={'covered':0, 'cut':[], 'late':[]}

@pytest.mark.parametrize('what', ['pre.columns', '.cell_output:has(img.wide)'])
def test_what_scrolls_fades_until_its_end(browser, url, what):
    page = browser.new_page(viewport={'width':390, 'height':844})
    page.goto(f'{url}/cli.html', wait_until='load')
    wide = page.locator(what).first
    wide.scroll_into_view_if_needed()
    page.wait_for_function('o => document.querySelector(o).classList.contains("more")', arg=what)
    wide.evaluate('e => { e.scrollLeft = e.scrollWidth; }')
    page.wait_for_function('o => !document.querySelector(o).classList.contains("more")', arg=what)
    page.close()

def test_symbols_of_a_cell_keep_their_order(browser, url):
    page = browser.new_page()
    page.goto(f'{url}/ranking.html')
    heads = page.eval_on_selector_all('h3', 'all => all.map(o => o.textContent.replace("#", ""))')
    page.close()
    places = [next(i for i, o in enumerate(heads) if o.startswith(nm)) for nm in ('l2_norm', 'fpgm', 'lamp', 'random_neurons')]
    assert places==sorted(places)

def test_private_symbols_are_not_documented(url):
    "Events of a private base class have no heading, and nothing public is `A kind of` it."
    for name in ('checkpoint', 'callbacks'):
        text = (build.OUT/f'{name}.html').read_text()
        assert 'CheckpointCallback' in text or 'SparsifyCallback' in text
        assert not re.search(r'<h[2-6]>.{0,80}<span class="pre">_', text) and 'A kind of <code class="docutils literal notranslate"><span class="pre">_' not in text

def test_the_code_of_what_is_private_is_folded_where_the_prose_speaks_of_it(url):
    "Rules and helpers have no heading of their own, and a page without them would be prose about nothing."
    for name,what in [('dependency', '_stretches, _viewed, view'), ('dependency', 'HEADS, WIDTHS, INNER'), ('checkpoint', '_Packer, _columns')]:
        text = (build.OUT/f'{name}.html').read_text()
        assert text.count(f'<summary>Code: {what}</summary>')==1
    assert 'Code: write_state' not in text and 'Code: Contents' not in text # these are shown with their symbols

def test_a_patched_method_with_a_decorator_has_its_class_and_source(url):
    text = (build.OUT/'masks.html').read_text()
    assert re.search(r'<h3>.{0,80}<span class="pre">Masks.apply</span>', text) and 'id="masks.apply"' in text

def test_a_parameter_is_no_link_to_a_symbol_of_its_name(url):
    text = (build.OUT/'checkpoint.html').read_text()
    assert re.search(r'<code class="literal">widths</code>', text) and not re.search(r'href="[^"]*#widths"', text)

def test_the_index_names_every_symbol_and_leads_to_it(url):
    text = (build.OUT/'symbols.html').read_text()
    assert all(f'href="{o}"' in text for o in ('callbacks.html#sparsifycallback', 'regrowth.html#regrow', 'triggers.html#epi'))
    assert 'Average the similarity' in text and not (build.OUT/'genindex.html').exists()

def test_search_finds_a_symbol(browser, url):
    sym = check.public(ROOT/'early_prune'/'core.py')[-1]
    page = browser.new_page()
    page.goto(f'{url}/search.html?q={sym}')
    page.wait_for_selector('#search-results li a', timeout=15_000)
    hits = page.eval_on_selector_all('#search-results li a', 'o => o.map(a => a.getAttribute("href"))')
    page.close()
    assert any(f'core.html#{sym.lower()}' in o for o in hits), f'{sym}: {hits}'

def test_dark_mode_toggles(browser, url):
    page = browser.new_page(color_scheme='light', viewport={'width':1280, 'height':900})
    page.goto(f'{url}/index.html')
    def light():
        rgb = page.evaluate('getComputedStyle(document.body).backgroundColor').strip('rgba()').split(',')
        return sum(map(int, rgb[:3]))/3
    seen = {page.get_attribute('body', 'data-theme'):light()}
    for _ in range(3):
        page.click('.content-icon-container .theme-toggle')
        page.wait_for_timeout(100)
        seen[page.get_attribute('body', 'data-theme')] = light()
    page.close()
    assert seen['light'] > 230 and seen['dark'] < 50

def test_source_link_leads_to_the_line(browser, url):
    page = browser.new_page()
    page.goto(f'{url}/core.html')
    with page.expect_navigation(): page.click('a.source >> nth=0')
    line = page.evaluate('document.querySelector(":target")?.textContent || ""')
    page.close()
    assert line.startswith(('def ', 'class ', '@')), page.url
