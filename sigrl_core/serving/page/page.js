'use strict';
// Pictures -> tags, by the same interface as everybody else's (/openapi.json). Texts go in as text, never as markup.

const MOST_TAGS = 30;
const WHY = {
  truncated: 'The file is cut short or damaged.', not_an_image: 'This is no picture.', empty: 'The file is empty.',
  too_many_pixels: 'The picture has too many pixels.', unsupported: 'Pictures of this kind are not read.',
};
const HEAT = [[20, 11, 52], [101, 21, 110], [186, 54, 85], [243, 120, 25], [252, 255, 164]];

const $ = id => document.getElementById(id);
const state = {ready: null, model: null, own: [], pictures: [], response: null, asked: 0};

function headers() {
  const key = sessionStorage.getItem('key');
  return key ? {Authorization: `Bearer ${key}`} : {};
}

async function ask(path, options = {}) {
  const response = await fetch(path, {...options, headers: headers()}).catch(() => null);
  if (!response) throw new Error('The server does not answer. Is it running?');
  if (response.status === 401) $('key-field').hidden = false;
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const wait = response.headers.get('Retry-After');
    const error = new Error((body.detail || `The server answered ${response.status}.`) + (wait ? ` (in ${wait} s)` : ''));
    error.reasons = body.reasons;
    throw error;
  }
  return body;
}

function complain(error) {
  $('problem').hidden = !error;
  $('problem').textContent = error ? error.message : '';
}

async function start() {
  try {
    const [model, vocabulary] = await Promise.all([ask('v1/model'), ask('v1/vocabulary')]);
    state.model = model;
    state.own = vocabulary.labels.map(row => row.label);
    $('key-field').hidden = true;
    $('model').textContent = `${model.backbone}, ${state.own.length} labels` +
      (model.calibrated ? ', calibrated' : ', not calibrated: bars compare labels and are no probabilities');
    $('threshold-hint').textContent = model.calibrated
      ? 'Probability that a label is right.' : 'Share of the best label\'s score in each picture.';
    complain(null);
  } catch (error) {
    $('model').textContent = 'No model answers.';
    complain(error);
  }
}

function labels() {
  return $('labels').value.split('\n').map(line => line.trim()).filter(Boolean);
}

function take(files) {
  const pictures = [...files];
  if (!pictures.length) return;
  for (const {url} of state.pictures) URL.revokeObjectURL(url);
  state.pictures = pictures.map(file => ({file, url: URL.createObjectURL(file)}));
  tag();
}

async function tag() {
  if (!state.pictures.length) return;
  const asked = ++state.asked;
  await state.ready;  // whether the model is calibrated decides what is asked
  if (asked !== state.asked) return;
  const form = new FormData();
  for (const {file} of state.pictures) form.append('images', file);
  form.append('heatmap', 'true');
  form.append('top_k', String(MOST_TAGS));
  if (state.model && state.model.calibrated) form.append('threshold', '0');
  const own = labels();
  if (own.length) form.append('labels', JSON.stringify(own));
  $('status').textContent = `Tagging ${count(state.pictures.length, 'picture')} ...`;
  $('again').disabled = true;
  complain(null);
  try {
    const response = await ask('v1/tag', {method: 'POST', body: form});
    if (asked !== state.asked) return;
    state.response = response;
    show();
  } catch (error) {
    if (asked !== state.asked) return;
    if (error.reasons) {  // not one picture can be read, and each is told why
      state.response = {labels: 0, results: error.reasons.map(reason => ({tags: [], error: reason}))};
      show();
      return;
    }
    state.response = null;
    $('results').replaceChildren();
    $('status').textContent = 'No tags.';
    complain(error);
  } finally {
    if (asked === state.asked) $('again').disabled = false;
    $('copy').disabled = !state.response;
  }
}

function count(number, what) {
  return `${number} ${what}${number === 1 ? '' : 's'}`;
}

function show() {
  const least = Number($('threshold').value);
  let shown = 0;
  const results = state.response.results.map((result, number) => {
    const {file, url} = state.pictures[number];
    const item = $('result').content.cloneNode(true).querySelector('li');
    item.querySelector('h3').textContent = file.name || 'Pasted picture';
    const image = item.querySelector('img');
    image.src = url;
    image.alt = result.error ? '' : `${file.name || 'pasted picture'}`;
    const list = item.querySelector('.tags');
    if (result.error) {
      item.querySelector('.picture').remove();
      list.replaceWith(text('p', WHY[result.error] || result.error, 'wrong'));
      return item;
    }
    const best = Math.max(...result.tags.map(tag => tag.score), 1e-9);
    for (const tag of result.tags) {
      const part = state.response.probabilities ? tag.score : Math.max(0, tag.score / best);
      if (part < least) continue;
      shown += 1;
      list.append(row(tag, part, item));
    }
    if (!list.children.length) list.replaceWith(text('p', 'No tag reaches the threshold.', 'soft'));
    return item;
  });
  $('results').replaceChildren(...results);
  $('status').textContent =
    `${count(shown, 'tag')} for ${count(results.length, 'picture')}, of ${count(state.response.labels, 'label')} asked.`;
}

