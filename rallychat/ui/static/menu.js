// @ts-check
/** The model menu: a landing page of cards by size and, behind each, its review page. It has an address, #models or #models/ID, so that Back works. */
import { html } from "./api.js";
import * as bring from "./bring.js";
import { byId, chatOnly, fragment, onAction, toast } from "./dom.js";
import { BUSY, entries, entryOf, onModels, refresh, using } from "./models.js";
import * as review from "./review.js";
import { chat } from "./state.js";

const dialog = () => /** @type {HTMLDialogElement} */ (byId("rc-models"));
/** What each card was drawn from. @type {Map<string, string>} */
const drawn = new Map();

/** @returns {string | null} null: not at the menu; empty: at its landing page; else a model's id */
function place() {
  const [what, ...rest] = location.hash.slice(1).split("/");
  if (what !== "models" || "chatOnly" in document.documentElement.dataset) return null;
  try {
    return decodeURIComponent(rest.join("/"));
  } catch {
    return rest.join("/");
  }
}

/** @param {string} model */
function go(model) {
  const depth = (history.state?.menu ?? 0) + 1;
  history.pushState({ menu: depth }, "", model ? `#models/${encodeURIComponent(model)}` : "#models");
  void show();
}

/** Shows what the address says. */
async function show() {
  const at = place();
  if (at === null) {
    if (dialog().open) dialog().close();
    return;
  }
  if (!entries().length) await refresh();
  const landing = at === "" || !entryOf(at);
  if (!dialog().open) dialog().showModal();
  byId("rc-menu").hidden = !landing;
  byId("rc-review").hidden = landing;
  byId("rc-models-back").hidden = landing;
  if (at && landing && entries().length) {
    history.replaceState(history.state, "", "#models");
    toast(`There is no model '${at}' here.`, { kind: "error" });
  }
  byId("rc-models-title").textContent = landing ? "Models" : (entryOf(at)?.name ?? at);
  try {
    if (!landing) await review.show(at);
    else if (!byId("rc-menu").children.length) await landingPage();
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
  void refresh();
}

/** Draws the landing page anew; which models there are has changed. */
export async function landingPage() {
  const query = chat.model ? `?using=${encodeURIComponent(chat.model)}` : "";
  byId("rc-menu").replaceChildren(fragment(await html(`/menu${query}`)));
  drawn.clear();
  for (const entry of entries()) drawn.set(entry.id, key(entry));
  filter();
  mark();
}

/** @param {import("./models.js").Entry} entry */
const key = ({ state, note }) => `${state} ${note}`;
/** @param {string} id */
const cardOf = (id) => /** @type {HTMLElement | null} */ (byId("rc-menu").querySelector(`.model[data-model="${CSS.escape(id)}"]`));

/** Redraws the cards whose state has changed; of those that are busy only how far they are. */
async function update() {
  if (!dialog().open) return;
  if (!byId("rc-review").hidden) void review.update();
  if (!byId("rc-menu").children.length) return;
  for (const entry of entries()) {
    const card = cardOf(entry.id);
    if (!card) continue;
    if (drawn.get(entry.id) !== key(entry)) {
      drawn.set(entry.id, key(entry));
      redraw(card, await html(`/models/card?model=${encodeURIComponent(entry.id)}`).catch(() => ""));
    } else if (BUSY.includes(entry.state)) advance(card, entry);
  }
  filter();
  mark();
}

/** Focus stays on the card that is redrawn. @param {HTMLElement} card @param {string} fresh */
function redraw(card, fresh) {
  if (!fresh || !card.isConnected) return;
  const focused = card.contains(document.activeElement) ? /** @type {HTMLElement} */ (document.activeElement) : null;
  const id = card.dataset.model ?? "";
  card.replaceWith(fragment(fresh));
  if (!focused) return;
  const same = cardOf(id)?.querySelector(`[data-action="${focused.dataset.action}"]`) ?? cardOf(id)?.querySelector("button");
  /** @type {HTMLElement | null} */ (same ?? null)?.focus();
}

/** @param {Element} card @param {import("./models.js").Entry} entry */
export function advance(card, entry) {
  const text = card.querySelector('[data-part="state"]');
  if (text) text.textContent = entry.state_text;
  const bar = card.querySelector('[data-part="progress"]');
  if (bar instanceof HTMLProgressElement && entry.fraction !== null) bar.setAttribute("value", entry.fraction.toFixed(4));
}

function mark() {
  for (const card of byId("rc-menu").querySelectorAll(".model")) {
    const current = /** @type {HTMLElement} */ (card).dataset.model === using();
    card.classList.toggle("using", current);
    card.setAttribute("aria-current", String(current));
  }
}

/** @param {string} id */
const asked = (id) => /** @type {HTMLInputElement | HTMLSelectElement | null} */ (document.getElementById(id))?.value ?? "";

/** Every word asked for stands somewhere in the model's own. */
function filter() {
  const words = asked("rc-menu-search").toLowerCase().split(/\s+/).filter(Boolean);
  const family = asked("rc-menu-family");
  const which = asked("rc-menu-state");
  let count = 0;
  for (const card of byId("rc-menu").querySelectorAll(".model")) {
    const data = /** @type {HTMLElement} */ (card).dataset;
    const fits = ["fits", "tight", "unknown"].includes(data.fit ?? "");
    const meant = { "": true, here: data.here === "yes", absent: data.here === "no", fits }[which];
    const shown = meant && (!family || data.family === family) && words.every((word) => data.words?.includes(word));
    /** @type {HTMLElement} */ (card).hidden = !shown;
    count += Number(shown);
  }
  for (const group of byId("rc-menu").querySelectorAll(".size-group")) {
    /** @type {HTMLElement} */ (group).hidden = !group.querySelector(".model:not([hidden])");
  }
  byId("rc-menu-count").textContent = `${count} model${count === 1 ? "" : "s"}`;
  byId("rc-menu-none").hidden = count > 0;
}

export function start() {
  onAction("models", () => go(""));
  onAction("review", (element) => go(/** @type {HTMLElement} */ (element.closest("[data-model]")).dataset.model ?? ""));
  onAction("menu-back", () => ((history.state?.menu ?? 0) > 1 ? history.back() : go("")));
  onAction("menu-bring", () => {
    byId("rc-bring").scrollIntoView({ block: "end" });
    byId("rc-bring-name").focus();
  });
  onAction("menu-all", () => {
    for (const id of ["rc-menu-search", "rc-menu-family", "rc-menu-state"]) /** @type {HTMLInputElement} */ (byId(id)).value = "";
    filter();
  });
  onAction("close-dialog", (element) => element.closest("dialog")?.close());
  bring.start(async (model) => {
    await refresh();
    await landingPage();
    go(model);
  });
  byId("rc-menu").addEventListener("input", filter);
  byId("rc-menu").addEventListener("change", filter);
  dialog().addEventListener("click", (event) => event.target === dialog() && dialog().close());
  dialog().addEventListener("close", () => {
    if (place() !== null) history.replaceState(null, "", location.pathname + location.search);
  });
  window.addEventListener("hashchange", () => void show());
  onModels(() => void update());
  if (place() !== null) void show();
}
