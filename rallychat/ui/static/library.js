// @ts-check
/** What can be done with a conversation as a whole, and taking conversations in. */
import { get, patch, post, remove } from "./api.js";
import { copy } from "./actions.js";
import { byId, onAction, toast } from "./dom.js";
import { emit } from "./state.js";

/** @typedef {{id: string, path: string}} Share */
let id = "";
const box = () => /** @type {HTMLDialogElement} */ (byId("rc-conversation"));
const folder = () => /** @type {HTMLInputElement} */ (byId("rc-folder"));

/** @param {() => Promise<unknown>} action */
async function told(action) {
  try {
    await action();
  } catch (error) {
    toast(/** @type {Error} */ (error).message, { kind: "error" });
  }
}

/** @param {HTMLElement} element */
async function more(element) {
  id = /** @type {HTMLElement} */ (element.closest(".conversation")).dataset.conversation ?? "";
  box().dataset.conversation = id;
  const { title, pinned, archived } = element.dataset;
  byId("rc-conversation-title").textContent = title ?? "";
  button("pin-conversation", pinned ? "Unpin" : "Pin on top", pinned);
  button("archive-conversation", archived ? "Take out of the archive" : "Archive", archived);
  for (const kind of ["json", "markdown"]) {
    /** @type {HTMLAnchorElement} */ (byId(`rc-export-${kind}`)).href = `v1/conversations/${id}/export?format=${kind}`;
  }
  folder().value = element.dataset.folder ?? "";
  byId("rc-shares").replaceChildren();
  box().showModal();
  await told(async () => {
    await shares();
    const { data } = await get("/v1/conversations/folders");
    byId("rc-folders").replaceChildren(...data.map((/** @type {string} */ name) => new Option(name)));
  });
}

/** @param {string} action @param {string} text @param {string | undefined} on */
function button(action, text, on) {
  const found = /** @type {HTMLElement} */ (box().querySelector(`[data-action="${action}"]`));
  found.textContent = text;
  found.dataset.on = on ?? "";
}

async function shares() {
  const of = id;
  const { data } = await get(`/v1/conversations/${of}/shares`);
  if (of === id) byId("rc-shares").replaceChildren(...data.map((/** @type {Share} */ share) => line(share, of)));
}

/** @param {Share} share */
const address = ({ path }) => new URL(path.slice(1), new URL("./", location.href)).href;

/** @param {Share} share @param {string} of */
function line(share, of) {
  const row = document.createElement("li");
  const link = document.createElement("a");
  link.href = address(share);
  link.textContent = link.href;
  link.target = "_blank";
  const take = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: "Copy" });
  take.addEventListener("click", () =>
    told(async () => {
      await copy(link.href);
      toast("The link is copied.");
    }),
  );
  const end = Object.assign(document.createElement("button"), { type: "button", className: "quiet danger", textContent: "Revoke" });
  end.addEventListener("click", () =>
    told(async () => {
      await remove(`/v1/conversations/${of}/shares/${share.id}`);
      row.remove();
      toast("The link shows nothing any more.");
    }),
  );
  row.append(link, take, end);
  return row;
}

/** @param {object} changes */
const file = (changes) =>
  told(async () => {
    await patch(`/v1/conversations/${id}`, changes);
    emit("listed");
  });

/** @param {HTMLElement} element @param {string} name */
async function flip(element, name) {
  await file({ [name]: !element.dataset.on });
  box().close();
}

async function share() {
  await told(async () => {
    const made = await post(`/v1/conversations/${id}/shares`);
    await shares();
    await copy(address(made)).catch(() => undefined);
    toast("Whoever has this link sees the conversation as it is now.");
  });
}

async function bring() {
  const input = /** @type {HTMLInputElement} */ (byId("rc-import-file"));
  const given = input.files?.[0];
  if (!given) return;
  const report = byId("rc-import-report");
  report.textContent = "Reading…";
  try {
    const response = await fetch("v1/conversations/import", { method: "POST", body: given });
    const told = await response.json();
    if (!response.ok) throw new Error(told.error.message);
    const head = document.createElement("p");
    head.textContent = `${told.imported} imported, ${told.already_here} were here already, ${told.empty + told.failed} left out.`;
    const list = document.createElement("ul");
    for (const problem of told.problems) list.append(Object.assign(document.createElement("li"), { textContent: problem }));
    report.replaceChildren(head, list);
    emit("listed");
  } catch (error) {
    report.textContent = /** @type {Error} */ (error).message;
  }
  input.value = "";
}

export function start() {
  onAction("conversation-more", more);
  box().addEventListener("close", () => {
    // the button that opened it is hidden again, so the browser has nowhere to give the focus back to
    if (document.activeElement !== document.body && !box().contains(document.activeElement)) return;
    /** @type {HTMLElement | null} */ (document.querySelector(`.conversation[data-conversation="${CSS.escape(id)}"] > a`))?.focus();
  });
  onAction("pin-conversation", (element) => flip(element, "pinned"));
  onAction("archive-conversation", (element) => flip(element, "archived"));
  onAction("share-conversation", share);
  folder().addEventListener("change", () => void file({ folder: folder().value.trim() || null }));
  onAction("import", () => /** @type {HTMLDialogElement} */ (byId("rc-import")).showModal());
  byId("rc-import-file").addEventListener("change", () => void bring());
}
