"use strict";
// The first tab: a trained model, its forward pass, samples, scores, map and facts.

const TOP = 20;  // bars of a large vocabulary
const SMALL = 60;  // tokens of which all have a bar, where there is room
const MAX_UNITS = 4096;  // cells of a strip at most
const ITEMS = 20, TEXT_TOKENS = 150;  // to generate
const MEANING = {
  uniform: () => "knows nothing: all tokens equally probable, ln V",
  bigram: () => "counts, one token back",
  counts: (part) => `counts of order ${part.order}: ${count(part.order - 1, "token")} back`,
  network: (part) => `this network, ${count(part.context_size, "token")} back`,
  mixture: () => "all parts, with the weights that are best on dev",
};

let data, model, rows, settings, marked = null, unit = null;
const strips = { boxes: [], layers: [], scale: 1 };

const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const name = (id) => show(model.vocab[id]);
const rowClass = (r) => `row${Math.min(r, 3)}`;
const embeddingColumns = (E) => (E > 64 ? 16 : Math.min(8, E));
const mixed = () => data.parts.filter(({ weight }) => weight > 0);
const descending = (values) => Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);

async function startModel() {
  model = await readModel(data);
  // What is compared everywhere: the network, the counts and, of a mixture, the mixture. `part` null is the whole.
  rows = data.parts.map(({ kind, label }, part) => ({ kind, label, part })).filter(({ kind }) => MEANING[kind]);
  rows.sort((a, b) => (a.kind === b.kind ? a.part - b.part : a.kind < b.kind ? 1 : -1));  // networks first
  if (mixed().length > 1) rows.push({ kind: "mixture", label: "mixture", part: null });
  describeModel();
  const network = model.network();
  for (const part of document.querySelectorAll(".of-network")) part.hidden = !network;
  if (network) prepareStrips(network);
  if (data.map) drawMap(network);
  drawFacts();
  listen();
  const example = exampleIds();
  $("to-score").value = model.text(example);
  $("text").value = model.text(example.slice(0, 3));
  refresh();
  score();
  generate();
}

function describeModel() {
  const kind = data.tokenizer.tokens === "characters" ? "character" : "word", whole = rows.at(-1).part === null;
  const learned = mixed().reduce((sum, part) => sum + (part.num_weights ?? 0), 0);
  document.title = $("title").textContent = data.name;
  $("subtitle").textContent = `A ${kind}-level language model of ${data.corpus}: ${count(model.vocab.length, "token")}, ` +
    `${count(model.contextSize, "token")} of context, ${count(learned, "parameter")}.`;
  $("forward-lead").textContent = model.network()
    ? "Type something. The tokens of the context are looked up in the embedding table, pass through tanh units, and become " +
      "a probability for each token that could come next."
    : "Type something to see how probable each next token is, from counts.";
  $("boundary-note").textContent = model.isOfText ? "“.” stands for what is before the text, “'.'” for a full stop."
    : "“.” is the boundary: it fills the context before an item, and ends the item.";
  const legend = rows.flatMap(({ label }, r) => [element("i", { className: rowClass(r) }), label]);
  $("legend").replaceChildren(...(rows.length > 1 ? legend : []));
  const sources = whole ? [rows.at(-1), ...rows.slice(0, -1)] : rows;  // the whole first
  $("source").append(...sources.map((row) => element("option", { value: row.part ?? "" }, row.label)));
  $("source-label").hidden = rows.length < 2;
  $("find-label").hidden = model.vocab.length <= SMALL;
  for (const id of ["bars", "map"]) $(id).classList.toggle("words", kind === "word");
}

function exampleIds() {  // the most probable item; of running text, something probable, as the most probable repeats itself
  const ids = [], random = randomNumbers(1), how = model.isOfText ? { temperature: 0.8, topK: 50 } : { temperature: 0 };
  while (ids.length < 12) {
    const id = draw(drawnFrom(model.logProbs(ids), how, model.banned()), random);
    if (id <= 0) break;
    ids.push(id);
  }
  return ids;
}

