// The page of the server: asks for the key, sends a question with passages, shows the rankings beside each other.
// What came from the server or the user becomes text nodes, never markup; the policy of the page (server/page.py) would
// not let a browser run anything else.
"use strict";

const KEY = "rankwright-key";
const EXAMPLE = {
  question: "Who keeps the north light?",
  passages: [
    "The north light stands on a rock that the sea cuts off twice a day, and it is painted red.",
    "Ida Moss has kept the north light since her uncle gave up the post. She lives in the tower all year.",
    "Lamps of the harbour burn whale oil. Their keepers are paid by the harbour and not by the town.",
    "The south light was kept by the Wren family for three generations, until it was put out for good.",
    "Whoever keeps a light writes the weather into a book every evening, and the books lie in the town hall.",
    "Every child of the island knows the song of the north light and the ship that did not see it.",
  ],
};

const byId = (id) => document.getElementById(id);
let info = null;
let running = null;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}
const quoted = (text) => element("bdi", { class: "data" }, String(text));

// --- the server ------------------------------------------------------------------------------------------------

class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function call(path, body, signal) {
  const headers = { Accept: "application/json" }, key = sessionStorage.getItem(KEY);
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const request = { method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store", credentials: "omit" };
  if (body !== undefined) request.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server did not answer. See whether it still runs and can be reached, then try again.");
  }
  const text = await response.text();
  let content = null;
  try {
    content = JSON.parse(text);
  } catch {
    if (response.ok) throw new Problem(`The server answered ${path} with something that is no JSON.`);
  }
  if (!response.ok) throw new Problem(told(response, content), response.status);
  return content;
}

// The server's own words, with what helps to find them again in its log.
function told(response, content) {
  const error = content?.error ?? {};
  const words = typeof error === "string" ? error : (error.message ?? "The server gave no reason.");
  const id = error.request_id ?? response.headers.get("x-request-id"), wait = response.headers.get("retry-after");
  const about = [`status ${response.status}`, ...(id ? [`request ${id}`] : [])].join(", ");
  return `${words} (${about})` + (wait ? ` Try again in ${wait} s.` : "");
}

function complain(error) {
  if (error.name === "AbortError") return;
  byId("problem").textContent = error.message;
  byId("problem").hidden = false;
  byId("status").textContent = "";
  if (error.status === 401) lock();
}

// --- key and models --------------------------------------------------------------------------------------------

function lock() {
  sessionStorage.removeItem(KEY);
  byId("locked").hidden = false;
  byId("unlocked").hidden = true;
  byId("served").textContent = "This server asks for a key.";
  byId("key").value = "";
  byId("key").focus();
}

async function meet() {
  try {
    info = await call("info");
  } catch (error) {
    if (error.status === 401 && sessionStorage.getItem(KEY) === null) return lock();
    return complain(error);
  }
  byId("locked").hidden = true;
  byId("unlocked").hidden = sessionStorage.getItem(KEY) === null;
  byId("problem").hidden = true;
  offer(info.models ?? []);
}

function offer(models) {
  const reader = info.reader ? `; answers by ${info.reader.name} from the first ${info.reader.top_k}` : "";
  const names = models.map((model) => `${model.name} (${model.backend}, ${model.max_length} tokens)`).join(" and ");
  byId("served").textContent = models.length ? `Serving ${names}${reader}.` : "The model is still being loaded.";
  const options = () => models.map((model) => element("option", { value: model.name }, model.name));
  byId("first").replaceChildren(...options());
  byId("second").replaceChildren(element("option", { value: "" }, "none"), ...options());
  byId("models").hidden = models.length < 2;
  byId("second").value = models[1]?.name ?? "";
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  meet();
});
byId("forget").addEventListener("click", lock);

// --- what was typed --------------------------------------------------------------------------------------------

// Texts one a line, or blocks between empty lines, or JSON; each passage as {text, title}.
function passagesIn(text) {
  const bare = text.trim();
  if (/^(\[\s*["{\]]|\{\s*")/.test(bare)) return fromJson(bare);
  const parts = /\n[ \t]*\n/.test(bare) ? bare.split(/\n(?:[ \t]*\n)+/) : bare.split("\n");
  return parts.map((part) => ({ text: part.trim(), title: "" })).filter((passage) => passage.text);
}

function fromJson(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new Problem(`The passages look like JSON but are not: ${error.message}. Correct them, or put one a line.`);
  }
  const list = Array.isArray(found) ? found : (found.documents ?? found.passages ?? found.texts ?? found.candidates);
  if (!Array.isArray(list)) throw new Problem('JSON of passages is a list, or an object with a list "documents".');
  if (typeof found.query === "string" && !byId("question").value) byId("question").value = found.query;
  return list.map((item, i) => {
    const passage = typeof item === "string" ? { text: item } : item;
    if (typeof passage?.text !== "string") throw new Problem(`Passage ${i + 1} is neither a text nor an object with "text".`);
    return { text: passage.text, title: typeof passage.title === "string" ? passage.title : "" };
  });
}

function count() {
  let words = "";
  try {
    const passages = passagesIn(byId("passages").value).length;
    words = passages === 1 ? "1 passage." : `${passages} passages.`;
  } catch (error) {
    words = error.message;
  }
  byId("counted").textContent = words;
}

byId("passages").addEventListener("input", count);
byId("example").addEventListener("click", () => {
  byId("question").value = EXAMPLE.question;
  byId("passages").value = EXAMPLE.passages.join("\n");
  count();
  byId("rank").focus();
});
byId("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
});

