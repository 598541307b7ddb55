// What scrolls can be reached and scrolled with the keyboard.
function reachable() {
  for (const el of document.querySelectorAll('pre, .cell_output .output, .table-wrapper, div.equation .math'))
    if (el.scrollWidth > el.clientWidth || el.scrollHeight > el.clientHeight) el.tabIndex = 0;
    else el.removeAttribute('tabindex');
}
addEventListener('load', reachable);
addEventListener('resize', reachable);
