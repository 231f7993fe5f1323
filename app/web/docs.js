/** The documents: what openapi.json says, and a form for every address that sends what it shows. */

import { key } from "./service.js";

const find = (id) => document.getElementById(id);
const LONGEST = 20_000; // characters of an answer that are shown

/** An element with attributes and children; a handler or a truth is set as a property. */
function make(kind, attributes = {}, ...children) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "string") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Words with `code` in them. */
function prose(text = "") {
  return text.split(/`+([^`]+)`+/).map((piece, index) => (index % 2 ? make("code", {}, piece) : piece));
}

function paragraphs(text = "") {
  return text.split(/\n\s*\n/).filter(Boolean).map((each) => make("p", {}, ...prose(each)));
}

function pretty(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

class Operation {
  constructor(method, path, spec, schemas) {
    Object.assign(this, { method: method.toUpperCase(), path, spec, schemas });
    this.id = spec.operationId;
    this.fields = [];
  }

  get title() {
    return make("span", { class: "address" }, make("span", { class: `method ${this.method.toLowerCase()}` }, this.method), " ", make("code", {}, this.path));
  }

  get key() {
    const admin = this.spec.tags?.includes("admin");
    return admin ? " Needs the ADMIN_TOKEN; without one nobody may." : " Needs a key, where the server has any.";
  }

  show() {
    const { spec } = this;
    return make(
      "section",
      { class: "operation", "aria-labelledby": this.id },
      make("h3", { id: this.id }, this.title),
      make("p", { class: "operation-lead" }, spec.summary, spec.security ? make("span", { class: "quiet" }, this.key) : null),
      ...paragraphs(spec.description),
      this.form(),
      make("h4", {}, "Answers"),
      make("div", { class: "answers" }, ...Object.entries(spec.responses).map(([status, response]) => this.answer(status, response))),
    );
  }

  // What is sent.

  form() {
    const parameters = this.spec.parameters ?? [];
    this.curl = make("pre", { tabIndex: 0, "aria-label": "The same with curl" });
    this.output = make("div", { class: "output", role: "status" });
    const rows = parameters.map((parameter) => this.parameter(parameter));
    if (this.spec.requestBody) rows.unshift(this.picture());
    const form = make("form", { "aria-label": `Send ${this.method} ${this.path}` }, make("div", { class: "fields" }, ...rows), this.curl, make("button", { class: "button", type: "submit" }, "Send"), this.output);
    form.addEventListener("input", () => this.tell());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.tell();
    return form;
  }

  picture() {
    this.file = make("input", { type: "file", accept: "image/*", id: `${this.id}-file`, required: true });
    return this.row("file", "The image.", this.file);
  }

  parameter({ name, in: place, required, description, schema }) {
    const kinds = (schema.anyOf ?? [schema]).filter(({ type }) => type !== "null");
    const standard = String(schema.default ?? "");
    const values = kinds[0].enum ?? (kinds[0].type === "boolean" ? ["false", "true"] : null);
    const choices = values && !standard && !required ? ["", ...values] : values; // without a default: nothing is sent
    const id = `${this.id}-${name}`;
    const field = choices
      ? make("select", { id }, ...choices.map((each) => make("option", { selected: each === standard }, each)))
      : make("input", { id, type: "text", placeholder: standard, spellcheck: false, required: Boolean(required), value: place === "path" ? "x2" : "" });
    this.fields.push({ name, place, field, standard });
    return this.row(name, [description, limits(kinds)].filter(Boolean).join(" "), field);
  }

  row(name, text, field) {
    const words = make("p", { class: "quiet", id: `${field.id}-words` }, ...prose(text));
    field.setAttribute("aria-describedby", words.id);
    return make("div", { class: "field" }, make("label", { for: field.id }, make("code", {}, name)), field, words);
  }

  get address() {
    const query = new URLSearchParams();
    let path = this.path;
    for (const { name, place, field, standard } of this.fields) {
      if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(field.value || name.toUpperCase()));
      else if (field.value && field.value !== standard) query.set(name, field.value);
    }
    return new URL(`.${path}?${query}`.replace(/\?$/, ""), document.baseURI);
  }

  /** The same as a command. */
  tell() {
    const words = ["curl"];
    if (this.spec.security && key.value) words.push("-H 'Authorization: Bearer KEY'");
    if (this.file) words.push(`-F file=@${quoted(this.file.files[0]?.name ?? "photo.jpg")} -o upscaled`);
    else if (this.method !== "GET") words.push(`-X ${this.method}`);
    this.curl.textContent = `${words.join(" ")} '${this.address.href.replaceAll("'", "%27")}'`;
  }

  async send() {
    const body = this.file ? new FormData() : undefined;
    body?.append("file", this.file.files[0]);
    const headers = this.spec.security && key.value ? { Authorization: `Bearer ${key.value}` } : {};
    this.output.replaceChildren(make("p", { class: "quiet" }, "Waiting for the answer …"));
    try {
      const response = await fetch(this.address, { method: this.method, headers, body });
      this.output.replaceChildren(...(await received(response)));
    } catch {
      this.output.replaceChildren(make("p", { class: "failed" }, "The server cannot be reached. Check that it is running, then try again."));
    }
  }

  // What comes back.

  answer(status, { description, content = {}, headers = {} }) {
    const shown = status === "default" ? "Any other" : status;
    const kind = status.startsWith("2") ? "good" : "bad";
    const words = status.startsWith("2") && description === "Successful Response" ? "The answer." : description;
    return make(
      "details",
      {},
      make("summary", {}, make("span", { class: `status ${kind}` }, shown), " ", ...prose(words)),
      ...Object.entries(content).flatMap(([type, body]) => this.body(type, body)),
      Object.keys(headers).length ? make("dl", {}, ...Object.entries(headers).flatMap(([name, { description: about }]) => [make("dt", {}, make("code", {}, name)), make("dd", {}, ...prose(about))])) : null,
    );
  }

  body(type, content) {
    const title = make("p", { class: "type" }, make("code", {}, type));
    const values = content.examples ? Object.values(content.examples).map(({ value }) => value) : [content.example ?? example(content.schema, this.schemas)];
    return [title, ...values.filter((value) => value !== undefined).map((value) => code(pretty(value)))];
  }
}

