/** The requests that the page makes. */

import { has, text } from "./text.js";

/** An error of the service, or the lack of an answer. */
export class Problem extends Error {
  /**
   * @param {{title: string, detail: string, code: string, status?: number}} problem
   * @param {number} [retryAfter]  seconds
   */
  constructor(problem, retryAfter) {
    super(problem.detail);
    this.code = problem.code;
    this.title = has(`problem.${problem.code}`) ? text(`problem.${problem.code}`) : problem.title;
    this.status = problem.status;
    this.retryAfter = retryAfter;
  }

  /** Whether the server is gone, or leaving: the same request succeeds when it is back. */
  get serverIsGone() {
    return this.code === "unreachable" || this.code === "draining" || (this.code === "unexpected" && [502, 503, 504].includes(this.status));
  }

  /** Whether the same request may succeed a little later. */
  get isTemporary() {
    return ["queue_full", "not_ready", "out_of_memory"].includes(this.code);
  }
}

function unreachable() {
  return new Problem({ code: "unreachable", title: "", detail: text("problem.unreachable.detail") });
}

function unexpected(status) {
  return new Problem({ code: "unexpected", title: "", detail: text("problem.unexpected.detail", { status }), status });
}

/** The key that was given for this tab, if the server asks for one. */
export const key = {
  get value() {
    return sessionStorage.getItem("swin2sr-key") ?? "";
  },
  set value(given) {
    sessionStorage.setItem("swin2sr-key", given);
  },
};

/** Every variant, and the name of the default. */
export async function listVariants() {
  const response = await request("v1/variants", { headers: authorization() });
  return response.json();
}

/** Whether the service is ready, with its document; null where nobody answers. */
export async function readiness() {
  try {
    const response = await fetch("health/ready", { cache: "no-store" });
    return { ready: response.ok, document: await response.json() };
  } catch {
    return null;
  }
}

/**
 * Upscale one file.
 *
 * @param {File} file
 * @param {Record<string, string>} options  query parameters
 * @param {AbortSignal} signal  aborting stops the work on the server
 * @param {(step: {state: string, position?: number, tile: number, tiles: number}) => void} onStep
 */
export async function upscale(file, options, signal, onStep) {
  const response = await request(`v1/upscale?${new URLSearchParams(options)}`, {
    method: "POST",
    body: file,
    signal,
    headers: {
      ...authorization(),
      Accept: "multipart/mixed",
      "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream",
      "Content-Disposition": `attachment; filename*=UTF-8''${encodeURIComponent(file.name)}`,
    },
  });
  if (!response.headers.get("Content-Type")?.startsWith("multipart/mixed")) throw unexpected(response.status);
  try {
    for await (const part of parts(response.body)) {
      const type = part.headers.get("Content-Type") ?? "";
      if (type.startsWith("application/json")) onStep(JSON.parse(await part.body.text()));
      else if (type.startsWith("image/")) return describe(part, type);
      else throw await readProblem(part.headers, part.body, response.status);
    }
  } catch (error) {
    throw error instanceof TypeError ? unreachable() : error;
  }
  throw unreachable();
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error instanceof TypeError ? unreachable() : error;
  }
  if (!response.ok) throw await readProblem(response.headers, response, response.status);
  return response;
}

async function readProblem(headers, body, status) {
  const after = Number(headers.get("Retry-After") ?? NaN);
  if (!headers.get("Content-Type")?.startsWith("application/problem+json")) return unexpected(status);
  return new Problem(JSON.parse(await body.text()), Number.isNaN(after) ? undefined : after);
}

function describe({ headers, body }, type) {
  const name = /filename\*=UTF-8''([^;]+)/.exec(headers.get("Content-Disposition") ?? "");
  return {
    image: new Blob([body], { type }),
    name: name ? decodeURIComponent(name[1]) : "upscaled",
    variant: headers.get("X-Swin2SR-Variant") ?? "",
    restored: headers.get("X-Swin2SR-Restored") ?? "",
    notice: headers.get("X-Swin2SR-Notice") ?? "",
  };
}

function authorization() {
  return key.value ? { Authorization: `Bearer ${key.value}` } : {};
}

/**
 * Split a multipart response while it arrives: every part has its Content-Length, so nothing is searched for.
 *
 * @param {ReadableStream<Uint8Array>} stream
 * @throws {TypeError} if the stream ends inside a part, as fetch does for a lost connection
 */
async function* parts(stream) {
  const source = new Source(stream.getReader());
  for (;;) {
    const delimiter = await source.line();
    if (delimiter.endsWith("--")) return;
    if (!delimiter) continue; // the line end after a part
    const headers = new Headers();
    for (let line = await source.line(); line; line = await source.line()) {
      const colon = line.indexOf(":");
      headers.append(line.slice(0, colon), line.slice(colon + 1).trim());
    }
    yield { headers, body: await source.take(Number(headers.get("Content-Length"))) };
  }
}

class Source {
  constructor(reader) {
    this.reader = reader;
    this.rest = new Uint8Array(0);
  }

  async more() {
    const { done, value } = await this.reader.read();
    if (done) throw new TypeError("the response ended early");
    return value;
  }

  /** The bytes before the next line end, as text. */
  async line() {
    const bytes = [];
    for (;;) {
      if (!this.rest.length) this.rest = await this.more();
      const end = this.rest.indexOf(10);
      bytes.push(...this.rest.subarray(0, end < 0 ? undefined : end));
      this.rest = end < 0 ? new Uint8Array(0) : this.rest.subarray(end + 1);
      if (end >= 0) return new TextDecoder().decode(new Uint8Array(bytes)).replace(/\r$/, "");
    }
  }

  /** Exactly `length` bytes, as a Blob. */
  async take(length) {
    const pieces = [];
    let missing = length;
    while (missing > 0) {
      if (!this.rest.length) this.rest = await this.more();
      const piece = this.rest.subarray(0, missing);
      pieces.push(piece);
      missing -= piece.length;
      this.rest = this.rest.subarray(piece.length);
    }
    return new Blob(pieces);
  }
}
