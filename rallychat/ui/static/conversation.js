// @ts-check
/** Opens conversations, keeps the address, follows what other tabs and people do. */
import { ApiError, get, post } from "./api.js";
import { byId, leave, toast } from "./dom.js";
import * as live from "./live.js";
import { blank, chat, emit, learn, onOtherTab, tellTabs } from "./state.js";
import * as transcript from "./transcript.js";

const POLL = 4000;
let opening = 0;

/** `at`: the message to scroll to. @param {string} id @param {{address?: "push" | "keep", at?: string}} [options] */
export async function open(id, { address = "push", at = "" } = {}) {
  const turn = ++opening;
  let facts;
  try {
    facts = await get(`/conversations/${encodeURIComponent(id)}${at && `?reach=${encodeURIComponent(at)}`}`);
  } catch (error) {
    if (turn !== opening) return;
    toast(/** @type {Error} */ (error).message, { kind: "error" });
    if (error instanceof ApiError && error.status === 404) begin({ address: "push" });
    return;
  }
  if (turn !== opening) return;
  if (address === "push") history.pushState(null, "", `?c=${encodeURIComponent(id)}${at && `&m=${encodeURIComponent(at)}`}`);
  if (id !== chat.id) leave(byId("rc-right"));
  live.detach();
  learn(facts);
  transcript.show(facts.html, facts.older);
  if (chat.run) live.attach(chat.run);
  emit("opened");
  if (at) transcript.reveal(at);
}

/** Opens it at a message, which may stand on a branch that is not in view. @param {string} id @param {string} message */
export async function openAt(id, message) {
  await open(id, { at: message });
  if (chat.id !== id || transcript.messageOf(message)) return;
  try {
    await post(`/messages/${message}/select`);
    await open(id, { address: "keep", at: message });
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
}

/** A new conversation; it is stored with its first message. @param {{address?: "push" | "keep"}} [options] */
export function begin({ address = "push" } = {}) {
  opening++;
  if (address === "push" && location.search) history.pushState(null, "", "./");
  leave(byId("rc-right"));
  live.detach();
  learn(blank());
  transcript.show("", null);
  emit("opened");
}

/** What is open, new chats told apart. */
export const place = () => opening;

/**
 * Shows what a change answered: new messages, and the run that now grows; without messages it was made by a try before,
 * and much may have happened since. `from`: the place where it was asked for; what is open by now may be another one.
 * @param {{conversation: string, after: string | null, html: string | null, run: string | null}} change @param {number} from
 */
export async function changed(change, from) {
  if (chat.id === null) {
    if (from !== opening) return emit("listed");
    chat.id = change.conversation;
    history.replaceState(null, "", `?c=${encodeURIComponent(change.conversation)}`);
  } else if (chat.id !== change.conversation) return;
  tellTabs(change.conversation);
  if (change.html === null || !transcript.replaceAfter(change.after, change.html)) {
    await open(change.conversation, { address: "keep" });
    return emit("listed");
  }
  learn({ run: change.run });
  transcript.toEnd();
  if (change.run) live.attach(change.run);
  emit("listed");
  await refreshFacts();
}

/** Title, tip and settings as the server has them. */
async function refreshFacts() {
  const id = chat.id;
  if (!id) return;
  const facts = await get(`/conversations/${id}/state`).catch(() => null);
  if (facts && chat.id === id) learn({ ...facts, run: chat.run });
}

/** Opens it again if something happened elsewhere. */
export async function sync() {
  const { id, run } = chat;
  if (!id) return;
  const facts = await get(`/conversations/${id}/state`).catch((error) => error);
  if (chat.id !== id || chat.run !== run) return;
  if (facts instanceof ApiError) {
    if (facts.status === 404) begin();
    return;
  }
  if (facts.run && facts.run === run && live.following()) return; // what it tells is what is new
  if (facts.tip === chat.tip && !facts.run && !run) learn(facts);
  else if (!transcript.edited()) await open(id, { address: "keep" }); // else later: it would take away what is written
}

function fromAddress() {
  const asked = new URLSearchParams(location.search);
  const id = asked.get("c");
  return id ? open(id, { address: "keep", at: asked.get("m") ?? "" }) : begin({ address: "keep" });
}

export async function start() {
  live.start(() => setTimeout(() => void sync(), 1000));
  window.addEventListener("popstate", () => {
    const id = new URLSearchParams(location.search).get("c");
    if (id !== chat.id) void fromAddress(); // else only the part behind the # has changed: the model menu's
  });
  onOtherTab((id) => {
    emit("listed");
    if (id === chat.id) void sync();
  });
  document.addEventListener("visibilitychange", () => document.hidden || void sync());
  setInterval(() => document.hidden || live.hears() || void sync(), POLL);
  await fromAddress();
}
