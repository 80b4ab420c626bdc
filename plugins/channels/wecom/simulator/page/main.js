// The chat and the platform's panel.

import { clock, duration, language, otherLanguage, texts, translate } from "/page/texts.js";
import { content, eventText, isEvent, make } from "/page/content.js";

const $ = (id) => document.getElementById(id);
const entries = new Map();
const lines = new Map();
let member = localStorage.getItem("member") || "zhangsan";
let kinds = [];
let books = {};
let account = {};
let faults = {};
let stream;
let atEnd = true;

// --- Calling the simulator ---

async function call(method, path, body) {
  const options = { method, headers: { "Content-Type": "application/json" } };
  if (body !== undefined) options.body = JSON.stringify(body);
  const response = await fetch(`/simulator/${path}`, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || response.statusText);
  return answer;
}

// What a person started: a failure is told, not lost.
async function attempt(action) {
  try {
    $("alert").hidden = true;
    await action();
  } catch (error) {
    $("alert").textContent = error.message;
    $("alert").hidden = false;
  }
}

function send(message) {
  return attempt(() => call("POST", `members/${encodeURIComponent(member)}/messages`, message));
}

// --- The chat ---

function follow() {
  stream?.close();
  stream = new EventSource(`/simulator/members/${encodeURIComponent(member)}/changes`);
  stream.onopen = () => {
    entries.clear();
    lines.clear();
    showLive(true);
  };
  stream.onerror = () => showLive(false);
  stream.onmessage = (event) => {
    const news = JSON.parse(event.data);
    for (const entry of news.entries) entries.set(entry.id, entry);
    books = news.books;
    showEntries(news.entries);
    showBooks();
  };
}

function showLive(live) {
  $("live").textContent = live ? texts.live : texts.offline;
  $("live").classList.toggle("off", !live);
}

function showEntries(changed) {
  const list = $("entries");
  if (!entries.size) {
    list.replaceChildren(make("li", { class: "empty" }, texts.empty));
    return;
  }
  if (!lines.size) list.replaceChildren();
  for (const entry of changed) {
    const line = showEntry(entry);
    if (lines.has(entry.id)) lines.get(entry.id).replaceWith(line);
    else list.insertBefore(line, following(entry.id));
    lines.set(entry.id, line);
  }
  stayAtEnd();
}

// The newest line stays in sight unless the reader has scrolled away from it.
function stayAtEnd() {
  if (atEnd) $("entries").scrollTop = $("entries").scrollHeight;
}

// The line that one belongs before: none for nearly all, since the newest comes last.
function following(id) {
  const later = [...lines.keys()].filter((other) => other > id);
  return later.length ? lines.get(Math.min(...later)) : null;
}

function showEntry(entry) {
  const meta = make("p", { class: "meta" }, make("time", {}, clock(entry.time)), ...(entry.direction === "inbound" ? sent(entry) : came(entry)));
  const problem = entry.problem ? [make("p", { class: entry.direction === "inbound" && entry.state !== "acknowledged" ? "problem" : "note" }, entry.problem)] : [];
  if (isEvent(entry)) return make("li", { class: "event" }, make("p", {}, eventText(entry)), meta, ...problem);
  const speaker = make("span", { class: "hidden" }, `${entry.direction === "inbound" ? texts.you : texts.assistant}: `);
  const bubble = make("div", { class: `bubble ${entry.kind}` }, speaker, ...content(entry, (button) => press(entry, button)));
  return make("li", { class: `${entry.direction} ${entry.state}` }, bubble, meta, ...problem);
}

function sent(entry) {
  const tries = entry.attempts > 1 ? [texts.attempt(entry.attempts)] : [];
  const words = {
    sending: () => texts.sending,
    acknowledged: () => texts.acknowledgedIn(duration(entry.duration_ms)),
    answered: () => texts.answeredIn(duration(entry.duration_ms)),
    lost: () => texts.state_lost,
    forged: () => texts.state_forged,
  }[entry.state]();
  const bad = entry.state === "lost" || entry.state === "forged";
  return [make("span", { class: bad ? "badge bad" : "state" }, words), ...tries];
}

function came(entry) {
  const asked = entries.get(entry.in_reply_to) || lastAsked(entry);
  const waited = asked ? [texts.after(duration(Math.max(0, entry.time - asked.time) * 1000))] : [];
  return [make("span", { class: `badge ${entry.way}` }, texts[entry.way]), ...waited];
}

