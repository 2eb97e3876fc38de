"use strict";
// The language model of this page: reads the block of data that Python filled in, computes log-probabilities, samples.
// Arithmetic is float64 on the weights as stored. T context, E embedding, H hidden, V vocabulary.

// -- reading ----------------------------------------------------------------------------------------------------------

async function unpack(text) {  // base64 of gzip -> bytes
  const zipped = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function readArray({ dtype, shape, data, scales }) {
  const buffer = await unpack(data);
  const unsigned = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
  const values = new { float32: Float32Array, int16: Int16Array, ...unsigned }[dtype](buffer);
  if (!scales) return values;
  const rows = await readArray(scales), width = shape[1];  // of a large network: whole numbers, times one scale a row
  return Float32Array.from(values, (value, i) => value * rows[Math.floor(i / width)]);
}

async function readModel(data) {
  const parts = [];
  for (const part of data.parts) {
    const arrays = {};
    for (const name in part.arrays) arrays[name] = await readArray(part.arrays[name]);
    const kinds = { network: Network, counts: CountModel, cache: Cache };
    parts.push({ ...part, model: new kinds[part.kind](part, arrays, data.vocab.length) });
  }
  return new LanguageModel(data.vocab, parts, new Tokenizer(data.tokenizer));
}

// -- the network ------------------------------------------------------------------------------------------------------

function affine(weight, bias, x) {  // weight (n, m) by rows, x (m,) -> (n,)
  const m = x.length, out = new Float64Array(weight.length / m);
  for (let i = 0, at = 0; i < out.length; i++) {
    let sum = bias ? bias[i] : 0;
    for (let j = 0; j < m; j++) sum += weight[at++] * x[j];
    out[i] = sum;
  }
  return out;
}

function sideBySide(a, b) {
  const out = new Float64Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}

function logSoftmax(logits) {
  let max = -Infinity, sum = 0;
  for (const l of logits) if (l > max) max = l;
  for (const l of logits) sum += Math.exp(l - max);
  const shift = max + Math.log(sum);
  return logits.map((l) => l - shift);
}

class Network {
  constructor({ context_size, sizes }, arrays) {
    Object.assign(this, sizes);  // embedding_dim, num_layers, residual, direct, tied
    this.contextSize = context_size;
    this.table = arrays["embedding.weight"];  // (V, E)
    this.layers = [];
    for (let i = 0; `hidden.${i}.weight` in arrays; i++) {
      this.layers.push({ weight: arrays[`hidden.${i}.weight`], bias: arrays[`hidden.${i}.bias`] });
    }
    this.projection = arrays["projection.weight"];
    this.outputWeight = this.tied ? this.table : arrays["output.weight"];
    this.outputBias = arrays["output.bias"];
  }

  // What is shown of the way: e (T·E,), the tanh outputs of each layer (H,), log-probabilities (V,).
  forward(context) {
    const E = this.embedding_dim, e = new Float64Array(context.length * E);
    context.forEach((id, t) => e.set(this.table.subarray(id * E, (id + 1) * E), t * E));
    const units = [];
    let x = e;
    for (const { weight, bias } of this.layers) {
      const z = affine(weight, bias, x).map(Math.tanh);
      x = this.residual && units.length ? x.map((h, i) => h + z[i]) : z;
      units.push(z);
    }
    if (this.projection) x = affine(this.projection, null, x);
    if (this.direct && units.length) x = sideBySide(x, e);
    return { e, units, logProbs: logSoftmax(affine(this.outputWeight, this.outputBias, x)) };
  }

  logProbs(context) {
    return this.forward(context).logProbs;
  }
}

// -- counts -----------------------------------------------------------------------------------------------------------

// p_k(w | h) = probs(hw) + backoff(h) p_(k-1)(w | h without its first token). Level k has the k-grams in the order of
// their contexts: children[c] of them for context c, each with a target, a probability and, as a context, a backoff.
class CountModel {
  constructor({ context_size, order }, arrays, vocabSize) {
    this.contextSize = context_size;
    this.vocabSize = vocabSize;
    this.levels = [];
    for (let k = 1; k <= order; k++) {
      const level = { probs: arrays[`probs${k}`], backoff: arrays[`backoff${k}`], targets: arrays[`targets${k}`] };
      if (k > 1) {
        const children = arrays[`children${k}`];
        level.first = new Uint32Array(children.length + 1);
        for (let c = 0; c < children.length; c++) level.first[c + 1] = level.first[c] + children[c];
      }
      this.levels.push(level);
    }
  }

  place(context) {  // of a context (k - 1,) among the (k-1)-grams, or -1
    let place = context[0];
    for (let k = 2; k <= context.length && place >= 0; k++) {
      const { first, targets } = this.levels[k - 1];
      let low = first[place], high = first[place + 1];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (targets[middle] < context[k - 1]) low = middle + 1;
        else high = middle;
      }
      place = low < first[place + 1] && targets[low] === context[k - 1] ? low : -1;
    }
    return place;
  }

  logProbs(context) {
    const base = this.levels[0], probs = new Float64Array(this.vocabSize);
    for (let w = 0; w < probs.length; w++) probs[w] = base.probs[w] + base.backoff[0] / this.vocabSize;
    for (let k = 2; k <= Math.min(this.levels.length, context.length + 1); k++) {
      const level = this.levels[k - 1], place = this.place(context.slice(context.length - k + 1));
      if (place < 0) break;  // a longer context is unknown, too
      const backoff = level.backoff[place];
      for (let w = 0; w < probs.length; w++) probs[w] *= backoff;
      for (let i = level.first[place]; i < level.first[place + 1]; i++) probs[level.targets[i]] += level.probs[i];
    }
    return probs.map(Math.log);
  }
}

