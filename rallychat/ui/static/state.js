// @ts-check
/** What this tab shows now, and who wants to know when it changes. */

/**
 * @typedef {object} Chat
 * @property {string | null} id         null: a new conversation, nothing stored yet
 * @property {string} title
 * @property {string | null} model      null: the server's default
 * @property {string} system
 * @property {Record<string, any>} sampling
 * @property {string | null} tip
 * @property {string | null} run        the answer that is growing
 */

/** @returns {Chat} */
export const blank = () => ({
  id: null,
  title: "",
  model: null,
  system: "",
  sampling: {},
  tip: null,
  run: null,
});

/** @type {Chat} */
export const chat = blank();

/** @typedef {"opened" | "run" | "facts" | "ended" | "listed"} Happening */
const bus = new EventTarget();

/** @param {Happening} name @param {() => void} listener */
export const on = (name, listener) => bus.addEventListener(name, listener);
/** @param {Happening} name */
export const emit = (name) => bus.dispatchEvent(new Event(name));

/** Takes over what is given and tells it. @param {Partial<Chat>} facts */
export function learn(facts) {
  const { id, title, model, system, sampling, tip, run } = { ...chat, ...facts };
  const runChanged = run !== chat.run;
  Object.assign(chat, { id, title, model, system, sampling, tip, run });
  if (runChanged) emit("run");
  emit("facts");
}

const channel = "BroadcastChannel" in window ? new BroadcastChannel("rallychat") : null;

/** Tells the other tabs that a conversation (or the list) has changed. @param {string | null} id */
export const tellTabs = (id) => channel?.postMessage({ id });

/** @param {(id: string | null) => void} listener */
export function onOtherTab(listener) {
  if (channel) channel.onmessage = (event) => listener(event.data.id);
}
