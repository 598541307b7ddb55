"""Notebooks to MyST notebooks (for Sphinx) and to GitHub Markdown (for README.md).

`to_myst` takes what nbdev's preprocessing left in `_proc/`; `to_markdown` takes a notebook as it is stored."""
import base64
import itertools
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import yaml

# Names and anchors --------------------------------------------------------------------------------

def page_of(path):
    "Page of a notebook, as nbdev names it: `03_criteria.ipynb` -> `criteria`."
    p = PurePosixPath(path)
    return str(p.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.stem.lower())))

def number_of(path):
    "Chapter number of a notebook: `03b_optimizers.ipynb` -> `3b`, or `None`."
    m = re.match(r'0*(\d+[a-z]?)[a-zA-Z0-9]*_', PurePosixPath(path).name)
    return m[1] if m else None

def notebooks_in(folder):
    "Notebooks below a folder, sorted, without those that a dot or an underscore hides."
    found = [p for p in folder.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(folder).parts)]
    return sorted(found)

def slug(title):
    "Anchor of a heading, as pandoc makes it: letters, digits, `_`, `-` and `.` stay, spaces become `-`."
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', title.lower()).strip())) or 'section'

@dataclass(frozen=True)
class Site:
    "What the bridge has to know to make links relative."
    lib: str = 'early_prune'            # Name of the package
    doc_url: str = 'https://docs.example/early_prune' # Where nbdev thinks the site is
    git_url: str = 'https://git.example/early_prune'  # Where nbdev thinks the repository is
    pages: dict = field(default_factory=dict)          # Notebook or file, relative to `nbs/` -> page
    anchors: frozenset|None = None      # Anchors of symbols, `core.html#cost`; `None` if not known
    branch: str = 'main'                # Branch whose files the links show

# Text outside of code -----------------------------------------------------------------------------

FENCE = re.compile(r'^ {0,3}(`{3,}|~{3,})')

def split_fences(md):
    "Split Markdown in pieces `(is_code, text)`; a piece ends where a fence begins or ends."
    res, buf, fence = [], [], None
    for line in md.splitlines(keepends=True):
        m = FENCE.match(line)
        if fence is None and m:
            if buf: res.append((False, ''.join(buf)))
            buf, fence = [line], m[1]
        elif fence and m and m[1][0] == fence[0] and len(m[1]) >= len(fence) and line.strip() == m[1]:
            res.append((True, ''.join(buf) + line))
            buf, fence = [], None
        else: buf.append(line)
    if buf: res.append((fence is not None, ''.join(buf)))
    return res

def outside_fences(md, f): return ''.join(s if code else f(s) for code, s in split_fences(md))

def outside_code(md, f):
    "Apply `f` to Markdown outside of fences and of code spans."
    def g(s): return ''.join(o if i % 2 else f(o) for i, o in enumerate(re.split(r'(`+[^`]+`+)', s)))
    return outside_fences(md, g)

# Directives and front matter ----------------------------------------------------------------------

DIRECTIVE = re.compile(r'\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$')

def directives(source):
    "Leading `#| key: value` lines as a dict, and the code without them."
    lines, res = source.splitlines(), {}
    while lines and (m := DIRECTIVE.match(lines[0])):
        res[m[1]] = m[2].strip('"\'')
        lines.pop(0)
    return res, '\n'.join(lines).strip('\n')

def front_matter(nb):
    "YAML of the raw cell that nbdev writes, and the cells without it."
    cells = [c for c in nb['cells'] if text(c['source']).strip()]
    if cells and cells[0]['cell_type'] == 'raw':
        m = re.match(r'---\s*\n(.*?)\n---\s*$', text(cells[0]['source']).strip(), re.S)
        if m: return yaml.safe_load(m[1]) or {}, cells[1:]
    return {}, cells

def text(o): return o if isinstance(o, str) else ''.join(o)

# Markdown -----------------------------------------------------------------------------------------

CALLOUTS = 'note', 'tip', 'warning', 'caution', 'important'

