"""Style sheet and script of the page of attention weights.

The page is readable without the script. With the script, a reader can choose layers and heads, step through the growing
image, and select single tokens. `views` in an article's data are attention matrices, encoded by
`attention_page.pack`.
"""

STYLE = """
.js-only { display: none; }
.js .js-only { display: block; }
.js .static-only { display: none; }
select, input[type=range] { font: inherit; max-width: 100%; vertical-align: middle; }
input[type=range] { width: 20rem; }
.map, .lit, .final, .frame, .now { image-rendering: pixelated; border-radius: 0; display: block; }
.final, .now, .big .map, .big .lit { width: 16rem; height: 16rem; }
.frame { width: 7rem; height: 7rem; }
.word .map, .word .lit { width: 7rem; height: 7rem; display: inline-block; }
.matrix { width: 10.5rem; height: 10.5rem; image-rendering: pixelated; border-radius: 0; }
.offsets { width: 10.5rem; height: auto; image-rendering: pixelated; border-radius: 0; }
.pick { position: relative; width: 16rem; height: 16rem; cursor: crosshair; }
.pick .final { width: 100%; height: 100%; }
.cursor { position: absolute; border: 2px solid #eb463c; outline: 1px solid #ffffff; pointer-events: none; }
.bars { border-collapse: collapse; width: 22rem; max-width: 100%; font-size: .88rem; }
.bars td, .bars th { border: 0; padding: .05rem .4rem .05rem 0; vertical-align: middle; }
.bars th { text-align: right; max-width: 9rem; }
.bars td:nth-child(2) { width: 11rem; text-align: left; }
.bar { display: block; height: .75rem; background: #2f81d6; }
.tokens { line-height: 2.1; overflow-wrap: anywhere; white-space: pre-wrap; }
.asked .token { cursor: pointer; }
.token.chosen { outline: 2px solid #eb463c; }
"""

