// @ts-check
/** The box one writes in: grows, sends with Enter, turns into Stop while an answer grows, forgets nothing. */
import { ApiError, newKey, post } from "./api.js";
import { changed, place } from "./conversation.js";
import { byId, entered, fragment, isPhone, onAction, toast } from "./dom.js";
import { examples, onModels } from "./models.js";
import { chat, on } from "./state.js";

const input = () => /** @type {HTMLTextAreaElement} */ (byId("rc-input"));
const draftKey = (id = chat.id) => `rallychat.draft.${id ?? "new"}`;
/** What was sent of a draft, and its key, until a reply has come. */
const triedKey = () => `rallychat.tried.${chat.id ?? "new"}`;
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
  else {
    sessionStorage.removeItem(draftKey());
    sessionStorage.removeItem(triedKey());
  }
  buttons();
}

/** The key of what is sent: that of the try before, if nothing has changed since. @param {string} tried @param {object} body */
function keyOf(tried, body) {
  const sent = JSON.stringify(body);
  const before = JSON.parse(sessionStorage.getItem(tried) ?? "{}");
  if (before.sent === sent) return before.key;
  const key = newKey();
  try {
    sessionStorage.setItem(tried, JSON.stringify({ sent, key }));
  } catch {
    // there is no room for a text as long as this: the key is for one try
  }
  return key;
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
  const tried = triedKey();
  const from = place();
  const fresh = { system: chat.system, model: chat.model, sampling: chat.sampling };
  const body = { text, conversation: chat.id, ...(chat.id ? {} : fresh) };
  try {
    const change = await post("/turns", body, keyOf(tried, body));
    sessionStorage.removeItem(draft);
    sessionStorage.removeItem(tried);
    if (input().value === text) input().value = "";
    else if (place() === from) sessionStorage.setItem(draftKey(change.conversation), input().value); // written meanwhile
    await changed(change, from);
    changedText();
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) sessionStorage.removeItem(tried); // what it made is gone
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
