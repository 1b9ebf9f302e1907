'use strict';
// Tags images with the public HTTP interface (/openapi.json). Texts are inserted as text, never as markup.

const MAX_TAGS = 30;
const ERRORS = {
  truncated: 'The file is truncated or damaged.', not_an_image: 'The file is not an image.', empty: 'The file is empty.',
  too_many_pixels: 'The image has too many pixels.', unsupported: 'The image format is not supported.',
};
const HEAT_COLOURS = [[20, 11, 52], [101, 21, 110], [186, 54, 85], [243, 120, 25], [252, 255, 164]];

const $ = id => document.getElementById(id);
const state = {ready: null, model: null, modelLabels: [], images: [], response: null, requestNumber: 0};

function headers() {
  const key = sessionStorage.getItem('key');
  return key ? {Authorization: `Bearer ${key}`} : {};
}

async function send(path, options = {}) {
  const response = await fetch(path, {...options, headers: headers()}).catch(() => null);
  if (!response) throw new Error('The server does not answer. Check that it is running.');
  if (response.status === 401) $('key-field').hidden = false;
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const wait = response.headers.get('Retry-After');
    const error = new Error((body.detail || `The server answered with status ${response.status}.`) + (wait ? ` (after ${wait} s)` : ''));
    error.reasons = body.reasons;
    throw error;
  }
  return body;
}

function showProblem(error) {
  $('problem').hidden = !error;
  $('problem').textContent = error ? error.message : '';
}

async function start() {
  try {
    const [model, vocabulary] = await Promise.all([send('v1/model'), send('v1/vocabulary')]);
    state.model = model;
    state.modelLabels = vocabulary.labels.map(row => row.label);
    $('key-field').hidden = true;
    $('model').textContent = `${model.backbone}, ${state.modelLabels.length} labels` +
      (model.calibrated ? ', calibrated' : ', not calibrated: scores rank labels and are not probabilities');
    $('threshold-hint').textContent = model.calibrated
      ? 'Tags with a lower probability are hidden.' : 'Relative to the best tag of each image; lower scores are hidden.';
    showProblem(null);
  } catch (error) {
    $('model').textContent = 'The model is not available.';
    showProblem(error);
  }
}

function labels() {
  return $('labels').value.split('\n').map(line => line.trim()).filter(Boolean);
}

function setImages(files) {
  const images = [...files];
  if (!images.length) return;
  for (const {url} of state.images) URL.revokeObjectURL(url);
  state.images = images.map(file => ({file, url: URL.createObjectURL(file)}));
  tag();
}

async function tag() {
  if (!state.images.length) return;
  const requestNumber = ++state.requestNumber;
  await state.ready;  // the request depends on whether the model is calibrated
  if (requestNumber !== state.requestNumber) return;
  const form = new FormData();
  for (const {file} of state.images) form.append('images', file);
  form.append('heatmap', 'true');
  form.append('top_k', String(MAX_TAGS));
  if (state.model && state.model.calibrated) form.append('threshold', '0');
  const lines = labels();
  if (lines.length) form.append('labels', JSON.stringify(lines));
  $('status').textContent = `Tagging ${count(state.images.length, 'image')} ...`;
  $('again').disabled = true;
  showProblem(null);
  try {
    const response = await send('v1/tag', {method: 'POST', body: form});
    if (requestNumber !== state.requestNumber) return;
    state.response = response;
    show();
  } catch (error) {
    if (requestNumber !== state.requestNumber) return;
    if (error.reasons) {  // no image is readable; each has its error
      state.response = {labels: 0, results: error.reasons.map(reason => ({tags: [], error: reason}))};
      show();
      return;
    }
    state.response = null;
    $('results').replaceChildren();
    $('status').textContent = 'No tags.';
    showProblem(error);
  } finally {
    if (requestNumber === state.requestNumber) $('again').disabled = false;
    $('copy').disabled = !state.response;
  }
}

function count(number, what) {
  return `${number} ${what}${number === 1 ? '' : 's'}`;
}

