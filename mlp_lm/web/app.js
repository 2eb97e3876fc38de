"use strict";
// The first tab: a trained model, its forward pass, samples, scores, map and facts.

const TOP = 20;  // bars of a large vocabulary
const SMALL = 60;  // tokens of which all have a bar
const MAX_UNITS = 4096;  // cells of a strip at most
const NAMES = { network: "network", counts: "counts", cache: "cache", mixture: "mixture" };
const MEANING = {
  uniform: () => "knows nothing: all tokens equally probable, ln V",
  bigram: () => "counts, one token back",
  counts: (part) => `counts, ${part.context_size} tokens back, order ${part.order} (Kneser–Ney)`,
  network: (part) => `this network, ${part.context_size} tokens back`,
  mixture: () => "both together, with the weights that suit dev best",
};

let data, model, rows, settings, strips = {}, unit = null, marked = null;

async function startModel() {
  model = await readModel(data);
  // What is compared everywhere: the network and the counts; a model of one kind alone has one row.
  rows = data.parts.map(({ kind }, part) => ({ kind, part })).filter(({ kind }) => kind === "network" || kind === "counts");
  rows.sort((a, b) => (a.kind < b.kind ? 1 : -1));  // the network first
  if (!rows.length) rows = [{ kind: "cache", part: 0 }];
  const network = model.network(), kind = mixedParts().length > 1 ? "mixture" : mixedParts()[0].kind;
  document.title = data.name;
  $("title").textContent = data.name;
  const unitName = data.tokenizer.tokens === "characters" ? "characters" : "words";
  $("subtitle").textContent = `A language model of ${unitName}: ${count(model.vocab.length, "token")}, ` +
    `${count(model.contextSize, "token")} of context, ${count(mixedParts().reduce((n, p) => n + (p.num_weights ?? 0), 0), "learned number")}.`;
  $("forward-lead").textContent = network
    ? "Type something: the tokens of the context are looked up in the embedding table, pass through tanh units, and become a probability for each token that could come next."
    : "Type something: how often was each token seen after this context?";
  $("legend").replaceChildren(...(rows.length > 1 ? rows.flatMap((row, i) => [element("i", { className: i ? "second" : "" }), row.kind]) : []));
  for (const part of document.querySelectorAll(".of-network")) part.hidden = !network;
  const sources = [[kind, null], ...(rows.length > 1 || kind === "mixture" ? rows.map((row) => [row.kind, row.part]) : [])];
  const distinct = sources.filter(([name], i) => sources.findIndex(([other]) => other === name) === i);
  $("source").append(...distinct.map(([name, part]) => element("option", { value: part ?? "" }, NAMES[name])));
  $("source-label").hidden = distinct.length < 2;
  $("bars").classList.toggle("words", unitName === "words");
  $("find-label").hidden = model.vocab.length <= SMALL;
  const example = exampleToScore();
  $("to-score").value = model.text(example);
  $("text").value = model.text(example.slice(0, 3));
  if (network) prepareNetwork(network);
  if (data.map) drawMap(network);
  drawFacts();
  listen();
  refresh();
  score();
  generate();
}

const mixedParts = () => data.parts.filter(({ weight }) => weight > 0);
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