SCRIPT = r"""
'use strict';
document.documentElement.classList.add('js');
const PALETTE = JSON.parse(document.getElementById('palette').textContent);
const colour = level => PALETTE[Math.round(255 * Math.min(1, Math.max(0, level)))];
const percent = share => (100 * share).toFixed(1) + '%';

function unpack(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// The attention weight of the slot `query` on the slot `key`.
function weight(view, query, key) {
  if (key > query) return 0;
  const root = view[query * (query + 1) / 2 + key] / 255;
  return root * root;
}

const certainty = (data, slot) => `probability ${percent(data.probability[slot])}, `
  + `entropy ${data.entropy[slot].toFixed(2)} bits, rank ${data.rank[slot]}`;

// The drawing context of the canvas of class `name`. The first call replaces the static picture by a canvas.
function canvasAt(place, name, width, height) {
  let element = place.querySelector('.' + name);
  if (element.tagName !== 'CANVAS') {
    const canvas = document.createElement('canvas');
    canvas.className = element.className;
    element.replaceWith(canvas);
    element = canvas;
  }
  element.width = width;
  element.height = height;
  return element.getContext('2d');
}

function drawMap(place, values, side) {
  const context = canvasAt(place, 'map', side, side), most = Math.max(...values) || 1;
  values.forEach((value, i) => {
    context.fillStyle = colour(value / most);
    context.fillRect(i % side, Math.floor(i / side), 1, 1);
  });
}

function drawLit(place, values, side, picture) {
  const width = picture.naturalWidth, height = picture.naturalHeight;
  const context = canvasAt(place, 'lit', width, height), most = Math.max(...values) || 1;
  context.drawImage(picture, 0, 0);
  const edge = (i, size) => Math.round(i * size / side);
  values.forEach((value, i) => {
    const x = i % side, y = Math.floor(i / side);
    context.fillStyle = `rgba(0, 0, 0, ${0.85 * (1 - value / most)})`;
    context.fillRect(edge(x, width), edge(y, height), edge(x + 1, width) - edge(x, width),
      edge(y + 1, height) - edge(y, height));
  });
}

function grow(article) {
  const slider = article.querySelector('.growth input');
  if (!slider) return;
  const frames = [...article.querySelectorAll('.frame')], now = article.querySelector('.now');
  const label = article.querySelector('.growth output');
  slider.addEventListener('input', () => {
    now.src = frames[slider.value].src;
    label.textContent = frames[slider.value].alt;
  });
}

// Keeps all view selectors of an article on the same view.
function onView(article, show) {
  const selects = [...article.querySelectorAll('.views')];
  selects.forEach(select => select.addEventListener('change', () => {
    selects.forEach(other => { other.value = select.value; });
    show(Number(select.value));
  }));
}

function pictures(article, data) {
  const views = data.views.map(unpack), side = data.grid, text = data.text;
  const cells = [...Array(side * side).keys()], picture = article.querySelector('.pick .final');
  let view = views[0], chosen = data.chosen;

  function showWords() {
    article.querySelectorAll('.word').forEach((place, number) => {
      const slots = data.keys[Number(place.dataset.key)];
      const values = cells.map(i => slots.reduce((sum, slot) => sum + weight(view, text + i, slot), 0));
      drawMap(place, values, side);
      drawLit(place, values, side, picture);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      place.querySelector('.note').textContent = `mean ${percent(mean)}, maximum ${percent(Math.max(...values))}`;
    });
  }

  function showChosen() {
    const place = article.querySelector('.asked'), query = text + chosen;
    // Slot text + i predicts token i, and the next slot has token i as its input.
    const values = cells.map(i => i < cells.length - 1 ? weight(view, query, text + 1 + i) : 0);
    drawMap(place, values, side);
    drawLit(place, values, side, picture);
    const shares = data.keys.map(slots => slots.reduce((sum, slot) => sum + weight(view, query, slot), 0));
    shares.push(values.reduce((sum, value) => sum + value, 0));
    const most = Math.max(...shares) || 1;
    place.querySelectorAll('.bars tr').forEach((row, i) => {
      row.querySelector('.bar').style.width = 100 * shares[i] / most + '%';
      row.lastElementChild.textContent = percent(shares[i]);
    });
    const x = chosen % side, y = Math.floor(chosen / side);
    place.querySelectorAll('.cursor').forEach(cursor => {
      cursor.style.left = 100 * x / side + '%';
      cursor.style.top = 100 * y / side + '%';
    });
    place.querySelector('.which').textContent =
      `Image token ${chosen + 1}: row ${y + 1}, column ${x + 1}; ${certainty(data, query)}.`;
  }

  const pick = article.querySelector('.pick');
  pick.addEventListener('click', event => {
    const box = pick.getBoundingClientRect(), at = share => Math.min(side - 1, Math.max(0, Math.floor(share * side)));
    chosen = at((event.clientY - box.top) / box.height) * side + at((event.clientX - box.left) / box.width);
    showChosen();
  });
  pick.addEventListener('keydown', event => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: side }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    if (chosen + step >= 0 && chosen + step < cells.length) chosen += step;
    showChosen();
  });
  onView(article, number => { view = views[number]; showWords(); showChosen(); });
}

function texts(article, data) {
  const views = data.views.map(unpack), tokens = [...article.querySelectorAll('.asked .token')];
  let view = views[0], chosen = data.chosen;

  function showChosen() {
    // Element 0 is the start. Element i is the input of slot i, and slot i - 1 predicts it.
    const values = tokens.map((_, slot) => weight(view, chosen, slot)), most = Math.max(...values) || 1;
    tokens.forEach((token, slot) => {
      token.style.background = slot <= chosen ? `rgba(47, 129, 214, ${0.8 * values[slot] / most})` : 'none';
      token.title = slot <= chosen ? percent(values[slot]) : 'masked: a later token';
      token.classList.toggle('chosen', slot === chosen + 1);
    });
    article.querySelector('.which').textContent =
      `Token ${chosen + 1}: ${certainty(data, chosen)}; the strongest blue is ${percent(most)}.`;
  }

  tokens.forEach((token, number) => token.addEventListener('click', () => {
    if (number > 0) { chosen = number - 1; showChosen(); }
  }));
  onView(article, number => { view = views[number]; showChosen(); });
}

document.querySelectorAll('article').forEach(article => {
  grow(article);
  const data = article.querySelector('.data');
  if (!data) return;
  (article.classList.contains('picture') ? pictures : texts)(article, JSON.parse(data.textContent));
});
"""