function listen() {
  for (const id of ["text", "temperature", "top-k", "top-p", "seed"]) $(id).addEventListener("input", refresh);
  $("source").addEventListener("change", refresh);
  $("to-score").addEventListener("input", score);
  $("find").addEventListener("input", find);
  $("generate").addEventListener("click", generate);
  $("clear").addEventListener("click", () => {
    $("text").value = "";
    refresh();
    $("text").focus();
  });
  $("draw-one").addEventListener("click", () => {
    const { ids } = model.encode($("text").value), random = randomNumbers(settings.seed + 7919 * ids.length);
    append(draw(drawnFrom(model.logProbs(ids, settings.part), settings, model.banned()), random));
  });
  explain($("bars"), ".bar", (bar) => bar.about);
  explain($("generated"), ".drawn", (token) => token.about);
  $("bars").tabStops = roving($("bars"), ".bar");
  $("generated").tabStops = roving($("generated"), ".drawn");
  for (const id of ["text", "to-score"]) {
    $(id).addEventListener("keydown", (event) => { if (event.key === "Enter" && !model.isOfText) event.preventDefault(); });
  }
}

function append(id) {
  if (id < 0) {
    $("message").textContent = "No token can follow: the counts have never seen any after this.";
    return;
  }
  const { ids } = model.encode($("text").value);
  const ended = id === 0 ? `The item ends: ${$("text").value || "."}` : "";
  $("text").value = id === 0 ? "" : model.text([...ids, id]);
  refresh();
  if (ended) $("message").textContent = ended;
}

// What a user should know of how a text was read.
function remarks({ unknown, known }) {
  const of = (tokens) => tokens.map((token) => `“${show(token)}”`).join(", ");
  if (model.unknown !== undefined) return unknown.length ? `Outside the vocabulary, read as <unk>: ${of(unknown)}.` : "";
  const left = unknown.filter((token) => known(token) === undefined), lowered = left.length < unknown.length;
  const parts = [lowered ? "Read in lower case." : "", left.length ? `Left out, as the model does not know: ${of(left)}.` : ""];
  return parts.join(" ").trim();
}

// -- the forward pass -------------------------------------------------------------------------------------------------

function readSettings() {
  const value = (id) => Number($(id).value) || 0, source = $("source").value;
  return {
    temperature: value("temperature"),
    topK: Math.max(0, Math.floor(value("top-k"))),
    topP: value("top-p"),
    seed: Math.floor(value("seed")),
    part: source === "" ? null : Number(source),
  };
}

function refresh() {
  settings = readSettings();
  $("temperature-value").textContent = settings.temperature.toFixed(2);
  $("top-p-value").textContent = settings.topP.toFixed(2);
  const read = model.encode($("text").value), network = model.network();
  $("message").textContent = remarks(read);
  if (network) drawStrips(network, read.ids);
  drawBars(read.ids);
}

function prepareStrips(network) {
  const E = network.embedding_dim, some = Array.from(network.table.subarray(0, 20_000), Math.abs).sort((a, b) => a - b);
  strips.scale = some[Math.floor(0.9 * (some.length - 1))] || 1;  // few cells are stronger
  strips.boxes = Array.from({ length: network.contextSize }, (_, t) => {
    const label = element("span"), strip = new Strip({
      label: `Embedding of context token ${t + 1}`,
      columns: embeddingColumns(E),
      describe: (i) => `dimension ${i + 1} of the embedding of ${label.textContent}: ${number(strip.values[i])}`,
    });
    return { label, strip, box: element("div", { className: "token-box" }, label, strip.canvas) };
  });
  $("context").replaceChildren(...strips.boxes.map(({ box }) => box));
  const width = $("panel-model").clientWidth || 900;
  strips.layers = network.layers.map((_, l) => {
    const strip = new Strip({
      label: `tanh units of layer ${l + 1}`,
      columns: Math.max(8, Math.min(128, Math.floor(width / CELL))),
      describe: (i) => `unit ${i + 1} of layer ${l + 1}: tanh output ${number(strip.values[i])}`,
      choose: (i) => {
        unit = { layer: l, number: i };
        drawUnit(network);
      },
    });
    const heading = `tanh units of layer ${l + 1}: hover over one, tap it, or use arrow keys to see its weights`;
    $("layers").append(element("h3", {}, heading), strip.canvas);
    return strip;
  });
}

function drawStrips(network, ids) {
  const context = model.context(ids, network.contextSize), { e, units } = network.forward(context);
  const E = network.embedding_dim;
  strips.boxes.forEach(({ box, label, strip }, t) => {
    label.textContent = name(context[t]);
    box.classList.toggle("marked", context[t] === marked);
    strip.draw(e.subarray(t * E, (t + 1) * E), strips.scale);
  });
  strips.layers.forEach((strip, l) => strip.draw(units[l].subarray(0, MAX_UNITS), 1));
}

