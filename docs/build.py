"""Build the site, or README.md, from the notebooks. Run in the root of the repository:

    python docs/build.py                 # nbs/ -> _docs/, then check every link and anchor
    python docs/build.py --readme        # nbs/index.ipynb -> README.md
    python docs/build.py --check-readme  # exit code 1 if README.md is stale

No Quarto, no network."""
import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import yaml

from bridge import (
    LINK,
    Site,
    md_cell,
    myst,
    notebooks_in,
    outside_fences,
    page_of,
    symbol_anchors,
    to_markdown,
    to_myst,
)

ROOT = Path(__file__).resolve().parent.parent
DOCS, NBS, PROC, OUT = ROOT/'docs', ROOT/'nbs', ROOT/'_proc', ROOT/'_docs'
WORK = ROOT/'build'/'docs'
HTML = WORK/'html'
IMAGES = 'docs/images'
SYMBOLS = 'symbols' # the page that lists all public names
FILES = {'CHANGELOG.md': 'changelog', 'CONTRIBUTING.md': 'contributing', 'CITATION.cff': 'cite'}

def settings():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']

def site():
    "What links may point to: every notebook, and the files that become pages."
    cfg = settings()
    nbs = [p.relative_to(NBS).as_posix() for p in notebooks_in(NBS)]
    pages = {p: page_of(p) for p in nbs} | {f'../{f}': page for f, page in FILES.items() if (ROOT/f).exists()}
    return Site(cfg['lib_name'], cfg['doc_host'] + cfg['doc_baseurl'], cfg['git_url'], pages, branch=cfg['branch'])

# The sources of Sphinx ----------------------------------------------------------------------------

def toctree(caption, pages):
    return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(pages) + '\n```' if pages else ''