CALLOUT = re.compile(r'^(:{3,})\s*\{\s*\.callout-(\w+)([^}]*)\}\s*\n(.*?)^\1\s*$', re.M | re.S)

def callout_parts(m):
    "Colons, kind, title and body; the title is an attribute or a leading heading."
    kind, attrs, body = m[2], m[3], m[4].strip('\n')
    if kind not in CALLOUTS: raise ValueError(f'No callout of kind {kind!r}: use one of {sorted(CALLOUTS)}')
    t = re.search(r'title="([^"]*)"', attrs)
    title = t[1] if t else None
    if not title and (h := re.match(r'\s*#+\s+(.+?)\s*(?:\n|$)', body)): title, body = h[1], body[h.end():].strip('\n')
    return m[1], kind, title, body

def callouts(md):
    "Quarto's `::: {.callout-note}` as admonitions."
    def one(m):
        colons, kind, title, body = callout_parts(m)
        if not title: return f'{colons}{{{kind}}}\n{body}\n{colons}'
        return f'{colons}{{admonition}} {title}\n:class: {kind}\n\n{body}\n{colons}'
    return CALLOUT.sub(one, md)

def equations(md, page):
    "Quarto's `$$ ... $$ {#eq-x}` and `@eq-x` as labelled equations of MyST; labels are unique in the whole site."
    pre = page.replace('/', '-').replace('_', '-')
    md = outside_fences(md, lambda s: re.sub(r'\$\$[ \t]*\{#(eq-[\w-]+)\}', rf'$$ ({pre}-\1)', s))
    md = outside_code(md, lambda s: re.sub(r'(?<![\w@])@(eq-[\w-]+)', rf'{{eq}}`{pre}-\1`', s))
    return outside_code(md, lambda s: re.sub(r'(?<![\w@])@(fig-[\w-]+)', r'[the figure](#\1)', s))

LINK = re.compile(r'(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+(?:\([^()\s]*\))?)\)(\{[^}]*\})?')

def unlink_headings(md):
    "nbdev links symbols in headings too; a heading is a target, not a link."
    def f(s): return re.sub(r'^#{1,6} .*$', lambda m: LINK.sub(r'\1', m[0]), s, flags=re.M)
    return outside_fences(md, f)

def target(url, page, site):
    "Where a link leads within the site, as `page:` address; other links are unchanged."
    here = posixpath.dirname(page)
    def rel(to, frag=''):
        same = to == page and frag
        return 'page:' + ('' if same else posixpath.relpath(f'{to}.html', here or '.')) + frag
    path, _, frag = url.partition('#')
    frag = '#' + frag if frag else ''
    if url.startswith('#'): return 'page:' + url
    if path.startswith(site.doc_url + '/'): return rel(path[len(site.doc_url)+1:].removesuffix('.html'), frag)
    m = re.match(re.escape(site.git_url) + rf'/blob/[^/]+/{site.lib}/(\w+)\.py$', path)
    if m: return rel(f'_modules/{m[1]}', f'#L-{frag[2:]}' if re.fullmatch(r'#L\d+', frag) else '')
    if re.match(r'\w+:', url): return url
    file = posixpath.normpath(posixpath.join(here, path))
    if file in site.pages: return rel(site.pages[file], frag)
    if path.endswith('.html'): return rel(file.removesuffix('.html'), frag)
    return url

def symbol_anchors(nb, page):
    "Anchors of the symbols that a processed notebook shows."
    def shown(c): return [text(c['source'])] if c['cell_type'] == 'markdown' else markdown_outputs(c.get('outputs', []))
    md = unlink_headings('\n\n'.join(o for c in nb['cells'] for o in shown(c)))
    found = re.findall(r'^#+ `([\w.]+)`\s*$', md, re.M) + re.findall(r'<span id="([\w.]+)">', md)
    return {f'{page}.html#{o.lower()}' for o in found}

