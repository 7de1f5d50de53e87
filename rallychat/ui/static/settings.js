// @ts-check
/** System prompt and generation parameters of the open conversation; an empty field follows the model. */
import { patch } from "./api.js";
import { byId, onAction } from "./dom.js";
import { field as fieldOf, hint, read, write } from "./fields.js";
import { onModels } from "./models.js";
import { chat, learn, on } from "./state.js";

const form = () => /** @type {HTMLFormElement} */ (byId("rc-settings"));
const system = () => fieldOf(form(), "system");

function fill() {
  if (form().contains(document.activeElement)) return;
  system().value = chat.system;
  write(form(), chat.sampling);
  complain("");
}

/** @param {string} text */
function complain(text) {
  const line = byId("rc-settings-error");
  line.textContent = text;
  line.hidden = !text;
}

async function save() {
  let asked;
  try {
    asked = read(form());
  } catch (error) {
    return complain(/** @type {Error} */ (error).message);
  }
  complain("");
  const changes = { system: system().value, sampling: asked };
  learn(changes);
  if (!chat.id) return;
  try {
    await patch(`/conversations/${chat.id}`, changes);
  } catch (error) {
    complain(/** @type {Error} */ (error).message);
  }
}

export function start() {
  form().addEventListener("change", () => void save());
  form().addEventListener("submit", (event) => event.preventDefault());
  onAction("reset-settings", async () => {
    write(form(), {});
    await save();
  });
  on("opened", fill);
  on("facts", fill);
  onModels(() => hint(form()));
}
