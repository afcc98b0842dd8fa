"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const shown = new Set(D.groups.map((_, i) => i).slice(0, D.lines));

/* ---------------------------------------------------------------- small helpers */

function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function svg(tag, given = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const color = (group) => `--of: var(--c${group % 8})`;
const dashed = (group) => group >= 8;  // colours are used again
const dot = (group) => el("span", { class: dashed(group) ? "dot ring" : "dot", style: color(group) });
const named = (group) => [dot(group), D.groups[group].name];
const several = D.groups.some((group) => group.runs.length > 1);
const runName = (run) => D.groups[run.group].name + (several ? `, seed ${run.seed}` : "");

function short(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size >= 100 || Number.isInteger(value) ? `${+value.toPrecision(4)}` : size >= 0.001 ? value.toFixed(digits) : value.toExponential(1);
}
const signed = (value) => (value > 0 ? "+" : "") + short(value);
const arrow = (score) => (score.lower === null ? "" : score.lower ? " ↓" : " ↑"); /* of some scores neither is better */
const span = (pair, write = short) => (pair ? `[${write(pair[0])}, ${write(pair[1])}]` : "");
const picture = (key, alt) => (key ? el("img", { class: "item", src: D.pictures[key], alt }) : el("div", { class: "none" }, "none"));

function choice(place, options, chosen, changed) {
  place.replaceChildren(...options.map(([value, label]) => el("button", {
    type: "button", "aria-pressed": value === chosen, onclick: () => { choice(place, options, value, changed); changed(value); },
  }, label)));
}
function select(label, options, changed) {
  const node = el("select", { onchange: () => changed(node.value) }, ...options.map(([value, text]) => el("option", { value }, text)));
  return el("label", {}, label, node);
}

/* ---------------------------------------------------------------- head */

function head() {
  document.title = D.title;
  $("title").textContent = D.title;
  $("question").textContent = D.question;
  $("question").hidden = !D.question;
  const runs = D.groups.reduce((sum, group) => sum + group.runs.length, 0);
  $("made").textContent = `${runs} run${runs === 1 ? "" : "s"} in ${D.groups.length} group${D.groups.length === 1 ? "" : "s"}, as they were on ${D.made.when}.`;
  $("foot").textContent = `Made by: ${D.made.command} (commit ${D.made.commit.slice(0, 12)}). The page holds all that it shows and asks no network.`;
  const there = [["differs", "what differs", true], ["curves", "curves", D.curves.length], ["moments", "sudden convergence", D.moments.length],
    ["grid", "runs × steps", D.grid.items.length], ["scores", "figures", D.tables.length], ["samples", "samples", D.samples.length],
    ["words", "names", Object.keys(D.words).length]];
  for (const [id, label, is] of there) {
    $(id).hidden = !is;
    if (is) $("nav").append(el("a", { href: `#${id}` }, label));
  }
}

function bar() {
  const chips = D.groups.map((group, i) => el("button", {
    class: "chip", type: "button", "aria-pressed": shown.has(i), title: group.runs.join("\n"),
    onclick: (event) => {
      shown.has(i) ? shown.delete(i) : shown.add(i);
      event.currentTarget.setAttribute("aria-pressed", shown.has(i));
      draw();
    },
  }, ...named(i), several ? ` (n = ${group.runs.length})` : ""));
  const all = (wanted) => () => {
    D.groups.forEach((_, i) => (wanted ? shown.add(i) : shown.delete(i)));
    chips.forEach((chip) => chip.setAttribute("aria-pressed", wanted));
    draw();
  };
  const words = [el("span", { class: "quiet" }, "shown:")];
  if (D.groups.length > 3) words.push(el("button", { class: "chip", type: "button", onclick: all(true) }, "all"), el("button", { class: "chip", type: "button", onclick: all(false) }, "none"));
  $("groups-bar").replaceChildren(...words, ...chips);
  $("groups-bar").hidden = D.groups.length < 2;
}

/* ---------------------------------------------------------------- what differs */

function differs() {
  const commits = new Set(D.groups.flatMap((group) => group.commits));
  const keys = D.settings;
  const head = ["group", ...keys.map((one) => one.key), "seeds", "state", commits.size > 1 ? "code (commit)" : null].filter((x) => x !== null);
  const rows = D.groups.map((group, i) => {
    const states = [...new Set(group.states.map((state) => state.split(":")[0]))].map((state) => `${group.states.filter((s) => s.startsWith(state)).length} ${state}`);
    return el("tr", {}, el("td", { class: "group" }, ...named(i)), ...keys.map((one) => el("td", {}, one.values[i])),
      el("td", {}, group.seeds.join(", ")), el("td", { class: "text" }, states.join(", ")),
      commits.size > 1 ? el("td", { class: "text" }, group.commits.join(", ")) : null);
  });
  $("differs-table").replaceChildren(el("thead", {}, el("tr", {}, ...head.map((text, i) => el("th", { class: i > keys.length + 1 ? "text" : i && i <= keys.length ? "key" : null }, text)))), el("tbody", {}, ...rows));
  const notes = [];
  if (commits.size > 1) notes.push(el("p", {}, `These runs were made by ${commits.size} states of the code: a difference between them may be of the code.`));
  else notes.push(el("p", { class: "quiet" }, `All runs were made by commit ${[...commits][0]}.`));
  if (D.trouble.length) {
    notes.push(el("details", { open: D.trouble.length <= 5 ? "" : null }, el("summary", {}, `To know before comparing (${D.trouble.length})`),
      el("ul", { class: "trouble" }, ...D.trouble.map((one) => el("li", {}, `${one.run}: ${one.reason}`)))));
  }
  $("trouble").replaceChildren(...notes);
}

/* ---------------------------------------------------------------- curves */

const W = 400, H = 220, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 34;
let axis = "steps";
const logarithmic = new Set(D.curves.filter((one) => one.log).map((one) => one.name));
const AXES = { steps: "optimizer steps", samples: "samples seen", seconds: "seconds of training" };

function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(+value.toPrecision(12));
  return found;
}
function logTicks(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) for (const m of [1, 2, 5]) found.push(m * 10 ** p);
  const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  return inside.length > 2 ? inside.slice(0, 9) : ticks(low, high, 4);
}

