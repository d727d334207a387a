const shownSample = { colour: "advantage", filter: {}, sort: "group", item: null };
const prompts = report.samples.prompts, images = report.samples.images, allItems = report.samples.items;
const SETS = { training: "training", evaluation: "evaluation", test: "test" };
const LEAST_GAP = 1e-4; // nats: what is below is rounding, and stays pale

function snippet(text) {
  return text.replace(/\s+/g, " ").trim().slice(0, 160);
}

function lastText(item) {
  return item.turns.length ? item.turns[item.turns.length - 1].text : item.outcome_detail || "";
}

function meanGap(item) {
  const gaps = item.turns.flatMap((turn) => turn.gap || []).map(Math.abs);
  return gaps.length ? gaps.reduce((a, b) => a + b) / gaps.length : 0;
}

const SORTS = {
  group: ["prompt", (a, b) => a.row - b.row || (a.group ?? 0) - (b.group ?? 0) || String(a.setting).localeCompare(String(b.setting)) || a.member - b.member],
  high: ["reward, highest first", (a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity)],
  low: ["reward, lowest first", (a, b) => (a.reward ?? Infinity) - (b.reward ?? Infinity)],
  long: ["length, longest first", (a, b) => (b.length ?? 0) - (a.length ?? 0)],
  gap: ["log-probability gap, largest first", (a, b) => meanGap(b) - meanGap(a)],
};

function matches(item) {
  const { run, set, step, show, text } = shownSample.filter;
  const [kind, value] = (show || "").split(":");
  return item.run === run && item.set === set && item.step === step && (!kind || item[kind] === value)
    && (!text || (item.question + "\n" + item.turns.map((turn) => turn.text + "\n" + (turn.observation || "")).join("\n")).toLowerCase().includes(text.toLowerCase()));
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value, selected: String(value) === String(chosen) }, text)));
}

function valuesOf(name, fits) {
  return [...new Set(allItems.filter(fits).map((item) => item[name]))];
}

function startSamples() {
  const bar = document.getElementById("sample-bar");
  if (!allItems.length) {
    document.getElementById("browser").remove();
    bar.replaceWith(make("p", { class: "quiet" }, "There are no recorded answers to show."));
    return;
  }
  const filter = shownSample.filter, selects = {};
  const pick = (name, title, read) => {
    selects[name] = make("select", { id: "sample-" + name, onchange: (event) => { filter[name] = read(event.target.value); fill(); } });
    bar.append(make("label", {}, title, selects[name]));
  };
  pick("run", "run", Number);
  pick("set", "from", String);
  pick("step", "step", Number);
  pick("show", "show", String);
  bar.append(make("label", {}, "sort", make("select", { id: "sample-sort", onchange: (event) => { shownSample.sort = event.target.value; list(); } }, ...Object.entries(SORTS).map(([value, [text]]) => make("option", { value }, text)))));
  bar.append(make("label", {}, "find", make("input", { type: "search", id: "sample-text", oninput: (event) => { filter.text = event.target.value; list(); } })));
  if (allItems.some((item) => item.turns.some((turn) => turn.tokens))) {
    bar.append(choice("colour tokens by", "colour", [["advantage", "advantage"], ["gap", "log-probability gap"], ["none", "nothing"]], shownSample.colour, (value) => { shownSample.colour = value; open(shownSample.item); }));
  }
  const fill = () => {
    const keep = (name, found, last) => { if (!found.includes(filter[name])) filter[name] = last ? found[found.length - 1] : found[0]; return found; };
    options(selects.run, keep("run", valuesOf("run", () => true)).map((run) => [run, report.runs[run]]), filter.run);
    options(selects.set, keep("set", valuesOf("set", (item) => item.run === filter.run)).map((set) => [set, SETS[set]]), filter.set);
    const here = (item) => item.run === filter.run && item.set === filter.set;
    options(selects.step, keep("step", valuesOf("step", here), true).map((step) => [step, step]), filter.step);
    const there = allItems.filter((item) => here(item) && item.step === filter.step);
    const kinds = ["verdict", "outcome", "setting"].flatMap((kind) => [...new Set(there.map((item) => item[kind]).filter(Boolean))].sort().map((value) => [`${kind}:${value}`, `${value.replace("_", " ")} (${there.filter((item) => item[kind] === value).length})`]));
    keep("show", ["", ...kinds.map(([value]) => value)]);
    options(selects.show, [["", `all (${there.length})`], ...kinds], filter.show);
    list();
  };
  fill();
  document.getElementById("sample").addEventListener("pointerover", hoverToken);
  document.getElementById("sample").addEventListener("pointerout", () => { tip.hidden = true; });
}

function list() {
  const found = allItems.filter(matches).sort(SORTS[shownSample.sort][1]);
  const box = document.getElementById("sample-list");
  box.replaceChildren(...found.map((item) => {
    const button = make("button", { type: "button", onclick: () => open(item) },
      make("span", { class: item.verdict }, item.verdict),
      make("span", {}, item.reward === undefined ? "" : shown(item.reward)),
      make("span", { class: "end" }, `row ${item.row}${item.setting ? ", " + item.setting : ""} #${item.member} · ${item.turns.length > 1 ? item.turns.length + " turns · " : ""}${item.length ?? "-"} tokens${item.outcome === "completed" ? "" : " · " + item.outcome.replace("_", " ")}`),
      make("span", { class: "snippet" }, snippet(lastText(item))));
    button.item = item;
    return button;
  }));
  if (!found.length) box.append(make("p", { class: "quiet" }, "No answer fits."));
  // What is opened first has something to show: an advantage, and several turns where there are any.
  const first = found.find((item) => taught(item) && item.turns.length > 1) || found.find(taught) || found[0];
  open(found.includes(shownSample.item) ? shownSample.item : first);
}