function exampleToScore() {  // the most probable item, or text
  const ids = [];
  while (ids.length < 12) {
    const probs = drawnFrom(model.logProbs(ids), { temperature: 0 }, model.banned());
    const id = probs.indexOf(1);
    if (id === 0) break;
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
  $("clear").addEventListener("click", () => { $("text").value = ""; refresh(); $("text").focus(); });
  $("draw-one").addEventListener("click", () => {
    const ids = model.encode($("text").value).ids;
    const probs = drawnFrom(model.logProbs(ids, settings.part), settings, model.banned());
    append(draw(probs, randomNumbers(settings.seed + 7919 * ids.length)));
  });
  explain($("bars"), ".bar", (bar) => bar.about);
  explain($("generated"), ".drawn", (token) => token.about);
  $("bars").tabStops = roving($("bars"), ".bar");
  $("generated").tabStops = roving($("generated"), ".drawn");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
}

function append(id) {
  if (id === 0) {
    $("message").textContent = `The end: ${$("text").value}`;
    $("text").value = "";
  } else {
    const { ids } = model.encode($("text").value);
    $("text").value = model.text([...ids, id]);
  }
  refresh(id === 0 ? null : undefined);
}

// -- the forward pass -------------------------------------------------------------------------------------------------

function prepareNetwork(network) {
  const E = network.embedding_dim, T = network.contextSize, width = $("panel-model").clientWidth || 900;
  strips.scale = Math.max(...[0.5, 0.9].map((q) => Array.from(network.table.subarray(0, 20000), Math.abs).sort((a, b) => a - b)[Math.floor(q * (Math.min(network.table.length, 20000) - 1))]));
  const columns = E > 64 ? 16 : Math.min(8, E);
  strips.boxes = Array.from({ length: T }, (_, t) => {
    const name = element("span"), strip = new Strip({
      label: `Embedding of context token ${t + 1}`, columns,
      describe: (i) => `dimension ${i + 1} of the embedding of ${name.textContent}: ${number(strip.values[i])}`,
    });
    const box = element("div", { className: "token-box" }, name, strip.canvas);
    return { box, name, strip };
  });
  $("context").replaceChildren(...strips.boxes.map(({ box }) => box));
  strips.layers = network.layers.map((layer, l) => {
    const strip = new Strip({
      label: `tanh units of layer ${l + 1}`, columns: Math.max(8, Math.min(128, Math.floor(width / 8))),
      describe: (i) => `unit ${i + 1} of layer ${l + 1}: tanh output ${number(strip.values[i])}`,
      choose: (i) => { unit = [l, i]; drawUnit(network); },
    });
    const heading = element("h3", {}, `tanh units, layer ${l + 1} (visit one to see its weights)`);
    $("layers").append(heading, strip.canvas);
    return strip;
  });
}

function drawUnit(network) {
  if (!unit) return;
  const [l, i] = unit, { weight } = network.layers[l], fanIn = weight.length / network.layers[l].bias.length;
  const incoming = weight.subarray(i * fanIn, (i + 1) * fanIn), E = network.embedding_dim;
  const scale = Math.max(...incoming.map(Math.abs), 1e-9), block = (label, values, columns, describe, size) => {
    const strip = new Strip({ label, columns, describe: (j) => describe(j, values[j]) });
    strip.draw(values.slice(0, MAX_UNITS), size);
    return element("div", {}, element("div", { className: "note" }, label), strip.canvas);
  };
  const made = [];
  if (l === 0) {
    const T = network.contextSize;
    for (let t = 0; t < T; t++) {
      const own = Array.from(incoming.subarray(t * E, (t + 1) * E));
      made.push(block(`from token ${t - T}`, own, Math.min(8, E), (j, w) => `weight from dimension ${j + 1} of the token ${T - t} back: ${number(w)}`, scale));
    }
  } else {
    made.push(block(`from layer ${l}`, Array.from(incoming), 64, (j, w) => `weight from unit ${j + 1} of layer ${l}: ${number(w)}`, scale));
  }
  const next = network.layers[l + 1], target = next?.weight ?? network.projection ?? network.outputWeight;
  const rowsOut = (next?.bias ?? (network.projection ? { length: E } : network.outputBias)).length, step = target.length / rowsOut;
  const outgoing = Array.from({ length: Math.min(rowsOut, MAX_UNITS) }, (_, v) => target[v * step + i]);
  const to = next ? (j) => `unit ${j + 1} of layer ${l + 2}` : network.projection ? (j) => `dimension ${j + 1} of the projection` : (j) => `the logit of ${show(model.vocab[j])}`;
  made.push(block(next ? `to layer ${l + 2}` : network.projection ? "to the projection" : "to the logits", outgoing, Math.min(32, outgoing.length),
    (j, w) => `weight to ${to(j)}: ${number(w)}`, Math.max(...outgoing.map(Math.abs), 1e-9)));
  $("unit").hidden = false;
  $("unit-name").textContent = `Weights of unit ${i + 1} of layer ${l + 1}, whose bias is ${number(network.layers[l].bias[i])}`;
  $("unit-strips").className = "strips";
  $("unit-strips").replaceChildren(...made);
}

function readSettings() {
  const value = (id) => Number($(id).value) || 0, source = $("source").value;
  return {
    temperature: value("temperature"), topK: Math.max(0, Math.floor(value("top-k"))), topP: value("top-p"),
    seed: Math.floor(value("seed")), part: source === "" ? null : Number(source),
  };
}

function refresh(message) {
  settings = readSettings();
  $("temperature-value").textContent = settings.temperature.toFixed(2);
  $("top-p-value").textContent = settings.topP.toFixed(2);
  const { ids, unknown } = model.encode($("text").value);
  if (message !== null) {
    $("message").textContent = unknown.length ? `Left out, as the model does not know ${unknown.map((t) => `“${t}”`).join(", ")}.` : "";
  }
  const network = model.network();
  if (network) {
    const context = model.context(ids, network.contextSize), { e, units } = network.forward(context), E = network.embedding_dim;
    strips.boxes.forEach(({ box, name, strip }, t) => {
      name.textContent = show(model.vocab[context[t]]);
      box.classList.toggle("marked", context[t] === marked);
      strip.draw(e.subarray(t * E, (t + 1) * E), strips.scale);
    });
    strips.layers.forEach((strip, l) => strip.draw(units[l].subarray(0, MAX_UNITS), 1));
  }
  drawBars(ids);
}

function distributions(ids) {  // what is drawn from: of all rows, and of the model itself first
  const of = (part) => drawnFrom(model.logProbs(ids, part), settings, model.banned());
  return { all: of(settings.part), each: rows.map(({ part }) => of(part)), plain: rows.map(({ part }) => model.logProbs(ids, part)) };
}

function drawBars(ids) {
  const { all, each, plain } = distributions(ids), ranked = Array.from(all.keys()).sort((a, b) => all[b] - all[a] || a - b);
  const top = ranked.length > SMALL ? TOP : ranked.length, shown = ranked.slice(0, top), largest = Math.max(...each.map((probs) => Math.max(...shown.map((id) => probs[id]))), 1e-9);
  const bars = $("bars"), focused = [...bars.children].indexOf(document.activeElement);
  while (bars.children.length < shown.length) {
    const bar = element("button", { className: "bar", type: "button" }, element("span"), element("span"), element("span"));
    bar.children[1].append(...rows.map((_, r) => element("i", { className: r ? "second" : "" })));
    bar.addEventListener("click", () => append(bar.token));
    bars.append(bar);
  }
  shown.forEach((id, i) => {
    const bar = bars.children[i], [name, meters, figures] = bar.children;
    bar.token = id;
    name.textContent = show(model.vocab[id]);
    rows.forEach((_, r) => { meters.children[r].style.width = `${(100 * each[r][id]) / largest}%`; });
    figures.textContent = each.map((probs) => percent(probs[id])).join("\n");
    bar.classList.toggle("marked", id === marked);
    bar.about = rows.map((row, r) => `${row.kind}: P(${show(model.vocab[id])}) = ${Math.exp(plain[r][id]).toPrecision(3)}, ${number(-plain[r][id], 2)} nats`).join("\n");
    bar.ariaLabel = `append ${show(model.vocab[id])}: ${rows.map((row, r) => `${row.kind} ${percent(each[r][id])}`).join(", ")}`;
  });
  if (focused < 0) bars.tabStops?.();
  const rest = ranked.slice(top).reduce((sum, id) => sum + all[id], 0);
  $("rest").textContent = ranked.length > top ? `${count(ranked.length - top, "other token")}: ${percent(rest)} together.` : "";
  find();
}

function find() {
  const { ids } = model.encode($("text").value), id = model.ids.get($("find").value.normalize("NFC"));
  $("found").textContent = !$("find").value ? "" : id === undefined || id === 0 ? "not in the vocabulary"
    : rows.map(({ kind, part }) => `${kind} ${Math.exp(model.logProbs(ids, part)[id]).toPrecision(3)}`).join(", ");
}

// -- generate, score --------------------------------------------------------------------------------------------------

const tint = (nats) => `rgb(var(--accent) / ${Math.min(0.6, Math.max(0, nats) / 10).toFixed(3)})`;

function drawnToken(id, blank, logProbs) {
  const five = Array.from(logProbs.keys()).sort((a, b) => logProbs[b] - logProbs[a]).slice(0, 5), nats = -logProbs[id];
  const token = element("span", { className: "drawn", tabIndex: -1 }, blank + (model.vocab[id] === "" ? "." : model.vocab[id]));
  token.style.background = tint(nats);
  token.about = `${show(model.vocab[id])}: ${number(nats, 2)} nats\n${five.map((i) => `${show(model.vocab[i])} ${percent(Math.exp(logProbs[i]))}`).join("   ")}`;
  token.ariaLabel = token.about;
  return token;
}

let generation = 0;

async function generate() {
  const own = ++generation, random = randomNumbers(settings.seed), chosen = settings, banned = model.banned();
  const prompt = model.encode($("text").value).ids, { isOfText } = model;
  const most = isOfText ? 150 : Math.max(2 * data.longest_item, prompt.length + 1), inTrain = data.in_train && new Set(await readArray(data.in_train));
  const out = $("generated");
  out.className = isOfText ? "text" : "";
  out.replaceChildren();
  let rested = performance.now();
  for (let n = 0; n < (isOfText ? 1 : 20); n++) {
    const ids = [...prompt], each = prompt.map((_, i) => model.logProbs(prompt.slice(0, i), chosen.part));
    while (ids.length < most) {
      const logProbs = model.logProbs(ids, chosen.part), id = draw(drawnFrom(logProbs, chosen, banned), random);
      each.push(logProbs);
      ids.push(id);
      if (id === 0) break;
      if (performance.now() - rested < 40) continue;
      await new Promise((resolve) => setTimeout(resolve));  // the page stays awake
      if (own !== generation) return;
      rested = performance.now();
    }
    const ended = ids.at(-1) === 0, tokens = ids.map((id) => model.vocab[id]), blanks = model.tokenizer.blanks(tokens);
    const drawn = ids.map((id, i) => drawnToken(id, blanks[i] ? " " : "", each[i]));
    if (isOfText) out.append(...drawn);
    else {
      const text = model.text(ended ? ids.slice(0, -1) : ids);
      const seen = inTrain ? (inTrain.has(hashItem(text)) ? "in train" : ended ? "new" : "cut") : ended ? "" : "cut";
      out.append(element("div", { className: "item" }, element("span", {}, ...drawn), element("small", {}, seen)));
    }
  }
  out.tabStops();
}

function hashItem(text) {  // FNV-1a over UTF-16 code units, as page.py computes it
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193) >>> 0;
  return value;
}

