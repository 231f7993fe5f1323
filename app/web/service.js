/** The service, as the page speaks to it. */

import { parts } from "./multipart.js";

/** What the server, or its absence, says in the place of an image. */
export class Problem extends Error {
  /** @param {{title: string, detail: string, code: string}} problem  @param {number} [retryAfter] seconds */
  constructor(problem, retryAfter) {
    super(problem.detail);
    this.title = problem.title;
    this.code = problem.code;
    this.retryAfter = retryAfter;
  }
}

const UNREACHABLE = {
  code: "unreachable",
  title: "The server cannot be reached",
  detail: "Check that it is running and that you are online, then try again.",
};
const STRANGE = {
  code: "strange",
  title: "That answer is not from this service",
  detail: "Something between here and the server answered instead. Try again in a minute.",
};

/** The key that was given for this tab, if the server asks for one. */
export const key = {
  get value() {
    return sessionStorage.getItem("swin2sr-key") ?? "";
  },
  set value(text) {
    sessionStorage.setItem("swin2sr-key", text);
  },
};

/** Every variant, and the name of the default. */
export async function listVariants() {
  const response = await ask("v1/variants", { headers: authorization() });
  return response.json();
}

/**
 * Upscale one file.
 *
 * @param {File} file
 * @param {Record<string, string>} options  query parameters
 * @param {AbortSignal} signal  leaving stops the work on the server
 * @param {(step: {state: string, position?: number, tile: number, tiles: number}) => void} onStep
 */
export async function upscale(file, options, signal, onStep) {
  const response = await ask(`v1/upscale?${new URLSearchParams(options)}`, {
    method: "POST",
    body: file,
    signal,
    headers: {
      ...authorization(),
      Accept: "multipart/mixed",
      "Content-Type": file.type || "application/octet-stream",
      "Content-Disposition": `attachment; filename*=UTF-8''${encodeURIComponent(file.name)}`,
    },
  });
  if (!response.headers.get("Content-Type")?.startsWith("multipart/mixed")) throw new Problem(STRANGE);
  try {
    for await (const part of parts(response.body)) {
      const type = part.headers.get("Content-Type") ?? "";
      if (type.startsWith("application/json")) onStep(JSON.parse(await part.body.text()));
      else if (type.startsWith("image/")) return describe(part, type);
      else throw await readProblem(part.headers, part.body);
    }
  } catch (error) {
    throw error instanceof TypeError ? new Problem(UNREACHABLE) : error;
  }
  throw new Problem(UNREACHABLE);
}

async function ask(path, request) {
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    throw error instanceof TypeError ? new Problem(UNREACHABLE) : error;
  }
  if (!response.ok) throw await readProblem(response.headers, response);
  return response;
}

async function readProblem(headers, body) {
  const after = Number(headers.get("Retry-After") ?? NaN);
  const document = headers.get("Content-Type")?.startsWith("application/problem+json");
  return new Problem(document ? JSON.parse(await body.text()) : STRANGE, Number.isNaN(after) ? undefined : after);
}

function describe({ headers, body }, type) {
  const name = /filename\*=UTF-8''([^;]+)/.exec(headers.get("Content-Disposition") ?? "");
  return {
    image: new Blob([body], { type }),
    name: name ? decodeURIComponent(name[1]) : "upscaled",
    variant: headers.get("X-Swin2SR-Variant") ?? "",
    notice: headers.get("X-Swin2SR-Notice") ?? "",
  };
}

function authorization() {
  return key.value ? { Authorization: `Bearer ${key.value}` } : {};
}
