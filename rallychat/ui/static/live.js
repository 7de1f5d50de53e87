// @ts-check
/** Attaches to the answer that grows and shows it: finished blocks are added once, the last one is redrawn. */
import { announce, byId, fragment } from "./dom.js";
import { chat, emit, learn, tellTabs } from "./state.js";
import { keepUp, liveMessage, messageOf, refresh } from "./transcript.js";

/** @type {EventSource | null} */
let source = null;
/** @type {Record<string, string>} */
let tails = {};
let heard = false;
/** @type {() => void} */
let onLost = () => {};

/** @param {() => void} lost called when the answer can no longer be followed */
export function start(lost) {
  onLost = lost;
}

export function detach() {
  source?.close();
  source = null;
}

/** An answer is followed, though the connection may be lost just now. */
export const following = () => source !== null;

/** It is followed, and the connection stands. */
export const hears = () => source?.readyState === EventSource.OPEN;

/** @param {string} run */
export function attach(run) {
  detach();
  const stream = new EventSource(`ui/runs/${run}/stream`);
  source = stream;
  stream.addEventListener("begin", () => begin());
  stream.addEventListener("status", (event) => {
    heard = true;
    status(JSON.parse(event.data).text);
  });
  stream.addEventListener("grow", (event) => grow(JSON.parse(event.data)));
  stream.addEventListener("end", (event) => end(JSON.parse(event.data)));
  stream.addEventListener("error", () => {
    if (stream !== source) return;
    status("Connection lost, trying again");
    if (stream.readyState !== EventSource.CLOSED) return;
    detach();
    onLost();
  });
}

/** @param {string} name @param {string} part */
function place(name, part) {
  const box = part === "reasoning" ? ".reasoning" : ".answer";
  return liveMessage()?.querySelector(`${box} [data-part="${name}"]`) ?? null;
}

/** Also after a lost connection: the server tells everything again. */
function begin() {
  tails = { answer: "", reasoning: "" };
  heard = false;
  for (const part of ["answer", "reasoning"]) {
    place("finished", part)?.replaceChildren();
    place("tail", part)?.replaceChildren();
  }
}

/** @param {string} text */
function status(text) {
  const line = liveMessage()?.querySelector('[data-part="status"]');
  if (line) line.textContent = text;
}

/** What the menu knows of the model, while the run itself has said nothing yet. @param {string} text */
export function waiting(text) {
  if (!heard && !liveMessage()?.classList.contains("answering")) status(text);
}

/** @param {{part: string, finished: string, keep: number, tail: string}} update */
function grow({ part, finished, keep, tail }) {
  const live = liveMessage();
  if (!live) return;
  live.classList.add(part === "answer" ? "answering" : "reasoning-now");
  const reasoning = live.querySelector("details.reasoning");
  if (part === "reasoning" && reasoning instanceof HTMLElement) reasoning.hidden = false;
  if (part === "answer") status("Answering");
  if (finished) {
    const blocks = fragment(finished);
    if (part === "answer") announce(blocks.textContent ?? "");
    place("finished", part)?.append(blocks);
    tails[part] = "";
  }
  tails[part] = tails[part].slice(0, keep) + tail;
  place("tail", part)?.replaceChildren(fragment(tails[part]));
  keepUp();
}

/** @param {{html: string, message: string}} final */
function end({ html, message }) {
  const rest = place("tail", "answer")?.textContent;
  if (rest) announce(rest);
  detach();
  const old = messageOf(message);
  if (old) {
    const wasFocused = old.contains(document.activeElement);
    old.replaceWith(fragment(html));
    if (wasFocused) byId("rc-input").focus();
  }
  refresh();
  keepUp();
  learn({ run: null });
  emit("ended");
  tellTabs(chat.id);
}
