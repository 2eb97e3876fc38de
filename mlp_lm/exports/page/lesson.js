"use strict";
// The second tab, where a network is trained; and what starts the page.

let worker = null, curves = null, axes = null, vocab = [], isRunning = false;

const SETTINGS = {
  contextSize: "s-context", embedding: "s-embedding", hidden: "s-hidden", batch: "s-batch", dropAt: "s-drop", seed: "s-seed",
};
const whole = (value) => Math.round(value).toLocaleString("en");
const rateNow = () => 10 ** Number($("rate").value);

async function startLesson() {
  $("names").value = new TextDecoder().decode(await unpack(data.names)).trim();
  $("start").addEventListener("click", begin);
  $("reset").addEventListener("click", end);
  $("once").addEventListener("click", () => { running(false); worker.postMessage({ type: "once" }); });
  $("pause").addEventListener("click", () => {
    worker.postMessage({ type: isRunning ? "pause" : "go" });
    running(!isRunning);
  });
  $("rate").addEventListener("input", () => {
    $("rate-value").textContent = String(+rateNow().toPrecision(2));
    worker?.postMessage({ type: "rate", rate: rateNow() });
  });
  $("s-bad").addEventListener("change", () => { if (worker) begin(); });
  const names = $("names");
  names.addEventListener("dragover", (event) => { event.preventDefault(); names.classList.add("dropping"); });
  names.addEventListener("dragleave", () => names.classList.remove("dropping"));
  names.addEventListener("drop", async (event) => {
    event.preventDefault();
    names.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    names.value = file ? await file.text() : event.dataTransfer.getData("text");
  });
}

function running(yes) {
  isRunning = yes;
  $("pause").textContent = yes ? "Pause" : "Resume";
}

function begin() {
  if (!$("settings").reportValidity()) return;
  end();
  // A worker from a Blob needs no file of its own, and works from file:// too.
  const code = [$("model-script"), $("train-script")].map((script) => script.textContent).join("\n");
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  worker = new Worker(url);
  worker.onmessage = ({ data: news }) => {
    URL.revokeObjectURL(url);
    hear(news);
  };
  worker.onerror = ({ message }) => { $("lesson-message").textContent = message; };
  const numbers = Object.fromEntries(Object.entries(SETTINGS).map(([name, id]) => [name, Number($(id).value)]));
  worker.postMessage({ type: "start", text: $("names").value, rate: rateNow(), bad: $("s-bad").checked, ...numbers });
  for (const id of ["pause", "once", "reset"]) $(id).disabled = false;
  $("start").textContent = "Restart";
  document.querySelector(".charts").hidden = false;
  running(true);
}

function end() {
  worker?.terminate();
  worker = curves = axes = null;
  for (const id of ["pause", "once", "reset"]) $(id).disabled = true;
  $("start").textContent = "Start";
  $("lesson-message").textContent = "";
  $("numbers").replaceChildren();
  document.querySelector(".charts").hidden = true;
}

function hear(news) {
  if (news.type === "failed") {
    end();
    $("lesson-message").textContent = `Cannot train: ${news.message}.`;
    return;
  }
  if (news.type === "started") {
    vocab = news.vocab;
    const levels = { "ln V": news.uniform, bigram: news.bigram };
    curves = { train: [], dev: [], levels, facts: news, step: 0, every: 20, waiting: [] };
  }
  if (news.type === "progress") {
    curves.step = news.step;
    if (news.look) curves.perSecond = news.perSecond;
    addLoss(news);
    const { uniform } = curves.facts, tooHigh = news.step > 500 && news.loss > uniform + 0.5 && !$("s-bad").checked;
    $("lesson-message").textContent = tooHigh ? "The loss is above ln V: the learning rate is too high." : "";
    if (!Number.isFinite(news.loss)) {
      $("lesson-message").textContent = `The loss is ${news.loss} at step ${whole(news.step)}: the learning rate is too high.`;
      running(false);
    }
  }
  if (!news.look) return;
  curves.look = news.look;
  curves.dev.push([curves.step, news.look.dev]);
  drawLesson();
}