def links(md, page, site):
    "Make every link to a page of the site relative, drop attributes of Quarto and links to what no page shows."
    def one(m):
        url, symbol = target(m[2], page, site), m[2].removeprefix(site.doc_url + '/')
        if symbol != m[2] and '#' in symbol and site.anchors is not None and symbol not in site.anchors: return m[1]
        if posixpath.normpath(posixpath.join(posixpath.dirname(page), url)).startswith('../'): return m[1] # LICENSE
        attrs = '{.source}' if '/_modules/' in url or url.startswith('page:_modules/') else ''
        return f'[{m[1]}]({url}){attrs}'
    return outside_fences(md, lambda s: LINK.sub(one, s))

def doclinks_off(md, site):
    "Symbols without their link: README.md is read where the site is not."
    return outside_fences(md, lambda s: LINK.sub(lambda m: m[1] if m[2].startswith(site.doc_url) else m[0], s))

def modules(md, site):
    "nbdev links symbols only; `early_prune.core` is a link, too."
    pages = {p: f for f, p in site.pages.items() if f.endswith('.ipynb')}
    def one(m): return f'[{m[0]}]({site.doc_url}/{m[1]}.html)' if m[1] in pages else m[0]
    return outside_fences(md, lambda s: re.sub(rf'(?<!\[)`{site.lib}\.(\w+)`(?!\])', one, s))

def papers(md):
    "The number of a paper on arXiv is a link to it."
    one = r'[arXiv:\1](https://arxiv.org/abs/\1)'
    return outside_code(md, lambda s: re.sub(r'(?<!\[)\barXiv:(\d{4}\.\d{4,5})(?!\])', one, s))

def units(text):
    "A number stays on the line of its unit."
    return re.sub(r'(?<=\d) (?=%|(?:ms|s|kB|MB|GB|px)\b)', '\u00a0', text)

def myst(md, page, site):
    "All of the above."
    md = outside_code(re.sub(r'<!-- WARNING: THIS FILE WAS AUTOGENERATED.*?-->', '', md), units)
    return papers(links(equations(callouts(unlink_headings(modules(md, site))), page), page, site))

# Outputs ------------------------------------------------------------------------------------------

def clean_html(html):
    """HTML of an output without style sheets, scripts and the inline styles that DataFrames and fastprogress bring.

    Cells with a sentence in them are marked: numbers stay on one line, sentences wrap. Names in backticks are code."""
    html = re.sub(r'<(style|script)\b.*?</\1>', '', html, flags=re.S)
    kinds = ' border="1" class="dataframe"', ' class="fastprogress"', r' id="T_\w+"'
    html = re.sub(rf'<table(?:{"|".join(kinds)})?>', '<table class="dataframe">', html)
    html = re.sub(r' id="T_\w+"', '', html) # a Styler names its cells, and two tables of a page alike
    html = re.sub(r'<tr style="text-align: (?:right|left);">', '<tr>', html)
    html = re.sub(r'<td>(?=[^<]{41,}</td>)', '<td class="prose">', html)
    html = re.sub(r'<th>(?=[^<]{41,}</th>)', '<th class="prose">', html)
    return re.sub(r'(?<=[>\s])`([^`<]+)`', r'<code>\1</code>', html).strip()

CELL = re.compile(r'<(t[hd])((?: [^>]*)?)>(.*?)</\1>', re.S)
NUMBER = re.compile(r'[^A-Za-z]|NaN\b|nan\b|None\b')

def plain(html): return re.sub(r'<[^>]+>|&nbsp;|`', '', html).strip()

def mark_words(html):
    """Tables with the class `words` on the columns that hold no number: words begin at the left and may wrap.

    Cells of more than two short words are `long` as well. Names may break after an underscore or a dot.
    Columns are counted from the right, because a name of several rows stands in the first of them only."""
    return re.sub(r'<table class="dataframe">.*?</table>', lambda m: _mark_table(m[0]), html, flags=re.S)

def _mark_table(html):
    rows = [[plain(c[3]) for c in CELL.finditer(r) if c[1] == 'td'] for r in re.findall(r'<tr>.*?</tr>', html, re.S)]
    n = max(map(len, rows), default=0)
    columns = [[r[i] for r in rows if len(r) == n and r[i]] for i in range(n)]
    words = {i-n for i, o in enumerate(columns) if o and not any(map(NUMBER.match, o))}
    return re.sub(r'<tr>.*?</tr>', lambda m: _mark_row(m[0], words), html, flags=re.S)

