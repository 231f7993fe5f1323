/** The page: connects the choices, the queue and the comparison. */

import { Choices, taskName } from "./choices.js";
import { Compare } from "./compare.js";
import { Queue } from "./queue.js";
import { key } from "./service.js";
import { about, duration, element, loadText, size, text } from "./text.js";

const find = (id) => document.getElementById(id);
await loadText();
const compare = new Compare(find);
const choices = new Choices(find, onProblem, onVariants);
const queue = new Queue(find("rows"), find("row"), {
  onDone, onShow, onProblem, onChange, onRemove, say, expect: (row) => choices.expect(row), mustAsk: (row) => choices.mustAsk(row),
});
const title = document.title;
/** The row on the stage. */
let shown = null;

function say(words) {
  find("news").textContent = words;
}

/** Say something about the shown picture, and write it under the stage. */
function notify(words) {
  say(words);
  find("shown-notice").textContent = words;
  find("shown-notice").hidden = false;
}

// Pictures in.

function take(files, options = choices.options) {
  const added = queue.add(files, options);
  if (!added.length) return;
  say(text("said.added", { count: added.length, name: added[0].file.name }));
  preview(added[0]);
  find("show").scrollIntoView({ block: "start" });
}

async function trySample() {
  const response = await fetch("web/sample.png");
  take([new File([await response.blob()], "sample.png", { type: "image/png" })]);
}

function listen() {
  find("choose").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // the same file can be chosen again
  });
  find("sample").addEventListener("click", trySample);
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  listenToDrops();
  find("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    key.value = find("key-value").value;
    find("key").hidden = true;
    choices.show();
  });
  find("download-all").addEventListener("click", downloadAll);
  find("retry-all").addEventListener("click", () => queue.retryAll());
  find("copy").addEventListener("click", copy);
  find("download").addEventListener("click", () => shown.download());
  find("against").addEventListener("change", showShown);
  find("other").addEventListener("change", tryOther);
  window.addEventListener("beforeunload", (event) => {
    if (unsaved()) event.preventDefault();
  });
}

function listenToDrops() {
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
}

/** Put the same picture through another variant. */
function tryOther() {
  const variant = find("other").value;
  find("other").value = "";
  if (variant) take([shown.file], { ...shown.options, variant });
}

// Pictures out.

