
// The questions of a comparison: filtered, searched, sorted, a page at a time. What came from data becomes text nodes,
// never markup. The state stands in the address behind "#", so that a link leads back to it.
{
  "use strict";
  const AT_ONCE = 50;
  const GOLD = 1, HAS_ANSWER = 2;
  const SHOWS = { all: "all", won: "won", lost: "lost", same: "same", none: "not compared" };
  const data = JSON.parse(document.getElementById("comparison").textContent);

  const before = (question) => question.values[state.metric][0];
  const after = (question) => question.values[state.metric][1];
  const change = (question) => after(question) - before(question);
  const last = (value) => value ?? Infinity;
  const SORTS = {
    change: ["largest change", (l, r) => Math.abs(change(r)) - Math.abs(change(l))],
    gain: ["largest gain", (l, r) => change(r) - change(l)],
    loss: ["largest loss", (l, r) => change(l) - change(r)],
    given: ["order of the data", () => 0],
    text: ["question, A to Z", (l, r) => l.text.localeCompare(r.text)],
    before: ["lowest before", (l, r) => last(before(l)) - last(before(r))],
    after: ["lowest after", (l, r) => last(after(l)) - last(after(r))],
  };

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
    made.append(...children.filter((child) => child !== null));
    return made;
  }
  const quoted = (text) => element("bdi", { class: "data" }, text);
  const signed = (value) => {
    const written = Math.abs(value).toFixed(3);
    return Number(written) === 0 ? "0.000" : (value < 0 ? "\u2212" : "+") + written;
  };
  const plain = (value) => (value === null ? "–" : value.toFixed(3));
  const counted = (number) => number.toLocaleString("en");

  function outcome(question) {
    if (before(question) === null || after(question) === null) return "none";
    const moved = change(question);
    return moved > 0 ? "won" : moved < 0 ? "lost" : "same";
  }

  // --- state ---------------------------------------------------------------------------------------------------

  const plainly = () => ({ metric: data.headline, show: "all", sort: "change", find: "", page: 1, open: "" });
  let state = plainly();

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    const metric = data.metrics.indexOf(given.get("metric"));
    state = plainly();
    if (metric >= 0) state.metric = metric;
    if (Object.hasOwn(SHOWS, given.get("show") ?? "")) state.show = given.get("show");
    if (Object.hasOwn(SORTS, given.get("sort") ?? "")) state.sort = given.get("sort");
    state.find = given.get("find") ?? "";
    state.open = given.get("open") ?? "";
    state.page = Math.max(1, Number.parseInt(given.get("page") ?? "1", 10) || 1);
  }

  function address(changed) {
    const wanted = { ...state, open: "", ...changed }, usual = plainly(), written = new URLSearchParams();
    wanted.metric = data.metrics[wanted.metric];
    usual.metric = data.metrics[usual.metric];
    for (const key of Object.keys(usual)) if (wanted[key] !== usual[key]) written.set(key, wanted[key]);
    return "#" + (written.toString() || "show=all");
  }

  const words = () => state.find.toLowerCase().split(/\s+/).filter(Boolean);
  const haystacks = data.questions.map((question) =>
    [question.id, question.text, question.answers, ...question.reads].join("\n").toLowerCase(),
  );

  // --- controls ------------------------------------------------------------------------------------------------

  const radios = {}, counts = {};
  const choices = Object.entries(SHOWS).map(([value, name]) => {
    radios[value] = element("input", { type: "radio", name: "show", value });
    counts[value] = element("span", { class: "soft" });
    radios[value].addEventListener("change", () => go({ show: value, page: 1 }));
    return element("label", {}, radios[value], ` ${name} `, counts[value]);
  });
  const find = element("input", { type: "search", autocomplete: "off", spellcheck: "false" });
  const metric = element("select", {}, ...data.metrics.map((name, i) => element("option", { value: i }, name)));
  const sort = element("select", {}, ...Object.entries(SORTS).map(([key, [name]]) => element("option", { value: key }, name)));
  const status = element("p", { role: "status", class: "soft" });
  const list = element("ol", { class: "questions" });
  const previous = element("button", { type: "button" }, `Previous ${AT_ONCE}`);
  const next = element("button", { type: "button" }, `Next ${AT_ONCE}`);
  const pager = element("div", { class: "pager" }, previous, next);

  let waiting = 0;
  find.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      waiting = 0;
      go({ find: find.value, page: 1 }, state.find !== "");
    }, 150);
  });
  metric.addEventListener("change", () => go({ metric: Number(metric.value), page: 1 }));
  sort.addEventListener("change", () => go({ sort: sort.value, page: 1 }));
  const turn = (by) => (event) => {
    if (event.currentTarget.getAttribute("aria-disabled") === "true") return;
    go({ page: state.page + by });
    status.scrollIntoView();
  };
  previous.addEventListener("click", turn(-1));
  next.addEventListener("click", turn(1));

  // A search that goes on replaces the address, or "back" would take a step for each letter.
  function go(changed, replacing = false) {
    const to = address(changed);
    if (to === location.hash) return show();
    if (replacing) location.replace(to);
    else location.hash = to;
  }

  // --- the list ------------------------------------------------------------------------------------------------

  function show() {
    const wanted = words(), tally = { all: 0, won: 0, lost: 0, same: 0, none: 0 }, fitting = [];
    data.questions.forEach((question, i) => {
      if (!wanted.every((word) => haystacks[i].includes(word))) return;
      const became = outcome(question);
      tally.all += 1;
      tally[became] += 1;
      if (state.show === "all" || state.show === became) fitting.push(question);
    });
    // What cannot be compared has no change: it comes last, as it came.
    const known = fitting.filter((question) => outcome(question) !== "none");
    const unknown = fitting.filter((question) => outcome(question) === "none");
    known.sort(SORTS[state.sort][1]);
    const ordered = state.sort === "given" || state.sort === "text" ? fitting.sort(SORTS[state.sort][1]) : [...known, ...unknown];
    const at = ordered.findIndex((question) => question.id === state.open);
    const pages = Math.max(1, Math.ceil(ordered.length / AT_ONCE));
    state.page = Math.min(pages, at >= 0 ? Math.floor(at / AT_ONCE) + 1 : state.page);
    settle(tally);
    const first = (state.page - 1) * AT_ONCE, shown = ordered.slice(first, first + AT_ONCE);
    list.replaceChildren(...shown.map(entry));
    list.setAttribute("start", first + 1);
    tell(ordered.length, first, shown.length, at);
    previous.setAttribute("aria-disabled", state.page === 1);
    next.setAttribute("aria-disabled", state.page === pages);
    pager.hidden = pages === 1;
    if (at >= 0) list.children[at - first].firstChild.open = true;
    if (at >= 0) list.children[at - first].scrollIntoView();
  }

  function settle(tally) {
    for (const [value, radio] of Object.entries(radios)) {
      radio.checked = value === state.show;
      counts[value].textContent = counted(tally[value]);
    }
    radios.none.parentElement.hidden = tally.none === 0 && state.show !== "none";
    if (!waiting) find.value = state.find; // else somebody types on
    metric.value = state.metric;
    sort.value = state.sort;
    document.getElementById("share").hidden = state.metric !== data.headline;
  }

  function tell(all, first, here, at) {
    const missing = state.open && at < 0 ? `Question ${state.open} is not among these. ` : "";
    const shown = all ? `${counted(first + 1)} to ${counted(first + here)} of ${counted(all)}` : "No question fits";
    status.textContent = `${missing}${shown}, by ${data.metrics[state.metric]}.`;
  }

  function entry(question) {
    const became = outcome(question), reads = question.reads;
    const delta = became === "none" ? "–" : signed(change(question));
    const tone = { won: " better", lost: " worse" }[became] ?? "";
    const answers = element("span", { class: "answers" }, quoted(short(reads[0], 90)), " → ", quoted(short(reads[1], 90)));
    const summary = element(
      "summary", {}, element("span", { class: `delta${tone}` }, delta), quoted(question.text),
      reads[0] === null && reads[1] === null ? null : answers,
    );
    const details = element("details", { class: "question" }, summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) details.append(inside(question));
    });
    return element("li", {}, details);
  }

  function short(text, characters) {
    if (text === null) return "–";
    return text.length > characters + 2 ? text.slice(0, characters) + " …" : text; // 2: " …" of a piece cut before
  }

  function inside(question) {
    const about = element("p", { class: "soft" }, "Question ", element("code", {}, quoted(question.id)));
    if (question.answers) about.append(" Accepted: ", element("b", {}, quoted(question.answers)));
    about.append(" ", element("a", { href: address({ open: question.id }) }, "Link to this question"));
    const values = data.metrics.map((name, i) =>
      element("li", {}, `${name} `, element("b", {}, question.values[i].map(plain).join(" → "))),
    );
    const sides = element("div", { class: "sides" }, side(question, 0), side(question, 1));
    return element("div", { class: "inside" }, about, element("ul", { class: "values" }, ...values), sides);
  }

  function side(question, which) {
    const name = element("h3", {}, quoted(data.names[which]), " ");
    name.append(element("span", { class: "soft" }, which ? "after" : "before"));
    const read = question.reads[which], items = [];
    question.rankings[which].forEach(([number, other, marks], i) => {
      if (i === data.read[which]) items.push(element("li", { class: "cut" }, "not among the passages read"));
      items.push(passage(number, i + 1, other, marks, i < data.read[which], which));
    });
    if (question.more[which]) items.push(element("li", { class: "more" }, `and ${question.more[which]} more`));
    const answer = read === null ? null : element(
      "p", { class: "reading" }, element("span", { class: "soft" }, "Answer: "), quoted(read),
    );
    return element("div", {}, name, answer, element("ol", { class: "ranking" }, ...items));
  }

  function passage(number, place, other, marks, isRead, which) {
    const [id, title, text] = data.documents[number], line = element("div", { class: "marks" });
    const piece = isRead ? text : short(text, data.unread);
    if (title || !text) line.append(element("b", {}, quoted(title || id)));
    if (marks & GOLD) line.append(element("span", { class: "tag gold", title: "labelled relevant" }, "gold"));
    if (marks & HAS_ANSWER)
      line.append(element("span", { class: "tag", title: "an accepted answer stands in this passage" }, "has answer"));
    const moved = which ? "was" : "becomes";
    if (!other) line.append(element("span", { class: "soft" }, which ? "was not there" : "is not there any more"));
    else if (other !== place) line.append(element("span", { class: "soft" }, `${moved} ${other}`));
    const content = element("div", { title: `document ${id}` }, line, element("p", { class: "passage" }, quoted(piece)));
    return element("li", { class: isRead ? null : "unread" }, element("span", { class: "place" }, String(place)), content);
  }

  const labelled = (name, control) => element("label", { class: "field" }, element("span", {}, name), control);
  document.getElementById("look").append(
    element("fieldset", {}, element("legend", {}, "Show"), ...choices),
    element(
      "div", { class: "fields" }, labelled("Search question, id, answers", find), labelled("By", metric),
      labelled("Sort", sort),
    ),
    status, list, pager,
  );
  // "#scores" is a place of the page, "#show=lost" a state of this list.
  addEventListener("hashchange", () => {
    if (!location.hash.includes("=")) return;
    read();
    show();
  });
  read();
  show();
}
