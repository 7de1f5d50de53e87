// @ts-check
/** The few things every module needs of the document. HTML comes only from our own server, which escapes it. */

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** @typedef {(element: HTMLElement, event: Event) => unknown} Action */
/** @type {Map<string, Action>} */
const actions = new Map();

/** Calls `action` when something with data-action=`name` is clicked. @param {string} name @param {Action} action */
export function onAction(name, action) {
  actions.set(name, action);
}

/** One listener for all buttons, also those that arrive later. */
export function listen() {
  document.addEventListener("click", (event) => {
    if (!(event.target instanceof Element)) return;
    const element = event.target.closest("[data-action]");
    if (!(element instanceof HTMLElement) || element.hasAttribute("disabled")) return;
    const action = actions.get(element.dataset.action ?? "");
    if (!action) return;
    event.preventDefault();
    void action(element, event);
  });
}

/** @param {string} html @returns {DocumentFragment} */
export function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

/** @param {string} name */
export function use(name) {
  return fragment(`<svg class="icon" aria-hidden="true"><use href="#i-${name}"></use></svg>`);
}

/** @param {string} text @param {{kind?: "error" | "info", undo?: () => unknown}} [options] */
export function toast(text, { kind = "info", undo } = {}) {
  const box = document.createElement("div");
  box.className = `toast ${kind}`;
  box.textContent = text;
  if (undo) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "undo", textContent: "Undo" });
    button.addEventListener("click", () => {
      box.remove();
      undo();
    });
    box.append(" ", button);
  }
  const toasts = byId("rc-toasts");
  const dialog = document.querySelector("dialog[open]"); // what is outside an open one is dimmed, and not read aloud
  const home = dialog ?? byId("rc-stage").parentElement;
  if (toasts.parentElement !== home) home?.append(toasts);
  dialog?.addEventListener("close", () => byId("rc-stage").after(toasts), { once: true });
  toasts.append(box);
  setTimeout(() => box.remove(), kind === "error" || undo ? 9000 : 3000);
}

/** Whoever writes in `box` is done with the field, which then tells of its change. @param {HTMLElement} box */
export function leave(box) {
  const field = document.activeElement;
  if (field instanceof HTMLElement && box.contains(field)) field.blur();
}

/** Enter, but for the one that ends an input method's conversion: Safari tells of that one only once it has ended.
 * @param {KeyboardEvent} event */
export const entered = (event) => event.key === "Enter" && !event.isComposing && event.keyCode !== 229;

/** Says something to those who listen to the page. @param {string} text */
export function announce(text) {
  byId("rc-said").textContent = text;
}

export const isPhone = () => matchMedia("(max-width: 768px)").matches;

/** The page shows nothing but the chat. */
export const chatOnly = () => "chatOnly" in document.documentElement.dataset;

/** @param {{title: string, text: string, yes: string}} question @returns {Promise<boolean>} */
export function confirmed({ title, text, yes }) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("rc-confirm"));
  byId("rc-confirm-title").textContent = title;
  byId("rc-confirm-text").textContent = text;
  byId("rc-confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