function row(tag, part, item) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'tag';
  const bar = text('span', '', 'bar');
  bar.style.width = `${100 * Math.min(1, part)}%`;
  const value = state.response.probabilities ? `${Math.round(100 * tag.score)} %` : tag.score.toPrecision(3);
  button.append(bar, text('span', tag.label, 'name'), text('span', value, 'value'));
  button.title = 'Shows where it fits';
  button.setAttribute('aria-pressed', 'false');
  const on = () => heat(item, tag), off = () => {
    const kept = item.querySelector('.tag[aria-pressed=true]');
    if (kept && kept.tag) heat(item, kept.tag); else clear(item);
  };
  button.tag = tag;
  button.addEventListener('pointerenter', on);
  button.addEventListener('pointerleave', off);
  button.addEventListener('focus', on);
  button.addEventListener('blur', off);
  button.addEventListener('click', () => {
    const pressed = button.getAttribute('aria-pressed') === 'true';
    for (const other of item.querySelectorAll('.tag')) other.setAttribute('aria-pressed', 'false');
    button.setAttribute('aria-pressed', String(!pressed));
    if (pressed) clear(item); else heat(item, tag);
  });
  const entry = document.createElement('li');
  entry.append(button);
  return entry;
}

function text(kind, content, name) {
  const element = document.createElement(kind);
  element.className = name;
  element.textContent = content;
  return element;
}

function clear(item) {
  const canvas = item.querySelector('canvas');
  canvas.width = canvas.width;
}

async function heat(item, tag) {
  if (!tag.heatmap) return;
  const canvas = item.querySelector('canvas'), image = item.querySelector('img');
  const map = new Image();
  map.src = `data:image/png;base64,${tag.heatmap}`;
  await map.decode();
  const small = new OffscreenCanvas(map.width, map.height), inside = small.getContext('2d');
  inside.drawImage(map, 0, 0);
  const pixels = inside.getImageData(0, 0, map.width, map.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const at = pixels.data[i] / 255 * (HEAT.length - 1), low = Math.min(Math.floor(at), HEAT.length - 2);
    for (let c = 0; c < 3; c++) pixels.data[i + c] = HEAT[low][c] + (HEAT[low + 1][c] - HEAT[low][c]) * (at - low);
    pixels.data[i + 3] = 165;
  }
  inside.putImageData(pixels, 0, 0);
  canvas.width = image.clientWidth;
  canvas.height = image.clientHeight;
  const side = Math.min(canvas.width, canvas.height), context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(small, (canvas.width - side) / 2, (canvas.height - side) / 2, side, side);
}

$('files').addEventListener('change', event => {
  take(event.target.files);
  event.target.value = '';  // so that the same picture can be chosen again
});
for (const kind of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    $('drop').classList.toggle('over', kind === 'dragover');
    if (kind === 'drop') take(event.dataTransfer.files);
  });
}
document.addEventListener('paste', event => {
  const files = [...event.clipboardData.files].filter(file => file.type.startsWith('image/'));
  if (files.length) take(files);
});
$('threshold').addEventListener('input', event => {
  $('threshold-value').textContent = Number(event.target.value).toFixed(2);
  if (state.response) show();
});
$('again').addEventListener('click', tag);
$('own').addEventListener('click', () => { $('labels').value = state.own.join('\n'); });
$('copy').addEventListener('click', async () => {
  const told = {...state.response, results: state.response.results.map((result, number) => ({
    picture: state.pictures[number].file.name, ...result, tags: result.tags.map(({heatmap, ...tag}) => tag),
  }))};
  await navigator.clipboard.writeText(JSON.stringify(told, null, 1)).then(
    () => { $('status').textContent = 'Copied.'; },
    () => complain(new Error('The browser does not let this page copy.')));
});
$('key-field').addEventListener('submit', async event => {
  event.preventDefault();
  sessionStorage.setItem('key', $('key').value.trim());
  state.ready = start();
  tag();
});
state.ready = start();