class Cache {  // how often each token is among the last ones
  constructor({ context_size }, arrays, vocabSize) {
    this.contextSize = context_size;
    this.vocabSize = vocabSize;
  }

  logProbs(context) {
    const counts = new Float64Array(this.vocabSize), seen = context.filter((id) => id !== 0);
    for (const id of seen) counts[id]++;
    return counts.map((n) => Math.log(n / Math.max(seen.length, 1)));
  }
}

// -- text and tokens --------------------------------------------------------------------------------------------------

const MARKS = "\\u0300-\\u036f\\u0483-\\u0487\\u0591-\\u05bd\\u05c1-\\u05c7" +
  "\\u0610-\\u061a\\u064b-\\u065f\\u0900-\\u0963\\u0966-\\u0dff";
const ALNUM = "\\p{L}\\p{N}";
const WORD = new RegExp(
  `\\n|\\p{Nd}+(?:[.,:]\\p{Nd}+)+|[${ALNUM}]+(?:[${MARKS}][${ALNUM}]*|['\\u2019.\\u2010\\-][${ALNUM}]+)*|\\S`, "gu");
const NO_BLANK_BEFORE = ".,;:!?%)]}»’”…\u3001\u3002", NO_BLANK_AFTER = "([{«‘“$£€¿¡#@";

class Tokenizer {  // see tokenizer.py, whose tokens and blanks these are
  constructor({ tokens, line_ends, lowercase }) {
    Object.assign(this, { tokens, lineEnds: line_ends, lowercase });
  }

  split(text) {
    text = text.normalize("NFC");
    if (this.lowercase) text = text.toLowerCase().normalize("NFC");
    if (this.lineEnds === "drop") text = text.replaceAll("\n", " ");
    if (this.tokens === "characters") return Array.from(text);
    return text.match(this.tokens === "words" ? WORD : /\n|\S+/gu) ?? [];
  }

  // For each token, whether a blank stands before it.
  blanks(tokens) {
    if (this.tokens === "characters") return tokens.map(() => false);
    if (this.tokens === "pretokenized") return tokens.map((t, i) => i > 0 && t !== "\n" && tokens[i - 1] !== "\n");
    let glue = true, previous = "", quoted = false;
    return tokens.map((token) => {
      const closes = token === '"' && quoted, dash = token === "-" && previous === "-";
      const blank = !(glue || closes || dash || token === "\n" || NO_BLANK_BEFORE.includes(token));
      quoted = token !== "\n" && quoted !== (token === '"');
      glue = token === "\n" || NO_BLANK_AFTER.includes(token) || (token === '"' && quoted);
      previous = token;
      return blank;
    });
  }