// The weights into the chosen unit, and those that it passes its output on with.
function drawUnit(network) {
  const { layer: l, number: i } = unit, { weight, bias } = network.layers[l], fanIn = weight.length / bias.length;
  const incoming = Array.from(weight.subarray(i * fanIn, (i + 1) * fanIn)), E = network.embedding_dim, blocks = [];
  const block = (label, weights, columns, of) => {
    const strip = new Strip({ label, columns, describe: (j) => `weight ${of(j)}: ${number(weights[j])}` });
    strip.draw(weights.slice(0, MAX_UNITS), Math.max(...weights.slice(0, MAX_UNITS).map(Math.abs), 1e-9));
    blocks.push(element("div", {}, element("div", { className: "note" }, label), strip.canvas));
  };
  if (l > 0) block(`from layer ${l}`, incoming, 64, (j) => `from unit ${j + 1} of layer ${l}`);
  for (let t = 0; l === 0 && t < network.contextSize; t++) {
    const back = network.contextSize - t, own = incoming.slice(t * E, (t + 1) * E);
    block(`from ${back} back`, own, embeddingColumns(E), (j) => `from dimension ${j + 1} of the token ${back} back`);
  }
  const targets = network.layers[l + 1] ? [network.layers[l + 1].weight, (j) => `to unit ${j + 1} of layer ${l + 2}`]
    : network.projection ? [network.projection, (j) => `to dimension ${j + 1} of the projection`]
      : [network.outputWeight, (j) => `to the logit of ${name(j)}`];
  const [matrix, to] = targets, height = network.layers[l + 1]?.bias.length ?? (network.projection ? E : model.vocab.length);
  const outgoing = Array.from({ length: Math.min(height, MAX_UNITS) }, (_, j) => matrix[(j * matrix.length) / height + i]);
  block("onwards", outgoing, Math.min(32, outgoing.length), to);
  $("unit").hidden = false;
  $("unit-name").textContent = `Weights of unit ${i + 1} of layer ${l + 1}, whose bias is ${number(bias[i])}`;
  $("unit-strips").replaceChildren(...blocks);
}

function drawBars(ids) {
  const banned = model.banned(), plain = rows.map(({ part }) => model.logProbs(ids, part));
  const each = plain.map((logProbs) => drawnFrom(logProbs, settings, banned));
  const chosen = each[rows.findIndex(({ part }) => part === settings.part)];
  const ranked = descending(chosen).filter((id) => !banned.includes(id));
  const roomy = innerWidth > 736, top = ranked.length <= SMALL && roomy ? ranked.length : roomy ? TOP : 10;
  const shown = ranked.slice(0, top), largest = Math.max(1e-9, ...each.flatMap((probs) => shown.map((id) => probs[id])));
  const bars = $("bars");
  while (bars.children.length < shown.length) {
    const meters = element("span", {}, ...rows.map((_, r) => element("i", { className: rowClass(r) })));
    const bar = element("button", { className: "bar", type: "button", tabIndex: -1 }, element("span"), meters, element("span"));
    bar.addEventListener("click", () => append(bar.token));
    bars.append(bar);
  }
  while (bars.children.length > shown.length) bars.lastChild.remove();
  shown.forEach((id, i) => {
    const bar = bars.children[i], [label, meters, figures] = bar.children;
    const shares = rows.map(({ label: row }, r) => `${row} ${percent(each[r][id])}`);
    const exact = rows.map(({ label: row }, r) => `${row}: P = ${precise(plain[r][id])}, ${number(-plain[r][id], 2)} nats`);
    bar.token = id;
    label.textContent = name(id);
    rows.forEach((_, r) => { meters.children[r].style.width = `${(100 * each[r][id]) / largest}%`; });
    figures.textContent = each.map((probs) => percent(probs[id])).join("\n");
    bar.classList.toggle("marked", id === marked);
    bar.about = exact.join("\n");
    bar.ariaLabel = `append ${name(id)}: ${shares.join(", ")}`;
  });
  if (!bars.contains(document.activeElement)) bars.tabStops();
  const rest = ranked.slice(top).reduce((sum, id) => sum + chosen[id], 0);
  $("rest").textContent = ranked.length > top ? `${count(ranked.length - top, "other token")}: ${percent(rest)} in all.` : "";
  find();
}

const precise = (logP) => Math.exp(logP).toPrecision(3);

function find() {
  const { ids } = model.encode($("text").value), typed = $("find").value, tokens = model.tokenizer.split(typed);
  const id = model.ids.get(tokens.length === 1 ? tokens[0] : typed);  // <unk> is three words
  const found = () => rows.map(({ label, part }) => `${label} ${precise(model.logProbs(ids, part)[id])}`).join(", ");
  $("found").textContent = !typed ? "" : !id ? "not in the vocabulary" : found();
}

