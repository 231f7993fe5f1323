/** The page's words in the reader's language; one JSON file for each language. */

const LANGUAGES = ["en", "de", "fr", "es", "pt", "ja", "zh"];

let language = "en";
let strings = {};

/** Load the first language of the browser that the page has, and put its words into the document. */
export async function loadText() {
  language = navigator.languages.map((each) => each.slice(0, 2).toLowerCase()).find((each) => LANGUAGES.includes(each)) ?? "en";
  const response = await fetch(`web/text.${language}.json`);
  strings = await response.json();
  document.documentElement.lang = language;
  translate(document);
}

/**
 * Put the words of `data-text` (content), `data-label` (aria-label), `data-alt`, `data-title` and `data-hint` (placeholder) into the elements.
 *
 * @param {Document|DocumentFragment} root
 */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const [data, attribute] of [["label", "aria-label"], ["alt", "alt"], ["title", "title"], ["hint", "placeholder"]]) {
    for (const element of root.querySelectorAll(`[data-${data}]`)) element.setAttribute(attribute, text(element.dataset[data]));
  }
}

/**
 * A string of the page. `{name}` in it stands for a value; where it has several forms, `count` chooses one.
 *
 * @param {string} key
 * @param {Record<string, string|number>} values
 */
export function text(key, values = {}) {
  let found = strings[key] ?? key;
  if (typeof found === "object") found = found[new Intl.PluralRules(language).select(values.count)] ?? found.other;
  return found.replace(/\{(\w+)\}/g, (_all, name) => (typeof values[name] === "number" ? number(values[name]) : values[name]));
}

/** Whether the page has a string of its own. */
export function has(key) {
  return key in strings;
}

/** The language that the page speaks, for example `de`. */
export function currentLanguage() {
  return language;
}

/** @param {number} value  @param {number} digits  after the point, at most */
export function number(value, digits = 1) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1e6) return `${number(Math.max(1, bytes / 1e3), 0)} kB`;
  return bytes < 1e9 ? `${number(bytes / 1e6, bytes < 1e7 ? 1 : 0)} MB` : `${number(bytes / 1e9)} GB`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 1) return `${number(seconds * 1000, 0)} ms`;
  if (seconds < 60) return `${number(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A length of time that is only known roughly. @param {number} seconds */
export function about(seconds) {
  return text("about", { time: duration(Math.max(1, Math.round(seconds))) });
}

/** @param {string} kind  of element  @param {string} className  @param {string} content */
export function element(kind, className, content) {
  const made = Object.assign(document.createElement(kind), { textContent: content });
  if (className) made.className = className;
  return made;
}
