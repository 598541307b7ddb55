"Sphinx configuration. `build.py` writes the sources; nothing here depends on their content."
import html
import re
import struct
import sys
from configparser import ConfigParser
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.transforms import SphinxTransform
from sphinx.util.math import get_node_equation_number

from bridge import page_of

_cfg = ConfigParser(delimiters=['='])
_cfg.read(ROOT/'settings.ini', encoding='utf-8')
_cfg = _cfg['DEFAULT']

project = html_title = _cfg['title']
author, version = _cfg['author'], _cfg['version']
release, copyright, language = version, _cfg['copyright'], 'en'

extensions = ['myst_nb', 'sphinx_copybutton']
nb_execution_mode = 'off'
nb_merge_streams = True
nb_remove_code_outputs = False
myst_enable_extensions = ['amsmath', 'attrs_inline', 'colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 4
suppress_warnings = ['myst.header'] # a symbol may follow the title of its page without a section between
myst_heading_slug_func = 'bridge.slug'
myst_url_schemes = {'http': None, 'https': None, 'mailto': None, 'page': None}
copybutton_prompt_text, copybutton_prompt_is_regexp = r'>>> |\.\.\. |\$ ', True
copybutton_exclude = '.linenos, .gp, .go'
copybutton_selector = 'div.cell_input div.highlight pre, div[class*="highlight-"] div.highlight pre'

html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['site.css']
html_js_files = [('site.js', {'defer': 'defer'})]
html_use_index = False # `symbols.html` is the index
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_math_renderer = 'katex'
html_favicon = '_static/favicon.svg'
pygments_style, pygments_dark_style = 'github-light-high-contrast', 'github-dark'
html_theme_options = {
    'light_css_variables': {'color-brand-primary': '#0b5c8f', 'color-brand-content': '#0b5c8f',
                            'color-highlight-on-target': '#fff3d1'},
    'dark_css_variables': {'color-brand-primary': '#7cc4f0', 'color-brand-content': '#7cc4f0',
                           'color-highlight-on-target': '#3a3320'},
    'navigation_with_keys': False,
}

# Anchors and links --------------------------------------------------------------------------------

class SymbolAnchors(SphinxTransform):
    "A heading that is one symbol in code font owns that symbol's anchor, dots included."
    default_priority = 950

    def apply(self):
        sections = list(self.document.findall(nodes.section))
        def symbol(s):
            t = s.next_node(nodes.title)
            return t.astext().lower() if t and len(t) == 1 and isinstance(t[0], nodes.literal) else None
        owned = {nm: s for s in reversed(sections) if (nm := symbol(s))}
        for s in sections:
            first = s['ids'][0]
            s['ids'] = [i for i in s['ids'] if owned.get(i, s) is s]
            nm = symbol(s)
            if nm and owned[nm] is s: s['ids'] = [nm] + [i for i in s['ids'] if i != nm]
            if not s['ids']: s['ids'] = [f'section-{first}']

class PageLinks(SphinxTransform):
    "Addresses that begin with `page:` are relative to the page and stay inside the site."
    default_priority = 951

    def apply(self):
        for n in self.document.findall(nodes.reference):
            if n.get('refuri', '').startswith('page:'):
                n['refuri'], n['internal'] = n['refuri'].removeprefix('page:'), True
                n['classes'] = [c for c in n['classes'] if c != 'external']

# Mathematics --------------------------------------------------------------------------------------

def inline_math(self, node):
    tex = html.escape(node.astext())
    self.body.append(f'<span class="math notranslate nohighlight" data-tex="{tex}">{tex}</span>')
    raise nodes.SkipNode

def display_math(self, node):
    src = node.astext()
    env = 'aligned' if '&' in src else 'gathered'
    if '\\\\' in src and '\\begin' not in src: src = f'\\begin{{{env}}}{src}\\end{{{env}}}'
    tex = html.escape(src)
    self.body.append('<div class="equation">')
    self.body.append(f'<div class="math notranslate nohighlight" data-tex="{tex}">{tex}</div>')
    if node['number']: self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append('</div>')
    raise nodes.SkipNode

def katex_where_needed(app, pagename, templatename, context, doctree):
    if doctree is None or not (doctree.next_node(nodes.math) or doctree.next_node(nodes.math_block)): return
    app.add_css_file('katex/katex.min.css')
    app.add_js_file('katex/katex.min.js', loading_method='defer')
    app.add_js_file('math.js', loading_method='defer')

# Pictures -----------------------------------------------------------------------------------------

def shape_of(path):
    "Width and height of a picture in points, or `None` where its first bytes do not tell."
    head = path.read_bytes()[:1500]
    if path.suffix == '.png': return tuple(.72*o for o in struct.unpack('>II', head[16:24])) # 100 dots an inch
    size = path.suffix == '.svg' and re.search(rb'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', head)
    return (float(size[1]), float(size[2])) if size else None

def wide_pictures(app, pagename, templatename, context, doctree):
    "Pictures of two panels get the class `wide`: on a phone they scroll, panel by panel, instead of shrinking."
    shapes = {name: shape_of(Path(app.srcdir)/src) for src, name in app.builder.images.items()}
    def is_wide(name): return bool(o := shapes.get(name)) and o[0] > 2.2*o[1] and o[0] > 480
    def mark(m): return f'<img class="wide" {m[1]}' if is_wide(m[2]) else m[0]
    if 'body' in context:
        context['body'] = re.sub(r'<img (?!class)([^>]*?src="[^"]*?_images/([^"]+)")', mark, context['body'])

# Code ---------------------------------------------------------------------------------------------

CODE = re.compile(r'(<div class="highlight-(?!myst-ansi)[\w-]+ notranslate"><div class="highlight"><pre>)'
                  r'(.*?)\n?(</pre>)', re.S)

def hanging_lines(app, pagename, templatename, context, doctree):
    """Each line of code is an element, so that a long one goes on below, indented, and nothing is out of sight.

    Its own indent is an element, too: a word that is too long for the rest of the line begins there and not below."""
    def line(o):
        code = o.lstrip(' ')
        n = len(o) - len(code)
        if not 0 < n <= 20: return f'<span class="line">{o}</span>'
        return f'<span class="line i{min(-(-n//4)*4, 12)}"><i>{" "*n}</i>{code}</span>'
    def one(m): return m[1] + '\n'.join(map(line, m[2].removeprefix('<span></span>').split('\n'))) + '\n' + m[3]
    if 'body' in context: context['body'] = CODE.sub(one, context['body'])

# Barriers -----------------------------------------------------------------------------------------

def heading_levels(app, pagename, templatename, context, doctree):
    "The captions of the sidebar are headings; say of which level, for screen readers."
    tree = context.get('furo_navigation_tree', '')
    context['furo_navigation_tree'] = tree.replace('role="heading"', 'role="heading" aria-level="2"')

# Source pages -------------------------------------------------------------------------------------

def source_pages(app):
    "Each module as a page with an anchor for each line."
    fmt = HtmlFormatter(linespans='L', nowrap=False)
    chapters = {page_of(p.name): p.name for p in (ROOT/_cfg['nbs_path']).glob('*.ipynb')}
    for p in sorted((ROOT/_cfg['lib_path']).glob('[!_]*.py')):
        mod = f'{_cfg["lib_name"]}.{p.stem}'
        back = f'<p>Written from the chapter <a href="../{p.stem}.html">{p.stem}</a>.</p>' if p.stem in chapters else ''
        code = highlight(p.read_text(encoding='utf-8'), PythonLexer(), fmt)
        body = f'<section><h1>Source of <code>{mod}</code></h1>{back}<div class="source-page">{code}</div></section>'
        yield f'_modules/{p.stem}', {'title': f'Source of {mod}', 'body': body}, 'page.html'

def setup(app):
    app.add_transform(SymbolAnchors)
    app.add_transform(PageLinks)
    app.add_html_math_renderer('katex', (inline_math, None), (display_math, None))
    app.connect('html-page-context', katex_where_needed)
    app.connect('html-page-context', heading_levels, priority=900) # after furo has made the tree
    app.connect('html-page-context', wide_pictures)
    app.connect('html-page-context', hanging_lines)
    app.connect('html-collect-pages', source_pages)