// The curve of train: the first step, then means of at least so many steps, twice as many whenever there are 600 points.
function addLoss({ step, loss, steps }) {
  const { train, waiting } = curves;
  waiting.push([steps, loss]);
  const sum = (of) => waiting.reduce((total, each) => total + of(each), 0), taken = sum(([n]) => n);
  if (train.length && taken < curves.every && Number.isFinite(loss)) return;
  train.push([step, sum(([n, each]) => n * each) / taken]);
  curves.waiting = [];
  if (train.length < 600) return;
  curves.train = train.filter((_, i) => i % 2).map(([at], i) => [at, (train[2 * i][1] + train[2 * i + 1][1]) / 2]);
  curves.every *= 2;
}

function drawLesson() {
  const { look, facts, step, perSecond, train } = curves;
  const rows = {
    Step: whole(step), "Steps a second": perSecond ? whole(perSecond) : "–",
    Train: train.length ? number(train.at(-1)[1]) : "–", Dev: number(look.dev),
    Parameters: whole(facts.weights), "Distinct lines": whole(facts.numItems), "Windows of train": whole(facts.windows),
  };
  const entry = ([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value));
  $("numbers").replaceChildren(...Object.entries(rows).map(entry));
  drawLosses(train, curves.dev, curves.levels);
  drawHistogram(look.bins, look);
  drawPoints(inThePlane(look.table, look.embedding), vocab);
  const of = look.embedding > 2 ? `: first two of ${look.embedding} principal components` : "";
  $("c-map-caption").textContent = `Embeddings${of}`;
  const line = ({ text, seen }) => element("li", {}, `${text || "."}${seen ? "*" : ""}`);
  $("c-samples").replaceChildren(...look.samples.map(line));
}

// Embeddings (V, E) as points: two dimensions as they are; of more, the principal components, which power iteration
// follows from one picture to the next, so that the map moves and does not jump.
function inThePlane(table, E) {
  const V = table.length / E, dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const rows = Array.from({ length: V }, (_, v) => Array.from(table.subarray(v * E, (v + 1) * E)));
  if (E === 1) return rows.map(([x], v) => [x, v]);
  if (E === 2) return rows;
  const means = rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / V);
  const centred = rows.map((row) => row.map((x, i) => x - means[i])), first = !axes || axes[0].length !== E;
  if (first) axes = [0, 1].map((k) => means.map((_, i) => Math.cos(i * (k + 1) + k)));
  for (let round = 0; round < (first ? 100 : 5); round++) {
    axes = axes.map((axis) => {
      const projected = centred.map((row) => dot(row, axis));
      return axis.map((_, i) => centred.reduce((sum, row, v) => sum + row[i] * projected[v], 0));
    });
    const shared = dot(axes[0], axes[1]) / (dot(axes[0], axes[0]) || 1);
    axes[1] = axes[1].map((x, i) => x - shared * axes[0][i]);
    axes = axes.map((axis) => axis.map((x) => x / (Math.sqrt(dot(axis, axis)) || 1)));
  }
  return centred.map((row) => axes.map((axis) => dot(row, axis)));
}

// -- the page ---------------------------------------------------------------------------------------------------------

function showTab(name) {
  for (const each of ["model", "lesson"]) {
    const chosen = each === name;
    $(`tab-${each}`).ariaSelected = String(chosen);
    $(`tab-${each}`).tabIndex = chosen ? 0 : -1;
    $(`panel-${each}`).hidden = !chosen;
  }
  if (name === "lesson" && curves) drawLesson();
}

async function startPage() {
  data = JSON.parse($("data").textContent);
  for (const name of ["model", "lesson"]) $(`tab-${name}`).addEventListener("click", () => showTab(name));
  const tabs = document.querySelector("[role=tablist]");
  roving(tabs, "[role=tab]");
  tabs.addEventListener("focusin", ({ target }) => showTab(target.id.replace("tab-", "")));
  const redraw = () => {
    if (model) refresh();
    if (unit) drawUnit(model.network());
    if (curves && !$("panel-lesson").hidden) drawLesson();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("resize", redraw);
  await startLesson();
  if (data.vocab) await startModel();
  else $("tab-model").hidden = true;
  showTab(data.vocab ? "model" : "lesson");
  document.body.dataset.ready = "yes";
}

startPage();