BREAK = re.compile(r'(?<=[A-Za-z\d])(_(?=\w)|\.(?=[A-Za-z]))') # in a name, and not in a number

def _mark_row(row, words):
    n = len(CELL.findall(row)) if 'colspan' not in row else 0
    def one(m):
        at = next(count) - n
        if at not in words and m[1] == 'td': return m[0]
        kinds = ['words']*(at in words) + ['long']*(len(plain(m[3])) > 15)
        old = re.search(r'class="([^"]*)"', m[2])
        attrs, kinds = m[2].replace(old[0], '') if old else m[2], ([old[1]] if old else []) + kinds
        inner = m[3] if '<' in m[3] else BREAK.sub(r'\1<wbr>', units(m[3]))
        return f'<{m[1]}{attrs.rstrip()}' + f' class="{" ".join(kinds)}"'*bool(kinds) + f'>{inner}</{m[1]}>'
    count = itertools.count()
    return CELL.sub(one, row)

def clean_output(o):
    "One output as the site shows it, or `None` if nothing is left of it."
    o = {k: v for k, v in o.items() if k != 'transient'}
    if o['output_type'] == 'stream': return o if o['name'] == 'stdout' and text(o['text']).strip() else None
    if 'data' not in o: return o
    data = {k: v for k, v in o['data'].items()}
    if 'text/html' in data:
        data['text/html'] = clean_html(text(data['text/html']))
        data.pop('text/markdown', None)
        if not data['text/html']: return None
    rich = [k for k in data if k != 'text/plain']
    if rich: data.pop('text/plain', None)
    elif re.match(r'\s*$|<IPython\.core|<Figure size', text(data.get('text/plain', ''))): return None
    count = {'execution_count': None} if o['output_type'] == 'execute_result' else {}
    return o | {'data': data, 'metadata': {}} | count

def with_words(o):
    "An output of a page; README.md has no style sheet and needs no marks."
    if 'text/html' not in o.get('data', {}): return o
    return o | {'data': o['data'] | {'text/html': mark_words(o['data']['text/html'])}}

def clean_outputs(outputs): return [o for o in map(clean_output, outputs) if o]

def markdown_outputs(outputs):
    "Markdown of the outputs of an `output: asis` cell."
    return [text(o['data']['text/markdown']) for o in outputs if 'text/markdown' in o.get('data', {})] + \
           [text(o['text']) for o in outputs if o['output_type'] == 'stream' and o['name'] == 'stdout']

def last_sentence(md):
    "The sentence before a cell, as alternative text of the picture below it."
    md = re.sub(r'```.*?```|<[^>]*>|\$\$.*?\$\$|^#.*$|^:::.*$', '', md, flags=re.S | re.M)
    md = LINK.sub(r'\1', md).strip()
    s = re.split(r'(?<=[.:?])\s+', md)[-1] if md else ''
    return re.sub(r'[`*$\\]|(?<!\w)_|_(?!\w)', '', s).rstrip(':').strip()[:200]

def alt_text(d, prose):
    "What stands for the picture of a cell: its own words, or the sentence before it."
    return d.get('fig-alt') or d.get('fig-cap') or last_sentence(prose) or 'Output of the code above'

# A page of the site -------------------------------------------------------------------------------

def md_cell(src): return {'cell_type': 'markdown', 'metadata': {}, 'source': src}

