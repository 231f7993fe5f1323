/** The pictures of a person, a row each. A few are sent at a time; while the server is gone, all wait for it. */

import { Problem, readiness, upscale } from "./service.js";
import { about, duration, size, text, translate } from "./text.js";

const AT_ONCE = 2;
/** How often one picture is sent again because the server is busy, or was gone while it worked on the picture. */
const MOST_BUSY = 20;
const MOST_LOST = 5;
const POLL_MS = 2000;

export class Queue {
  /**
   * @param {HTMLOListElement} list  of rows
   * @param {HTMLTemplateElement} template  of a row
   * @param {{onDone: (row: Row) => void, onShow: (row: Row) => void, onProblem: (problem: Problem) => void,
   *          onChange: () => void, onRemove: (row: Row) => void, expect: (row: Row) => {seconds: number|null, bytes: number|null},
   *          mustAsk: (row: Row) => boolean, say: (words: string) => void}} hooks
   */
  constructor(list, template, hooks) {
    this.list = list;
    this.template = template;
    this.hooks = hooks;
    this.rows = [];
    this.waitsForServer = false;
  }

  /** @param {Iterable<File>} files  @param {Record<string, string>} options  @returns {Row[]} */
  add(files, options) {
    const added = [...files].map((file) => new Row(file, { ...options }, this));
    for (const row of added) {
      this.rows.push(row);
      this.list.append(row.element);
    }
    this.hooks.onChange();
    this.advance();
    return added;
  }

  in(...states) {
    return this.rows.filter((row) => states.includes(row.state));
  }

  advance() {
    if (this.waitsForServer) return;
    const room = Math.max(0, AT_ONCE - this.in("busy").length);
    for (const row of this.in("waiting").filter((each) => each.isMeasured).slice(0, room)) row.run();
  }

  /** Send everything again that failed. */
  retryAll() {
    for (const row of this.in("failed")) row.wait();
    this.advance();
  }

  remove(row) {
    this.rows = this.rows.filter((other) => other !== row);
    row.dispose();
    this.hooks.onChange();
    this.hooks.onRemove(row);
  }

  /** Keep the rows until the server is ready again, then go on. */
  async waitForServer() {
    if (this.waitsForServer) return;
    this.waitsForServer = true;
    this.hooks.say(text("server.gone"));
    for (const row of this.in("waiting")) row.wait();
    this.hooks.onChange();
    for (;;) {
      await pause(POLL_MS / 1000);
      if ((await readiness())?.ready) break;
    }
    this.waitsForServer = false;
    this.hooks.say(text("server.back"));
    for (const row of this.in("waiting")) row.wait();
    this.hooks.onChange();
    this.advance();
  }
}

