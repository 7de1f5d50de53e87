// @ts-check
/** The list of conversations, and opening and closing the two sidebars (Gradio's own, by its buttons). */
import { html, latest, patch, post, remove } from "./api.js";
import { begin, open, openAt } from "./conversation.js";
import { byId, chatOnly, confirmed, entered, fragment, isPhone, onAction, toast } from "./dom.js";
import { chat, emit, learn, on, tellTabs } from "./state.js";

const list = () => byId("rc-conversations");
const offset = () => -new Date().getTimezoneOffset();
let shown = "";
const asking = latest();
let searched = "";
let shelf = "recent";
const FOLDERS = "rallychat.folders";
/** @type {string[]} */
let unfolded = JSON.parse(localStorage.getItem(FOLDERS) ?? "[]");
const wanted = () => /** @type {HTMLInputElement} */ (byId("rc-find")).value.trim();

/** @param {"left" | "right"} side */
const bar = (side) => byId(`rc-${side}`);
/** @param {"left" | "right"} side */
export const isOpen = (side) => bar(side).classList.contains("open");

/** @param {"left" | "right"} side @param {boolean} [wanted] */
export function toggle(side, wanted = !isOpen(side)) {
  if (isOpen(side) === wanted || (wanted && chatOnly())) return;
  bar(side).querySelector(/** @type {any} */ (".toggle-button"))?.click();
  if (!isPhone()) localStorage.setItem(`rallychat.${side}`, wanted ? "open" : "closed");
  else if (wanted) toggle(side === "left" ? "right" : "left", false);
  bar(side).dispatchEvent(new CustomEvent("rc-toggled", { detail: wanted }));
}

export async function refresh() {
  try {
    const asked = wanted();
    const isLatest = asking();
    const open = unfolded.map((name) => `&open=${encodeURIComponent(name)}`).join("");
    const path = asked ? `/found?q=${encodeURIComponent(asked)}` : `/conversations?utc_offset=${offset()}&shelf=${shelf}${open}`;
    const fresh = await html(path);
    if (!isLatest() || asked !== wanted()) return;
    if (asked !== searched) list().scrollTop = 0;
    searched = asked;
    if (fresh !== shown && !list().querySelector(".renaming")) {
      shown = fresh;
      const focused = focusedIn();
      list().replaceChildren(fragment(fresh));
      if (focused) /** @type {HTMLElement | null} */ (list().querySelector(focused))?.focus();
    }
    mark();
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
}

/** What finds the element with the focus again once the list is drawn anew; empty where it is elsewhere. */
function focusedIn() {
  const at = document.activeElement;
  if (!(at instanceof HTMLElement) || !list().contains(at)) return "";
  const { conversation } = /** @type {HTMLElement} */ (at.closest("[data-conversation]"))?.dataset ?? {};
  const { folder } = /** @type {HTMLElement} */ (at.closest("[data-folder]"))?.dataset ?? {};
  if (conversation) return `[data-conversation="${conversation}"] > a`;
  return folder === undefined ? "" : `[data-folder="${CSS.escape(folder)}"] > summary`;
}

function mark() {
  for (const item of list().querySelectorAll(".conversation")) {
    const current = /** @type {HTMLElement} */ (item).dataset.conversation === chat.id;
    item.classList.toggle("current", current);
    if (current) item.querySelector("a")?.setAttribute("aria-current", "page");
    else item.querySelector("a")?.removeAttribute("aria-current");
  }
  byId("rc-title").textContent = chat.id ? chat.title : "";
  document.title = chat.id && chat.title ? `${chat.title} · RallyChat` : "RallyChat";
}

/** The line in the list that a button belongs to, which may stand in the dialog of a conversation. @param {HTMLElement} element */
function itemOf(element) {
  const nearest = /** @type {HTMLElement} */ (element.closest("[data-conversation]"));
  if (!(nearest instanceof HTMLDialogElement)) return nearest;
  nearest.close();
  const id = CSS.escape(nearest.dataset.conversation ?? "");
  return /** @type {HTMLElement} */ (list().querySelector(`.conversation[data-conversation="${id}"]`) ?? nearest);
}

/** @param {HTMLElement} element */
function rename(element) {
  const item = itemOf(element);
  const id = item.dataset.conversation ?? "";
  const link = item.querySelector(":scope > a");
  if (!link || item.classList.contains("renaming")) return;
  const before = link.querySelector(".title")?.textContent ?? "";
  const box = document.createElement("input");
  box.value = before;
  box.maxLength = 200;
  box.setAttribute("aria-label", "New name");
  item.classList.add("renaming");
  link.after(box);
  box.select();
  let finished = false;
  const finish = async (/** @type {boolean} */ keep) => {
    if (finished) return;
    finished = true;
    item.classList.remove("renaming");
    box.remove();
    if (!keep || !box.value.trim() || box.value === before) return;
    try {
      const facts = await patch(`/conversations/${id}`, { title: box.value.trim() });
      if (chat.id === id) learn({ title: facts.title });
      tellTabs(id);
    } catch (error) {
      toast(/** @type {Error} */ (error).message, { kind: "error" });
    }
    await refresh();
  };
  box.addEventListener("blur", () => void finish(true));
  box.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (entered(event)) void finish(true);
    if (event.key === "Escape" && !event.isComposing) void finish(false);
  });
}

