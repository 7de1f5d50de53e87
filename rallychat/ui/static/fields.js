// @ts-check
/** Fields of generation parameters in a form: fills them, and reads them back. An empty field follows the model. */
import { defaults as inForce } from "./models.js";

const FALLBACK = { temperature: 1, top_p: 1, top_k: 0, min_p: 0, repetition_penalty: 1, max_tokens: "to the window's end", seed: "random" };
const NUMBERS = Object.keys(FALLBACK);
const WHOLE = ["top_k", "max_tokens", "seed"];

/** @typedef {HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement} Field */

/** @param {HTMLFormElement} form @param {string} name */
export const field = (form, name) => /** @type {Field} */ (form.elements.namedItem(name));

/** @param {HTMLFormElement} form @param {Record<string, any>} sampling */
export function write(form, sampling) {
  for (const name of NUMBERS) {
    field(form, name).value = sampling[name] ?? "";
    field(form, name).setAttribute("aria-invalid", "false");
  }
  field(form, "stop").value = (sampling.stop ?? []).join("\n");
}

/** What the model in use does where a field is empty, in grey. @param {HTMLFormElement} form */
export function hint(form) {
  const defaults = inForce();
  for (const [name, value] of Object.entries(FALLBACK)) {
    /** @type {HTMLInputElement} */ (field(form, name)).placeholder = String(defaults[name] ?? value);
  }
  /** @type {HTMLTextAreaElement} */ (field(form, "stop")).placeholder = (defaults.stop ?? []).join(" ") || "none";
}

/** The fields as sampling. Throws what is wrong, as a sentence. @param {HTMLFormElement} form */
export function read(form) {
  /** @type {Record<string, any>} */
  const asked = {};
  for (const name of NUMBERS) {
    const box = /** @type {HTMLInputElement} */ (field(form, name));
    const label = box.labels?.[0]?.textContent ?? name;
    const wrong = box.validity.badInput || box.validity.rangeUnderflow || box.validity.rangeOverflow;
    const value = box.valueAsNumber;
    box.setAttribute("aria-invalid", String(wrong));
    if (wrong || (!Number.isNaN(value) && WHOLE.includes(name) && !Number.isInteger(value))) {
      const kind = WHOLE.includes(name) ? "a whole number" : "a number";
      throw new Error(`${label} is ${kind} from ${box.min} to ${box.max}.`);
    }
    if (!Number.isNaN(value)) asked[name] = value;
  }
  const stop = field(form, "stop").value.split("\n").filter(Boolean);
  if (stop.length) asked.stop = stop;
  return asked;
}
