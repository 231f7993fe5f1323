/** What a person asks for: the variant, the size, the format and the other options. The browser remembers them. */

import { listVariants } from "./service.js";
import { element, has, text } from "./text.js";

const POLL_MS = 2000;
const STORE = "swin2sr-choices";
const LOSSY = ["jpeg", "webp", "avif", "jxl", "same"];

/**
 * Bytes of a file for each pixel of a photograph. Measured on the x2 results of four Kodak photos:
 * python -m tests.page.file_sizes
 */
const BYTES_PER_PIXEL = { png: 1.6, tiff: 1.75, jpeg: 0.45, webp: 0.29, avif: 0.36, jxl: 0.82 };

/**
 * Size of a lossy file over its size at quality 95, roughly: the same command prints 0.41 to 0.55 for quality 80, and
 * 0.20 to 0.39 for 50.
 */
const sizeAt = (quality) => (8 / (103 - quality)) ** 0.68;

/** Above so many bytes the page asks before it makes a PNG or TIFF. */
const LARGE = 100e6;

/** Options as the service names them, by the identifier of their control. A default is not sent. */
const DEFAULTS = { quality: "95", fit: "inside", restore: "never", strength: "100" };

export class Choices {
  /**
   * @param {(id: string) => HTMLElement} find
   * @param {(problem: Problem) => void} onProblem  called when the server does not say what it has
   * @param {() => void} onVariants  called when the list of variants changed
   */
  constructor(find, onProblem, onVariants) {
    this.find = find;
    this.onProblem = onProblem;
    this.onVariants = onVariants;
    this.variants = [];
    this.stored = JSON.parse(localStorage.getItem(STORE) ?? "{}");
    for (const [id, value] of Object.entries(this.stored)) {
      const control = find(id);
      if (!control) continue;
      if (control.type === "checkbox") control.checked = value;
      else control.value = value;
      if (control.selectedIndex < 0) control.selectedIndex = 0; // the page no longer offers what was stored
    }
    find("ask").addEventListener("input", () => this.changed());
    this.changed();
  }

  /** The controls whose values are remembered. */
  get controls() {
    return ["format", "quality", "size", "size-width", "size-height", "size-number", "fit", "enlarge", "restore", "strength", "max-bytes", "ensemble", "strip"]
      .map((id) => this.find(id));
  }

  /** Show the fields that belong to the choices, and remember the choices. */
  changed() {
    const { value: size } = this.find("size");
    this.find("size-sides").hidden = !["width", "height", "box"].includes(size);
    this.find("size-width").hidden = size === "height";
    this.find("size-height").hidden = size === "width";
    this.find("size-number").hidden = !["factor", "megapixels"].includes(size);
    this.find("fit-row").hidden = size !== "box";
    this.find("enlarge-row").hidden = size === "own";
    const lossy = LOSSY.includes(this.find("format").value);
    this.find("quality-row").hidden = !lossy;
    this.find("max-bytes-row").hidden = !lossy;
    this.find("quality-value").textContent = this.find("quality").value;
    this.find("strength-value").textContent = `${this.find("strength").value} %`;
    const values = this.controls.map((control) => [control.id, control.type === "checkbox" ? control.checked : control.value]);
    this.stored = { ...Object.fromEntries(values), variant: this.chosen ?? this.stored.variant };
    localStorage.setItem(STORE, JSON.stringify(this.stored));
  }

  /** The name of the variant that is chosen; undefined before the server has named any. */
  get chosen() {
    return this.find("variant-list").querySelector("input:checked")?.value;
  }

  /** The query parameters of a request with these choices. */
  get options() {
    const get = (id) => this.find(id).value;
    const options = { format: get("format"), ...(this.chosen ? { variant: this.chosen } : {}), ...this.target };
    for (const [name, value] of Object.entries(DEFAULTS)) {
      const hidden = this.find(name).closest("[hidden]");
      if (!hidden && get(name) !== value) options[name] = name === "strength" ? String(get(name) / 100) : get(name);
    }
    if (get("max-bytes") && !this.find("max-bytes-row").hidden) options.max_bytes = String(Math.round(get("max-bytes") * 1e6));
    if (this.find("ensemble").checked) options.ensemble = "true";
    if (this.find("strip").checked) options.metadata = "strip";
    return options;
  }

  get target() {
    const size = this.find("size").value;
    const [width, height, number] = ["size-width", "size-height", "size-number"].map((id) => this.find(id).value);
    const target = { own: {}, width: { width }, height: { height }, box: { width, height }, factor: { factor: number }, megapixels: { megapixels: number } }[size];
    const given = Object.fromEntries(Object.entries(target).filter(([, value]) => value));
    if (Object.keys(given).length && this.find("enlarge").checked) given.enlarge = "true";
    return given;
  }

