/** The page: what a person does, and what is shown for it. */

import { Compare } from "./compare.js";
import { duration, Queue, size } from "./queue.js";
import { key } from "./service.js";
import { Variants, words } from "./variants.js";

const find = (id) => document.getElementById(id);
const compare = new Compare(find);
const variants = new Variants(find, onProblem);
const queue = new Queue(find("rows"), find("row"), { onDone, onShow, onProblem, onChange, say });
let shown = null;

function say(text) {
  find("news").textContent = text;
}

// Pictures in.

function options() {
  return {
    ...(variants.chosen ? { variant: variants.chosen } : {}),
    format: find("format").value,
    ensemble: String(find("ensemble").checked),
    metadata: find("strip").checked ? "strip" : "keep",
  };
}

function take(files) {
  const given = [...files];
  if (!given.length) return;
  queue.add(given, options());
  say(given.length === 1 ? `${given[0].name} was added` : `${given.length} pictures were added`);
}

async function trySample() {
  const response = await fetch("web/sample.png");
  take([new File([await response.blob()], "sample.png", { type: "image/png" })]);
}

function listen() {
  find("choose").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // the same file may be chosen again
  });
  find("sample").addEventListener("click", trySample);
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  let depth = 0;
  const hover = (change) => {
    depth = Math.max(0, depth + change);
    find("drop").classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", () => hover(1));
  document.addEventListener("dragleave", () => hover(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    hover(-depth);
    take(event.dataTransfer.files);
  });
  document.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.value = find("key-value").value;
    find("key").hidden = true;
    variants.show();
  });
  find("download-all").addEventListener("click", () => {
    for (const row of queue.rows.filter((each) => each.state === "done")) row.part("[data-act=download]").click();
  });
}

// Pictures out.

function onChange(rows) {
  find("queue").hidden = !rows.length;
  find("download-all").hidden = rows.filter((row) => row.state === "done").length < 2;
}

function onProblem(problem) {
  if (problem.code !== "unauthorized") return;
  find("key").hidden = false;
  find("key-value").focus();
}

function onDone(row) {
  onChange(queue.rows);
  if (!shown || row === queue.rows.at(-1)) show(row);
  say(`${row.file.name} is done`);
}

async function onShow(row) {
  await show(row);
  find("stage").scrollIntoView({ block: "nearest" });
  find("split").focus({ preventScroll: true });
}

async function show(row) {
  const before = await row.originalSize;
  let after = null;
  try {
    after = await compare.show(before && row.original, row.address, row.file.name);
  } catch {
    say(`This browser cannot show ${row.result.name}. It can be downloaded.`);
  }
  shown = row;
  const facts = [
    after && (before ? `${sides(before)} → ${sides(after)}` : sides(after)),
    row.result.variant,
    duration(row.seconds),
    size(row.result.image.size),
  ];
  find("shown-name").textContent = row.file.name;
  find("shown-facts").replaceChildren(...facts.filter(Boolean).map((fact) => words("span", "", fact)));
  find("shown-notice").textContent = row.result.notice;
  find("shown-notice").hidden = !row.result.notice;
  const link = find("download");
  link.href = row.address;
  link.download = row.result.name;
  link.hidden = false;
}

function sides({ width, height }) {
  return `${width} × ${height}`;
}

listen();
variants.show();
