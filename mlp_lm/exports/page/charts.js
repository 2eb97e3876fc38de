"use strict";
// What the page draws with: elements, strips of numbers, and the charts of a training run.

const $ = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && name !== "role") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);  // strings become text, never HTML
  return made;
}

function colour(name, alpha = 1) {
  return `rgb(${getComputedStyle(document.documentElement).getPropertyValue(`--${name}`)} / ${alpha})`;
}

const CELL = 8;  // pixels of a strip's cell, the gap included

const number = (x, digits = 3) => x.toFixed(digits).replace("-", "−");
const percent = (p) => (p >= 0.0005 ? `${(100 * p).toFixed(p >= 0.0995 ? 0 : 1)} %` : p > 0 ? "<0.1 %" : "0 %");

// -- the note beside pointer or focus ---------------------------------------------------------------------------------

function tell(text, x, y) {
  const tip = $("tip");
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 18}px`;
}

const hush = () => { $("tip").hidden = true; };

// `of(target)`: what to say of the element below the pointer, or with the focus.
function explain(container, selector, of) {
  const about = (event) => event.target.closest?.(selector);
  const beside = (event) => {
    const found = about(event);
    if (!found) return hush();
    const box = found.getBoundingClientRect();
    tell(of(found), event.clientX ?? box.left, event.clientY ?? box.bottom - 10);
  };
  for (const name of ["pointermove", "focusin"]) container.addEventListener(name, beside);
  for (const name of ["pointerleave", "focusout"]) container.addEventListener(name, hush);
}

// One stop of the Tab key for many elements; arrows, Home and End move among them.
function roving(container, selector) {
  const all = () => [...container.querySelectorAll(selector)];
  container.addEventListener("keydown", (event) => {
    const items = all(), at = items.indexOf(document.activeElement);
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || at < 0) return;
    event.preventDefault();
    items[Math.max(0, Math.min(items.length - 1, at + move))].focus();
  });
  container.addEventListener("focusin", (event) => {
    if (event.target.matches(selector)) for (const item of all()) item.tabIndex = item === event.target ? 0 : -1;
  });
  return () => all().forEach((item, i) => { item.tabIndex = i === 0 ? 0 : -1; });
}

// -- strips -----------------------------------------------------------------------------------------------------------

// A block of cells, one a number: the accent colour for positive ones, ink for negative ones, stronger for larger ones.
// Pointer and arrow keys visit them; `describe(i)` says what a cell is, `choose(i)` hears where one is.
class Strip {
  constructor({ label, columns, describe, choose = () => {} }) {
    Object.assign(this, { columns, describe, choose, at: -1, values: [] });
    const aria = { role: "slider", ariaLabel: label, ariaValueMin: "0" };
    this.canvas = element("canvas", { className: "strip", tabIndex: 0, ...aria });
    const visit = (i, x, y) => {
      if (i < 0 || i >= this.values.length) return hush();
      this.at = i;
      this.canvas.ariaValueNow = String(i);
      this.canvas.ariaValueText = this.describe(i);
      tell(this.describe(i), x, y);
      this.paint();
      this.choose(i);
    };
    this.canvas.addEventListener("pointermove", (event) => {
      const column = Math.floor((event.offsetX / this.canvas.clientWidth) * this.columns);
      const row = Math.floor((event.offsetY / this.canvas.clientHeight) * this.rows());
      visit(row * this.columns + Math.min(column, this.columns - 1), event.clientX, event.clientY);
    });
    this.canvas.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      const box = this.canvas.getBoundingClientRect();
      visit(Math.max(0, Math.min(this.values.length - 1, this.at + (this.at < 0 ? 1 : move))), box.left, box.bottom);
    });
    for (const name of ["pointerleave", "blur"]) {
      this.canvas.addEventListener(name, () => { hush(); this.at = -1; this.paint(); });
    }
  }

  rows() {
    return Math.ceil(this.values.length / this.columns);
  }

  draw(values, scale) {
    Object.assign(this, { values, scale });
    this.canvas.ariaValueMax = String(values.length - 1);
    this.canvas.width = this.columns * CELL;
    this.canvas.height = this.rows() * CELL;
    this.paint();
  }

  paint() {
    const pen = this.canvas.getContext("2d"), size = CELL, accent = colour("accent"), ink = colour("ink");
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.values.forEach((value, i) => {
      pen.globalAlpha = Math.min(1, Math.abs(value) / this.scale);
      pen.fillStyle = value > 0 ? accent : ink;
      pen.fillRect((i % this.columns) * size, Math.floor(i / this.columns) * size, size - 1, size - 1);
    });
    pen.globalAlpha = 1;
    if (this.at < 0) return;
    pen.strokeStyle = accent;
    pen.lineWidth = 2;
    pen.strokeRect((this.at % this.columns) * size, Math.floor(this.at / this.columns) * size, size - 1, size - 1);
  }
}

// -- charts of a run --------------------------------------------------------------------------------------------------

function canvasFor(id, description) {
  const canvas = $(id), ratio = devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.ariaLabel = description;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "12px system-ui, sans-serif";
  return { pen, width, height };
}

function niceTicks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

// train, dev: [step, loss] each; levels: losses by name, as dashed lines.
function drawLosses(train, dev, levels) {
  const [now, devNow] = [train, dev].map((points) => number(points.at(-1)?.[1] ?? NaN));
  const { pen, width, height } = canvasFor("c-loss", `Loss over steps; train ${now}, dev ${devNow}`);
  const all = [...train, ...dev].map(([, loss]) => loss).concat(Object.values(levels)).filter(Number.isFinite);
  const last = Math.max(10, train.at(-1)?.[0] ?? 0), low = Math.min(...all) - 0.1, high = Math.max(...all) + 0.1;
  const left = 40, bottom = height - 24, x = (step) => left + (step / last) * (width - left - 12);
  const y = (loss) => 10 + ((high - loss) / (high - low)) * (bottom - 10);
  pen.strokeStyle = colour("line");
  pen.fillStyle = colour("soft");
  pen.textAlign = "right";
  for (const tick of niceTicks(low, high, 5)) {
    pen.beginPath();
    pen.moveTo(left, y(tick));
    pen.lineTo(width, y(tick));
    pen.stroke();
    pen.fillText(String(+tick.toFixed(2)), left - 6, y(tick) + 4);
  }
  pen.textAlign = "center";
  for (const tick of niceTicks(0, last, 4).slice(1)) {
    pen.fillText(tick.toLocaleString("en"), Math.min(x(tick), width - 24), height - 7);
  }
  pen.setLineDash([5, 4]);
  pen.strokeStyle = colour("soft");
  for (const loss of Object.values(levels)) {
    pen.beginPath();
    pen.moveTo(left, y(loss));
    pen.lineTo(width, y(loss));
    pen.stroke();
  }
  pen.setLineDash([]);
  pen.lineWidth = 1.5;
  for (const [points, name] of [[train, "accent"], [dev, "ink"]]) {
    pen.strokeStyle = colour(name);
    pen.beginPath();
    points.forEach(([step, loss]) => pen.lineTo(x(step), y(loss)));
    pen.stroke();
  }
  pen.textAlign = "left";
  Object.entries(levels).forEach(([name, loss], i) => {  // on top of the curves, one above its line, one below
    const text = `${name} ${number(loss, 2)}`, size = pen.measureText(text).width, at = y(loss) + (i ? 14 : -6);
    pen.fillStyle = colour("raised", 0.8);
    pen.fillRect(width - size - 14, at - 11, size + 10, 14);
    pen.fillStyle = colour("soft");
    pen.fillText(text, width - size - 9, at);
  });
  pen.fillStyle = colour("accent");
  pen.fillText("train", left + 8, bottom - 8);
  pen.fillStyle = colour("ink");
  pen.fillText("dev", left + 46, bottom - 8);
}

function drawHistogram(bins, { saturated, dead, probed }) {
  const { pen, width, height } = canvasFor("c-hist", "Histogram of tanh outputs");
  const top = Math.max(...bins), bar = (width - 24) / bins.length, bottom = height - 24;
  bins.forEach((share, i) => {
    const centre = (i + 0.5) / 20 - 1;
    pen.fillStyle = colour(Math.abs(centre) > 0.95 ? "accent" : "soft", Math.abs(centre) > 0.95 ? 1 : 0.6);
    const size = (share / top) * (bottom - 12);
    pen.fillRect(12 + i * bar, bottom - size, bar - 1, size);
  });
  pen.fillStyle = colour("soft");
  pen.textAlign = "center";
  [["−1", 12], ["0", width / 2], ["1", width - 12]].forEach(([tick, at]) => pen.fillText(tick, at, height - 7));
  const shares = `${percent(saturated)} beyond ±0.97, and so saturated; ${percent(dead)} of the units on all ${probed} windows`;
  $("c-hist-caption").textContent = `tanh outputs: ${shares}`;
}

function drawPoints(points, labels) {
  const { pen, width, height } = canvasFor("c-map", "Embeddings of all characters");
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const fit = (values, size) => {
    const low = Math.min(...values), high = Math.max(...values);
    return (value) => 16 + ((value - low) / (high - low || 1)) * (size - 32);
  };
  const x = fit(xs, width), y = fit(ys, height);
  pen.font = "600 14px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  points.forEach((point, i) => {
    pen.fillStyle = colour(i && "aeiou".includes(labels[i]) ? "accent" : "ink", i ? 1 : 0.6);
    pen.fillText(show(labels[i]), x(point[0]), height - y(point[1]));
  });
}
