// @ts-check
/** The inspector: what the model saw, fetched when it is looked at; and what a person says about it. */
import { html, latest, patch, post } from "./api.js";
import { byId, fragment, onAction, toast } from "./dom.js";
import { isOpen, toggle } from "./sidebar.js";
import { chat, on } from "./state.js";
import { idOf, messageOf } from "./transcript.js";

const TABS = ["settings", "context"];
/** Where somebody writes, or is told what is wrong with what was written. */
const WRITING = "textarea:focus, input:focus, .field-error:not([hidden])";
const asking = latest();
let stale = true;
/** Whose context the box shows; what is open may be another one by now. @type {string | null} */
let shown = null;
let asIds = false;

const box = () => byId("rc-context");
const visible = () => isOpen("right") && !box().hidden;

async function refresh() {
  stale = true;
  if (!visible()) return;
  const id = chat.id;
  const isLatest = asking();
  const fresh = id ? await html(`/conversations/${id}/context`).catch((error) => complaint(error)) : "";
  if (!isLatest() || id !== chat.id) return;
  if (id === shown && box().querySelector(WRITING)) return; // somebody writes here: later
  stale = false;
  shown = id;
  redraw(fresh || EMPTY);
}

/** What was unfolded stays so. @param {string} fresh */
function redraw(fresh) {
  const open = new Set([...box().querySelectorAll("details[open]")].map((each) => each.getAttribute("data-keep")));
  const top = box().scrollTop;
  box().replaceChildren(fragment(fresh));
  for (const each of box().querySelectorAll("details")) {
    if (open.has(each.getAttribute("data-keep"))) each.open = true;
  }
  box().scrollTop = top;
  show(asIds);
}

const EMPTY =
  '<p class="nothing">Here you will see exactly what the model sees: the prompt with its control tokens, how much of it was reused from the turn before, and what was left out. Send a message first.</p>';

/** @param {Error} error */
function complaint(error) {
  const line = document.createElement("p");
  line.className = "nothing";
  line.textContent = error.message;
  return line.outerHTML;
}

/** @param {string} name */
function choose(name) {
  for (const each of TABS) {
    const tab = byId(`rc-tab-${each}`);
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
    byId(`rc-${each}`).hidden = each !== name;
  }
  if (stale) void refresh();
}

/** @param {boolean} ids */
function show(ids) {
  asIds = ids;
  box().classList.toggle("ids", ids);
  for (const button of box().querySelectorAll(".switch button")) {
    const mine = (button.getAttribute("data-action") === "exact-ids") === ids;
    button.classList.toggle("chosen", mine);
    button.setAttribute("aria-pressed", String(mine));
  }
}

/** Does it, says why it could not be done, and looks again. @param {() => Promise<unknown>} work @param {string} [said] */
async function change(work, said) {
  const field = document.activeElement;
  let done = true;
  try {
    await work();
    if (said) toast(said);
  } catch (error) {
    done = false;
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
  const stays = field === document.activeElement && box().contains(field); // else somebody went on to another
  if (stays && field instanceof HTMLElement) field.blur();
  await refresh();
  return done;
}

/** What cannot be kept, because another memory is in force by now, stays beside that one. @param {HTMLFormElement} form */
async function remember(form) {
  const text = form.querySelector("textarea")?.value ?? "";
  const version = Number(form.dataset.version);
  const id = shown;
  if (await change(() => post(`/conversations/${id}/memory`, { text, version }), "Kept as a new version.")) return;
  if (id !== shown) return;
  const about = document.createElement("p");
  about.className = "hint";
  about.textContent = "What you wrote, which was not kept:";
  const lost = document.createElement("pre");
  lost.textContent = text;
  box().querySelector(".memory-edit")?.after(about, lost);
}

/** Pins a message, leaves it out, or takes that back. @param {HTMLElement} element */
function mark(element) {
  const id = idOf(element);
  const wanted = element.getAttribute("aria-pressed") === "true" ? null : element.dataset.mark;
  return change(async () => {
    await post(`/messages/${id}/mark`, { mark: wanted });
    const message = messageOf(id);
    if (!message) return;
    if (wanted) message.dataset.mark = wanted;
    else delete message.dataset.mark;
    for (const button of message.querySelectorAll(".mark")) {
      const { mark: kind, on: taken, off } = /** @type {HTMLElement} */ (button).dataset;
      const label = (kind === wanted ? taken : off) ?? "";
      button.setAttribute("aria-pressed", String(kind === wanted));
      button.setAttribute("title", label);
      button.setAttribute("aria-label", label);
    }
  }, { pin: "Pinned: from the next turn on it is always in the prompt.", exclude: "Left out from the next turn on." }[wanted ?? ""]);
}

/** How this conversation is kept. @param {Event} event */
function keep(event) {
  const field = event.target;
  if (!(field instanceof HTMLSelectElement || field instanceof HTMLInputElement)) return;
  const line = byId("rc-k-error");
  const budget = field.name === "budget";
  const wrong = budget && field.value !== "" && !(Number.isInteger(Number(field.value)) && Number(field.value) >= 64);
  line.hidden = !wrong;
  line.textContent = wrong ? "A budget is a whole number of at least 64 tokens." : "";
  if (wrong) return;
  const said = { strategy: field.value, budget: Number(field.value), elsewhere: field.value === "yes" }[field.name];
  const value = field.value === "" ? null : said;
  void change(() => patch(`/conversations/${shown}/context`, { [field.name]: value }), "From the next turn on.");
}

export function start() {
  onAction("tab", (element) => choose(element.dataset.tab ?? "settings"));
  onAction("exact-ids", () => show(true));
  onAction("exact-text", () => show(false));
  onAction("open-context", () => {
    toggle("right", true);
    choose("context");
    setTimeout(() => stale && void refresh()); // Gradio opens the sidebar a moment later
  });
  onAction("mark", mark);
  onAction("memory-undo", (element) =>
    change(() => post(`/conversations/${shown}/memory/undo`, { version: Number(element.dataset.version) }), "Undone."),
  );
  onAction("memory-restore", (element) =>
    change(() => post(`/conversations/${shown}/memory/restore`, { version: Number(element.dataset.version) }), "It holds again."),
  );
  box().addEventListener("submit", (event) => {
    event.preventDefault();
    void remember(/** @type {HTMLFormElement} */ (event.target));
  });
  box().addEventListener("change", keep);
  document.querySelector(".rc-panel .tabs")?.addEventListener("keydown", (event) => {
    const key = /** @type {KeyboardEvent} */ (event).key;
    if (key !== "ArrowLeft" && key !== "ArrowRight") return;
    const next = byId("rc-settings").hidden ? "settings" : "context";
    choose(next);
    byId(`rc-tab-${next}`).focus();
  });
  byId("rc-right").addEventListener("rc-toggled", () => void refresh());
  on("opened", () => void refresh());
  on("ended", () => void refresh());
}