  join(tokens) {
    const blanks = this.blanks(tokens);
    return tokens.map((token, i) => (blanks[i] ? " " : "") + token).join("");
  }
}

function show(token) {  // a visible name
  if (token === "" || token === "\n") return token === "" ? "." : "↵";
  if (token === ".") return "'.'";
  const escape = (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`;
  return token === " " ? "␣" : token.replace(/[\p{C}\p{Z}]/gu, escape);
}

// -- the language model -----------------------------------------------------------------------------------------------

class LanguageModel {
  constructor(vocab, parts, tokenizer) {
    Object.assign(this, { vocab, parts, tokenizer });
    this.ids = new Map(vocab.map((token, i) => [token, i]));
    this.unknown = this.ids.get("<unk>");
    this.isOfText = tokenizer.lineEnds !== "items";
    this.contextSize = Math.max(...parts.map((part) => part.model.contextSize));
  }

  network() {
    return this.parts.find((part) => part.kind === "network")?.model;
  }

  // Ids of the text, and the tokens that the model does not know. Without `<unk>`, Emma is read as emma if it knows e alone.
  encode(text) {
    const tokens = this.tokenizer.split(text), unknown = new Set(tokens.filter((token) => !this.ids.has(token)));
    const known = (token) => this.ids.get(token) ?? this.unknown ?? this.ids.get(token.toLowerCase());
    return { ids: tokens.map(known).filter((id) => id !== undefined), unknown: [...unknown], known };
  }

  text(ids) {
    return this.tokenizer.join(ids.map((id) => this.vocab[id]));
  }

  context(ids, size) {  // the last `size` of them, filled up with boundaries
    return [...Array(Math.max(0, size - ids.length)).fill(0), ...ids.slice(Math.max(0, ids.length - size))];
  }

  // Log-probabilities (V,) of the token after `ids`: of one part, or of the mixture of all with their weights.
  logProbs(ids, part = null) {
    const of = ({ model }) => model.logProbs(this.context(ids, model.contextSize));
    const mixed = this.parts.filter(({ weight }) => weight > 0);
    if (part !== null || mixed.length === 1) return of(part === null ? mixed[0] : this.parts[part]);
    const sum = new Float64Array(this.vocab.length);
    for (const each of mixed) of(each).forEach((logP, i) => { sum[i] += each.weight * Math.exp(logP); });
    return sum.map(Math.log);
  }

  banned() {  // what is never drawn: a text has no end, and <unk> is no word
    return [...(this.isOfText ? [0] : []), ...(this.unknown === undefined ? [] : [this.unknown])];
  }
}

// -- sampling ---------------------------------------------------------------------------------------------------------

function randomNumbers(seed) {  // splitmix32: uniform in [0, 1)
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
  };
}

// The probabilities (V,) that are drawn from: those of `logProbs` at a temperature, of the most probable tokens alone.
function drawnFrom(logProbs, { temperature = 1, topK = 0, topP = 1 } = {}, banned = []) {
  let scores = Float64Array.from(logProbs);
  for (const id of banned) scores[id] = -Infinity;
  const ranked = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
  const best = scores[ranked[0]];
  if (best === -Infinity) return scores.fill(0);  // no token can follow
  if (temperature === 0) return scores.map((_, id) => (id === ranked[0] ? 1 : 0));
  scores = scores.map((s) => (s - best) / temperature);
  if (topK) for (const id of ranked.slice(topK)) scores[id] = -Infinity;
  let probs = logSoftmax(scores).map(Math.exp);
  if (topP < 1) {
    let before = 0;
    for (const id of ranked) {
      const p = probs[id];
      if (before > 0 && before >= topP) probs[id] = 0;
      before += p;
    }
    const kept = probs.reduce((a, b) => a + b);
    probs = probs.map((p) => p / kept);
  }
  return probs;
}

function draw(probs, random) {
  let left = random();
  for (let id = 0; id < probs.length; id++) if ((left -= probs[id]) < 0) return id;
  const largest = Math.max(...probs);
  return largest > 0 ? probs.indexOf(largest) : -1;  // rounding left a little over, or no token can follow
}