function lastAsked(entry) {
  return [...entries.values()].filter((other) => other.direction === "inbound" && other.id < entry.id).pop();
}

function press(entry, button) {
  return send({
    type: "template_card_event",
    EventKey: button.key || "",
    TaskId: entry.fields.task_id || "",
    CardType: entry.fields.card_type || "button_interaction",
    SelectedItems: {},
  });
}

// --- Other kinds of messages ---

const QUICK = [
  ["quickImage", () => pickImage()],
  ["quickLocation", () => send({ type: "location" })],
  ["quickLink", () => send({ type: "link" })],
  ["quickClick", () => send({ type: "click", EventKey: "help" })],
  ["quickEnter", () => send({ type: "enter_agent" })],
];

function pickImage() {
  const input = make("input", { type: "file", accept: "image/png,image/jpeg" });
  input.onchange = () => attempt(async () => {
    const file = input.files[0];
    const path = `/simulator/media?type=image&name=${encodeURIComponent(file.name)}`;
    const response = await fetch(path, { method: "POST", headers: { "Content-Type": file.type }, body: file });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    await call("POST", `members/${encodeURIComponent(member)}/messages`, { type: "image", MediaId: answer.media_id, PicUrl: answer.url });
    openKinds(false);
  });
  input.click();
}

function showKinds() {
  const chosen = $("kind").value || "location";
  $("quick").replaceChildren(...QUICK.map(([name, action]) => make("button", { type: "button", onclick: action }, texts[name])));
  $("kind").replaceChildren(...kinds.filter((kind) => kind.name !== "text").map((kind) => {
    const name = texts.kindNames[kind.name];
    return make("option", { value: kind.name }, name ? `${name} ${kind.name}` : kind.name);
  }));
  $("kind").value = chosen;
  showKindFields();
}

function showKindFields() {
  const kind = kinds.find((one) => one.name === $("kind").value);
  $("kind-fields").replaceChildren(...Object.entries(kind?.fields || {}).map(([name, example]) => {
    const value = typeof example === "object" ? JSON.stringify(example) : String(example);
    return make("label", { class: "field" }, make("span", {}, name), make("input", { name, value, autocomplete: "off" }));
  }));
}

async function sendKind() {
  const kind = kinds.find((one) => one.name === $("kind").value);
  const message = { type: kind.name };
  for (const input of $("kind-fields").querySelectorAll("input")) {
    const example = kind.fields[input.name];
    message[input.name] = typeof example === "string" ? input.value : JSON.parse(input.value);
  }
  await call("POST", `members/${encodeURIComponent(member)}/messages`, message);
}

function openKinds(open) {
  $("kinds").hidden = !open;
  $("more").setAttribute("aria-expanded", String(open));
  (open ? $("kind") : $("text")).focus();
}

// --- The platform ---

const API_FAULTS = ["only", "latency_ms", "error_code", "error_calls", "http_status", "calls_per_minute", "date_late_s", "drop_connection", "hang"];
const CALLBACK_FAULTS = ["age_s", "wrong_signature", "wrong_receiver", "twice", "out_of_order", "plus_as_space"];
const PRESETS = [
  ["allWell", {}],
  ["slow", { latency_ms: 2000 }],
  ["down", { http_status: 502 }],
  ["hanging", { hang: true }],
  ["busy", { error_code: 45009, error_calls: 3 }],
];
const TROUBLES = ["lost", "forged", "dropped_by_quota", "api_errors"];

function showBooks() {
  $("books").replaceChildren(...Object.entries(books).map(([name, count]) =>
    make("div", { class: count && TROUBLES.includes(name) ? "bad" : "" }, make("dt", {}, texts[name] || name), make("dd", {}, String(count)))));
}

function showAccount() {
  $("account").replaceChildren(...Object.entries(account).flatMap(([name, value]) => [make("dt", {}, texts[name] || name), make("dd", {}, String(value))]));
}

function faultField(name) {
  const value = faults[name];
  if (typeof value === "boolean") {
    const box = make("input", { type: "checkbox", name });
    box.checked = value;
    return make("label", { class: "check" }, box, make("span", {}, texts[name]));
  }
  const input = name === "drop_connection"
    ? make("select", { name }, ...["", "before", "after"].map((when) => make("option", { value: when }, texts[`drop_${when}`])))
    : make("input", { name, autocomplete: "off", ...(typeof value === "number" ? { type: "number", step: "any" } : { placeholder: "message/send" }) });
  input.value = value;
  return make("label", { class: "field" }, make("span", {}, texts[name]), input);
}

