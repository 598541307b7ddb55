// A table that is a little too wide is set smaller, so that its last column is seen; if that is not enough its names
// break as well. One that is much too wide scrolls.
function tighten() {
  for (const box of document.querySelectorAll('.cell_output .output:has(table.dataframe)')) {
    const tables = [...box.querySelectorAll('table.dataframe')], fits = () => box.scrollWidth <= box.clientWidth;
    const mark = (name, on) => tables.forEach(o => o.classList.toggle(name, on));
    tables.forEach(o => { o.style.fontSize = ''; });
    mark('breaks', false);
    mark('tight', false);
    if (fits()) continue;
    mark('tight', true);
    if (fits() || shrink(tables, box)) continue;
    mark('breaks', true);
    if (!fits() && !shrink(tables, box)) mark('breaks', false);
  }
}

// Whether the font can be made so small that tables fit, and still be read.
function shrink(tables, box) {
  const share = box.clientWidth / box.scrollWidth, size = parseFloat(getComputedStyle(tables[0]).fontSize);
  if (share > .85) tables.forEach(o => { o.style.fontSize = `${size * share * .97}px`; });
  return share > .85;
}

// Printed columns stay columns: they scroll, other printed lines wrap.
function columns() {
  for (const pre of document.querySelectorAll('.cell_output pre'))
    pre.classList.toggle('columns', /\S {2,}\S.*\n.*\S {2,}\S/.test(pre.textContent));
}

// What goes on beyond the right edge fades there, until it has been scrolled to its end.
function fade(el) { el.classList.toggle('more', el.scrollWidth - el.clientWidth - el.scrollLeft > 2); }

// What scrolls can be reached and scrolled with the keyboard.
const SCROLLS = 'pre, .cell_output .output, .cell_output:has(img.wide), .table-wrapper, div.equation .math';
function reachable() {
  for (const el of document.querySelectorAll(SCROLLS)) {
    if (el.scrollWidth > el.clientWidth || el.scrollHeight > el.clientHeight) el.tabIndex = 0;
    else el.removeAttribute('tabindex');
    fade(el);
    el.onscroll = () => fade(el);
  }
}
function fit() { columns(); tighten(); reachable(); }
addEventListener('load', fit);
document.addEventListener('load', reachable, true); // of a picture that comes late
addEventListener('resize', fit);