function score() {
  const { ids, unknown } = model.encode($("to-score").value.trim()), targets = model.isOfText ? ids : [...ids, 0];
  $("score-message").textContent = unknown.length ? `Left out, as the model does not know ${unknown.map((t) => `“${t}”`).join(", ")}.` : "";
  const nats = targets.map((id, i) => rows.map(({ part }) => -model.logProbs(ids.slice(0, i), part)[id]));
  const largest = Math.max(1, ...nats.flat().filter(Number.isFinite)), cells = (values) => values.map((n) => element("td", {}, number(n, 3)));
  const head = element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "token"), ...rows.map(({ kind }) => element("th", { scope: "col" }, `${kind}, nats`)), element("th")));
  const body = element("tbody", {}, ...targets.map((id, i) => {
    const meters = nats[i].map((n, r) => {
      const meter = element("i", { className: r ? "second" : "" });
      meter.style.width = `${(100 * Math.min(n, largest)) / largest}%`;
      return meter;
    });
    return element("tr", {}, element("td", {}, show(model.vocab[id])), ...cells(nats[i]), element("td", { className: "meter" }, ...meters));
  }));
  const sums = rows.map((_, r) => nats.reduce((sum, row) => sum + row[r], 0)), n = Math.max(1, targets.length);
  const foot = element("tfoot", {}, element("tr", {}, element("th", { scope: "row" }, "together"), ...cells(sums), element("td")),
    element("tr", {}, element("th", { scope: "row" }, "per token"), ...cells(sums.map((sum) => sum / n)), element("td")));
  $("scores").replaceChildren(head, body, foot);
}

