"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const ABOUT = {
  encoder: "Each source token asks which other source tokens help to understand it. It may look both ways: nothing is masked.",
  decoder: "Each target token asks what has been written so far. Later tokens are masked, because they do not exist yet when it is its turn.",
  cross: "Each target token asks the source sentence what to write next. The queries come from the decoder, the keys and values from the encoder.",
};
const SHORT = { encoder: "Encoder self-attention", decoder: "Decoder self-attention", cross: "Encoder-decoder attention" };
const SIDES = {
  encoder: ["Source token asks", "Source token answers"],
  decoder: ["Target token asks", "Earlier target token answers"],
  cross: ["Target token asks", "Source token answers"],
};
const MANY = 22; // tokens from which on running text is clearer than two columns
const view = { kind: "cross", layer: 0, head: "average", beam: 0, token: null }; // token: {side, place} that is kept
let wantsFlow = null; // running text or columns, once the reader has said so
let preview = null; // the token that is pointed at or focused

// What is shown

const grids = () => (view.beam ? [data.grids[0], ...data.others[view.beam - 1]] : data.grids);
const grid = () => grids().find((it) => it.kind === view.kind);
const percent = (weight) => (weight > 0 && weight < 0.005 ? "<1" : Math.round(weight * 100)) + "\u00a0%";
const shade = (weight) => Math.pow(Math.min(weight, 1), 0.65); // below 1, so that small weights stay visible
const headName = () => (view.head === "average" ? "average of all heads" : "head " + (view.head + 1));

function average(heads) {
  return heads[0].map((row, q) => row.map((_, k) => heads.reduce((sum, head) => sum + head[q][k], 0) / heads.length));
}
function weights(head = view.head, layer = view.layer) {
  const heads = grid().layers[layer];
  return (head === "average" ? average(heads) : heads[head]).map((row) => row.map((weight) => weight / data.scale));
}
function isMasked(q, k) {
  return view.kind === "decoder" && k > q && grid().layers.every((heads) => heads.every((head) => head[q][k] === 0));
}

// Tokens

const SPOKEN = { "<s>": "start of sentence", "</s>": "end of sentence", "<pad>": "padding", "<unk>": "unknown word" };
const marksWords = data.grids.some((it) => it.keys.some((token) => token.startsWith("▁")));
const named = (text) => /^[\p{Cc}\p{Cf}\p{Z}]+$/u.test(text) ? `‹${[...text].map((it) => "U+" + it.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")).join("·")}›` : text;
const visible = (token) => named(token.replace(/^▁(?=.)/, "").replace(/▁/g, "␣").replace(/[\r\n]/g, "⏎").replace(/\t/g, "⇥").replace(/^ +| +$/g, (s) => "␣".repeat(s.length))) || "∅";
const isLeftward = (tokens) => /[\p{sc=Arab}\p{sc=Hebr}\p{sc=Syrc}\p{sc=Thaa}\p{sc=Nkoo}]/u.test(tokens.filter((it) => !SPOKEN[it]).join("").match(/\p{L}/u)?.[0] ?? "");
const continues = (token) => marksWords && /^[\p{L}\p{N}\p{M}]/u.test(token);
const spoken = (token) => SPOKEN[token] ?? (continues(token) ? "part " : "") + visible(token);

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
function label(tag, token) {
  const element = make(tag, undefined, { dir: "auto" });
  if (continues(token)) element.append(make("span", "‑", { class: "joint" }));
  element.append(visible(token));
  return element;
}
function paint(element, weight) {
  const alpha = shade(weight);
  element.style.backgroundColor = alpha > 0.01 ? `rgba(var(--accent), ${alpha.toFixed(3)})` : "";
  element.classList.toggle("dark-cell", alpha > 0.6);
}

// Groups in which arrow keys move: one element of each is in the order of Tab