/** @param {HTMLElement} element */
async function erase(element) {
  const id = itemOf(element).dataset.conversation ?? "";
  try {
    await remove(`/conversations/${id}`);
    sessionStorage.removeItem(`rallychat.draft.${id}`);
    tellTabs(id);
    if (chat.id === id) begin();
    toast("Moved to the trash.", { undo: () => restore(id) });
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
  await refresh();
}

/** @param {string} id */
async function restore(id) {
  try {
    await post(`/v1/conversations/${id}/restore`);
    tellTabs(id);
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
  await refresh();
}

/** @param {{title: string, text: string, yes: string}} question @param {string} path */
async function deleted(question, path) {
  if (!(await confirmed(question))) return;
  try {
    await remove(path);
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
  await refresh();
}

/** @param {HTMLElement} element */
function forever(element) {
  const item = itemOf(element);
  const text = `“${item.querySelector(".title")?.textContent}” cannot be brought back then.`;
  return deleted({ title: "Delete for good?", text, yes: "Delete" }, `/v1/conversations/${item.dataset.conversation}?forever=true`);
}

function emptyTrash() {
  const text = "What is in it cannot be brought back then.";
  return deleted({ title: "Empty the trash?", text, yes: "Delete all" }, "/v1/conversations/trash");
}

/** @param {HTMLElement} element */
function show(element) {
  shelf = element.dataset.shelf ?? "recent";
  for (const one of document.querySelectorAll("[data-shelf]")) {
    one.setAttribute("aria-pressed", String(/** @type {HTMLElement} */ (one).dataset.shelf === shelf));
  }
  /** @type {HTMLInputElement} */ (byId("rc-find")).value = "";
  void refresh();
}

/** @param {HTMLElement} element */
async function older(element) {
  const before = encodeURIComponent(element.dataset.before ?? "");
  const more = await html(`/conversations?utc_offset=${offset()}&before=${before}&shelf=${shelf}`);
  element.replaceWith(fragment(more));
  mark();
}

/** @param {HTMLElement} element */
async function olderInFolder(element) {
  const { folder = "", before = "" } = element.dataset;
  element.replaceWith(fragment(await html(`/folder?name=${encodeURIComponent(folder)}&before=${encodeURIComponent(before)}`)));
  mark();
}

/** What a folder holds is asked for once it is open; this browser remembers which are. @param {HTMLElement} folder */
function fold(folder) {
  const name = folder.dataset.folder ?? "";
  const others = unfolded.filter((one) => one !== name);
  unfolded = folder.hasAttribute("open") ? others : [...others, name].slice(-20);
  localStorage.setItem(FOLDERS, JSON.stringify(unfolded));
  void refresh();
}

export function start() {
  list().addEventListener("click", (event) => {
    const summary = event.target instanceof Element ? event.target.closest("summary") : null;
    if (!summary) return;
    event.preventDefault();
    fold(/** @type {HTMLElement} */ (summary.parentElement));
  });
  list().addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a") : null;
    const plain = event instanceof MouseEvent && !(event.metaKey || event.ctrlKey || event.shiftKey || event.button);
    if (!link || !plain || !link.hasAttribute("href")) return;
    event.preventDefault();
    if (isPhone()) toggle("left", false);
    const { conversation = "", at } = itemOf(link).dataset;
    void (at ? openAt(conversation, at) : open(conversation));
  });
  document.addEventListener("click", (event) => {
    const beside = event.target instanceof Element && !event.target.closest("#rc-left, dialog, .toasts");
    if (beside && isPhone() && isOpen("left")) toggle("left", false);
  }, { capture: true });
  onAction("rename", rename);
  onAction("delete", erase);
  onAction("erase", forever);
  onAction("empty-trash", emptyTrash);
  onAction("restore", (element) => restore(itemOf(element).dataset.conversation ?? ""));
  onAction("shelf", show);
  let typing = 0;
  byId("rc-find").addEventListener("input", () => {
    clearTimeout(typing);
    typing = window.setTimeout(() => void refresh(), 200);
  });
  onAction("older-conversations", older);
  onAction("older-in-folder", olderInFolder);
  onAction("new-chat", () => {
    if (isPhone()) toggle("left", false);
    begin();
  });
  onAction("toggle-left", () => toggle("left"));
  onAction("toggle-right", () => toggle("right"));
  on("listed", () => void refresh());
  on("ended", () => void refresh());
  on("opened", () => void mark());
  on("facts", mark);
  if (isPhone()) toggle("left", false);
  else {
    if (localStorage.getItem("rallychat.left") === "closed") toggle("left", false);
    if (localStorage.getItem("rallychat.right") === "open" && innerWidth >= 1200) toggle("right", true);
  }
  emit("listed");
}