// -- map, facts -------------------------------------------------------------------------------------------------------

function drawMap(network) {
  const { points, size, width, height, note } = data.map, svg = $("map");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("map-note").textContent = `${points.length < model.vocab.length ? `The ${points.length} most frequent tokens, ` : "All tokens, "}${note}. Choose one for its nearest ones; it is marked above, too.`;
  points.forEach(([x, y], id) => {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
    const attributes = { x, y: height - y, "font-size": size, role: "button", tabindex: id ? -1 : 0, "data-id": id };
    for (const [name, value] of Object.entries(attributes)) text.setAttribute(name, value);
    text.textContent = show(model.vocab[id]);
    svg.append(text);
  });
  const choose = (event) => {
    const id = event.target.dataset?.id;
    if (id !== undefined && (event.type === "click" || event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      nearest(network, Number(id));
    }
  };
  svg.addEventListener("click", choose);
  svg.addEventListener("keydown", choose);
  roving(svg, "text");
}

function nearest(network, id) {
  const E = network.embedding_dim, row = (i) => network.table.subarray(i * E, (i + 1) * E);
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0), own = row(id), size = Math.sqrt(dot(own, own)) || 1;
  const cosines = model.vocab.map((_, i) => [i, dot(row(i), own) / ((Math.sqrt(dot(row(i), row(i))) || 1) * size)]);
  const found = cosines.filter(([i]) => i !== id && i !== 0).sort((a, b) => b[1] - a[1]).slice(0, 10);
  const near = new Set(found.map(([i]) => String(i)));
  for (const text of $("map").children) {
    text.setAttribute("class", text.dataset.id === String(id) ? "chosen" : near.has(text.dataset.id) ? "near" : "");
  }
  $("nearest").replaceChildren(element("h3", {}, `Nearest to ${show(model.vocab[id])} (cosine)`),
    element("ol", {}, ...found.map(([i, cosine]) => element("li", {}, element("span", {}, show(model.vocab[i])), element("span", {}, number(cosine, 2))))));
  marked = id;
  refresh();
}

