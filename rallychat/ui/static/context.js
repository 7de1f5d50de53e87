// @ts-check
/** The inspector: what the model saw, fetched when it is looked at. */
import { html } from "./api.js";
import { byId, fragment, onAction } from "./dom.js";
import { isOpen, toggle } from "./sidebar.js";
import { chat, on } from "./state.js";

const TABS = ["settings", "context"];
let stale = true;
let asIds = false;

const visible = () => isOpen("right") && !byId("rc-context").hidden;

async function refresh() {
  stale = true;
  if (!visible()) return;
  const id = chat.id;
  const fresh = id ? await html(`/conversations/${id}/context`).catch((error) => complaint(error)) : "";
  if (id !== chat.id) return;
  stale = false;
  byId("rc-context").replaceChildren(fragment(fresh || EMPTY));
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
  byId("rc-context").classList.toggle("ids", ids);
  for (const button of byId("rc-context").querySelectorAll(".switch button")) {
    const mine = (button.getAttribute("data-action") === "exact-ids") === ids;
    button.classList.toggle("chosen", mine);
    button.setAttribute("aria-pressed", String(mine));
  }
}

export function start() {
  onAction("tab", (element) => choose(element.dataset.tab ?? "settings"));
  onAction("exact-ids", () => show(true));
  onAction("exact-text", () => show(false));
  onAction("open-context", () => {
    toggle("right", true);
    choose("context");
  });
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
