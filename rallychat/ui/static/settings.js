// @ts-check
/** System prompt and generation parameters of the open conversation; an empty field follows the model. */
import { patch } from "./api.js";
import { byId, onAction, toast } from "./dom.js";
import { field as fieldOf, hint, read, write } from "./fields.js";
import { onModels } from "./models.js";
import { chat, learn, on } from "./state.js";

const form = () => /** @type {HTMLFormElement} */ (byId("rc-settings"));
const errorLine = () => byId("rc-settings-error");
const system = () => fieldOf(form(), "system");

function fill() {
  if (form().contains(document.activeElement)) return;
  system().value = chat.system;
  write(form(), chat.sampling);
  complain("");
}

/** @param {string} text */
function complain(text) {
  const line = errorLine();
  line.textContent = text;
  line.hidden = !text;
}

/** Saves one field and no other: what those show may be older than what another tab has saved.
 * @param {Event} event */
function save({ target }) {
  if (target === system()) return keep({ system: system().value });
  let asked;
  try {
    asked = read(form());
  } catch (error) {
    return complain(/** @type {Error} */ (error).message);
  }
  complain("");
  const { name } = /** @type {HTMLInputElement} */ (target);
  const { [name]: _, ...others } = chat.sampling;
  return keep({ sampling: name in asked ? { ...others, [name]: asked[name] } : others });
}

/** @param {Partial<import("./state.js").Chat>} changes */
async function keep(changes) {
  learn(changes);
  const { id } = chat;
  if (!id) return;
  try {
    await patch(`/conversations/${id}`, changes);
  } catch (error) {
    const { message } = /** @type {Error} */ (error);
    if (chat.id === id) complain(message);
    else toast(message, { kind: "error" });
  }
}

export function start() {
  form().addEventListener("change", (event) => void save(event));
  form().addEventListener("submit", (event) => event.preventDefault());
  onAction("reset-settings", async () => {
    write(form(), {});
    complain("");
    await keep({ sampling: {} });
  });
  on("opened", fill);
  on("facts", () => errorLine().hidden && fill());
  onModels(() => hint(form()));
}