  /**
   * What a row will take and become, roughly.
   *
   * @param {{originalSize: {width: number, height: number}|null|undefined, options: Record<string, string>}} row
   * @returns {{seconds: number|null, bytes: number|null}}
   */
  expect({ originalSize, options }) {
    const variant = this.variants.find(({ name, aliases }) => [name, ...aliases].includes(options.variant));
    if (!originalSize || !variant) return { seconds: null, bytes: null };
    const scale = variant.scale ?? 1;
    const target = outputPixels(originalSize, options, scale);
    const own = originalSize.width * originalSize.height;
    const restorer = options.restore === "always" && variant.task === "super-resolution" ? this.variants.find(({ aliases }) => aliases.includes("jpeg-restore")) : null;
    const before = restorer?.pixels_per_second ? own / restorer.pixels_per_second : 0;
    const once = variant.pixels_per_second ? inputPixels(own, target, scale) / variant.pixels_per_second + before : null;
    const seconds = once && once * (options.ensemble ? 8 : 1);
    const perPixel = BYTES_PER_PIXEL[options.format] * (LOSSY.includes(options.format) ? sizeAt(options.quality ?? 95) : 1);
    return { seconds, bytes: perPixel ? Math.min(perPixel * target, options.max_bytes ?? Infinity) : null };
  }

  /** Whether a person should be asked before this row is sent. */
  mustAsk(row) {
    return ["png", "tiff"].includes(row.options.format) && this.expect(row).bytes > LARGE;
  }

  /** Show what the server has now, and look again while a variant is loading, or nobody answers. */
  async show() {
    clearTimeout(this.timer);
    try {
      const { variants, default: first, formats } = await listVariants();
      this.variants = variants;
      this.offer(formats ?? []);
      this.lay(first);
      if (variants.some(isLoading)) this.lookAgain();
    } catch (problem) {
      if (!this.chosen) this.find("variant-list").replaceChildren(element("p", "quiet", `${problem.title ?? text("problem.page")}. ${problem.message}`));
      if (problem.serverIsGone) this.lookAgain();
      this.onProblem(problem);
    }
    this.find("variant-list").setAttribute("aria-busy", "false");
    this.onVariants();
  }

  /** Leave out JPEG XL where the service cannot write it. */
  offer(formats) {
    const format = this.find("format");
    if (formats.includes("jxl")) return;
    if (format.value === "jxl") format.value = "png";
    for (const option of format.options) option.hidden = option.disabled = option.value === "jxl";
    this.changed();
  }

  lookAgain() {
    this.timer = setTimeout(() => this.show(), POLL_MS);
  }

  /** The variants that can be asked for. */
  get available() {
    return this.variants.filter(({ available }) => available);
  }

  lay(first) {
    const { available, variants } = this;
    const candidates = [this.chosen, this.stored.variant, first].map((name) => available.find((each) => [each.name, ...each.aliases].includes(name)));
    const chosen = candidates.find(Boolean) ?? available[0];
    const radios = available.map((each) => radio(each, each === chosen));
    this.replace("variant-list", radios.length ? radios : [element("p", "quiet", text("variants.none"))]);
    const troubled = [...variants.filter(isLoading), ...variants.filter(hasFailed)];
    this.replace("troubled-list", troubled.map((each) => item(each.name, each.reason ?? "", isLoading(each) ? "loading" : "failed")));
    const absent = variants.filter((each) => !available.includes(each) && !troubled.includes(each));
    this.replace("absent-list", absent.map((each) => item(each.name, summaryOf(each))));
    this.find("absent").hidden = !absent.length;
  }

  /** Put elements into a list, unless they are there already, so that the focus and a screen reader are not disturbed. */
  replace(id, elements) {
    const list = this.find(id);
    if (list.children.length === elements.length && elements.every((each, index) => each.isEqualNode(list.children[index]))) return;
    const focused = list.contains(document.activeElement);
    list.replaceChildren(...elements);
    if (focused) list.querySelector("input:checked")?.focus();
  }
}

/** What a variant does, in the reader's language; weights of the server's own go by their name. */
export function taskName({ name, task }) {
  return has(`task.${task}`) ? text(`task.${task}`) : name;
}

/** What a variant is for, in the reader's language; of the server's own weights only what the server says. */
export function summaryOf({ name, summary, replaces }) {
  return !replaces && has(`variant.${name}`) ? text(`variant.${name}`) : summary;
}

/** Pixels that the networks read on the way to a size: a later pass reads the result of the one before. */
function inputPixels(pixels, target, scale) {
  let sum = pixels;
  for (let each = pixels * scale * scale, passes = 1; scale > 1 && each < target && passes < 3; each *= scale * scale, passes += 1) sum += each;
  return sum;
}

function outputPixels({ width, height }, { width: wide, height: tall, factor, megapixels, fit }, scale) {
  if (wide && tall && fit && fit !== "inside") return wide * tall;
  if (megapixels) return megapixels * 1e6;
  const ratios = [factor && Number(factor), wide && wide / width, tall && tall / height].filter(Boolean);
  const ratio = ratios.length ? Math.min(...ratios) : scale;
  return width * height * ratio * ratio;
}

function isLoading({ available, state }) {
  return !available && state === "loading";
}

function hasFailed({ available, state }) {
  return !available && state === "failed";
}

function radio(variant, checked) {
  const { name, task, scale } = variant;
  const label = element("label", "variant", "");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "variant", value: name, checked });
  const about = element("span", "variant-summary", summaryOf(variant));
  if (has(`task.${task}`)) about.append(" ", element("code", "", name));
  const change = scale === 1 ? text("scale.same") : `× ${scale ?? "?"}`;
  label.append(input, element("span", "variant-name", taskName(variant)), element("span", "variant-scale", change), about);
  return label;
}

function item(name, words, state) {
  const made = element("li", "", name);
  if (state) made.append(" ", element("em", state, text(`state.${state}`)));
  made.append(element("span", "", words));
  return made;
}