// -- generate ---------------------------------------------------------------------------------------------------------

let generation = 0;

async function generate() {
  const own = ++generation, how = settings, random = randomNumbers(how.seed), { isOfText } = model, out = $("generated");
  const prompt = model.encode($("text").value).ids, longest = isOfText ? prompt.length + TEXT_TOKENS : 2 * data.longest_item;
  const hashes = data.seen && await Promise.all(data.seen.map(readArray)), [train, others] = (hashes ?? []).map((h) => new Set(h));
  out.className = isOfText ? "text" : "";
  out.replaceChildren();
  let rested = performance.now();
  const rest = async () => {  // the page stays awake; whether a later call has taken over
    if (performance.now() - rested > 40) {
      await new Promise((resolve) => setTimeout(resolve));
      rested = performance.now();
    }
    return own !== generation;
  };
  const before = [];
  for (let i = 0; i < prompt.length; i++) {
    before.push(model.logProbs(prompt.slice(0, i), how.part));
    if (await rest()) return;
  }
  for (let n = 0; n < (isOfText ? 1 : ITEMS); n++) {
    const ids = [...prompt], each = [...before];
    while (ids.at(-1) !== 0 && ids.length < Math.max(longest, prompt.length + 1)) {
      const logProbs = model.logProbs(ids, how.part);
      each.push(logProbs);
      const id = draw(drawnFrom(logProbs, how, model.banned()), random);
      if (id < 0) break;  // no token can follow
      ids.push(id);
      if (await rest()) return;
    }
    const ended = ids.at(-1) === 0, blanks = model.tokenizer.blanks(ids.map((id) => model.vocab[id]));
    const tokens = ids.map((id, i) => drawnToken(id, blanks[i], each[i]));
    const hash = hashItem(model.text(ended ? ids.slice(0, -1) : ids));
    const seen = !ended ? "cut" : !train ? "" : train.has(hash) ? "in train" : others.has(hash) ? "in dev or test" : "new";
    out.append(...(isOfText ? tokens
      : [element("div", { className: "item" }, element("span", {}, ...tokens), element("small", {}, seen))]));
  }
  out.tabStops();
}

function drawnToken(id, blank, logProbs) {
  const nats = -logProbs[id], likeliest = descending(logProbs).slice(0, 5);
  const text = (blank ? " " : "") + (/^[ \n]$/.test(model.vocab[id]) ? model.vocab[id] : id === 0 ? "." : visible(id));
  const token = element("span", { className: "drawn", tabIndex: -1, role: "img" }, text);
  token.style.background = `rgb(var(--accent) / ${Math.min(0.6, Math.max(0, nats) / 10).toFixed(3)})`;
  const others = likeliest.map((other) => `${name(other)} ${percent(Math.exp(logProbs[other]))}`);
  token.about = `${name(id)}: ${number(nats, 2)} nats\n${others.join("   ")}`;
  token.ariaLabel = token.about;
  return token;
}

const visible = (id) => (model.vocab[id] === "." ? "." : name(id));

function hashItem(text) {  // FNV-1a over UTF-16 code units, as page.py computes it
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193) >>> 0;
  return value;
}

// -- score ------------------------------------------------------------------------------------------------------------

function score() {
  const read = model.encode($("to-score").value.trim()), end = model.isOfText ? model.ids.get("\n") : 0;
  const targets = end === undefined ? read.ids : [...read.ids, end];
  $("score-message").textContent = remarks(read);
  const nats = targets.map((id, i) => rows.map(({ part }) => -model.logProbs(read.ids.slice(0, i), part)[id]));
  const largest = Math.max(1, ...nats.flat().filter(Number.isFinite));
  const cells = (values) => values.map((value) => element("td", {}, number(value, 3)));
  const meter = (value, r) => {
    const bar = element("i", { className: rowClass(r) });
    bar.style.width = `${(100 * Math.min(value, largest)) / largest}%`;
    return bar;
  };
  const lines = targets.map((id, i) => element("tr", {}, element("td", {}, name(id)), ...cells(nats[i]),
    element("td", { className: "meter" }, ...nats[i].map(meter))));
  const sums = rows.map((_, r) => nats.reduce((sum, line) => sum + line[r], 0)), n = Math.max(1, targets.length);
  const line = (label, values) => element("tr", {}, element("th", { scope: "row" }, label), ...cells(values), element("td"));
  const heads = ["token", ...rows.map(({ label }) => `${label}, nats`), ""].map((text) => element("th", { scope: "col" }, text));
  $("scores").replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...lines),
    element("tfoot", {}, line("total", sums), line("per token", sums.map((sum) => sum / n))));
}

