"""Check the built site: every link and anchor leads somewhere on the site or is plainly external, nothing is loaded
from another host, every public symbol has its anchor, no page is heavy. `python docs/check.py [_docs]`"""
import ast
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from bridge import page_of

LIMIT = 1_500_000 # bytes of a page with all that it loads

class Page(HTMLParser):
    "Anchors, links and resources of one page."
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.twice = set(), [], [], set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if i := a.get('id'): (self.twice if i in self.ids else self.ids).add(i)
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        elif tag == 'link' and a.get('href') and a.get('rel') not in ('index', 'search', 'next', 'prev', 'canonical'):
            self.loads.append(a['href'])
        elif a.get('src'): self.loads.append(a['src'])

def check_links(pages):
    "Links and resources that lead nowhere."
    for nm, page in pages.items():
        for url in page.links + page.loads:
            u = urlsplit(url)
            if u.scheme or u.netloc:
                if url in page.loads and u.scheme != 'data': yield f'{nm}: loads {url} from another host'
                continue
            to = urlsplit(urljoin(f'/{nm}', url))
            file = unquote(to.path).lstrip('/') or 'index.html'
            if file in pages:
                if to.fragment and unquote(to.fragment) not in pages[file].ids: yield f'{nm}: {url} has no such anchor'
            elif not (pages.root/file).is_file(): yield f'{nm}: {url} has no such page'

def check_symbols(pages, root, lib):
    "Public names of the modules without an anchor on their chapter's page."
    for nb in sorted((root/'nbs').glob('[0-9]*.ipynb')):
        cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
        code = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
        m = re.search(r'^#\|\s*default_exp:?\s+(\S+)', code, re.M)
        if not m or m[1] == 'all': continue
        page = pages.get(f'{page_of(nb.name)}.html')
        if page is None:
            yield f'{nb.name} has no page'
            continue
        for sym in public(root/lib/f'{m[1]}.py'):
            if sym.lower() not in page.ids: yield f'{lib}.{m[1]}.{sym} has no anchor on {page_of(nb.name)}.html'

def public(path):
    "`__all__` of a module, as nbdev wrote it."
    tree = ast.parse(path.read_text(encoding='utf-8')) if path.exists() else ast.Module([], [])
    found = [o.value for o in tree.body if isinstance(o, ast.Assign) and getattr(o.targets[0], 'id', '') == '__all__']
    return ast.literal_eval(found[0]) if found else []

def weight(pages, nm):
    "Bytes of a page with its style sheets, scripts and pictures."
    urls = [urlsplit(urljoin(f'/{nm}', u)) for u in pages[nm].loads if not urlsplit(u).scheme]
    files = {unquote(u.path).lstrip('/') for u in urls}
    return sum((pages.root/f).stat().st_size for f in files | {nm} if (pages.root/f).is_file())

class Pages(dict):
    def __init__(self, root):
        self.root = root
        super().__init__({p.relative_to(root).as_posix(): Page(p) for p in sorted(root.rglob('*.html'))})

def main(out, root, lib='early_prune'):
    pages = Pages(out)
    bad = list(check_links(pages)) + list(check_symbols(pages, root, lib))
    bad += [f'{nm}: the anchor {i} occurs twice' for nm, p in pages.items() for i in sorted(p.twice)]
    weights = {nm: weight(pages, nm) for nm in pages}
    heavy = {nm: w for nm, w in weights.items() if w > LIMIT}
    bad += [f'{nm}: {w/1e6:.1f} MB with all that it loads, the limit is {LIMIT/1e6} MB' for nm, w in heavy.items()]
    for o in bad: print(o, file=sys.stderr)
    top = max(weights, key=weights.get)
    print(f'{len(pages)} pages, {sum(len(p.links) for p in pages.values())} links, heaviest {top} '
          f'{weights[top]/1e3:.0f} kB' + (f', {len(bad)} problems' if bad else ''))
    return 1 if bad else 0

if __name__ == '__main__':
    root = Path(__file__).resolve().parent.parent
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else root/'_docs', root))