function plot(one) {
  const lines = Object.entries(one.axes[axis]).map(([group, line]) => [+group, line]).filter(([group]) => shown.has(group));
  const log = logarithmic.has(one.name);
  const button = el("button", { type: "button", onclick: () => { log ? logarithmic.delete(one.name) : logarithmic.add(one.name); curves(); } }, log ? "log scale" : "linear scale");
  const box = el("div", { class: "plot" }, el("h3", {}, el("span", { title: D.words[one.name] }, one.name), button));
  if (!lines.length) { box.append(el("p", { class: "quiet" }, `No shown run has logged this against ${AXES[axis]}.`)); return box; }
  const xs = lines.flatMap(([, line]) => [line.x[0], line.x[line.x.length - 1]]);
  const ys = lines.flatMap(([, line]) => [...line.mean, ...(line.low || []), ...(line.high || [])]).filter((y) => Number.isFinite(y) && (!log || y > 0));
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (log) { y0 *= 0.97; y1 *= 1.03; } else { const pad = (y1 - y0) * 0.06 || 0.05; y0 = y0 >= 0 && y0 - pad < 0 ? 0 : y0 - pad; y1 += pad; }
  const px = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (W - LEFT - RIGHT);
  const share = log ? (y) => (Math.log(Math.max(y, y0)) - Math.log(y0)) / (Math.log(y1) - Math.log(y0)) : (y) => (y - y0) / (y1 - y0);
  const py = (y) => H - BOTTOM - share(y) * (H - TOP - BOTTOM);
  const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${one.name} against ${AXES[axis]}` });
  const frame = svg("g", { class: "axis" });
  for (const y of log ? logTicks(y0, y1) : ticks(y0, y1, 5)) {
    const label = svg("text", { x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" });
    label.textContent = +y.toPrecision(3);
    frame.append(svg("line", { x1: LEFT, x2: W - RIGHT, y1: py(y), y2: py(y) }), label);
  }
  for (const x of ticks(x0, x1, 4)) {
    const label = svg("text", { x: px(x), y: H - BOTTOM + 15, "text-anchor": "middle" });
    label.textContent = short(x);
    frame.append(label);
  }
  const title = svg("text", { x: (LEFT + W - RIGHT) / 2, y: H - 3, "text-anchor": "middle" });
  title.textContent = AXES[axis];
  root.append(frame, title);
  const path = (x, y) => x.map((at, i) => `${i ? "L" : "M"}${px(at).toFixed(1)},${py(y[i]).toFixed(1)}`).join("");
  for (const [group, line] of lines) {
    if (line.low) root.append(svg("path", { class: "band", style: color(group), d: path([...line.x, ...[...line.x].reverse()], [...line.high, ...[...line.low].reverse()]) + "Z" }));
  }
  for (const [group, line] of lines) {
    root.append(svg("path", { class: "mean", style: color(group), d: path(line.x, line.mean), "stroke-dasharray": dashed(group) ? "5 3" : "none" }));
    if (line.x.length === 1) root.append(svg("circle", { class: "mark", style: color(group), cx: px(line.x[0]), cy: py(line.mean[0]), r: 3 }));
  }
  for (const moment of D.moments) {
    const at = moment.at[axis];
    if (shown.has(moment.group) && at !== null && at !== undefined && at >= x0 && at <= x1) {
      const x = px(at), y = H - BOTTOM;
      root.append(svg("path", { class: "mark", style: color(moment.group), d: `M${x},${y - 8}l-4.5,8h9Z` }));
    }
  }
  hover(root, lines, x0, x1, px);
  box.append(root);
  return box;
}

function hover(root, lines, x0, x1, px) {
  const hair = svg("line", { class: "hair", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  root.append(hair);
  root.addEventListener("pointermove", (event) => {
    const frame = root.getBoundingClientRect();
    const at = (event.clientX - frame.left) / frame.width * W;
    const x = Math.min(x1, Math.max(x0, x0 + ((at - LEFT) / (W - LEFT - RIGHT)) * (x1 - x0)));
    hair.setAttribute("x1", px(x)); hair.setAttribute("x2", px(x)); hair.setAttribute("visibility", "visible");
    const rows = lines.map(([group, line]) => {
      let best = 0;
      line.x.forEach((place, i) => { if (Math.abs(place - x) < Math.abs(line.x[best] - x)) best = i; });
      const gap = (x1 - x0) / 100; /* beyond its end a line says nothing */
      if (x < line.x[0] - gap || x > line.x[line.x.length - 1] + gap) return el("div", {}, el("span", {}, ...named(group)), el("span", {}, "–"));
      const band = line.low ? ` ${span([line.low[best], line.high[best]])}` : "";
      const count = several ? ` n = ${line.n[best]}` : "";
      return el("div", {}, el("span", {}, ...named(group)), el("span", {}, short(line.mean[best]) + band + count));
    });
    $("tip").replaceChildren(el("div", {}, el("b", {}, `${AXES[axis]}: ${short(x)}`)), ...rows.slice(0, 14));
    $("tip").hidden = false;
    $("tip").style.left = `${Math.min(event.clientX + 14, innerWidth - $("tip").offsetWidth - 8)}px`;
    $("tip").style.top = `${Math.min(event.clientY + 14, innerHeight - $("tip").offsetHeight - 8)}px`;
  });
  root.addEventListener("pointerleave", () => { $("tip").hidden = true; hair.setAttribute("visibility", "hidden"); });
}

function curves() {
  const lacking = D.groups.filter((_, i) => shown.has(i) && D.curves.length && !D.curves.some((one) => one.axes[axis][i])).length;
  $("axis-note").textContent = lacking ? `${lacking} shown group${lacking > 1 ? "s have" : " has"} not logged ${AXES[axis]}.` : "";
  $("plots").replaceChildren(...D.curves.map(plot));
}

/* ---------------------------------------------------------------- sudden convergence */

function momentsTable() {
  const mine = D.moments.filter((one) => shown.has(one.group));
  const end = Math.max(1, ...D.groups.flatMap((group) => group.steps.filter((x) => x)), ...mine.map((one) => one.step || 0));
  const rows = mine.map((one) => {
    const track = el("div", { class: "track", style: `${color(one.group)}; --end: ${(one.end / end) * 100}%` });
    if (one.step !== null) {
      const first = one.step - (one.resolution || 0);
      track.append(el("i", { class: one.early ? "early" : null, style: `left: ${(first / end) * 98}%; width: ${((one.step - first) / end) * 98}%` }));
    }
    return el("tr", {}, el("td", { class: "group" }, ...named(one.group)), el("td", {}, `${one.seed}`), el("td", { class: "text" }, one.text), el("td", { class: "text" }, track));
  });
  $("moments-table").replaceChildren(el("thead", {}, el("tr", {}, el("th", {}, "group"), el("th", {}, "seed"), el("th", { class: "text" }, "moment"),
    el("th", { class: "text" }, `0 … ${short(end)} steps`))), el("tbody", {}, ...rows));
}

/* ---------------------------------------------------------------- runs x steps */

let gridItem = 0;
function gridTable() {
  const page = D.grid.items[gridItem];
  if (!page) return;
  const all = D.groups.reduce((sum, group, i) => sum + (shown.has(i) ? group.runs.length : 0), 0);
  $("grid-note").textContent = all > page.rows.filter((row) => shown.has(row.group)).length ? "Of groups of several runs the first is shown." : "";
  $("grid-caption").textContent = page.same ? (page.rows[0].caption ? `“${page.rows[0].caption}”` : "") : "Not all of these runs look at the same items.";
  const rows = page.rows.filter((row) => shown.has(row.group)).map((row) => el("tr", {}, el("td", {}, ...named(row.group), several ? `, seed ${row.seed}` : "", page.same ? null : el("small", {}, row.caption)),
    el("td", {}, picture(row.hint, "hint")), ...row.cells.map((key, i) => el("td", {}, picture(key, `step ${D.grid.steps[i]}`)))));
  $("grid-table").replaceChildren(el("thead", {}, el("tr", {}, el("th", {}, ""), el("th", {}, "made from"), ...D.grid.steps.map((step) => el("th", {}, `step ${step}`)))), el("tbody", {}, ...rows));
}

/* ---------------------------------------------------------------- figures */

const views = D.tables.map((one) => ({ setting: one.settings[one.settings.length - 1], apart: false }));
function figures() {
  $("scores-body").replaceChildren(
    el("p", {}, "One table for each protocol: figures of different protocols must not be compared. A value is the mean over the seeds of a group. Below it: Student's 95 % interval over seeds, " +
      "or with a single seed (marked “items”) a bootstrap over items, which says nothing of other seeds; n where some seeds have no such score. Arrows say which way is better; a score without one has no better. Bold: better than every other group beyond the 95 % interval of the differences paired by seed. " +
      "A difference is the mean over pairs of runs with the same seed; “1 of 2 seeds” marks one for which the reference lacks a seed, so that it need not be the difference of the values."),
    ...D.tables.map(figureTable));
}
function figureTable(one, number) {
  const view = views[number];
  const place = el("span", { class: "choice", role: "group", "aria-label": "prompts" });
  choice(place, one.settings.map((name) => [name, name]), view.setting, (value) => { view.setting = value; figures(); });
  const kind = el("span", { class: "choice", role: "group", "aria-label": "values or differences" });
  choice(kind, [[false, "values"], [true, `minus ${D.groups[one.reference].name}`]], view.apart, (value) => { view.apart = value; figures(); });
  const best = one.best[view.setting];
  const rows = one.rows[view.setting].filter((row) => shown.has(row.group)).map((row) => el("tr", {}, el("td", { class: "group" }, ...named(row.group), el("small", {}, `n = ${row.n} seed${row.n > 1 ? "s" : ""}`)),
    ...row.cells.map((cell, i) => (view.apart && row.group !== one.reference ? difference(cell, one.scores[i], row.n) : value(cell, best[i] === row.group, row.n)))));
  const bounds = view.apart ? [] : one.bounds[view.setting].map((row) => el("tr", { class: "bound" }, el("td", { class: "group" }, row.title, row.groups ? el("small", {}, `of ${row.groups.map((group) => D.groups[group].name).join("; ")}`) : null), ...row.cells.map((x) => el("td", {}, short(x)))));
  return el("div", { class: "protocol" },
    el("p", {}, el("b", {}, one.label), ` — ${one.protocol} `, el("span", { class: "quiet" }, `(protocol ${one.hash})`)),
    el("div", { class: "controls" }, el("label", {}, "prompts", place), one.rows[view.setting].length > 1 ? kind : null),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "group"), ...one.scores.map((score) => el("th", { title: D.words[score.name] }, score.name + arrow(score))))),
      el("tbody", {}, ...rows, ...bounds))));
}
function value(cell, best, seeds) {
  if (!cell) return el("td", {}, "–");
  const count = cell.n < seeds ? ` n = ${cell.n}` : "";
  const interval = (cell.seeds ? span(cell.seeds) : cell.items ? `${span(cell.items)} items` : "") + count;
  return el("td", { title: `seeds: ${cell.values.map((x) => short(x)).join(", ")}` }, best ? el("b", {}, short(cell.mean)) : short(cell.mean), el("small", {}, interval));
}
const intervalOf = (cell) => cell.difference_seeds || cell.difference_items;
const clear = (cell) => { const pair = intervalOf(cell); return !!pair && (pair[0] > 0 || pair[1] < 0); };
function difference(cell, score, seeds) {
  if (!cell || cell.difference === undefined) return el("td", {}, "–");
  const part = cell.pairs < seeds ? ` ${cell.pairs} of ${seeds} seeds` : "";
  const pair = intervalOf(cell);
  const good = (cell.difference < 0) === score.lower;
  return el("td", {}, el("span", { class: clear(cell) && score.lower !== null ? (good ? "better" : "worse") : null }, signed(cell.difference)), el("small", {}, span(pair, signed) + (cell.difference_seeds || !pair ? "" : " items") + part));
}

/* ---------------------------------------------------------------- samples */

const PAGE = 24, PICTURES = 3; /* of a run's own, before its scores: hint, image, hint found */
const look = { list: 0, setting: "", score: 0, a: "0", b: null, order: "worst", text: "", limit: "", count: PAGE };
function samplesSection() {
  const list = D.samples[look.list], scores = list.scores;
  const again = (key) => (value) => { look[key] = value; look.count = PAGE; cards(list, scores); };
  const whole = (key) => (value) => { Object.assign(look, { [key]: +value, a: "0", b: null, score: 0, text: "", limit: "", count: PAGE }); samplesSection(); };
  const runs = list.runs.map((run, i) => [i, runName(run)]);
  const settings = [...new Set(list.rows.map((row) => row.setting))];
  if (!settings.includes(look.setting)) look.setting = settings[settings.length - 1];
  if (look.b === null) look.b = String(Math.max(list.runs.findIndex((run) => run.group !== list.runs[0].group), 0) || (runs.length > 1 ? 1 : ""));
  const controls = [
    D.samples.length > 1 ? select("protocol", D.samples.map((one, i) => [i, D.samples.filter((other) => other.label === one.label).length > 1 ? `${one.label} (${one.hash})` : one.label]), whole("list")) : null,
    select("run A", runs, again("a")), select("run B", [["", "none"], ...runs], again("b")),
    select("prompts", [["", "all"], ...settings.map((name) => [name, name])], again("setting")),
    scores.length ? select("score", scores.map((score, i) => [i, score.name + arrow(score)]), again("score")) : null,
    select("order", Object.entries(orders(scores[0])), again("order")),
    el("label", {}, "caption has", el("input", { type: "search", size: 14, oninput: (event) => again("text")(event.target.value) })),
    el("label", {}, "A's score at most", el("input", { type: "number", step: "any", style: "width: 6em", oninput: (event) => again("limit")(event.target.value) })),
  ].filter((node) => node);
  const note = list.items > list.most ? ` The page holds the first ${list.most} of ${list.items} items (samples: in the report's file).` : "";
  $("samples-body").replaceChildren(
    el("p", {}, "Each card is one image of an evaluation beside its hint and the real picture. “Hint found” is the hint that the condition finds in the image: where it differs from the hint, the image does not obey." + note),
    el("div", { class: "controls" }, ...controls), el("p", { class: "quiet", id: "cards-note" }), el("div", { id: "cards" }), el("p", { id: "cards-more" }));
  const set = (label, value) => { const node = [...$("samples-body").querySelectorAll("label")].find((one) => one.textContent.startsWith(label)).querySelector("select"); node.value = value; };
  if (D.samples.length > 1) set("protocol", look.list);
  set("run A", look.a); set("run B", look.b); set("prompts", look.setting); set("order", look.order);
  if (scores.length) set("score", look.score);
  cards(list, scores);
}
function orders(score) {
  const [low, high, less, more] = score && score.lower === null ? ["lowest", "highest", "lower", "higher"] : ["worst", "best", "worse", "better"];
  return { worst: `${low} of A first`, best: `${high} of A first`, apart: "largest difference between A and B first", lost: `A ${less} than B first`, won: `A ${more} than B first`, item: "by item" };
}
function cards(list, scores) {
  const words = orders(scores[look.score]);
  for (const option of $("samples-body").querySelectorAll("option")) if (words[option.value]) option.textContent = words[option.value];
  const score = (row, run) => { const own = run === "" ? null : row.runs[run]; const x = own ? own[PICTURES + +look.score] : null; return Number.isFinite(x) ? x : null; };
  const sign = scores.length && scores[look.score].lower ? -1 : 1;
  const rows = list.rows.filter((row) => (!look.setting || row.setting === look.setting) && row.runs[look.a]
    && (!look.text || row.caption.toLowerCase().includes(look.text.toLowerCase()))
    && (look.limit === "" || (score(row, look.a) !== null && score(row, look.a) <= +look.limit)));
  const apart = (row) => (score(row, look.a) === null || score(row, look.b) === null ? null : sign * (score(row, look.a) - score(row, look.b)));
  const keys = { worst: (row) => flip(score(row, look.a), sign), best: (row) => flip(score(row, look.a), -sign),
    apart: (row) => (apart(row) === null ? null : -Math.abs(apart(row))), lost: apart, won: (row) => flip(apart(row), -1), item: (row) => row.item };
  const key = keys[look.order];
  const sorted = rows.map((row, i) => [key(row), i, row]).sort((x, y) => (x[0] === null) - (y[0] === null) || x[0] - y[0] || x[1] - y[1]).map((one) => one[2]);
  const known = rows.map((row) => score(row, look.a)).filter((x) => x !== null);
  const needs = ["apart", "lost", "won"].includes(look.order) && look.b === "" ? " Choose a run B to order by the difference." : "";
  $("cards-note").textContent = `${rows.length} images${known.length ? `; mean ${scores[look.score].name} of A: ${short(known.reduce((x, y) => x + y, 0) / known.length)}` : ""}.${needs}`;
  $("cards").replaceChildren(...sorted.slice(0, look.count).map((row) => card(row, list, scores, apart(row) === null ? null : sign * apart(row))));
  $("cards-more").replaceChildren(sorted.length > look.count ? el("button", { class: "more", type: "button", onclick: () => { look.count += PAGE; cards(list, scores); } }, `${sorted.length - look.count} more`) : "");
}
const flip = (value, sign) => (value === null ? null : sign * value);
function card(row, list, scores, apart) {
  const figure = (key, text) => el("figure", { title: text }, picture(key, text), el("figcaption", {}, text));
  const of = (run, letter) => {
    const own = run === "" ? null : row.runs[run];
    if (!own) return [];
    const [hint, image, found] = own;
    return [hint !== first ? figure(hint, `${letter}: hint`) : null, figure(image, `${letter}: ${short(own[PICTURES + +look.score])}`), found ? figure(found, `${letter}: hint found`) : null];
  };
  const first = row.runs[look.a][0];
  return el("div", { class: "card" },
    el("div", { class: "meta" }, el("span", {}, `item ${row.item}, noise ${row.noise}`), el("span", { class: "quiet" }, apart === null ? row.setting : `A − B: ${signed(apart)} · ${row.setting}`)),
    el("div", { class: "row" }, figure(first, "hint"), figure(row.real, "real"), ...of(look.a, "A").filter((x) => x), ...of(look.b, "B").filter((x) => x)),
    el("p", {}, row.caption), row.prompt !== row.caption ? el("p", { class: "quiet" }, row.prompt ? `prompt: ${row.prompt}` : "no prompt") : null);
}

/* ---------------------------------------------------------------- all */

function draw() {
  curves();
  momentsTable();
  gridTable();
  figures();
}
function words() {
  $("words-list").replaceChildren(...Object.entries(D.words).flatMap(([name, meaning]) => [el("dt", {}, name), el("dd", {}, meaning)]));
}
head();
bar();
words();
differs();
choice($("axis"), Object.entries(AXES), axis, (value) => { axis = value; curves(); });
choice($("grid-item"), D.grid.items.map((page, i) => [i, page.rows[0].hint ? el("img", { src: D.pictures[page.rows[0].hint], alt: `item ${page.item}` }) : `item ${page.item}`]), 0,
  (value) => { gridItem = value; gridTable(); });
draw();
if (D.samples.length) samplesSection();
