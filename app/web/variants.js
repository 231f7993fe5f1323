/** What a picture can be put through: a choice of what is there, and a word on the rest. */

import { listVariants } from "./service.js";

const ASK_AGAIN_MS = 2000;

/** What a person wants of a variant, by its task; weights of the server's own go by their name. */
const WISHES = { "super-resolution": "Enlarge", "compressed super-resolution": "Enlarge a JPEG", restoration: "Clean a JPEG" };

export class Variants {
  /**
   * @param {(id: string) => HTMLElement} find
   * @param {(problem: Problem) => void} onProblem  told when the server does not say what it has
   */
  constructor(find, onProblem) {
    this.find = find;
    this.onProblem = onProblem;
  }

  /** The name of the one that is chosen; undefined before the server has named any. */
  get chosen() {
    return this.find("variant-list").querySelector("input:checked")?.value;
  }

  /** Show what the server has now, and look again while something is on its way, or nobody answers. */
  async show() {
    clearTimeout(this.timer);
    try {
      const { variants, default: first } = await listVariants();
      this.lay(variants, first);
      if (variants.some(isComing)) this.lookAgain();
    } catch (problem) {
      if (!this.chosen) this.find("variant-list").replaceChildren(words("p", "quiet", `${problem.title ?? "This page failed"}. ${problem.message}`));
      if (problem.code === "unreachable") this.lookAgain();
      this.onProblem(problem);
    }
    this.find("variant-list").setAttribute("aria-busy", "false");
  }

  lookAgain() {
    this.timer = setTimeout(() => this.show(), ASK_AGAIN_MS);
  }

  lay(variants, first) {
    const here = variants.filter(({ available }) => available);
    const wish = [this.chosen, first].map((name) => here.find((each) => [each.name, ...each.aliases].includes(name)));
    const chosen = wish.find(Boolean) ?? here[0];
    const radios = here.map((each) => radio(each, each === chosen));
    this.replace("variant-list", radios.length ? radios : [words("p", "quiet", "Nothing is ready yet.")]);
    const troubled = [...variants.filter(isComing), ...variants.filter(isBroken)];
    this.replace("troubled-list", troubled.map((each) => item(each.name, each.reason ?? "", isComing(each) ? "loading" : "failed")));
    const absent = variants.filter((each) => !here.includes(each) && !troubled.includes(each));
    this.replace("absent-list", absent.map(({ name, summary }) => item(name, summary)));
    this.find("absent").hidden = !absent.length;
  }

  /** Put elements into a list, unless they are there already: nobody is disturbed who reads it, or has the focus in it. */
  replace(id, elements) {
    const list = this.find(id);
    if (list.children.length === elements.length && elements.every((each, index) => each.isEqualNode(list.children[index]))) return;
    const focused = list.contains(document.activeElement);
    list.replaceChildren(...elements);
    if (focused) list.querySelector("input:checked")?.focus();
  }
}

function isComing({ available, state }) {
  return !available && state === "loading";
}

function isBroken({ available, state }) {
  return !available && state === "failed";
}

function radio({ name, task, scale, summary }, checked) {
  const label = words("label", "variant", "");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "variant", value: name, checked });
  const size = scale === 1 ? "same size" : `× ${scale ?? "?"}`;
  const about = words("span", "variant-summary", summary);
  if (WISHES[task]) about.append(" ", words("code", "", name));
  label.append(input, words("span", "variant-name", WISHES[task] ?? name), words("span", "variant-scale", size), about);
  return label;
}

function item(name, text, state) {
  const made = words("li", "", name);
  if (state) made.append(" ", words("em", state, state));
  made.append(words("span", "", text));
  return made;
}

/** @param {string} kind  of element  @param {string} className  @param {string} text */
export function words(kind, className, text) {
  const element = Object.assign(document.createElement(kind), { textContent: text });
  if (className) element.className = className;
  return element;
}