def reading_order():
    "Places of the notebooks in `nbs/sidebar.yml`: `{path: place}`."
    listed = yaml.safe_load((NBS/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    flat = [p for o in listed for p in (o['contents'] if isinstance(o, dict) else [o])]
    return {p: i for i, p in enumerate(flat)}

def contents(pages):
    "The sidebar: tutorials, chapters, studies, project, in the order of `nbs/sidebar.yml`; what it lacks comes last."
    place = reading_order()
    nbs = sorted((p for p in pages if p.endswith('.ipynb')), key=lambda p: (place.get(p, len(place)), p))
    groups = {'Tutorials': [p for p in nbs if p.startswith('tutorials/')],
              'Chapters': [p for p in nbs if '/' not in p and p != 'index.ipynb'],
              'Studies': [p for p in nbs if p.startswith('studies/')]}
    home = '```{toctree}\n:hidden:\n\nHome <self>\n```'
    trees = [home] + [toctree(c, [pages[p] for p in ps]) for c, ps in groups.items()]
    project = [SYMBOLS] + [pages[f'../{f}'] for f in FILES if f'../{f}' in pages]
    return '\n\n'.join(trees + [toctree('Project', project)])

def citation(path):
    "CITATION.cff as a page: in words, as BibTeX, and as it is."
    src = path.read_text(encoding='utf-8')
    c = yaml.safe_load(src)
    def name(a): return a.get('name') or f'{a.get("family-names", "")}, {a.get("given-names", "")}'
    authors = ' and '.join(f'{{{name(a)}}}' for a in c['authors'])
    fields = {'title': c['title'], 'version': c.get('version'), 'year': str(c.get('date-released', ''))[:4],
              'url': c.get('url') or c.get('repository-code')}
    bib = ''.join(f',\n  {k:7} = {{{v}}}' for k, v in fields.items() if v)
    key = c['title'].split(':')[0].strip().replace(' ', '_')
    bib = f'@software{{{key},\n  author  = {{{authors}}}{bib}\n}}'
    return (f'# How to cite\n\n{c.get("message", "")}\n\n```bibtex\n{bib}\n```\n\n'
            f'`CITATION.cff`, which reference managers read, says the same:\n\n```yaml\n{src.strip()}\n```\n')

def what(node, src):
    "What a symbol is, in one line: its docstring, or the expression that makes it."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return (ast.get_docstring(node) or '').partition('\n')[0]
    code = ' '.join(ast.get_source_segment(src, node.value).split())
    return f'`{code}`' if len(code) <= 60 else f'`{code[:58]} …`'

def named(tree):
    "Statements of a module by the name they bind, `{name: node}`."
    res = {}
    for o in tree.body:
        if isinstance(o, (ast.FunctionDef, ast.ClassDef)): res.setdefault(o.name, o)
        elif isinstance(o, ast.Assign):
            for t in o.targets:
                res |= {n.id: o for n in ast.walk(t) if isinstance(n, ast.Name)}
    return res

def symbols(site):
    "The index of the book: every public name, what it does, and its chapter."
    import check
    rows = []
    for page in (p for f, p in site.pages.items() if f.endswith('.ipynb') and '/' not in f):
        file = ROOT/site.lib/f'{page}.py'
        src = file.read_text(encoding='utf-8') if file.exists() else ''
        found = named(ast.parse(src))
        for nm in check.public(file):
            anchor = f'{page}.html#{nm.lower()}'
            shown = f'[`{nm}`](page:{anchor})' if anchor in site.anchors else f'`{nm}`'
            rows.append((nm.lower(), shown, what(found[nm], src).replace('|', r'\|') if nm in found else '', page))
    lines = [f'| {shown} | {does} | [{page}](page:{page}.html) |' for _, shown, does, page in sorted(rows)]
    head = '# Index of symbols\n\nAll public names, what each does, and the chapter that explains it.\n'
    return '\n'.join([head, '| Symbol | What it does | Chapter |', '| --- | --- | --- |', *lines, ''])

def sources(dest, site):
    "Write the sources of Sphinx."
    shutil.rmtree(dest, ignore_errors=True)
    nbs = {path: json.loads((PROC/path).read_text(encoding='utf-8')) for path in site.pages if path.endswith('.ipynb')}
    site = replace(site, anchors=frozenset().union(*(symbol_anchors(nb, site.pages[path]) for path, nb in nbs.items())))
    for path, nb in nbs.items():
        nb, page = to_myst(nb, path, site), site.pages[path]
        if page == 'index':
            nb['cells'].append(md_cell(contents(site.pages)) | {'id': 'contents'})
        file = dest/f'{page}.ipynb'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(nb), encoding='utf-8')
    (dest/f'{SYMBOLS}.md').write_text(symbols(site), encoding='utf-8')
    for f, page in FILES.items():
        if not (ROOT/f).exists(): print(f'{f} is missing: left out of the site')
        elif f == 'CITATION.cff': (dest/f'{page}.md').write_text(citation(ROOT/f), encoding='utf-8')
        else: (dest/f'{page}.md').write_text(project_page(ROOT/f, site), encoding='utf-8')

def project_page(path, site):
    "A Markdown file of the root, with its links to other such files and to notebooks."
    def one(m):
        url = m[2].removeprefix('./').removeprefix('nbs/')
        inside = ':' not in url and url[0] != '#' and url.partition('#')[0] not in site.pages
        return f'[{m[1]}]({"../" if inside else ""}{url})'
    return myst(outside_fences(path.read_text(encoding='utf-8'), lambda s: LINK.sub(one, s)), FILES[path.name], site)

# Commands -----------------------------------------------------------------------------------------

def build(n_workers):
    "Notebooks -> `_proc/` -> Sphinx -> check -> `_docs/`, which only a site without a fault replaces."
    import check
    import process
    os.environ['PIP_REQUIRE_VIRTUALENV'] = '1'
    os.chdir(ROOT)
    where, lib = site(), settings()['lib_name']
    if 'index.ipynb' not in where.pages: raise SystemExit('nbs/index.ipynb is missing: the site needs a first page')
    sys.path.insert(0, str(ROOT))
    process.check_installed(lib)
    process.preprocess(n_workers)
    sources(WORK/'src', where)
    shutil.rmtree(HTML, ignore_errors=True)
    cmd = [sys.executable, '-m', 'sphinx', '-W', '-q', '-E', '-j', str(n_workers), '-c', str(DOCS),
           '-d', str(WORK/'doctrees'), str(WORK/'src'), str(HTML)]
    if code := subprocess.call(cmd): raise SystemExit(code)
    (HTML/'.nojekyll').touch()
    if code := check.main(HTML, ROOT, lib): raise SystemExit(code)
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(HTML, OUT)

def readme():
    "README.md and its pictures as `{path: bytes}`."
    nb = json.loads((NBS/'index.ipynb').read_text(encoding='utf-8'))
    md, images = to_markdown(nb, site(), folder=IMAGES)
    return {'README.md': md.encode()} | images

def write_readme():
    files = readme()
    for p in (ROOT/IMAGES).glob('readme-*'): p.unlink()
    for path, data in files.items():
        (ROOT/path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/path).write_bytes(data)

def stale():
    "Files of the README that differ from what the notebook says."
    files = readme()
    extra = {p.relative_to(ROOT).as_posix() for p in (ROOT/IMAGES).glob('readme-*')} - files.keys()
    return sorted(extra | {p for p, data in files.items() if not (ROOT/p).exists() or (ROOT/p).read_bytes() != data})

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    g = p.add_mutually_exclusive_group()
    g.add_argument('--readme', action='store_true', help='write README.md')
    g.add_argument('--check-readme', action='store_true', help='exit code 1 if README.md is stale')
    p.add_argument('--workers', type=int, default=min(os.cpu_count() or 1, 4), help='processes (default: %(default)s)')
    a = p.parse_args()
    if a.readme: write_readme()
    elif a.check_readme:
        if old := stale(): raise SystemExit(f'stale: {", ".join(old)}: run `make readme`')
    else: build(a.workers)

if __name__ == '__main__': main()