// --- ranking ---------------------------------------------------------------------------------------------------

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  running?.abort();
  const mine = (running = new AbortController());
  byId("problem").hidden = true;
  byId("stop").hidden = false;
  byId("status").textContent = "Ranking …";
  try {
    await rank(mine.signal);
  } catch (error) {
    complain(error);
  } finally {
    if (running === mine) byId("stop").hidden = true;
  }
});
byId("stop").addEventListener("click", () => {
  running?.abort();
  byId("status").textContent = "Stopped.";
});

async function rank(signal) {
  if (!info?.models?.length) await meet();
  if (!info) throw new Problem("What the server serves is not known yet; give the key first.");
  const passages = passagesIn(byId("passages").value), query = byId("question").value.trim();
  check(passages);
  const wanted = byId("models").hidden ? [info.models?.[0]?.name ?? ""] : [byId("first").value, byId("second").value];
  const models = [...new Set(wanted.filter((name, i) => name || i === 0))];
  const replies = await Promise.all(models.map((model) => ranked(model, query, passages, signal)));
  show(replies, passages);
  if (info.reader) await answer(replies, query, passages, signal);
}

function check(passages) {
  const limit = info.limits?.documents;
  if (!passages.length) throw new Problem("There is no passage; put one a line.");
  if (limit && passages.length > limit)
    throw new Problem(`There are ${passages.length} passages; this server takes ${limit} at once. Take some out.`);
}

const sent = (passage) => (passage.title ? passage : passage.text);

async function ranked(model, query, passages, signal) {
  const began = performance.now();
  const reply = await call("v1/rerank", { model, query, documents: passages.map(sent), return_documents: false }, signal);
  const places = new Map(reply.results.map((result, i) => [result.index, i + 1]));
  return { model: reply.model ?? model, ...reply, places, took: performance.now() - began };
}

async function answer(replies, query, passages, signal) {
  const asked = new Map();
  await Promise.all(
    replies.map(async (reply, i) => {
      const first = reply.results.slice(0, info.reader.top_k).map((result) => result.index), key = first.join();
      const body = { query, documents: first.map((index) => sent(passages[index])) };
      // Rankings that begin alike share one answer.
      if (!asked.has(key)) asked.set(key, call("answer", body, signal));
      try {
        const found = await asked.get(key);
        say(i, found.answer ? quoted(found.answer) : "(none found)");
      } catch (error) {
        if (error.name !== "AbortError") say(i, element("span", { class: "down" }, "failed: ", quoted(error.message)));
      }
    }),
  );
}

// --- what is shown ---------------------------------------------------------------------------------------------

function show(replies, passages) {
  const sides = byId("sides");
  sides.classList.toggle("alone", replies.length === 1);
  sides.replaceChildren(...replies.map((reply, i) => side(reply, replies[1 - i], passages)));
  byId("result").hidden = false;
  const names = replies.map((reply) => reply.model).join(" and ");
  byId("status").textContent = `${passages.length} passages ranked by ${names}.`;
}

function side(reply, other, passages) {
  const parts = [element("h3", {}, quoted(reply.model)), element("p", { class: "soft" }, timing(reply))];
  if (info.reader) {
    const label = element("span", { class: "soft" }, `Answer from the first ${info.reader.top_k}: `);
    parts.push(element("p", { class: "reading" }, label, element("span", { class: "said" }, "…")));
  }
  const items = reply.results.map((result, i) => entry(result, i + 1, other, passages));
  for (const { index, reason } of reply.failed ?? [])
    items.push(element("li", { class: "failed" }, "–", element("div", {}, `not scored (${reason}): `, text(passages[index]))));
  return element("div", { class: "side" }, ...parts, element("ol", { class: "ranking" }, ...items));
}

function say(side, words) {
  byId("sides").children[side]?.querySelector(".said")?.replaceChildren(words);
}

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

function timing(reply) {
  const parts = [];
  if (reply.timing?.score_ms !== undefined) parts.push(`${milliseconds(reply.timing.score_ms)} scoring`);
  if (reply.timing?.queue_ms !== undefined) parts.push(`${milliseconds(reply.timing.queue_ms)} waiting`);
  parts.push(`${milliseconds(reply.took)} in all`);
  if (reply.usage?.total_tokens) parts.push(`${reply.usage.total_tokens} tokens`);
  return parts.join(", ");
}

function entry(result, place, other, passages) {
  const score = Number(result.relevance_score), marks = element("div", { class: "marks" });
  marks.append(element("meter", { min: "0", max: "1", value: score, "aria-hidden": "true" }));
  marks.append(element("span", { class: "score" }, score.toFixed(3)));
  if (result.score_raw !== undefined) marks.append(element("span", { class: "soft" }, `raw ${Number(result.score_raw).toFixed(2)}`));
  marks.append(move(result.index + 1, place, "given as"));
  if (other?.places.has(result.index)) marks.append(move(other.places.get(result.index), place, `at ${other.model}`));
  if (result.truncated) {
    const read = result.tokens ? `, ${result.tokens} tokens were read` : "";
    marks.append(element("span", { class: "tag worse", title: "The model did not see all of it" }, `cut${read}`));
  }
  const content = element("div", {}, marks, text(passages[result.index]));
  return element("li", {}, element("span", { class: "place" }, String(place)), content);
}

function text(passage) {
  const title = passage.title ? element("b", {}, quoted(passage.title), ": ") : null;
  return element("p", { class: "passage" }, title, quoted(passage.text));
}

function move(from, to, whose) {
  if (from === to) return element("span", { class: "soft" }, `${whose} ${from}`);
  const [sign, tone] = from > to ? ["▲", "up"] : ["▼", "down"];
  return element("span", { class: tone }, `${sign} ${Math.abs(from - to)} `, element("span", { class: "soft" }, `${whose} ${from}`));
}

meet();
