// @ts-check
/** The messages on the page: shown from the newest, older ones as one scrolls up, never sent twice. */
import { get } from "./api.js";
import { byId, fragment, onAction, toast } from "./dom.js";
import { chat } from "./state.js";

const NEAR = 80;
/** @type {string | null} */
let older = null;
let loading = false;
let sticks = true;

const scroller = () => byId("rc-scroll");
const list = () => byId("rc-transcript");

/** @param {string} html @param {string | null} before */
export function show(html, before) {
  list().replaceChildren(fragment(html));
  older = before;
  byId("rc-older").hidden = older === null;
  refresh();
  toEnd();
}

/** Puts `html` behind the message `after` (null: the start). False if that message is not on the page.
 * @param {string | null} after @param {string} html */
export function replaceAfter(after, html) {
  const anchor = after === null ? null : messageOf(after);
  if (after !== null && !anchor) return false;
  const first = anchor ? anchor.nextSibling : list().firstChild;
  const range = document.createRange();
  if (first) {
    range.setStartBefore(first);
    range.setEndAfter(/** @type {Node} */ (list().lastChild));
    range.deleteContents();
  }
  list().append(fragment(html));
  refresh();
  return true;
}

/** @param {string} id @returns {HTMLElement | null} */
export const messageOf = (id) => list().querySelector(`[data-message="${CSS.escape(id)}"]`);

/** @returns {HTMLElement | null} */
export const liveMessage = () => list().querySelector(".message.live");

/** The message a button belongs to. @param {HTMLElement} element */
export const idOf = (element) =>
  /** @type {HTMLElement | null} */ (element.closest("[data-message]"))?.dataset.message ?? "";

/** Somebody rewrites a message. */
export const edited = () => list().querySelector(".editor") !== null;

export function toEnd() {
  sticks = true;
  scroller().scrollTop = scroller().scrollHeight;
  byId("rc-to-end").hidden = true;
}

/** Scrolls to a message and marks it for a moment. @param {string} id */
export function reveal(id) {
  const message = messageOf(id);
  if (!message) return;
  sticks = false;
  message.scrollIntoView({ block: "center" });
  message.classList.add("sought");
  setTimeout(() => message.classList.remove("sought"), 2500);
}

/** After something grew: stays at the end if one was there. */
export function keepUp() {
  if (sticks) scroller().scrollTop = scroller().scrollHeight;
  else byId("rc-to-end").hidden = false;
}

/** The start page is shown while there is nothing said. */
export function refresh() {
  const empty = !list().querySelector(".message");
  byId("rc-empty").hidden = !empty;
  scroller().classList.toggle("is-empty", empty);
}

async function loadOlder() {
  if (loading || !older || !chat.id) return;
  loading = true;
  const asked = chat.id;
  const before = older;
  try {
    const part = await get(`/conversations/${asked}/messages?before=${encodeURIComponent(before)}`);
    if (asked !== chat.id || before !== older) return;
    const height = scroller().scrollHeight;
    const top = scroller().scrollTop;
    list().prepend(fragment(part.html));
    older = part.older;
    byId("rc-older").hidden = older === null;
    scroller().scrollTop = top + scroller().scrollHeight - height;
  } catch (error) {
    toast(String(/** @type {Error} */ (error).message), { kind: "error" });
  } finally {
    loading = false;
  }
}

export function start() {
  let last = 0;
  scroller().addEventListener(
    "scroll",
    () => {
      const { scrollTop, scrollHeight, clientHeight } = scroller();
      const distance = scrollHeight - clientHeight - scrollTop;
      if (scrollTop < last && distance > NEAR) sticks = false; // a person went up; growth never does
      if (distance <= NEAR) sticks = true;
      last = scrollTop;
      byId("rc-to-end").hidden = distance <= NEAR * 2;
      if (scrollTop < 600) void loadOlder();
    },
    { passive: true },
  );
  new ResizeObserver(() => sticks && keepUp()).observe(scroller());
  onAction("to-end", toEnd);
}
