// @ts-check
/** System prompt and generation parameters of the open conversation; an empty field follows the model. */
import { patch } from "./api.js";
import { byId, onAction } from "./dom.js";
import { defaults as inForce, onModels } from "./models.js";
import { chat, learn, on } from "./state.js";

const FALLBACK = { temperature: 1, top_p: 1, top_k: 0, min_p: 0, repetition_penalty: 1, max_tokens: "to the window's end", seed: "random" };
const NUMBERS = Object.keys(FALLBACK);
const WHOLE = ["top_k", "max_tokens", "seed"];

const form = () => /** @type {HTMLFormElement} */ (byId("rc-settings"));
/** @param {string} name */
const field = (name) => /** @type {HTMLInputElement | HTMLTextAreaElement} */ (form().elements.namedItem(name));

function fill() {
  if (form().contains(document.activeElement)) return;
  field("system").value = chat.system;
  for (const name of NUMBERS) field(name).value = chat.sampling[name] ?? "";
  field("stop").value = (chat.sampling.stop ?? []).join("\n");
  complain("");
}

function hints() {
  const defaults = inForce();
  for (const [name, value] of Object.entries(FALLBACK)) {
    field(name).placeholder = String(defaults[name] ?? value);
  }
  field("stop").placeholder = (defaults.stop ?? []).join(" ") || "none";
}

/** @param {string} text */
function complain(text) {
  const line = byId("rc-settings-error");
  line.textContent = text;
  line.hidden = !text;
}

/** The fields as sampling, or null after saying what is wrong. @returns {Record<string, any> | null} */
function sampling() {
  /** @type {Record<string, any>} */
  const asked = {};
  for (const name of NUMBERS) {
    const box = /** @type {HTMLInputElement} */ (field(name));
    const label = box.labels?.[0]?.textContent ?? name;
    const wrong = box.validity.badInput || box.validity.rangeUnderflow || box.validity.rangeOverflow;
    const value = box.valueAsNumber;
    box.setAttribute("aria-invalid", String(wrong));
    if (wrong || (!Number.isNaN(value) && WHOLE.includes(name) && !Number.isInteger(value))) {
      const kind = WHOLE.includes(name) ? "a whole number" : "a number";
      complain(`${label} is ${kind} from ${box.min} to ${box.max}.`);
      return null;
    }
    if (!Number.isNaN(value)) asked[name] = value;
  }
  const stop = field("stop").value.split("\n").filter(Boolean);
  if (stop.length) asked.stop = stop;
  return asked;
}

async function save() {
  const asked = sampling();
  if (!asked) return;
  complain("");
  const changes = { system: field("system").value, sampling: asked };
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
    for (const name of [...NUMBERS, "stop"]) field(name).value = "";
    await save();
  });
  on("opened", fill);
  on("facts", fill);
  onModels(hints);
}