function show() {
  const minScore = Number($('threshold').value);
  let shown = 0;
  const results = state.response.results.map((result, number) => {
    const {file, url} = state.images[number];
    const item = $('result').content.cloneNode(true).querySelector('li');
    item.querySelector('h3').textContent = file.name || 'Pasted image';
    const image = item.querySelector('img');
    image.src = url;
    image.alt = result.error ? '' : file.name || 'pasted image';
    const list = item.querySelector('.tags');
    if (result.error) {
      item.querySelector('.image').remove();
      list.replaceWith(text('p', ERRORS[result.error] || result.error, 'wrong'));
      return item;
    }
    const best = Math.max(...result.tags.map(tag => tag.score), 1e-9);
    for (const tag of result.tags) {
      const share = state.response.probabilities ? tag.score : Math.max(0, tag.score / best);
      if (share < minScore) continue;
      shown += 1;
      list.append(tagRow(tag, share, item));
    }
    if (!list.children.length) list.replaceWith(text('p', 'No tag reaches the minimum score.', 'soft'));
    return item;
  });
  $('results').replaceChildren(...results);
  $('status').textContent =
    `${count(shown, 'tag')} for ${count(results.length, 'image')}, from ${count(state.response.labels, 'label')}.`;
}

function tagRow(tag, share, item) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'tag';
  const bar = text('span', '', 'bar');
  bar.style.width = `${100 * Math.min(1, share)}%`;
  const value = state.response.probabilities ? `${Math.round(100 * tag.score)} %` : tag.score.toPrecision(3);
  button.append(bar, text('span', tag.label, 'name'), text('span', value, 'value'));
  button.title = 'Shows the heat map';
  button.setAttribute('aria-pressed', 'false');
  const on = () => drawHeatMap(item, tag), off = () => {
    const pressed = item.querySelector('.tag[aria-pressed=true]');
    if (pressed && pressed.tag) drawHeatMap(item, pressed.tag); else clearHeatMap(item);
  };
  button.tag = tag;
  button.addEventListener('pointerenter', on);
  button.addEventListener('pointerleave', off);
  button.addEventListener('focus', on);
  button.addEventListener('blur', off);
  button.addEventListener('click', () => {
    const pressed = button.getAttribute('aria-pressed') === 'true';
    for (const each of item.querySelectorAll('.tag')) each.setAttribute('aria-pressed', 'false');
    button.setAttribute('aria-pressed', String(!pressed));
    if (pressed) clearHeatMap(item); else drawHeatMap(item, tag);
  });
  const entry = document.createElement('li');
  entry.append(button);
  return entry;
}

function text(tagName, content, className) {
  const element = document.createElement(tagName);
  element.className = className;
  element.textContent = content;
  return element;
}

function clearHeatMap(item) {
  const canvas = item.querySelector('canvas');
  canvas.width = canvas.width;
}

async function drawHeatMap(item, tag) {
  if (!tag.heatmap) return;
  const canvas = item.querySelector('canvas'), image = item.querySelector('img');
  const map = new Image();
  map.src = `data:image/png;base64,${tag.heatmap}`;
  await map.decode();
  const small = new OffscreenCanvas(map.width, map.height), inside = small.getContext('2d');
  inside.drawImage(map, 0, 0);
  const pixels = inside.getImageData(0, 0, map.width, map.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const at = pixels.data[i] / 255 * (HEAT_COLOURS.length - 1), low = Math.min(Math.floor(at), HEAT_COLOURS.length - 2);
    for (let c = 0; c < 3; c++) pixels.data[i + c] = HEAT_COLOURS[low][c] + (HEAT_COLOURS[low + 1][c] - HEAT_COLOURS[low][c]) * (at - low);
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
  setImages(event.target.files);
  event.target.value = '';  // so that the same image can be chosen again
});
for (const type of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(type, event => {
    event.preventDefault();
    $('drop').classList.toggle('over', type === 'dragover');
    if (type === 'drop') setImages(event.dataTransfer.files);
  });
}
document.addEventListener('paste', event => {
  const files = [...event.clipboardData.files].filter(file => file.type.startsWith('image/'));
  if (files.length) setImages(files);
});
$('threshold').addEventListener('input', event => {
  $('threshold-value').textContent = Number(event.target.value).toFixed(2);
  if (state.response) show();
});
$('again').addEventListener('click', tag);
$('own').addEventListener('click', () => { $('labels').value = state.modelLabels.join('\n'); });
$('copy').addEventListener('click', async () => {
  const copied = {...state.response, results: state.response.results.map((result, number) => ({
    image: state.images[number].file.name, ...result, tags: result.tags.map(({heatmap, ...tag}) => tag),
  }))};
  await navigator.clipboard.writeText(JSON.stringify(copied, null, 1)).then(
    () => { $('status').textContent = 'Copied.'; },
    () => showProblem(new Error('The browser does not allow this page to copy.')));
});
$('key-field').addEventListener('submit', async event => {
  event.preventDefault();
  sessionStorage.setItem('key', $('key').value.trim());
  state.ready = start();
  tag();
});
state.ready = start();