function drawFacts() {
  const network = data.parts.find(({ kind }) => kind === "network"), counts = data.parts.find(({ kind }) => kind === "counts");
  const facts = [["Tokens, V", model.vocab.length]];
  if (network) {
    const { embedding_dim, hidden_dim, num_layers, direct, tied, residual } = network.sizes;
    facts.push(["Context, T", network.context_size], ["Embedding, E", embedding_dim], ["Hidden units, H", hidden_dim], ["tanh layers", num_layers],
      ["Weights", network.num_weights], ["Connections", [direct && "direct", tied && "tied output", residual && "residual"].filter(Boolean).join(", ") || "plain"]);
  }
  if (counts) facts.push(["Order of the counts", counts.order], ["Numbers in the counts", counts.num_weights]);
  if (mixedParts().length > 1) facts.push(["Mixture", mixedParts().map(({ kind, weight }) => `${kind} ${weight.toFixed(2)}`).join(", ")]);
  $("facts").append(...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, typeof value === "number" ? value.toLocaleString("en") : value))));
  const losses = Object.entries(data.losses).sort((a, b) => b[1] - a[1]), low = Math.floor(Math.min(...losses.map(([, loss]) => loss)) * 2) / 2 - 0.1;
  const high = data.losses.uniform;
  $("losses").append(...losses.map(([name, loss]) => {
    const dot = element("span", { className: "dot" });
    dot.style.left = `${(100 * (loss - low)) / (high - low)}%`;
    const part = data.parts.find(({ kind }) => kind === name);
    return element("div", { className: `loss ${name === "network" || name === "mixture" ? "ours" : ""}` },
      element("span", {}, name, element("small", {}, MEANING[name](part))), element("span", { className: "track" }, dot), element("span", {}, number(loss, 4)));
  }));
  if (losses.length < 2) $("losses").append(element("p", { className: "note" }, "Other figures were left out: the text was not there when the page was made."));
}