def code_cell(cell, prose, page):
    "A code cell with the tags that MyST-NB understands; a list of Markdown cells where its output is Markdown."
    d, code = directives(text(cell['source']))
    outputs = cell.get('outputs', [])
    if d.get('include') == 'false': return []
    if d.get('output') == 'asis':
        shown = [] if d.get('echo') == 'false' else [md_cell(f'```python\n{code}\n```')]
        return shown + [md_cell(s) for s in markdown_outputs(outputs)]
    tags = []
    if d.get('echo') == 'false' or not code: tags.append('remove-input')
    if d.get('output') == 'false': tags.append('remove-output')
    if d.get('code-fold') == 'true': tags.append('hide-input')
    if 'answer' in d: tags.append('hide-cell') # the solution of an exercise
    nb = {'image': {'alt': alt_text(d, prose)}}
    if 'fig-cap' in d: nb['figure'] = {'caption': d['fig-cap']} | ({'name': d['label']} if 'label' in d else {})
    if 'answer' in d: nb |= {'code_prompt_show': f'Answer {d["answer"]}', 'code_prompt_hide': f'Answer {d["answer"]}'}
    if cell['metadata'].get('language', 'python') not in ('python', None):
        return [md_cell(f'```{cell["metadata"]["language"]}\n{code}\n```')] + [
            md_cell(f'```text\n{text(o["text"]).rstrip()}\n```') for o in clean_outputs(outputs) if 'text' in o]
    return [{'cell_type': 'code', 'metadata': {'tags': tags, 'mystnb': nb}, 'source': code, 'execution_count': None,
             'outputs': [with_words(o) for o in clean_outputs(outputs)]}]

def title_of(fm, path):
    "Title of a page; chapters carry their number."
    t, n = fm.get('title', page_of(path)), number_of(path)
    return t if n is None or '/' in str(path) else f'{n}. {t}'

METHOD = re.compile(r'<span id="([\w.]+)"></span>(?:\[(`[^`]+`)\]\([^)]*\)|(`[^`]+`))')

def one_anchor_each(cells):
    """A method that has its own heading keeps its anchor there; its line in the table of methods becomes a link.

    The link that nbdev gives to a method is that of a function of the same name, so it is dropped."""
    prose = '\n\n'.join(c['source'] for c in cells if c['cell_type'] == 'markdown')
    heads = {o.lower() for o in re.findall(r'^#+ `([\w.]+)`$', prose, re.M)}
    def one(m):
        name = m[2] or m[3]
        return f'[{name}](page:#{m[1].lower()})' if m[1].lower() in heads else f'<span id="{m[1]}"></span>{name}'
    return [c | {'source': METHOD.sub(one, c['source'])} if c['cell_type'] == 'markdown' else c for c in cells]

LAB = 'http://localhost:8888/lab/tree' # where `make lab` serves the repository
GITHUB, COLAB = 'https://github.com/', 'https://colab.research.google.com/github'
HOW = '../CONTRIBUTING.md'

def notebook_links(path, site):
    "Where the reader can run this page."
    where = f'nbs/{path}'
    blob = f'{site.git_url}/blob/{site.branch}/{where}'
    links = [f'[Notebook]({blob})', f'[JupyterLab]({LAB}/{where}) while `make lab` is running']
    if blob.startswith(GITHUB): links.append(f'[Colab]({COLAB}/{blob.removeprefix(GITHUB)})')
    if HOW in site.pages:
        url = f'{site.doc_url}/{site.pages[HOW]}.html#run-the-book'
        links.append(f'[how]({target(url, page_of(path), site)})')
    return f'\n:::{{container}} notebook-links\n{" · ".join(links)}\n:::\n'

def to_myst(
    nb,   # A notebook of `_proc/`
    path, # Its path below `nbs/`, such as `tutorials/first.ipynb`
    site, # Where links lead
):        # A notebook for MyST-NB
    "A processed notebook as page of the site."
    fm, cells = front_matter(nb)
    page, prose = page_of(path), ''
    head = f'# {title_of(fm, path)}\n'
    if fm.get('description'): head += f'\n:::{{container}} subtitle\n{fm["description"]}\n:::\n'
    if page != 'index': head += notebook_links(path, site)
    out = [md_cell(head)]
    for c in cells:
        src = text(c['source'])
        if c['cell_type'] == 'markdown':
            out.append(md_cell(myst(src, page, site)))
            prose = src
        elif c['cell_type'] == 'code':
            new = code_cell(c, prose, page)
            out += [o if o['cell_type'] == 'code' else md_cell(myst(o['source'], page, site)) for o in new]
    out = one_anchor_each(out)
    for i, c in enumerate(out): c['id'] = f'c{i}'
    return {'cells': out, 'nbformat': 4, 'nbformat_minor': 5,
            'metadata': {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'},
                         'language_info': {'name': 'python', 'pygments_lexer': 'ipython3'}}}