function moveTo(elements, place) {
  const next = elements[Math.max(0, Math.min(elements.length - 1, place))];
  elements.forEach((one) => { one.tabIndex = one === next ? 0 : -1; });
  return next;
}
function arrows(container, columns, act) {
  container.addEventListener("keydown", (event) => {
    const elements = [...container.querySelectorAll("button")], place = elements.indexOf(document.activeElement);
    const across = columns(), end = elements.length - 1, right = container.dir === "rtl" ? -1 : 1;
    const places = { ArrowRight: place + right, ArrowLeft: place - right, ArrowDown: place + across, ArrowUp: place - across, Home: 0, End: end };
    if (place < 0 || !(event.key in places) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (across > 1 && (places[event.key] < 0 || places[event.key] > end)) return;
    const next = moveTo(elements, places[event.key]);
    next.focus();
    act(elements.indexOf(next));
  });
}
function radios(container, buttons, chosen, act) {
  buttons.forEach((button, place) => {
    button.setAttribute("role", "radio");
    button.type = "button";
    button.addEventListener("click", () => { act(place); container.querySelectorAll("button")[place].focus(); });
  });
  container.replaceChildren(...buttons);
  check(container, chosen);
}
function check(container, chosen) {
  const buttons = [...container.querySelectorAll("button")];
  buttons.forEach((button, place) => button.setAttribute("aria-checked", place === chosen));
  moveTo(buttons, chosen);
}

// The controls

function different(text, best) {
  const [a, b] = [text.split(" "), best.split(" ")];
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < Math.min(a.length, b.length) - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const parts = [a.slice(0, start).join(" "), a.slice(start, a.length - end).join(" "), a.slice(a.length - end).join(" ")];
  const element = make("span", undefined, { class: "text", dir: "auto" });
  if (parts[0] && parts[1]) element.append(make("span", parts[0] + " ", { class: "whole" }), make("span", "… " + parts[0].split(" ").slice(-4).join(" ") + " ", { class: "short" }));
  else if (parts[0]) element.append(parts[0], " ");
  if (parts[1]) element.append(make("mark", parts[1]), " ");
  element.append(parts[2]);
  return element;
}
function showSentences() {
  const canChoose = data.others.length > 0, beams = $("beams");
  const rows = data.beams.map((beam, rank) => {
    const row = make(canChoose && rank <= data.others.length ? "button" : "div", undefined, { class: beam.text.length > 110 ? "beam long" : "beam" });
    row.append(make("span", String(rank + 1), { class: "rank" }), different(beam.text, data.beams[0].text), make("span", beam.score.toFixed(3).replace("-", "\u2212"), { class: "score" }));
    return row;
  });
  if (canChoose) {
    beams.setAttribute("role", "radiogroup");
    beams.setAttribute("aria-labelledby", "sentences-title");
    $("beams-about").append(" Choose one to see what the heads look at while it is written.");
    radios(beams, rows.slice(0, data.others.length + 1), 0, (beam) => choose({ beam, token: null }));
    beams.append(...rows.slice(data.others.length + 1));
    if (rows.length > data.others.length + 1) $("beams-about").append(` The page would be too large with that of the last ${rows.length - data.others.length - 1}.`);
    arrows(beams, () => 1, (beam) => choose({ beam, token: null }));
  } else beams.replaceChildren(...rows);
  if (data.reference) {
    $("reference").lastElementChild.textContent = data.reference;
    $("reference").hidden = false;
  }
  $("sentences").hidden = !data.reference && !data.beams.length;
  if (!data.beams.length) for (const part of ["sentences-title", "beams-about"]) $(part).hidden = true;
}
function thumbnail(head, layer) {
  const colour = getComputedStyle(document.body).getPropertyValue("--" + view.kind);
  const canvas = make("canvas", undefined, { width: grid().keys.length, height: grid().queries.length, "aria-hidden": "true" });
  const brush = canvas.getContext("2d");
  weights(head, layer).forEach((row, q) => row.forEach((weight, k) => {
    brush.fillStyle = `rgba(${colour}, ${shade(weight)})`;
    brush.fillRect(k, q, 1, 1);
  }));
  return canvas;
}
const headList = (layer) => [...grid().layers[layer].keys(), "average"];
function showKinds() {
  const group = $("kinds").lastElementChild, kinds = data.grids.map((it) => it.kind);
  radios(group, kinds.map((kind) => make("button", SHORT[kind], { class: "choice", "data-kind": kind })), 0, (place) => choose({ kind: kinds[place], token: null }));
  arrows(group, () => 1, (place) => choose({ kind: kinds[place], token: null }));
}
function showLayers() {
  const group = $("layers").lastElementChild, layers = grid().layers;
  radios(group, layers.map((_, n) => make("button", String(n + 1), { class: "choice", "aria-label": "Layer " + (n + 1) })), view.layer, (layer) => choose({ layer }));
}
function showHeads() {
  const heads = headList(view.layer), group = $("heads").lastElementChild;
  radios(group, heads.map((head) => {
    const button = make("button", undefined, { class: "head", "aria-label": head === "average" ? "Average" : "Head " + (head + 1) });
    button.append(thumbnail(head, view.layer), head === "average" ? "Average" : "Head " + (head + 1));
    return button;
  }), heads.indexOf(view.head), (place) => choose({ head: heads[place] }));
}
function showEvery() {
  if (!$("every").open) return;
  const table = $("every").querySelector("table"), most = Math.max(...grid().layers.map((heads) => heads.length));
  const header = make("tr");
  header.append(make("td"), ...[...Array(most).keys()].map((n) => make("th", String(n + 1), { scope: "col" })), make("th", "mean", { scope: "col" }));
  table.tHead.replaceChildren(header);
  table.tBodies[0].replaceChildren(...grid().layers.map((_, layer) => {
    const line = make("tr");
    line.append(make("th", "layer " + (layer + 1), { scope: "row" }), ...headList(layer).map((head) => {
      const cell = make("td"), button = make("button", undefined, { type: "button", "aria-label": `Layer ${layer + 1}, ${head === "average" ? "average" : "head " + (head + 1)}` });
      button.append(thumbnail(head, layer));
      button.addEventListener("click", () => choose({ layer, head }));
      cell.append(button);
      return cell;
    }));
    return line;
  }));
  markEvery();
}
function markEvery() {
  const buttons = [...$("every").querySelectorAll("button")];
  if (!buttons.length) return;
  const before = grid().layers.slice(0, view.layer).reduce((sum, heads) => sum + heads.length + 1, 0);
  const place = before + headList(view.layer).indexOf(view.head);
  buttons.forEach((button, n) => button.setAttribute("aria-pressed", n === place));
  moveTo(buttons, place);
}

// The two views of one head

function pointing(element, side, place) {
  element.addEventListener("pointerenter", (event) => { if (event.pointerType !== "touch") show({ side, place }); });
  element.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") show(null); });
  element.addEventListener("click", () => choose({ token: isSame(view.token, { side, place }) ? null : { side, place } }));
}
const isSame = (a, b) => a !== null && b !== null && a.side === b.side && a.place === b.place;

function tokenList(side, tokens, written) {
  return tokens.map((token, place) => {
    const item = make("li"), says = written?.[place] ? ", writes " + spoken(written[place]) : "";
    const button = make("button", undefined, { type: "button", class: "token", "aria-pressed": "false", "aria-label": spoken(token) + says, title: token });
    const text = make("span");
    text.append(label("b", token));
    if (written?.[place]) {
      const small = make("small", "writes ");
      small.append(label("span", written[place]));
      text.append(small);
    }
    button.append(text, make("i"));
    button.tabIndex = place ? -1 : 0;
    pointing(button, side, place);
    button.addEventListener("focus", () => { moveTo([...button.closest("ol").querySelectorAll("button")], place); show({ side, place }); });
    button.addEventListener("blur", () => show(null));
    item.append(button);
    return item;
  });
}
function showLists() {
  const { queries, keys, written } = grid();
  [$("asks").textContent, $("answers").textContent] = SIDES[view.kind];
  $("queries").replaceChildren(...tokenList("query", queries, written));
  $("keys").replaceChildren(...tokenList("key", keys));
}
function showMap() {
  const { queries, keys, name } = grid(), rows = weights();
  const title = `${name} · layer ${view.layer + 1} · ${headName()}`;
  $("map-title").textContent = title.charAt(0).toUpperCase() + title.slice(1);
  $("map").caption.textContent = title + ": rows ask, columns answer, weights in percent";
  const header = make("tr");
  header.append(make("td", undefined, { class: "corner" }), ...keys.map((token, k) => {
    const cell = make("th", undefined, { scope: "col" });
    cell.append(label("span", token));
    pointing(cell, "key", k);
    return cell;
  }));
  $("map").tHead.replaceChildren(header);
  let stripes = false;
  $("map").tBodies[0].replaceChildren(...rows.map((row, q) => {
    const line = make("tr"), head = label("th", queries[q]);
    head.scope = "row";
    line.append(head);
    row.forEach((weight, k) => {
      const masked = isMasked(q, k), cell = make("td", undefined, { title: `${visible(queries[q])} looks at ${visible(keys[k])}: ${masked ? "masked" : percent(weight)}` });
      cell.append(make("span", masked ? "–" : percent(weight).replace("\u00a0%", "")));
      if (masked) { cell.className = "masked"; stripes = true; } else paint(cell, weight);
      line.append(cell);
    });
    pointing(line, "query", q);
    return line;
  }));
  $("stripes").hidden = !stripes;
  fitMap();
}
function fitMap() {
  const room = $("map").parentElement.clientWidth - $("map").tBodies[0].rows[0].cells[0].offsetWidth - 4;
  $("map").style.setProperty("--cell", Math.floor(Math.max(20, Math.min(52, room / grid().keys.length - 1))) + "px");
}

function show(token) {
  preview = token;
  const shown = preview ?? view.token, rows = weights();
  const q = shown?.side === "query" ? shown.place : null, k = shown?.side === "key" ? shown.place : null;
  const weigh = (list, side, weight) => [...list.querySelectorAll("button")].forEach((button, place) => {
    const found = weight(place), isPercent = typeof found === "number";
    button.setAttribute("aria-pressed", isSame(view.token, { side, place }));
    button.classList.toggle("shown", isSame(shown, { side, place }));
    button.classList.toggle("masked", found === "masked");
    paint(button, isPercent ? found : 0);
    const isQuiet = $("flow").checked && (!isPercent || found < 0.05);
    button.lastElementChild.textContent = isQuiet ? "" : isPercent ? percent(found) : found ?? "";
  });
  weigh($("queries"), "query", (place) => (k === null ? null : isMasked(place, k) ? "masked" : rows[place][k]));
  weigh($("keys"), "key", (place) => (q === null ? null : isMasked(q, place) ? "masked" : rows[q][place]));
  [...$("map").tBodies[0].rows].forEach((row, i) => {
    row.classList.toggle("shown", i === q);
    [...row.cells].forEach((cell, j) => cell.classList.toggle("shown", k !== null && j === k + 1));
  });
  [...$("map").tHead.rows[0].cells].forEach((cell, j) => cell.classList.toggle("shown", k !== null && j === k + 1));
  drawLines(rows, q, k);
  tell(rows, q, k);
}
function drawLines(rows, q, k) {
  const svg = $("lines"), lines = [];
  if ($("flow").checked) { svg.replaceChildren(); return; }
  const step = $("queries").firstChild.offsetHeight, height = step * Math.max(rows.length, rows[0].length);
  svg.setAttribute("viewBox", `0 0 100 ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.height = height + "px";
  rows.forEach((row, i) => row.forEach((weight, j) => {
    if (weight < 0.02 || (q !== null && i !== q) || (k !== null && j !== k)) return;
    const opacity = shade(weight) * (q === null && k === null ? 0.7 : 1);
    lines.push(`<line x1="0" y1="${(i + 0.5) * step}" x2="100" y2="${(j + 0.5) * step}" vector-effect="non-scaling-stroke" stroke-width="${(0.6 + weight * 5).toFixed(2)}" stroke-opacity="${opacity.toFixed(3)}"/>`);
  }));
  svg.innerHTML = lines.join(""); // numbers only, no text of the user
}
function tell(rows, q, k) {
  const { queries, keys, written } = grid();
  const name = (token) => make("b", SPOKEN[token] ? token : (continues(token) ? "‑" : "") + visible(token), { "aria-label": spoken(token) });
  const best = (list) => list.map((weight, place) => [weight, place]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([weight]) => weight >= 0.05);
  if (q === null && k === null) {
    $("says").textContent = "Point at a token: the left side shows where it looks, the right side who looks at it.";
    return;
  }
  const parts = [name(q === null ? keys[k] : queries[q])];
  const order = q === null ? best(rows.map((row) => row[k])) : best(rows[q]), others = q === null ? queries : keys;
  if (q !== null && written[q]) parts.push(", about to write ", name(written[q]), ",");
  if (q === null) parts.push(order.length ? " is looked at by " : " is hardly looked at by any token.");
  else parts.push(order.length ? " looks at " : " looks a little at every token it may see.");
  order.forEach(([weight, place], n) => parts.push(n ? ", " : "", name(others[place]), " " + percent(weight)));
  if (order.length) parts.push(".");
  $("says").replaceChildren(...parts);
  $("says").scrollTop = 0;
}

// Choosing

const heading = $("title").textContent;
function titleOf(beam) {
  const [best, chosen] = [data.beams[0], data.beams[beam]];
  return best && heading.endsWith(best.text) ? heading.slice(0, heading.length - best.text.length) + chosen.text : heading;
}
function choose(change) {
  const before = { ...view }, isFirst = !$("queries").children.length;
  Object.assign(view, change);
  view.layer = Math.min(view.layer, grid().layers.length - 1);
  if (view.head !== "average") view.head = Math.min(view.head, grid().layers[view.layer].length - 1);
  if (view.token && view.token.place >= (view.token.side === "query" ? grid().queries : grid().keys).length) view.token = null;
  document.body.dataset.kind = view.kind;
  const isOther = isFirst || view.kind !== before.kind || view.beam !== before.beam, isLayer = isOther || view.layer !== before.layer;
  if (isOther) {
    preview = null;
    $("flow").checked = wantsFlow ?? Math.max(grid().queries.length, grid().keys.length) > MANY;
    flow();
    showLayers();
    showLists();
    showEvery();
    $("about").textContent = ABOUT[view.kind];
    $("title").textContent = titleOf(view.beam);
  }
  check($("kinds").lastElementChild, data.grids.findIndex((it) => it.kind === view.kind));
  check($("layers").lastElementChild, view.layer);
  if (isLayer) showHeads();
  check($("heads").lastElementChild, headList(view.layer).indexOf(view.head));
  if (data.others.length) check($("beams"), view.beam);
  markEvery();
  if (isLayer || view.head !== before.head) showMap();
  show(preview);
  const token = view.token ? `&${view.token.side === "query" ? "token" : "key"}=${view.token.place + 1}` : "";
  const address = `#kind=${view.kind}&layer=${view.layer + 1}&head=${view.head === "average" ? "average" : view.head + 1}${view.beam ? "&beam=" + (view.beam + 1) : ""}${token}`;
  try { history.replaceState(null, "", address); } catch (error) { console.info("the address cannot follow the view here:", error.message); }
}
function fromAddress() {
  const wish = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (/^[1-9]\d{0,5}$/.test(wish.get(name) ?? "") ? Number(wish.get(name)) - 1 : null);
  const kind = data.grids.some((it) => it.kind === wish.get("kind")) ? wish.get("kind") : "cross";
  const last = data.grids.find((it) => it.kind === kind).layers.length - 1;
  const place = number("token") ?? number("key");
  const token = place === null ? null : { side: number("token") === null ? "key" : "query", place };
  preview = null;
  choose({ kind, layer: number("layer") ?? last, head: wish.get("head") === "average" ? "average" : number("head") ?? "average", beam: Math.min(number("beam") ?? 0, data.others.length), token });
}
function flow() {
  const isText = $("flow").checked;
  $("links").classList.toggle("flow", isText);
  for (const side of ["queries", "keys"]) $(side).dir = isText && isLeftward(grid()[side]) ? "rtl" : "ltr";
}
function showNumbers() { $("map").classList.toggle("plain", !$("numbers").checked); }

$("title").classList.toggle("long", $("title").textContent.length > 110);
$("numbers").checked = Math.max(...data.grids.map((it) => it.keys.length)) <= 12;
$("numbers").addEventListener("change", showNumbers);
$("flow").addEventListener("change", () => { wantsFlow = $("flow").checked; flow(); show(preview); });
$("every").addEventListener("toggle", showEvery);
addEventListener("keydown", (event) => { if (event.key === "Escape") { preview = null; choose({ token: null }); } });
for (const list of ["queries", "keys"]) arrows($(list), () => 1, () => {});
arrows($("layers").lastElementChild, () => 1, (layer) => choose({ layer }));
arrows($("heads").lastElementChild, () => 1, (place) => choose({ head: headList(view.layer)[place] }));
arrows($("every"), () => Math.max(...grid().layers.map((heads) => heads.length)) + 1, () => {});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { showHeads(); showEvery(); });
addEventListener("hashchange", fromAddress);
addEventListener("resize", () => { fitMap(); show(preview); });
$("scale").style.background = `linear-gradient(90deg, ${[0, 0.1, 0.25, 0.5, 0.75, 1].map((w) => `rgba(var(--accent), ${shade(w)}) ${w * 100}%`).join(", ")})`;
showNumbers();
showSentences();
showKinds();
fromAddress();