// -- map, facts -------------------------------------------------------------------------------------------------------

function drawMap(network) {
  const { points, size, width, height, note } = data.map, svg = $("map");
  const which = points.length < model.vocab.length ? `The ${points.length} most frequent tokens` : "All tokens";
  $("map-note").textContent = `${which}, ${note}. Select one to see its nearest neighbours; it is highlighted above as well.`;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  points.forEach(([x, y], id) => {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
    const attributes = { x, y: height - y, "font-size": size, role: "button", tabindex: id ? -1 : 0, "data-id": id };
    for (const [attribute, value] of Object.entries(attributes)) text.setAttribute(attribute, value);
    text.textContent = name(id);
    svg.append(text);
  });
  const choose = (event) => {
    const id = event.target.dataset?.id;
    if (id === undefined || (event.type === "keydown" && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    showNearest(network, Number(id));
  };
  svg.addEventListener("click", choose);
  svg.addEventListener("keydown", choose);
  roving(svg, "text");
}

function showNearest(network, id) {
  const E = network.embedding_dim, row = (i) => network.table.subarray(i * E, (i + 1) * E);
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0), norm = (a) => Math.sqrt(dot(a, a)) || 1;
  const cosines = model.vocab.map((_, i) => dot(row(i), row(id)) / (norm(row(i)) * norm(row(id))));
  const found = descending(cosines).filter((i) => i !== id && i !== 0).slice(0, 10), near = new Set(found.map(String));
  for (const text of $("map").children) {
    text.setAttribute("class", text.dataset.id === String(id) ? "chosen" : near.has(text.dataset.id) ? "near" : "");
  }
  const lines = found.map((i) => element("li", {}, element("span", {}, name(i)), element("span", {}, number(cosines[i], 2))));
  $("nearest").replaceChildren(element("h3", {}, `Nearest to ${name(id)} (cosine)`), element("ol", {}, ...lines));
  marked = id;
  refresh();
}

function drawFacts() {
  const [networks, [counts]] = ["network", "counts"].map((kind) => data.parts.filter((part) => part.kind === kind));
  const facts = [["Tokens, V", model.vocab.length]];
  for (const { label, context_size, num_weights, sizes } of networks) {
    const { embedding_dim, hidden_dim, num_layers, direct, tied, residual } = sizes;
    const extras = [direct && "direct connections", tied && "tied output", residual && "residual layers"].filter(Boolean);
    if (networks.length > 1) facts.push(["Part", label]);
    facts.push(["Context, T", context_size], ["Embedding, E", embedding_dim], ["Hidden units, H", hidden_dim]);
    facts.push(["tanh layers", hidden_dim ? num_layers : 0], ["Weights", num_weights]);
    if (extras.length) facts.push(["With", extras.join(", ")]);
  }
  if (counts) facts.push(["Order of the counts", counts.order], ["Parameters of the counts", counts.num_weights]);
  const shares = mixed().map(({ label, weight }) => `${label} ${weight.toFixed(2)}`);
  if (shares.length > 1) facts.push(["Mixture", shares.join(", ")]);
  const text = (value) => (typeof value === "number" ? value.toLocaleString("en") : value);
  const entry = ([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, text(value)));
  $("facts").append(...facts.map(entry));
  const losses = Object.entries(data.losses).sort((a, b) => b[1] - a[1]), high = data.losses.uniform;
  const low = losses.at(-1)[1] - 0.1;
  $("losses").append(...losses.map(([label, loss]) => {
    const dot = element("span", { className: "dot" }), part = data.parts.find((each) => each.label === label);
    const kind = part?.kind ?? label, meaning = MEANING[kind](part);
    dot.style.left = `${Math.min(100, (100 * (loss - low)) / (high - low))}%`;
    return element("div", { className: kind === "network" || kind === "mixture" ? "loss ours" : "loss" },
      element("span", {}, label, element("small", {}, meaning)), element("span", { className: "track" }, dot),
      element("span", {}, number(loss, 4)));
  }));
  if (losses.length < 3) {
    $("losses").append(element("p", { className: "note" }, "The text was not there when this page was made: no other figures."));
  }
}