export class Row {
  constructor(file, options, queue) {
    this.file = file;
    this.options = options;
    this.queue = queue;
    this.lost = 0;
    this.progress = 0; // share that is computed
    this.isSaved = false;
    this.isMeasured = false; // whether it is known if the browser can show the original
    this.element = queue.template.content.firstElementChild.cloneNode(true);
    translate(this.element);
    this.original = URL.createObjectURL(file);
    this.part(".item-name").textContent = file.name;
    this.part(".bar").setAttribute("aria-label", text("row.progress", { name: file.name }));
    for (const act of this.element.querySelectorAll("[data-act]")) {
      act.setAttribute("aria-label", `${act.textContent} ${file.name}`);
      act.addEventListener("click", () => this[act.dataset.act]?.());
    }
    this.wait();
    this.measured = this.measure();
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  /** The original's size and its small picture, where the browser can show it; then the row may be sent. */
  async measure() {
    const image = new Image();
    image.src = this.original;
    try {
      await image.decode();
      this.part(".thumb img").src = this.original;
      this.originalSize = { width: image.naturalWidth, height: image.naturalHeight };
    } catch {
      this.originalSize = null;
    }
    this.isMeasured = true;
    if (this.state === "waiting") {
      if (this.queue.hooks.mustAsk(this)) this.ask();
      else this.wait();
      this.queue.advance();
    }
    return this.originalSize;
  }

  wait() {
    const { seconds } = this.queue.hooks.expect(this);
    const words = this.queue.waitsForServer ? text("row.waitingForServer") : text("row.waiting");
    this.enter("waiting", seconds === null ? words : `${words} · ${about(seconds)}`, ["cancel"]);
  }

  /** Ask before a very large PNG is made. */
  ask() {
    const { bytes } = this.queue.hooks.expect(this);
    this.enter("asking", text("row.large", { size: size(bytes) }), ["webp", "jpeg", "keep", "cancel"]);
  }

  webp() {
    this.goOn("webp");
  }

  jpeg() {
    this.goOn("jpeg");
  }

  keep() {
    this.goOn(this.options.format);
  }

  goOn(format) {
    this.options.format = format;
    this.wait();
    this.queue.advance();
  }

  async run() {
    this.enter("busy", text("row.sending"), ["cancel"], true);
    this.leaving = new AbortController();
    this.started = performance.now();
    try {
      this.finish(await this.insist(), (performance.now() - this.started) / 1000);
    } catch (error) {
      if (error instanceof Problem && error.serverIsGone && this.lost < MOST_LOST) this.lose();
      else this.fail(error);
    }
    this.queue.advance();
  }

  /** Go back to the waiting rows, because the server is gone. */
  lose() {
    this.lost += 1;
    this.queue.waitForServer();
    this.wait();
  }

  finish(result, seconds) {
    this.result = result;
    this.seconds = seconds;
    this.progress = 1;
    this.address = URL.createObjectURL(result.image);
    const link = this.part("[data-act=download]");
    link.href = this.address;
    link.download = result.name;
    const facts = [result.variant, duration(seconds), size(result.image.size)];
    this.enter("done", facts.join(" · "), ["show", "download", "remove"]);
    this.queue.hooks.onDone(this);
  }

  /** Send, and send again while the server is busy. */
  async insist() {
    for (let left = MOST_BUSY; ; left -= 1) {
      try {
        return await upscale(this.file, this.options, this.leaving.signal, (step) => this.advanceTo(step));
      } catch (error) {
        if (!(error instanceof Problem) || !error.isTemporary || !left) throw error;
        this.say(text("row.busy", { seconds: error.retryAfter ?? 1 }));
        await pause(error.retryAfter ?? 1, this.leaving.signal);
      }
    }
  }

  advanceTo({ state, position, tile, tiles }) {
    if (state === "queued") {
      this.computing = undefined;
      this.say(position > 1 ? text("row.place", { position }) : text("row.next"));
      return;
    }
    this.computing ??= performance.now();
    this.progress = tile / tiles;
    if (tiles > 1) this.part(".bar").value = this.progress;
    const done = tile < tiles ? text("row.tiles", { count: tiles, tile }) : text("row.writing");
    const left = this.secondsLeft();
    this.say(left === null ? done : `${done} · ${text("left", { time: about(left) })}`);
  }

  /** Seconds until this row is done, roughly; null if nothing is known. */
  secondsLeft() {
    if (this.state === "busy" && this.progress > 0 && this.progress < 1) {
      const spent = (performance.now() - this.computing) / 1000;
      return (spent / this.progress) * (1 - this.progress);
    }
    return ["busy", "waiting"].includes(this.state) && !this.progress ? this.queue.hooks.expect(this).seconds : null;
  }

  fail(error) {
    if (error.name === "AbortError") {
      this.enter("failed", text("row.cancelled"), ["again", "remove"]);
      this.element.classList.remove("failed");
      return;
    }
    const problem = error instanceof Problem ? error : new Problem({ code: "page", title: "", detail: String(error) });
    this.enter("failed", `${problem.title}. ${problem.message}`, ["again", "remove"]);
    const title = document.createElement("strong");
    title.textContent = `${problem.title}.`;
    this.part(".item-state").replaceChildren(title, ` ${problem.message}`);
    this.queue.hooks.say(`${this.file.name}: ${problem.title}. ${problem.message}`);
    this.queue.hooks.onProblem(problem);
  }

  again() {
    this.lost = 0;
    this.wait();
    this.queue.advance();
    this.part("[data-act=cancel]").focus();
  }

  cancel() {
    if (this.state === "busy") this.leaving.abort();
    else this.fail(new DOMException("", "AbortError"));
    this.queue.hooks.say(text("said.cancelled", { name: this.file.name }));
  }

  show() {
    this.queue.hooks.onShow(this);
  }

  download() {
    this.isSaved = true;
  }

  remove() {
    this.queue.remove(this);
  }

  enter(state, words, acts, bar = false) {
    const focused = this.element.contains(document.activeElement);
    this.state = state;
    if (state !== "done") this.progress = 0;
    this.element.classList.toggle("failed", state === "failed");
    this.part(".bar").hidden = !bar;
    this.part(".bar").removeAttribute("value");
    for (const act of this.element.querySelectorAll("[data-act]")) act.hidden = !acts.includes(act.dataset.act);
    // If the focused button is gone, the focus goes to the first one that is left.
    if (focused && document.activeElement === document.body) this.part("[data-act]:not([hidden])").focus();
    this.say(words);
  }

  say(words) {
    this.words = words;
    this.part(".item-state").textContent = words;
    this.queue.hooks.onChange();
  }

  dispose() {
    URL.revokeObjectURL(this.original);
    if (this.address) URL.revokeObjectURL(this.address);
    this.element.remove();
  }
}

/** @param {number} seconds  @param {AbortSignal} [signal] */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
