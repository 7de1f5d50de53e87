// @ts-check
/** What can be done with a message: copy, edit, answer again, continue, branch, other versions; and copying code. */
import { get, latest, newKey, post } from "./api.js";
import { changed, open, place } from "./conversation.js";
import { entered, onAction, toast, use } from "./dom.js";
import { chat, emit, on, tellTabs } from "./state.js";
import { idOf } from "./transcript.js";

/** @param {string} text */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const box = document.createElement("textarea"); // plain http on a local network has no clipboard API
  box.value = text;
  box.style.position = "fixed";
  box.style.opacity = "0";
  document.body.append(box);
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  if (!done) throw new Error("This browser does not allow copying here.");
}

/** @param {HTMLElement} button @param {string} text */
async function copyFrom(button, text) {
  await copy(text);
  const before = [...button.childNodes];
  if (button.classList.contains("code-copy")) button.textContent = "Copied";
  else button.replaceChildren(use("check"));
  button.classList.add("done");
  setTimeout(() => {
    button.replaceChildren(...before);
    button.classList.remove("done");
  }, 1600);
}

/** @param {(element: HTMLElement) => Promise<unknown>} action */
function told(action) {
  return async (/** @type {HTMLElement} */ element) => {
    try {
      await action(element);
    } catch (error) {
      toast(/** @type {Error} */ (error).message, { kind: "error" });
    }
  };
}

/** Keys of what was asked for and has no reply yet: asked for again, it is not made twice. @type {Map<string, string>} */
const keys = new Map();

/** As `post`, for what makes something. @param {string} path @param {object} [body] */
export async function make(path, body = {}) {
  const asked = `${path} ${JSON.stringify(body)}`;
  const key = keys.get(asked) ?? newKey();
  keys.set(asked, key);
  const made = await post(path, body, key);
  keys.delete(asked);
  return made;
}

const asking = latest();

/** Asks for another branch and shows it, unless a later one is shown by then. @param {() => Promise<any>} ask */
async function branch(ask) {
  const from = place();
  const isLatest = asking();
  const change = await ask();
  if (isLatest()) await changed(change, from);
}

/** @param {HTMLElement} element */
async function edit(element) {
  const message = element.closest(".message");
  const said = message?.querySelector(".said");
  if (!message || !said || message.querySelector(".editor")) return;
  const id = idOf(element);
  const { text } = await get(`/messages/${id}/text`);
  if (message.querySelector(".editor")) return; // a second click
  const form = document.createElement("form");
  form.className = "editor";
  const box = document.createElement("textarea");
  box.value = text;
  box.setAttribute("aria-label", "Edit your message");
  const row = document.createElement("footer");
  const cancel = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: "Cancel" });
  const send = Object.assign(document.createElement("button"), { type: "submit", className: "primary", textContent: "Send" });
  row.append(cancel, send);
  form.append(box, row);
  const close = () => {
    form.remove();
    message.classList.remove("editing");
  };
  cancel.addEventListener("click", close);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) {
      event.stopPropagation();
      close();
    }
    if (entered(event) && !event.shiftKey) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void told(() => branch(() => make(`/messages/${id}/edit`, { text: box.value })))(form);
  });
  said.after(form);
  message.classList.add("editing");
  box.style.height = `${Math.min(box.scrollHeight + 2, innerHeight * 0.5)}px`;
  box.focus();
}

/** A new conversation of what was said up to here. @param {HTMLElement} element */
async function fork(element) {
  const made = await make(`/v1/conversations/${chat.id}/fork`, { message_id: idOf(element) });
  await open(made.id);
  tellTabs(made.id);
  emit("listed");
  toast("A new chat of what was said up to here. The first one stays as it is.");
}

export function start() {
  onAction(
    "copy",
    told(async (element) => copyFrom(element, (await get(`/messages/${idOf(element)}/text`)).text)),
  );
  onAction(
    "copy-code",
    told(async (element) => copyFrom(element, element.closest("figure")?.querySelector("code")?.textContent ?? "")),
  );
  onAction(
    "copy-prompt",
    told(async (element) => {
      const parts = document.querySelectorAll("#rc-context .as-text");
      await copyFrom(element, [...parts].map((part) => part.textContent).join(""));
    }),
  );
  onAction("edit", told(edit));
  onAction("fork", told(fork));
  onAction(
    "branch",
    told(async (element) => {
      if (chat.run) throw new Error("An answer is being written. Stop it, or wait for its end.");
      await branch(() => post(`/messages/${element.dataset.to}/select`));
    }),
  );
  for (const name of ["regenerate", "continue"]) {
    onAction(
      name,
      told((element) => branch(() => make(`/messages/${idOf(element)}/${name}`))),
    );
  }
  on("opened", () => keys.clear()); // one sees what there is: asked for now, it is meant anew
}