function code(text) {
  return make("pre", { tabIndex: 0 }, text);
}

function quoted(name) {
  return /^[\w.-]+$/.test(name) ? name : `'${name.replaceAll("'", `'\\''`)}'`;
}

/** What a value may be, in words. */
function limits(kinds) {
  const said = kinds.flatMap(({ type, minimum, maximum, exclusiveMinimum }) => {
    if (minimum !== undefined && maximum !== undefined) return [`${minimum} to ${maximum}.`];
    if (minimum !== undefined) return [`${minimum} or more.`];
    if (exclusiveMinimum !== undefined) return [`More than ${exclusiveMinimum}.`];
    return type === "integer" ? ["A whole number."] : [];
  });
  return said.join(" ");
}

/** A value of a schema: its own example where it has one; undefined for bytes. */
function example(schema, schemas) {
  if (schema?.$ref) return example(schemas[schema.$ref.split("/").at(-1)], schemas);
  if (schema?.examples) return schema.examples[0];
  if (schema?.type === "array") return [example(schema.items, schemas)];
  if (schema?.type !== "object") return schema?.default;
  return Object.fromEntries(Object.entries(schema.properties ?? {}).map(([name, each]) => [name, example(each, schemas) ?? null]));
}

/** Errors that no endpoint answers: the request reaches none. */
const ELSEWHERE = [
  ["400", "bad_request", "The request is not well-formed HTTP."],
  ["404", "not_found", "No endpoint has this path."],
  ["405", "method_not_allowed", "The endpoint exists, but not with this method."],
  ["421", "misdirected_request", "The request's Host is not one of ALLOWED_HOSTS."],
  ["431", "headers_too_large", "The request line and headers are too long."],
];

function elsewhere() {
  const errors = ELSEWHERE.flatMap(([status, code, words]) => [make("dt", {}, make("span", { class: "status bad" }, status), " ", make("code", {}, code)), make("dd", {}, words)]);
  return [make("h2", {}, "Errors before an endpoint"), make("p", {}, "Problem documents, as those of every endpoint."), make("dl", { id: "elsewhere" }, ...errors)];
}

async function received(response) {
  const type = response.headers.get("Content-Type") ?? "";
  const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
  const status = make("p", {}, make("span", { class: `status ${response.ok ? "good" : "bad"}` }, String(response.status)), ` ${response.statusText}`);
  if (type.startsWith("image/")) {
    const src = URL.createObjectURL(await response.blob());
    const link = make("a", { class: "button", href: src, download: /filename="([^"]+)"/.exec(headers)?.[1] ?? "upscaled" }, "Download");
    return [status, make("img", { src, alt: "The answer" }), link, code(headers)];
  }
  const text = await response.text();
  const body = type.includes("json") ? pretty(JSON.parse(text)) : text;
  return [status, code(body.length > LONGEST ? `${body.slice(0, LONGEST)}\n…` : body), code(headers)];
}

async function show() {
  const { paths, components } = await (await fetch("openapi.json")).json();
  const operations = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, spec]) => new Operation(method, path, spec, components.schemas)));
  const tags = new Set(operations.map(({ spec }) => spec.tags[0]));
  const list = operations.map((operation) => make("li", {}, make("a", { href: `#${operation.id}` }, operation.title)));
  find("contents").replaceChildren(make("ul", {}, ...list));
  const sections = [...tags].flatMap((tag) => [make("h2", {}, tag), ...operations.filter(({ spec }) => spec.tags[0] === tag).map((each) => each.show())]);
  find("operations").replaceChildren(...sections, ...elsewhere());
  find("key-value").value = key.value;
  find("key-value").addEventListener("input", (event) => {
    key.value = event.target.value;
    for (const operation of operations) operation.tell();
  });
  find("key-value").form.addEventListener("submit", (event) => event.preventDefault());
  find("operations").setAttribute("aria-busy", "false");
  if (location.hash) find(location.hash.slice(1))?.scrollIntoView();
}

show().catch((error) => find("operations").replaceChildren(make("p", {}, `The server does not say what it has: ${error.message}. Reload this page when it is there.`)));