# README.md ----------------------------------------------------------------------------------------

HIDDEN = {'hide', 'export', 'exporti', 'exports', 'default_exp'}
EXT = {'image/svg+xml': 'svg', 'image/png': 'png', 'image/jpeg': 'jpg', 'image/gif': 'gif'}

def image(data, folder, stem):
    "The one picture of an output as `(path, bytes)`, or `None`. The name does not change while the picture does."
    for mime, ext in EXT.items():
        if mime not in data: continue
        s = text(data[mime])
        return f'{folder}/{stem}.{ext}', s.encode() if ext == 'svg' else base64.b64decode(s)

def output_markdown(o, folder, stem, alt, images):
    "One output as GitHub Markdown; pictures go into `images`."
    if o['output_type'] == 'error': return ''
    if 'text' in o: return f'```text\n{text(o["text"]).rstrip()}\n```'
    data = o['data']
    if found := image(data, folder, stem):
        images[found[0]] = found[1]
        return f'![{alt}]({found[0]})'
    if 'text/markdown' in data: return text(data['text/markdown']).strip()
    if 'text/html' in data: return re.sub(r'\n\s*\n', '\n', text(data['text/html']))
    return f'```text\n{text(data["text/plain"]).rstrip()}\n```'

def readme_target(url, nb_dir, pages):
    "A link of the notebook as seen from the folder above it."
    path, hash_, frag = url.partition('#')
    if re.match(r'\w+:', url) or url.startswith('#'): return url
    if path.endswith('.html'):
        back = {p: f for f, p in pages.items()}
        path = back.get(path.removesuffix('.html'), path)
    return posixpath.normpath(posixpath.join(nb_dir, path)) + hash_ + frag

def to_markdown(
    nb,                    # A notebook as it is stored
    site,                  # `pages` tells which notebook a `.html` link means
    nb_dir='nbs',          # Folder of the notebook, seen from the README
    folder='docs/images',  # Folder of the pictures, seen from the README
):                         # The Markdown, and `{path: bytes}` of its pictures
    "A stored notebook as README.md."
    out, images, prose, n = [], {}, '', 0
    def link(m): return f'[{m[1]}]({readme_target(m[2], nb_dir, site.pages)})'
    for c in nb['cells']:
        d, src = directives(text(c['source']))
        if HIDDEN & d.keys() or d.get('include') == 'false' or not src and not c.get('outputs'): continue
        if c['cell_type'] == 'markdown':
            prose = src
            src = re.sub(r'^> ?', '', src, flags=re.M) if re.match(r'# .*\n+> ', src) else src
            out.append(outside_fences(doclinks_off(github_callouts(src), site), lambda s: LINK.sub(link, s)).strip())
        elif c['cell_type'] == 'code':
            if d.get('echo') != 'false': out.append(f'```{language(src)}\n{src}\n```')
            if d.get('output') == 'false': continue
            for o in clean_outputs(c.get('outputs', [])):
                n += 1
                out.append(output_markdown(o, folder, f'readme-{n}', alt_text(d, prose), images))
    note = '<!-- Written from nbs/index.ipynb by `make readme`: edit the notebook. -->'
    return '\n\n'.join([note] + [o for o in out if o]) + '\n', images

def language(src): return 'sh' if src.startswith(('!', '%%bash')) else 'python'

def github_callouts(md):
    "Quarto's callouts as GitHub's alerts."
    def one(m):
        _, kind, title, body = callout_parts(m)
        lines = ([f'**{title}**', ''] if title else []) + body.splitlines()
        return '\n'.join([f'> [!{kind.upper()}]'] + [f'> {o}'.rstrip() for o in lines])
    return CALLOUT.sub(one, md)
