// @ts-check
/** Keyboard shortcuts, and the list of them. */
import * as composer from "./composer.js";
import { begin } from "./conversation.js";
import { byId, isPhone, onAction } from "./dom.js";
import { isOpen, toggle } from "./sidebar.js";
import { chat } from "./state.js";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const MOD = MAC ? "⌘" : "Ctrl";
const NEW = MAC ? "⇧⌘O" : "Ctrl+Shift+O";

const LIST = [
  ["Enter", "Send"],
  ["Shift+Enter", "New line"],
  ["Esc", "Stop the answer"],
  [NEW, "New chat"],
  [`${MOD}+Shift+S`, "Show or hide the list"],
  [`${MOD}+Shift+E`, "Show or hide settings and context"],
  ["/", "Write a message"],
  ["?", "This list"],
];

/** @type {Record<string, () => void>} */
const WITH_MOD_SHIFT = {
  KeyO: () => begin(),
  KeyS: () => toggle("left"),
  KeyE: panel,
};

/** Where the focus was when the panel was opened. @type {Element | null} */
let before = null;

/** Shows or hides the panel; the focus goes into it, and comes back. */
function panel() {
  const box = byId("rc-right");
  const opens = !isOpen("right");
  const leaves = !opens && box.contains(document.activeElement);
  if (opens) before = document.activeElement;
  toggle("right");
  const tab = /** @type {HTMLElement | null} */ (box.querySelector('[role="tab"][aria-selected="true"]'));
  if (opens) setTimeout(() => tab?.focus()); // Gradio opens it a moment later
  if (leaves) (before instanceof HTMLElement && before.isConnected && before !== document.body ? before : byId("rc-input")).focus();
}

function showList() {
  const box = byId("rc-keys").querySelector("dl");
  box?.replaceChildren(
    ...LIST.map(([key, what]) => {
      const row = document.createElement("div");
      const name = document.createElement("dt");
      const press = document.createElement("kbd");
      press.textContent = key;
      name.append(press);
      const meaning = document.createElement("dd");
      meaning.textContent = what;
      row.append(name, meaning);
      return row;
    }),
  );
  /** @type {HTMLDialogElement} */ (byId("rc-keys")).showModal();
}

/** @param {KeyboardEvent} event */
function pressed(event) {
  if (event.isComposing) return;
  if (event.shiftKey && (event.ctrlKey || event.metaKey) && !event.altKey) {
    const action = WITH_MOD_SHIFT[event.code];
    if (!action) return;
    event.preventDefault();
    action();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (chat.run) void composer.stop();
    else if (isPhone()) for (const side of /** @type {const} */ (["left", "right"])) if (isOpen(side)) toggle(side, false);
    return;
  }
  const writing = event.target instanceof Element && event.target.closest("input, textarea, select");
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("rc-input").focus();
  } else if (event.key === "?") showList();
}

export function start() {
  document.addEventListener("keydown", pressed);
  onAction("keys", showList);
  onAction("skip", () => byId("rc-input").focus());
  for (const hint of document.querySelectorAll('[data-key="new-chat"]')) hint.textContent = NEW;
}
