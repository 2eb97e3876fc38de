"use strict";
// The lecture in a Web Worker: an MLP language model trained by plain SGD, with gradients by hand (see fused.py).
// B batch, T context, E embedding, D = T·E, H hidden, V vocabulary, N windows. Weights lie as in PyTorch's nn.Linear.

const SATURATED = 0.97;  // the |h| beyond which less than 6 % of a gradient passes: tanh' = 1 - h²
const MAX_DEV = 2000;  // windows of dev that are evaluated while a network trains
const PROBED = 256;  // windows of train whose tanh outputs are shown

function normalNumbers(random) {  // Box and Muller
  return () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

function shuffle(items, random) {  // Fisher and Yates, in place
  for (let i = items.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [items[i], items[j]] = [items[j], items[i]];
  }
  return items;
}

// Distinct items, shuffled and cut at 80 and 90 %, as windows of each split.
class Data {
  constructor(text, contextSize, random) {
    const lines = text.normalize("NFC").split(/\r?\n/).map((line) => line.trim());
    const items = shuffle([...new Set(lines)].filter((line) => line), random);
    this.vocab = ["", ...[...new Set(items.join(""))].sort()];
    this.contextSize = contextSize;
    const ids = new Map(this.vocab.map((token, i) => [token, i]));
    const rows = items.map((item) => Array.from(item, (c) => ids.get(c)));
    const [a, b] = [Math.floor(0.8 * rows.length), Math.floor(0.9 * rows.length)];
    this.numItems = rows.length;
    this.train = this.windows(rows.slice(0, a));
    this.dev = this.windows(rows.slice(a, b));
    this.seen = new Set(items.slice(0, a));
  }

  windows(rows) {
    const T = this.contextSize, N = rows.reduce((n, row) => n + row.length + 1, 0);
    const contexts = new Int32Array(N * T), targets = new Int32Array(N);
    let n = 0;
    for (const row of rows) {
      for (let i = 0; i <= row.length; i++, n++) {
        for (let t = 0; t < T; t++) contexts[n * T + t] = i - T + t < 0 ? 0 : row[i - T + t];
        targets[n] = i < row.length ? row[i] : 0;
      }
    }
    return { contexts, targets, length: N };
  }
}

// Three matrix products, four rows of x and two of w at a time: one sum would wait for itself, eight sums wait for nothing.
// Rows of x and out come in fours; those beyond the batch are zero, or are not looked at. An odd last row of w is its own
// second: timesTransposed writes it twice, the others count it once.

function timesTransposed(x, w, bias, out, rows) {  // x (B, m), w (n, m), bias (n,) -> out (B, n)
  const n = bias.length, m = w.length / n;
  for (let b = 0; b < rows; b += 4) {
    const x0 = b * m, x1 = x0 + m, x2 = x1 + m, x3 = x2 + m;
    for (let i = 0; i < n; i += 2) {
      const k = Math.min(i + 1, n - 1), wi = i * m, wk = k * m;
      let s0 = bias[i], s1 = s0, s2 = s0, s3 = s0, t0 = bias[k], t1 = t0, t2 = t0, t3 = t0;
      for (let j = 0; j < m; j++) {
        const u = w[wi + j], v = w[wk + j], a0 = x[x0 + j], a1 = x[x1 + j], a2 = x[x2 + j], a3 = x[x3 + j];
        s0 += u * a0;
        s1 += u * a1;
        s2 += u * a2;
        s3 += u * a3;
        t0 += v * a0;
        t1 += v * a1;
        t2 += v * a2;
        t3 += v * a3;
      }
      const o0 = b * n, o1 = o0 + n, o2 = o1 + n, o3 = o2 + n;
      [out[o0 + i], out[o1 + i], out[o2 + i], out[o3 + i]] = [s0, s1, s2, s3];
      [out[o0 + k], out[o1 + k], out[o2 + k], out[o3 + k]] = [t0, t1, t2, t3];
    }
  }
}

function times(x, w, n, out) {  // x (B, n), w (n, m) -> out (B, m)
  const m = w.length / n;
  out.fill(0);
  for (let b = 0; b < x.length / n; b += 4) {
    const o0 = b * m, o1 = o0 + m, o2 = o1 + m, o3 = o2 + m, r0 = b * n, r1 = r0 + n, r2 = r1 + n, r3 = r2 + n;
    for (let i = 0; i < n; i += 2) {
      const k = Math.min(i + 1, n - 1), once = k > i ? 1 : 0, wi = i * m, wk = k * m;
      const c0 = x[r0 + i], c1 = x[r1 + i], c2 = x[r2 + i], c3 = x[r3 + i];
      const d0 = once * x[r0 + k], d1 = once * x[r1 + k], d2 = once * x[r2 + k], d3 = once * x[r3 + k];
      for (let j = 0; j < m; j++) {
        const u = w[wi + j], v = w[wk + j];
        out[o0 + j] += c0 * u + d0 * v;
        out[o1 + j] += c1 * u + d1 * v;
        out[o2 + j] += c2 * u + d2 * v;
        out[o3 + j] += c3 * u + d3 * v;
      }
    }
  }
}

// w (n, m) -= alpha xᵀ y and bias (n,) -= alpha xᵀ 1, of x (B, n) and y (B, m)
function descend(w, bias, x, y, alpha) {
  const n = bias.length, m = w.length / n;
  for (let b = 0; b < x.length / n; b += 4) {
    const y0 = b * m, y1 = y0 + m, y2 = y1 + m, y3 = y2 + m, r0 = b * n, r1 = r0 + n, r2 = r1 + n, r3 = r2 + n;
    for (let i = 0; i < n; i += 2) {
      const k = Math.min(i + 1, n - 1), second = k > i ? alpha : 0, wi = i * m, wk = k * m;
      const c0 = alpha * x[r0 + i], c1 = alpha * x[r1 + i], c2 = alpha * x[r2 + i], c3 = alpha * x[r3 + i];
      const d0 = second * x[r0 + k], d1 = second * x[r1 + k], d2 = second * x[r2 + k], d3 = second * x[r3 + k];
      bias[i] -= c0 + c1 + c2 + c3;
      bias[k] -= d0 + d1 + d2 + d3;
      for (let j = 0; j < m; j++) {
        const a0 = y[y0 + j], a1 = y[y1 + j], a2 = y[y2 + j], a3 = y[y3 + j];
        w[wi + j] -= c0 * a0 + c1 * a1 + c2 * a2 + c3 * a3;
        w[wk + j] -= d0 * a0 + d1 * a1 + d2 * a2 + d3 * a3;
      }
    }
  }
}

class Net {
  constructor({ V, T, E, H, B }, random, bad = false) {
    Object.assign(this, { V, T, E, H, B });
    const normal = normalNumbers(random), D = T * E, rows = Math.ceil(B / 4) * 4;
    const draws = (size, std) => Float64Array.from({ length: size }, () => std && std * normal());
    this.table = draws(V * E, 1);
    // As MLP.init_weights; the bad way is the lecture's first one, all from N(0, 1).
    this.w1 = draws(H * D, bad ? 1 : 1 / Math.sqrt(D));
    this.b1 = draws(H, bad ? 1 : 0);
    this.w2 = draws(V * H, bad ? 1 : 0.1 / Math.sqrt(H));
    this.b2 = draws(V, bad ? 1 : 0);
    [this.e, this.h, this.p, this.dh, this.de] = [D, H, V, H, D].map((size) => new Float64Array(rows * size));
  }

  countWeights() {
    return [this.table, this.w1, this.b1, this.w2, this.b2].reduce((n, w) => n + w.length, 0);
  }

  // Embeddings e (B, D), tanh outputs h (B, H) and probabilities p (B, V) of at most B windows; their mean loss.
  forward({ contexts, targets }, indices) {
    const { V, T, E, table, e, h, p } = this, B = indices.length;
    for (let b = 0, at = 0; b < B; b++) {
      for (let t = 0; t < T; t++) {
        const row = contexts[indices[b] * T + t] * E;
        for (let i = 0; i < E; i++) e[at++] = table[row + i];
      }
    }
    const rows = Math.ceil(B / 4) * 4, units = rows * this.H;
    timesTransposed(e, this.w1, this.b1, h, rows);
    for (let i = 0; i < units; i++) h[i] = 1 - 2 / (1 + Math.exp(2 * h[i]));  // tanh, in three quarters of its time
    timesTransposed(h, this.w2, this.b2, p, rows);
    let nats = 0;
    for (let b = 0; b < B; b++) {
      const at = b * V, target = p[at + targets[indices[b]]];
      let max = -Infinity, total = 0;
      for (let v = 0; v < V; v++) max = Math.max(max, p[at + v]);
      for (let v = 0; v < V; v++) total += p[at + v] = Math.exp(p[at + v] - max);
      for (let v = 0; v < V; v++) p[at + v] /= total;
      nats += max + Math.log(total) - target;
    }
    p.fill(0, B * V);
    return nats / B;
  }

  // One step of SGD on the windows at `indices` (B,). Returns the mean loss before it.
  step(data, indices, rate) {
    const loss = this.forward(data, indices);
    const { V, T, E, H, table, w1, b1, w2, b2, e, h, p, dh, de } = this, B = indices.length, alpha = rate / B;
    for (let b = 0; b < B; b++) p[b * V + data.targets[indices[b]]] -= 1;  // from here on the error of the logits
    times(p, w2, V, dh);
    for (let i = 0; i < dh.length; i++) dh[i] *= 1 - h[i] * h[i];
    times(dh, w1, H, de);
    descend(w2, b2, p, h, alpha);  // from here on weights change; nothing above may be moved below
    descend(w1, b1, dh, e, alpha);
    for (let b = 0, at = 0; b < B; b++) {
      for (let t = 0; t < T; t++) {
        const row = data.contexts[indices[b] * T + t] * E;
        for (let i = 0; i < E; i++) table[row + i] -= alpha * de[at++];
      }
    }
    return loss;
  }

  // The mean loss over the windows at `indices`, of any number.
  loss(data, indices) {
    let nats = 0;
    for (let first = 0; first < indices.length; first += this.B) {
      const part = indices.subarray(first, first + this.B);
      nats += this.forward(data, part) * part.length;
    }
    return nats / indices.length;
  }

  sample(random, maxLength) {
    const ids = [];
    const window = { contexts: new Int32Array(this.T), targets: new Int32Array(1) };
    while (ids.length < maxLength) {
      window.contexts.set(Array.from({ length: this.T }, (_, t) => ids[ids.length - this.T + t] ?? 0));
      this.forward(window, Int32Array.of(0));
      const id = draw(this.p.subarray(0, this.V), random);
      if (id === 0) break;
      ids.push(id);
    }
    return ids;
  }
}

// How good the bigram table of the lecture's part 1 is: counts of train plus one, evaluated on dev.
function bigramLoss({ vocab, contextSize, train, dev }) {
  const V = vocab.length, counts = new Float64Array(V * V).fill(1);
  const last = (split, n) => split.contexts[(n + 1) * contextSize - 1];
  for (let n = 0; n < train.length; n++) counts[last(train, n) * V + train.targets[n]]++;
  let nats = 0;
  for (let n = 0; n < dev.length; n++) {
    const row = last(dev, n) * V;
    nats -= Math.log(counts[row + dev.targets[n]] / counts.subarray(row, row + V).reduce((a, b) => a + b));
  }
  return nats / dev.length;
}

// A run: the network, its data, the order of its windows, and what the page shows of it.
class Run {
  constructor({ text, contextSize, embedding, hidden, batch, rate, dropAt, bad, seed }) {
    this.random = randomNumbers(seed);
    this.data = new Data(text, contextSize, this.random);
    if (this.data.numItems < 20) throw new Error(`${this.data.numItems} distinct lines; at least 20 are needed`);
    if (this.data.vocab.length > 200) throw new Error("more than 200 distinct characters");
    const sizes = { V: this.data.vocab.length, T: contextSize, E: embedding, H: hidden, B: batch };
    this.net = new Net(sizes, this.random, bad);
    Object.assign(this, { rate, dropAt, steps: 0 });
    const shuffled = ({ length }) => shuffle(Int32Array.from({ length }, (_, i) => i), this.random);
    this.devSome = shuffled(this.data.dev).slice(0, MAX_DEV);
    this.probed = shuffled(this.data.train).slice(0, PROBED);
    this.order = shuffled(this.data.train);
    this.position = 0;
    this.indices = new Int32Array(batch);
  }

  step() {
    for (let b = 0; b < this.indices.length; b++) {  // a batch may span two passes over train
      if (this.position === this.order.length) {
        shuffle(this.order, this.random);
        this.position = 0;
      }
      this.indices[b] = this.order[this.position++];
    }
    return this.net.step(this.data.train, this.indices, this.steps++ < this.dropAt ? this.rate : this.rate / 10);
  }

  baselines() {
    const { vocab, numItems, train } = this.data;
    return { uniform: Math.log(vocab.length), bigram: bigramLoss(this.data), vocab, numItems, windows: train.length,
      weights: this.net.countWeights() };
  }

  look() {  // dev loss, samples, embeddings, tanh outputs
    const { net, data, probed } = this, bins = new Float64Array(40), maxima = new Float64Array(net.H).fill(1);
    let saturated = 0;
    for (let first = 0; first < probed.length; first += net.B) {
      const part = probed.subarray(first, first + net.B);
      net.forward(data.train, part);
      for (let i = 0; i < part.length * net.H; i++) {
        const size = Math.abs(net.h[i]);
        bins[Math.min(39, Math.floor((net.h[i] + 1) * 20))]++;
        if (size > SATURATED) saturated++;
        if (size < maxima[i % net.H]) maxima[i % net.H] = size;  // the smallest |h| that a unit has had
      }
    }
    const total = probed.length * net.H;
    const samples = Array.from({ length: 8 }, () => net.sample(this.random, 30).map((id) => data.vocab[id]).join(""));
    return {
      dev: net.loss(data.dev, this.devSome),
      samples: samples.map((text) => ({ text, seen: data.seen.has(text) })),
      table: net.table.slice(), embedding: net.E,
      bins: bins.map((n) => n / total), saturated: saturated / total, probed: probed.length,
      dead: maxima.filter((least) => least > SATURATED).length / net.H,
    };
  }
}

// -- the worker -------------------------------------------------------------------------------------------------------

function work() {
  let run = null, running = false, looked = 0, stepsThen = 0, perSecond = 0;
  const channel = new MessageChannel();  // its messages come at once, where timers wait
  const look = () => {
    const now = performance.now();
    perSecond = running ? (1000 * (run.steps - stepsThen)) / (now - looked) : null;
    [looked, stepsThen] = [now, run.steps];
    return run.look();
  };
  const go = (milliseconds) => {
    const start = performance.now(), before = run.steps;
    let sum = 0;
    do sum += run.step(); while (performance.now() - start < milliseconds);
    const loss = sum / (run.steps - before);
    if (!Number.isFinite(loss)) running = false;
    const due = !running || performance.now() - looked > 500, news = due ? look() : null;
    postMessage({ type: "progress", step: run.steps, steps: run.steps - before, loss, look: news, perSecond });
  };
  let queued = false;
  const queue = () => {
    if (!queued) channel.port2.postMessage(null);
    queued = true;
  };
  channel.port1.onmessage = () => {
    queued = false;
    if (!running) return;
    go(100);
    queue();
  };
  onmessage = ({ data: { type, ...rest } }) => {
    try {
      const was = running;
      if (type === "rate") {
        run.rate = rest.rate;
        return;
      }
      running = type === "start" || type === "go";
      if (type === "start") {
        run = new Run(rest);
        postMessage({ type: "started", ...run.baselines(), look: look() });
      }
      if (type === "start" || type === "once") go(0);  // one step, the first of which has a loss of its own
      if (type === "pause") postMessage({ type: "paused", look: look() });
      if (running && !was) {
        [looked, stepsThen] = [performance.now(), run.steps];
        queue();
      }
    } catch (error) {
      running = false;
      postMessage({ type: "failed", message: error.message });
    }
  };
}

if (typeof WorkerGlobalScope !== "undefined") work();
