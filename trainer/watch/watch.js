// Asks for the figures every two seconds, and for the report when there is a newer one. Changes only what has changed,
// so that whoever reads keeps the place, what is open, and what is selected. All texts are set as text, never as HTML.
"use strict";
const POLL_MS = 2000;
const at = (id) => document.getElementById(id);
let shownReport = 0;
let shownReader = "";

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function fill(parent, texts, make) {
  while (parent.children.length > texts.length) parent.lastElementChild.remove();
  texts.forEach((text, i) => {
    const node = parent.children[i] || parent.appendChild(make());
    say(node, text);
  });
}

function showFigures(figures) {
  const list = at("figures");
  while (list.children.length > figures.length) list.lastElementChild.remove();
  figures.forEach(([name, value], i) => {
    let pair = list.children[i];
    if (!pair) {
      pair = list.appendChild(document.createElement("div"));
      pair.append(document.createElement("dt"), document.createElement("dd"));
    }
    say(pair.firstElementChild, name);
    say(pair.lastElementChild, value);
  });
}

function show(told) {
  const percent = told.progress === null ? "" : `${Math.floor(100 * told.progress)} % · `;
  document.title = `${percent}${told.run} · ${told.word}`;
  say(at("run"), told.run);
  say(at("store"), told.store);
  say(at("word"), told.word);
  say(at("text"), told.state);
  at("state").className = told.tone;
  fill(at("wrong"), told.wrong, () => document.createElement("li"));
  at("progress").hidden = told.progress === null;
  if (told.progress !== null) at("progress").value = told.progress;
  showFigures(told.figures);
  const others = told.others || [];
  at("others").hidden = !others.length;
  say(at("others"), `This page waits for it. The store has: ${others.join(", ")}. To see one of them: make watch RUN=${others[0]}`);
  at("note").hidden = shownReport > 0 && !told.report_fault;
  if (told.report_fault) say(at("note"), told.report_fault);
}

// Makes `old` the same as `now` with as few changes as possible. What the reader has opened stays open.
function merge(old, now) {
  if (old.isEqualNode(now)) return;
  const isSame = old.nodeType === 1 && now.nodeType === 1 && old.tagName === now.tagName && old.tagName !== "svg";
  if (!isSame) {
    old.replaceWith(document.importNode(now, true));
    return;
  }
  const isReaders = (name) => old.tagName === "DETAILS" && name === "open";
  for (const { name } of [...old.attributes]) {
    if (!now.hasAttribute(name) && !isReaders(name)) old.removeAttribute(name);
  }
  for (const { name, value } of now.attributes) {
    if (old.getAttribute(name) !== value && !isReaders(name)) old.setAttribute(name, value);
  }
  const [olds, nows] = [[...old.childNodes], [...now.childNodes]];
  olds.slice(nows.length).forEach((node) => node.remove());
  nows.forEach((node, i) => (i < olds.length ? merge(olds[i], node) : old.append(document.importNode(node, true))));
}

async function showReport(number) {
  const answer = await fetch("/report", { cache: "no-store" });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const main = page.querySelector("main");
  if (!answer.ok || !main) return;
  page.querySelectorAll("script").forEach((node) => node.remove());
  say(at("report-style"), [...page.querySelectorAll("head style")].map((node) => node.textContent).join("\n"));
  const before = at("report").firstElementChild;
  if (before) merge(before, main);
  else at("report").append(document.importNode(main, true));
  shownReport = number;
}

// Another `make watch` answers now. It counts its reports anew, and may show another run.
function meet(told) {
  shownReader = told.reader;
  shownReport = 0;
  if (at("run").textContent !== told.run || at("store").textContent !== told.store) at("report").replaceChildren();
}

function complain(text) {
  document.body.classList.add("cut");
  fill(at("wrong"), [text], () => document.createElement("li"));
}

async function poll() {
  let answer, text;
  try {
    answer = await fetch("/live", { cache: "no-store" });
    text = await answer.text();
  } catch (error) {
    complain("`make watch` has ended, or cannot be reached: what is below no longer changes. If it is started again, this page goes on.");
    return;
  }
  if (!answer.ok) {
    complain(`What is below no longer changes: ${text}`);
    return;
  }
  try {
    const told = JSON.parse(text);
    if (told.reader !== shownReader) meet(told);
    if (told.report && told.report !== shownReport) await showReport(told.report);
    show(told);
    document.body.classList.remove("cut");
  } catch (error) {
    complain(`This page cannot show what \`make watch\` answers (${error}): load it again`);
  }
}

let timer = 0;
async function pollForever() {
  clearTimeout(timer);
  await poll();
  clearTimeout(timer);
  timer = setTimeout(pollForever, POLL_MS);
}
document.addEventListener("visibilitychange", () => document.hidden || pollForever());
pollForever();
