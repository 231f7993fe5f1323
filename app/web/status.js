/** The status page: whether the service is ready, and its variants. */

import { summaryOf } from "./choices.js";
import { key, listVariants, readiness } from "./service.js";
import { element, has, loadText, number, text } from "./text.js";

const POLL_MS = 5000;
const find = (id) => document.getElementById(id);

async function show() {
  const answer = await readiness();
  find("readiness").textContent = text(answer === null ? "status.gone" : answer.ready ? "status.ready" : "status.notReady");
  find("readiness").classList.toggle("wrong", !answer?.ready);
  const facts = answer?.document ?? {};
  const lines = [...(facts.reasons ?? []), ...(facts.version ? [`${text("status.version")} ${facts.version}`] : [])];
  find("reasons").replaceChildren(...lines.map((line) => element("li", "", line)));
  await showVariants();
  find("report").setAttribute("aria-busy", "false");
}

async function showVariants() {
  try {
    const { variants } = await listVariants();
    find("key").hidden = true;
    find("rows").replaceChildren(...variants.map(row));
  } catch (problem) {
    if (problem.code === "unauthorized" && find("key").hidden) find("key").hidden = false;
  }
}

function row({ name, aliases, task, scale, state, available, reason, device, precision, pixels_per_second: speed, ...rest }) {
  const made = document.createElement("tr");
  const title = element("th", "", name);
  title.scope = "row";
  if (aliases.length) title.append(element("span", "quiet", aliases.join(", ")));
  const known = state === "absent" && available ? "onDemand" : state;
  const cells = [
    has(`task.${task}`) ? text(`task.${task}`) : task,
    scale ? `× ${scale}` : "",
    ["loading", "failed"].includes(state) && reason ? `${text(`state.${known}`)}: ${reason}` : text(`state.${known}`),
    device ?? "",
    precision ?? "",
    speed ? text("status.speedValue", { value: number(speed / 1e6, 3) }) : "",
    summaryOf({ name, ...rest }),
  ];
  made.append(title, ...cells.map((cell) => element("td", "", cell)));
  return made;
}

await loadText();
find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key.value = find("key-value").value;
  show();
});
await show();
setInterval(show, POLL_MS);
