/** The pictures that were given, a row each; so many are under way at once. */

import { Problem, upscale } from "./service.js";

const AT_ONCE = 2;
const RETRIES = 20;

export class Queue {
  /**
   * @param {HTMLOListElement} list  where rows go
   * @param {HTMLTemplateElement} template  of a row
   * @param {{onDone: (row: Row) => void, onShow: (row: Row) => void, onProblem: (problem: Problem) => void,
   *          onChange: (rows: Row[]) => void, say: (text: string) => void}} hooks
   */
  constructor(list, template, hooks) {
    this.list = list;
    this.template = template;
    this.hooks = hooks;
    this.rows = [];
  }

  /** @param {Iterable<File>} files  @param {Record<string, string>} options */
  add(files, options) {
    for (const file of files) {
      const row = new Row(file, options, this);
      this.rows.push(row);
      this.list.append(row.element);
    }
    this.hooks.onChange(this.rows);
    this.advance();
  }

  advance() {
    const busy = this.rows.filter((row) => row.state === "busy").length;
    const waiting = this.rows.filter((row) => row.state === "waiting");
    for (const row of waiting.slice(0, Math.max(0, AT_ONCE - busy))) row.run();
  }

  remove(row) {
    this.rows = this.rows.filter((other) => other !== row);
    row.dispose();
    this.hooks.onChange(this.rows);
  }
}

export class Row {
  constructor(file, options, queue) {
    this.file = file;
    this.options = options;
    this.queue = queue;
    this.element = queue.template.content.firstElementChild.cloneNode(true);
    this.original = URL.createObjectURL(file);
    this.part(".item-name").textContent = file.name;
    this.part(".bar").setAttribute("aria-label", `Progress of ${file.name}`);
    for (const act of this.element.querySelectorAll("[data-act]")) {
      act.setAttribute("aria-label", `${act.textContent} ${file.name}`);
      act.addEventListener("click", () => this[act.dataset.act]?.());
    }
    this.loadOriginal();
    this.wait();
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  /** The original's size, and its small picture, where the browser can show it. */
  async loadOriginal() {
    const image = new Image();
    image.src = this.original;
    this.originalSize = image.decode().then(
      () => {
        this.part(".thumb img").src = this.original;
        return { width: image.naturalWidth, height: image.naturalHeight };
      },
      () => null,
    );
  }

  wait() {
    this.enter("waiting", "Waiting for its turn", ["cancel"]);
  }

  async run() {
    this.enter("busy", "Sending", ["cancel"], true);
    this.leaving = new AbortController();
    const started = performance.now();
    try {
      this.finish(await this.insist(), (performance.now() - started) / 1000);
    } catch (error) {
      this.fail(error);
    }
    this.queue.advance();
  }

  finish(result, seconds) {
    this.result = result;
    this.seconds = seconds;
    this.address = URL.createObjectURL(result.image);
    const link = this.part("[data-act=download]");
    link.href = this.address;
    link.download = result.name;
    const facts = [result.variant, duration(seconds), size(result.image.size)];
    this.enter("done", facts.join(" · "), ["show", "download", "remove"]);
    this.queue.hooks.onDone(this);
  }

  /** Ask, and ask again while the server says that it is busy. */
  async insist() {
    for (let left = RETRIES; ; left -= 1) {
      try {
        return await upscale(this.file, this.options, this.leaving.signal, (step) => this.tell(step));
      } catch (error) {
        const busy = error instanceof Problem && (error.code === "queue_full" || error.code === "draining");
        if (!busy || !left) throw error;
        this.say(`The server is busy. Trying again in ${error.retryAfter ?? 1} s`);
        await pause(error.retryAfter ?? 1, this.leaving.signal);
      }
    }
  }

  tell({ state, position, tile, tiles }) {
    const bar = this.part(".bar");
    if (state === "queued") {
      this.say(position > 1 ? `In the queue, place ${position}` : "Next in the queue");
    } else {
      if (tiles > 1) bar.value = tile / tiles;
      this.say(tile < tiles ? `Computing, ${tile} of ${tiles} ${tiles === 1 ? "tile" : "tiles"} done` : "Writing the picture");
    }
  }

  fail(error) {
    if (error.name === "AbortError") {
      this.enter("failed", "Cancelled", ["again", "remove"]);
      this.element.classList.remove("failed");
    } else {
      const problem = error instanceof Problem ? error : new Problem({ code: "page", title: "This page failed", detail: String(error) });
      this.enter("failed", "", ["again", "remove"]);
      const title = document.createElement("strong");
      title.textContent = `${problem.title}.`;
      this.part(".item-state").replaceChildren(title, ` ${problem.message}`);
      this.queue.hooks.say(`${this.file.name}: ${problem.title}. ${problem.message}`);
      this.queue.hooks.onProblem(problem);
    }
  }

  again() {
    this.wait();
    this.queue.advance();
    this.part("[data-act=cancel]").focus();
  }

  cancel() {
    if (this.state === "waiting") this.fail(new DOMException("", "AbortError"));
    else this.leaving.abort();
    this.queue.hooks.say(`${this.file.name}: cancelled`);
  }

  show() {
    this.queue.hooks.onShow(this);
  }

  remove() {
    this.queue.remove(this);
  }

  enter(state, text, acts, bar = false) {
    const focused = this.element.contains(document.activeElement);
    this.state = state;
    this.element.classList.toggle("failed", state === "failed");
    this.say(text);
    this.part(".bar").hidden = !bar;
    this.part(".bar").removeAttribute("value");
    for (const act of this.element.querySelectorAll("[data-act]")) act.hidden = !acts.includes(act.dataset.act);
    // Who had the focus on a button that went away goes on from the one in its place.
    if (focused && document.activeElement === document.body) this.part("[data-act]:not([hidden])").focus();
  }

  say(text) {
    this.part(".item-state").textContent = text;
  }

  dispose() {
    URL.revokeObjectURL(this.original);
    if (this.address) URL.revokeObjectURL(this.address);
    this.element.remove();
  }
}

/** @param {number} bytes */
export function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
