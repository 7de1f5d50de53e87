// @ts-check
/** The model menu, the pill that names the model in use, and the line that says how far it is. */
import { get, patch, post } from "./api.js";
import { byId, confirmed, fragment, onAction, toast } from "./dom.js";
import * as live from "./live.js";
import { chat, learn, on, tellTabs } from "./state.js";

/**
 * @typedef {{id: string, name: string, state: string, state_text: string, fraction: number | null,
 *   note: string, window: number, defaults: Record<string, any>, html: string}} Entry
 */
const BUSY = ["downloading", "loading"];
/** @type {Entry[]} */
let entries = [];
let using = "";
let base = "";
let timer = 0;
/** @type {Map<string, string>} */
const drawn = new Map();
/** @type {Set<() => void>} */
const watchers = new Set();

const dialog = () => /** @type {HTMLDialogElement} */ (byId("rc-models"));

/** The model that will answer next. @returns {Entry | undefined} */
export const inUse = () => entries.find((entry) => entry.id === using);
/** @param {() => void} watcher */
export const onModels = (watcher) => watchers.add(watcher);

export async function refresh() {
  clearTimeout(timer);
  try {
    const query = chat.model ? `?using=${encodeURIComponent(chat.model)}` : "";
    const menu = await get(`/models${query}`);
    entries = menu.models;
    using = menu.using;
    base = menu.default;
    recall();
    draw();
  } catch {
    byId("rc-model-state").textContent = "no connection";
  }
  const busy = entries.some((entry) => BUSY.includes(entry.state));
  timer = setTimeout(refresh, busy ? 500 : dialog().open ? 2000 : 8000);
}

const REMEMBERED = "rallychat.model";

/** A new chat begins with what was chosen last, unless the server was started with another model since. */
function recall() {
  if (chat.id !== null || chat.model !== null) {
    if (chat.id === null && chat.model !== using) learn({ model: null }); // it has left the catalog
    return;
  }
  const { model = "", over = "" } = JSON.parse(localStorage.getItem(REMEMBERED) ?? "{}");
  if (over !== base || model === base || !entries.some((entry) => entry.id === model)) return;
  using = model;
  learn({ model });
}

function draw() {
  const current = inUse();
  if (current) {
    byId("rc-model-name").textContent = current.name;
    const percent = current.fraction === null ? "" : `${Math.floor(current.fraction * 100)}%`;
    byId("rc-model-state").textContent = BUSY.includes(current.state) ? percent || current.state : "";
    if (BUSY.includes(current.state)) live.waiting(doing(current));
    document.querySelector(".model-pill")?.setAttribute("data-state", current.state);
  }
  readiness(current);
  if (dialog().open) cards();
  for (const watcher of watchers) watcher();
}

/** @param {Entry | undefined} current */
function readiness(current) {
  const line = byId("rc-readiness");
  const waiting = current && (BUSY.includes(current.state) || (current.state === "unavailable" && current.note));
  line.hidden = !waiting || chat.run !== null;
  if (line.hidden || !current) return;
  line.classList.toggle("failed", current.state === "unavailable");
  if (current.state === "unavailable") line.textContent = current.note;
  else line.textContent = `${doing(current)}. You can write your first message now.`;
  line.style.setProperty("--done", `${(current.fraction ?? 0) * 100}%`);
}

/** @param {Entry} entry */
function doing({ state, state_text: text, fraction, name }) {
  if (state === "loading") return `Loading ${name}`;
  const percent = fraction === null ? "" : `, ${Math.floor(fraction * 100)}%`;
  return `${text.split(" ")[0]} ${name}${percent}`;
}

/** Redraws only cards that differ, so that focus and pointer stay where they are. */
function cards() {
  const box = byId("rc-model-cards");
  for (const entry of entries) {
    const old = box.querySelector(`[data-model="${CSS.escape(entry.id)}"]`);
    if (!old || drawn.get(entry.id) !== entry.html) {
      const focused = old?.contains(document.activeElement)
        ? /** @type {HTMLElement} */ (document.activeElement).dataset.action
        : null;
      const fresh = fragment(entry.html);
      if (old) old.replaceWith(fresh);
      else box.append(fresh);
      drawn.set(entry.id, entry.html);
      const card = box.querySelector(`[data-model="${CSS.escape(entry.id)}"]`);
      if (focused) /** @type {HTMLElement | null} */ (card?.querySelector("button"))?.focus();
    }
  }
  for (const card of box.querySelectorAll(".model")) {
    const current = /** @type {HTMLElement} */ (card).dataset.model === using;
    card.classList.toggle("using", current);
    card.setAttribute("aria-current", String(current));
  }
}

/** @param {HTMLElement} element */
const modelOf = (element) => /** @type {HTMLElement} */ (element.closest(".model")).dataset.model ?? "";

/** @param {string} what @param {string} model */
async function tell(what, model) {
  try {
    return await post(`/models/${what}`, { model });
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
    return null;
  } finally {
    await refresh();
  }
}

/** @param {string} model */
async function choose(model) {
  localStorage.setItem(REMEMBERED, JSON.stringify({ model, over: base }));
  learn({ model });
  try {
    if (chat.id) await patch(`/conversations/${chat.id}`, { model });
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
  await tell("load", model);
  tellTabs(chat.id);
  if (inUse()?.state !== "unavailable" && inUse()?.state !== "downloading") dialog().close();
}

/** @param {string} model */
async function removeModel(model) {
  const entry = entries.find((each) => each.id === model);
  const text = `The weights of ${entry?.name ?? model} are deleted from this machine. They can be downloaded again.`;
  if (!(await confirmed({ title: "Remove from disk?", text, yes: "Remove" }))) return;
  const answer = await tell("remove", model);
  if (answer) toast(`${answer.freed} freed.`);
}

export function start() {
  onAction("models", async () => {
    dialog().showModal();
    await refresh();
  });
  onAction("use-model", (element) => choose(modelOf(element)));
  onAction("download-model", (element) => tell("download", modelOf(element)));
  onAction("cancel-download", (element) => tell("cancel", modelOf(element)));
  onAction("unload-model", (element) => tell("unload", modelOf(element)));
  onAction("remove-model", (element) => removeModel(modelOf(element)));
  onAction("close-dialog", (element) => element.closest("dialog")?.close());
  dialog().addEventListener("click", (event) => event.target === dialog() && dialog().close());
  on("opened", () => void refresh());
  on("run", () => void refresh());
  on("ended", () => void refresh());
  void refresh();
}