function taught(item) {
  return item.turns.some((turn) => [turn.adv ?? 0].flat().some((value) => value));
}

function picture(part) {
  if (part.lost) return make("span", { class: "lost" }, `[picture: ${part.lost}] `);
  return make("img", { src: images[part.image], alt: "picture shown to the model" });
}

function turnBox(kind, who, ...content) {
  return make("div", { class: "turn " + kind }, make("span", { class: "who" }, who), ...content);
}

function fact(name, value) {
  return value === undefined || value === null || value === "" ? null : make("div", {}, make("dt", {}, name), make("dd", {}, value));
}

function advantageOf(turn, index) {
  return Array.isArray(turn.adv) ? turn.adv[index] : turn.adv;
}

// The value that a whole colour stands for: for advantages the page's largest, for gaps the sample's.
function scaleOf(item) {
  const values = shownSample.colour === "gap" ? item.turns.flatMap((turn) => turn.gap || [])
    : allItems.filter((one) => one.run === item.run).flatMap((one) => one.turns.flatMap((turn) => turn.adv ?? []));
  const most = values.reduce((most, value) => Math.max(most, Math.abs(value ?? 0)), 0);
  return shownSample.colour === "gap" ? Math.max(most, LEAST_GAP) : most || 1;
}

function colour(value, scale) {
  if (value === undefined || value === null || value === 0) return "";
  const least = shownSample.colour === "advantage" ? 0.15 : 0; // the sign of a small advantage has to be seen
  return `background:rgb(var(${value > 0 ? "--plus" : "--minus"}) / ${(least + (0.75 - least) * Math.min(1, Math.abs(value) / scale)).toFixed(3)})`;
}

function tokenBox(turn, scale) {
  const box = make("div", { class: "tokens" });
  turn.tokens.forEach((text, index) => {
    const value = shownSample.colour === "gap" ? turn.gap?.[index] : shownSample.colour === "advantage" ? advantageOf(turn, index) : null;
    const special = /^<\|.*\|>$/.test(text);
    const span = make("span", { class: special ? "special" : text ? null : "part", style: colour(value, scale) || null }, text || "\u25af");
    span.turn = turn;
    span.index = index;
    box.append(span);
  });
  return box;
}

function hoverToken(event) {
  const { turn, index } = event.target;
  if (!turn) return;
  const rows = [turn.tokens[index] ? JSON.stringify(turn.tokens[index]) : "a part of the next character", `engine log p ${shown(turn.lp[index])}`];
  if (turn.gap) rows.push(`trainer log p ${shown(turn.lp[index] + turn.gap[index])}`, `gap ${shown(turn.gap[index])}`);
  if (turn.adv !== undefined) rows.push(`advantage ${shown(advantageOf(turn, index))}`);
  if (!turn.gap) rows.push("not trained on, or not on record");
  showTip(rows.join("\n"), event.clientX, event.clientY);
}

function scaleKey(item, scale) {
  if (shownSample.colour === "none" || !item.turns.some((turn) => turn.tokens)) return null;
  const there = item.turns.some((turn) => (shownSample.colour === "gap" ? turn.gap : turn.adv) !== undefined);
  if (!there) return make("p", { class: "scale" }, `no ${shownSample.colour === "gap" ? "trainer's log-probabilities" : "advantages"} on record for this answer`);
  const what = shownSample.colour === "gap" ? "trainer less engine, nats" : "advantage";
  if (shownSample.colour === "advantage" && !taught(item)) return make("p", { class: "scale" }, "advantage 0 throughout: the answer moves nothing");
  return make("p", { class: "scale" }, `${what}: ${shown(-scale)}`, make("i", { "aria-hidden": "true" }), shown(scale));
}

function facts(item) {
  const parts = Object.entries(item.parts || {}).map(([name, value]) => `${name} ${shown(value)}`).join(", ");
  return make("dl", { class: "facts" },
    fact("reward", item.reward === undefined ? null : shown(item.reward)), fact("parts", parts),
    fact("loss", item.loss === undefined ? null : shown(item.loss)), fact("right answer", item.answer), fact("graded", item.detail),
    fact("outcome", item.outcome.replace("_", " ") + (item.outcome_detail ? `: ${item.outcome_detail}` : "")),
    fact("status", item.status), fact("tokens", item.length ?? "-"),
    fact("environment", item.env ? JSON.stringify(item.env) : null));
}

function open(item) {
  shownSample.item = item || null;
  const box = document.getElementById("sample");
  for (const button of document.querySelectorAll("#sample-list button")) button.setAttribute("aria-current", String(button.item === item));
  if (!item) { box.replaceChildren(); return; }
  const scale = scaleOf(item), parts = [];
  for (const message of prompts[item.prompt]) {
    parts.push(turnBox("prompt", message.role, ...message.parts.map((part) => typeof part === "string" ? make("span", { class: "said" }, part) : picture(part))));
  }
  item.turns.forEach((turn, number) => {
    if (turn.observation || turn.images) parts.push(turnBox("observation", "environment", ...(turn.images || []).map(picture), make("span", { class: "said" }, turn.observation || "")));
    const who = `assistant${item.turns.length > 1 ? ", turn " + (number + 1) : ""}${turn.finish === "length" ? " (cut off)" : ""}`;
    parts.push(turnBox("assistant", who, turn.tokens ? tokenBox(turn, scale) : make("span", { class: "said" }, turn.text)));
  });
  const title = `Row ${item.row}, ${item.setting ? item.setting + " answer" : "answer"} ${item.member}, step ${item.step}`;
  box.replaceChildren(...[make("h3", {}, title + ": ", make("span", { class: item.verdict }, item.verdict)), facts(item), scaleKey(item, scale), ...parts].filter(Boolean));
}

startSamples();