function showFaults() {
  $("presets").replaceChildren(
    ...PRESETS.map(([name, wanted]) => make("button", { type: "button", onclick: () => putFaults(wanted) }, texts[name])),
    make("button", { type: "button", onclick: withdrawToken }, texts.withdraw));
  $("faults-api").replaceChildren(...API_FAULTS.map(faultField));
  $("faults-callback").replaceChildren(...CALLBACK_FAULTS.map(faultField));
  $("faults-on").hidden = !Object.values(faults).some(Boolean);
}

function putFaults(wanted) {
  return attempt(async () => {
    faults = await call("PUT", "faults", wanted);
    showFaults();
  });
}

function withdrawToken() {
  return attempt(async () => {
    await call("POST", "actions/withdraw-token");
    $("check-result").textContent = texts.withdrawn;
  });
}

function formFaults() {
  const inputs = [...$("faults-form").querySelectorAll("input, select")];
  const value = (input) => (input.type === "checkbox" ? input.checked : input.type === "number" ? Number(input.value) : input.value);
  return Object.fromEntries(inputs.map((input) => [input.name, value(input)]));
}

async function checkUrl() {
  $("check-result").className = "result";
  $("check-result").textContent = texts.checking;
  const { passed, problem } = await call("POST", "actions/check-url");
  $("check-result").classList.add(passed ? "good" : "bad");
  $("check-result").textContent = passed ? texts.checkPassed : texts.checkFailed + problem;
}

function openPlatform(open) {
  document.body.classList.toggle("platform-open", open);
  $("to-platform").setAttribute("aria-expanded", String(open));
  (open ? $("from-platform") : $("to-platform")).focus();
}

// --- All together ---

function show() {
  translate(document);
  $("language").textContent = texts.otherLanguage;
  $("language").lang = language === "en" ? "zh-CN" : "en";
  $("member").value = member;
  lines.clear();
  showEntries([...entries.values()]);
  showLive(stream?.readyState === EventSource.OPEN);
  showKinds();
  showAccount();
  showBooks();
  showFaults();
}

function listen() {
  const text = $("text");
  const grow = () => {
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight + text.offsetHeight - text.clientHeight}px`;
  };
  text.addEventListener("input", grow);
  const list = $("entries");
  list.addEventListener("scroll", () => {
    atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  });
  new ResizeObserver(stayAtEnd).observe(list);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("composer").requestSubmit();
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!text.value.trim()) return;
    atEnd = true;
    send({ text: text.value });
    text.value = "";
    grow();
    text.focus();
  });
  $("more").addEventListener("click", () => openKinds($("kinds").hidden));
  $("kinds-close").addEventListener("click", () => openKinds(false));
  $("kind").addEventListener("change", showKindFields);
  $("kind-form").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(sendKind);
  });
  $("member").addEventListener("change", () => attempt(async () => {
    const wanted = $("member").value.trim() || member;
    await call("PUT", `members/${encodeURIComponent(wanted)}`);
    member = wanted;
    localStorage.setItem("member", member);
    entries.clear();
    lines.clear();
    follow();
  }));
  $("member").addEventListener("focus", () => attempt(async () => {
    const known = await call("GET", "members");
    $("members").replaceChildren(...known.map((value) => make("option", { value })));
  }));
  $("language").addEventListener("click", () => {
    otherLanguage();
    $("check-result").textContent = "";
    show();
  });
  $("check-url").addEventListener("click", () => attempt(checkUrl));
  $("faults-form").addEventListener("submit", (event) => {
    event.preventDefault();
    putFaults(formFaults());
  });
  $("to-platform").addEventListener("click", () => openPlatform(!document.body.classList.contains("platform-open")));
  $("from-platform").addEventListener("click", () => openPlatform(false));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (!$("kinds").hidden) openKinds(false);
    else if (document.body.classList.contains("platform-open")) openPlatform(false);
  });
}

listen();
show();
attempt(async () => {
  [kinds, account, faults] = await Promise.all([call("GET", "kinds"), call("GET", "account"), call("GET", "faults")]);
  follow();
  show();
});
$("text").focus();
