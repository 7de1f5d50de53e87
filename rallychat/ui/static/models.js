// @ts-check
/** How far the models are: the pill that names the one in use, the line that says what is waited for, and what can be done with each. */
import { get, latest, patch, post } from "./api.js";
import { byId, confirmed, onAction, toast } from "./dom.js";
import * as live from "./live.js";
import { chat, learn, on, tellTabs } from "./state.js";

/**
 * @typedef {{id: string, name: string, state: string, state_text: string, fraction: number | null, note: string}} Entry
 * @typedef {{using: string, default: string, defaults: Record<string, any>, examples: string[], models: Entry[]}} Menu
 */
export const BUSY = ["downloading", "loading"];
/** @type {Menu} */
let menu = { using: "", default: "", defaults: {}, examples: [], models: [] };
const asking = latest();
let timer = 0;
/** @type {Set<() => void>} */
const watchers = new Set();

export const entries = () => menu.models;
export const using = () => menu.using;
/** What is in force where a person sets nothing, of the model in use. */
export const defaults = () => menu.defaults;
/** Prompts to begin with, of the model in use. */
export const examples = () => menu.examples ?? [];
/** @param {string} id */
export const entryOf = (id) => menu.models.find((entry) => entry.id === id);
/** @param {() => void} watcher called whenever anything may have changed */
export const onModels = (watcher) => watchers.add(watcher);
const watched = () => byId("rc-models").hasAttribute("open");

export async function refresh() {
  clearTimeout(timer);
  const { model } = chat;
  const isLatest = asking();
  try {
    const fresh = await get(model ? `/models?using=${encodeURIComponent(model)}` : "/models");
    if (!isLatest()) return;
    if (model !== chat.model) return void refresh();
    menu = fresh;
    if (recall()) return void refresh();
    draw();
  } catch {
    if (!isLatest()) return;
    byId("rc-model-state").textContent = "no connection";
    document.querySelector(".model-pill")?.setAttribute("data-state", "unavailable");
    timer = setTimeout(refresh, 2000);
    return;
  }
  const busy = menu.models.some((entry) => BUSY.includes(entry.state));
  timer = setTimeout(refresh, busy ? 500 : watched() ? 2000 : 8000);
}

const REMEMBERED = "rallychat.model";

/** A new chat begins with what was chosen last, unless the server was started with another model since. */
function recall() {
  if (chat.id !== null || chat.model !== null) {
    if (chat.id === null && chat.model !== menu.using) learn({ model: null }); // it has left the catalog
    return false;
  }
  const { model = "", over = "" } = JSON.parse(localStorage.getItem(REMEMBERED) ?? "{}");
  if (over !== menu.default || model === menu.default || !entryOf(model)) return false;
  learn({ model });
  return true;
}

function draw() {
  const current = entryOf(menu.using);
  if (current) {
    byId("rc-model-name").textContent = current.name;
    const percent = current.fraction === null ? "" : `${Math.floor(current.fraction * 100)}%`;
    byId("rc-model-state").textContent = BUSY.includes(current.state) ? percent || current.state : "";
    if (BUSY.includes(current.state)) live.waiting(doing(current));
    document.querySelector(".model-pill")?.setAttribute("data-state", current.state);
  }
  readiness(current);
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

/** @param {HTMLElement} element */
const modelOf = (element) => /** @type {HTMLElement} */ (element.closest("[data-model]")).dataset.model ?? "";

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
export async function choose(model) {
  localStorage.setItem(REMEMBERED, JSON.stringify({ model, over: menu.default }));
  learn({ model });
  try {
    if (chat.id) await patch(`/conversations/${chat.id}`, { model });
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
  await tell("load", model);
  tellTabs(chat.id);
  const state = entryOf(model)?.state ?? "";
  if (!["unavailable", "downloading"].includes(state)) /** @type {HTMLDialogElement} */ (byId("rc-models")).close();
}

/** Loads a model that a chat is about to use, if it is on disk; what is not is fetched when something is said. @param {string | null} model */
export async function prepare(model) {
  if (model && entryOf(model)?.state === "ready") await tell("load", model);
  else await refresh();
}

/** @param {string} model */
async function removeModel(model) {
  const text = `The weights of ${entryOf(model)?.name ?? model} are deleted from this machine. They can be downloaded again.`;
  if (!(await confirmed({ title: "Remove from disk?", text, yes: "Remove" }))) return;
  const answer = await tell("remove", model);
  if (answer) toast(`${answer.freed} freed.`);
}

export function start() {
  onAction("use-model", (element) => choose(modelOf(element)));
  onAction("download-model", (element) => tell("download", modelOf(element)));
  onAction("cancel-download", (element) => tell("cancel", modelOf(element)));
  onAction("unload-model", (element) => tell("unload", modelOf(element)));
  onAction("remove-model", (element) => removeModel(modelOf(element)));
  for (const name of /** @type {const} */ (["opened", "run", "ended"])) on(name, () => void refresh());
  for (const name of ["offline", "online"]) window.addEventListener(name, () => void refresh());
  void refresh();
}
