// @ts-check
/** The box one writes in: grows, sends with Enter, turns into Stop while an answer grows, forgets nothing. */
import { post } from "./api.js";
import { changed, place } from "./conversation.js";
import { byId, entered, fragment, isPhone, onAction, toast } from "./dom.js";
import { examples, onModels } from "./models.js";
import { chat, on } from "./state.js";

const input = () => /** @type {HTMLTextAreaElement} */ (byId("rc-input"));
const draftKey = () => `rallychat.draft.${chat.id ?? "new"}`;
let sending = false;

export const focus = () => {
  if (!isPhone()) input().focus({ preventScroll: true });
};

/** @param {string} text */
export function write(text) {
  input().value = text;
  changedText();
}

function changedText() {
  const box = input();
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, innerHeight * 0.4)}px`;
  if (box.value) sessionStorage.setItem(draftKey(), box.value);
  else sessionStorage.removeItem(draftKey());
  buttons();
}

function buttons() {
  const running = chat.run !== null;
  byId("rc-stop").hidden = !running;
  byId("rc-send").hidden = running;
  byId("rc-send").toggleAttribute("disabled", sending || !input().value.trim());
}

async function send() {
  const text = input().value;
  if (!text.trim() || sending || chat.run) return;
  sending = true;
  buttons();
  const draft = draftKey();
  const from = place();
  const fresh = { system: chat.system, model: chat.model, sampling: chat.sampling };
  try {
    const change = await post("/turns", { text, conversation: chat.id, ...(chat.id ? {} : fresh) });
    sessionStorage.removeItem(draft);
    if (input().value === text) input().value = "";
    await changed(change, from);
    changedText();
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  } finally {
    sending = false;
    buttons();
  }
}

export async function stop() {
  if (!chat.run) return;
  try {
    await post(`/runs/${chat.run}/stop`);
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
}

/** The examples every model has; one with its own offers those. */
let usual = "";

function offer() {
  const box = document.querySelector("#rc-empty .examples");
  if (!box) return;
  usual ||= box.innerHTML;
  const own = examples().slice(0, 4);
  const wanted = JSON.stringify(own);
  if (/** @type {HTMLElement} */ (box).dataset.own === wanted) return;
  /** @type {HTMLElement} */ (box).dataset.own = wanted;
  if (!own.length) return box.replaceChildren(fragment(usual));
  box.replaceChildren(
    ...own.map((prompt) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.dataset.action = "example";
      button.append(Object.assign(document.createElement("span"), { textContent: prompt }));
      return button;
    }),
  );
}

export function start() {
  onModels(offer);
  byId("rc-composer").addEventListener("submit", (event) => {
    event.preventDefault();
    void send();
  });
  input().addEventListener("input", changedText);
  input().addEventListener("keydown", (event) => {
    if (!entered(event) || event.shiftKey || (isPhone() && !event.ctrlKey)) return;
    event.preventDefault();
    void send();
  });
  byId("rc-composer").addEventListener("click", (event) => {
    if (event.target === event.currentTarget) input().focus();
  });
  onAction("stop", stop);
  onAction("example", (element) => {
    write(element.querySelector("span")?.textContent ?? "");
    input().focus();
  });
  on("run", buttons);
  on("opened", () => {
    write(sessionStorage.getItem(draftKey()) ?? "");
    focus();
  });
}