async function downloadAll() {
  const { divide, zip } = await import("./zip.js");
  const rows = queue.in("done");
  const groups = divide(rows.map((row) => ({ name: row.result.name, blob: row.result.image })));
  for (const [index, files] of groups.entries()) {
    const address = URL.createObjectURL(await zip(files));
    const link = Object.assign(document.createElement("a"), { href: address, download: groups.length > 1 ? `swin2sr-${index + 1}.zip` : "swin2sr.zip" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }
  for (const row of rows) row.download();
  onChange();
  say(text("said.zip", { count: rows.length }));
}

async function copy() {
  const image = shown.result.image.type === "image/png" ? shown.result.image : await compare.asPng();
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
    notify(text("said.copied", { name: shown.result.name }));
  } catch {
    notify(text("said.notCopied"));
  }
}

/** How many pictures would be lost if the page were left. */
function unsaved() {
  return queue.in("waiting", "busy", "asking").length + queue.in("done").filter((row) => !row.isSaved).length;
}

// What the page shows of the queue.

function onChange() {
  const { rows } = queue;
  const done = queue.in("done").length;
  const under = queue.in("waiting", "busy", "asking");
  find("queue").hidden = !rows.length;
  find("download-all").hidden = done < 2;
  find("download-all").textContent = text("queue.downloadAll", { count: done });
  find("retry-all").hidden = queue.in("failed").length < 2;
  find("gone").hidden = !queue.waitsForServer;
  find("queue-state").textContent = under.length ? batchState(done, rows.length, under) : "";
  find("queue-bar").hidden = !under.length || rows.length < 2;
  find("queue-bar").value = rows.reduce((sum, row) => sum + (row.state === "failed" ? 1 : row.progress), 0) / Math.max(rows.length, 1);
  document.title = under.length ? `(${done}/${rows.length}) ${title}` : title;
  if (shown) showState();
}

function batchState(done, total, under) {
  const left = under.map((row) => row.secondsLeft());
  const state = text("queue.state", { done, count: total });
  return left.includes(null) ? state : `${state} · ${text("left", { time: about(left.reduce((sum, each) => sum + each, 0)) })}`;
}

function onProblem(problem) {
  if (problem.code !== "unauthorized") return;
  find("key").hidden = false;
  find("key-value").focus();
}

function onVariants() {
  const names = choices.available.map((each) => {
    const option = element("option", "", `${taskName(each)} (${each.name})`);
    option.value = each.name;
    return option;
  });
  find("other").replaceChildren(element("option", "", text("stage.other")), ...names);
  find("other").firstElementChild.value = "";
}

function onDone(row) {
  if (shown === row || !shown) show(row);
  say(text("said.done", { name: row.file.name }));
}

/** The stage shows no picture that was removed. */
function onRemove(row) {
  const left = queue.in("done").at(-1) ?? queue.rows.at(-1);
  if (row !== shown) {
    if (find("against").others?.includes(row)) show(shown);
  } else if (left) {
    if (left.result) show(left);
    else preview(left);
  } else {
    showSample();
  }
}

async function onShow(row) {
  await show(row);
  find("stage").scrollIntoView({ block: "nearest" });
  find("split").focus({ preventScroll: true });
}

// The stage.

/** Show a picture that is being worked on. */
async function preview(row) {
  shown = row;
  find("shown-name").textContent = row.file.name;
  find("shown-facts").replaceChildren();
  find("shown-notice").hidden = true;
  find("result-tools").hidden = true;
  find("against-row").hidden = true;
  const before = await row.measured;
  if (shown !== row || row.result) return;
  if (before) find("shown-facts").replaceChildren(...[sides(before), ...expected(row)].map((fact) => element("span", "", fact)));
  await compare.preview(before && row.original, row.file.name);
  showState();
}

/** Show the sample again, as at the start. */
function showSample() {
  shown = null;
  for (const id of ["shown-notice", "result-tools", "against-row", "stage-state"]) find(id).hidden = true;
  find("shown-name").textContent = text("sample.name");
  find("shown-facts").replaceChildren();
  const [before, after] = ["web/sample.png", "web/sample-upscaled.webp"];
  compare.show({ address: before, name: text("stage.before") }, { address: after, name: text("stage.after") }, text("sample.name"));
}

/** What a row will take and become, for its picture's caption. */
function expected(row) {
  const { seconds, bytes } = choices.expect(row);
  return [seconds !== null && about(seconds), bytes !== null && text("about", { time: size(bytes) })].filter(Boolean);
}

/** The progress of the shown row, over its picture. */
function showState() {
  const isOver = shown.state === "done";
  find("stage-state").hidden = isOver;
  find("stage-words").textContent = shown.words;
  find("stage-bar").hidden = shown.state !== "busy";
  if (shown.progress > 0) find("stage-bar").value = shown.progress;
  else find("stage-bar").removeAttribute("value");
}

async function show(row) {
  shown = row;
  const others = queue.in("done").filter((other) => other !== row && other.file === row.file);
  find("against").replaceChildren(element("option", "", text("stage.original")), ...others.map((other) => element("option", "", other.result.variant)));
  find("against-row").hidden = !others.length;
  find("against").others = others;
  await showShown();
  showState();
}

/** Show the result beside the original, or beside the result of another variant. */
async function showShown() {
  const row = shown;
  const other = find("against").others[find("against").selectedIndex - 1];
  const before = await row.measured;
  let after = null;
  let cannotShow = "";
  try {
    const left = other ? { address: other.address, name: other.result.variant } : before && { address: row.original, name: text("stage.before") };
    after = await compare.show(left, { address: row.address, name: other ? row.result.variant : text("stage.after") }, row.file.name);
  } catch {
    cannotShow = text("said.cannotShow", { name: row.result.name });
    say(cannotShow);
  }
  if (shown !== row) return;
  const facts = [
    after && (before ? `${sides(before)} → ${sides(after)}` : sides(after)),
    row.result.variant,
    duration(row.seconds),
    size(row.result.image.size),
  ];
  find("shown-name").textContent = row.file.name;
  find("shown-facts").replaceChildren(...facts.filter(Boolean).map((fact) => element("span", "", fact)));
  const notices = [cannotShow, row.result.restored && text("stage.restored", { how: row.result.restored }), row.result.notice].filter(Boolean);
  find("shown-notice").textContent = notices.join(" ");
  find("shown-notice").hidden = !notices.length;
  find("download").href = row.address;
  find("download").download = row.result.name;
  find("copy").hidden = !after || !navigator.clipboard?.write;
  find("result-tools").hidden = false;
}

function sides({ width, height }) {
  return `${width} × ${height}`;
}

listen();
choices.show();
