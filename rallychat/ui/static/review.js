// @ts-check
/** The review page of one model: what it is, and what a person chooses for it, kept as it is changed. */
import { html, inTurn, post } from "./api.js";
import { byId, fragment, onAction } from "./dom.js";
import { choose, entryOf } from "./models.js";
import * as composer from "./composer.js";

/** @typedef {{chosen: Record<string, number>, in_force: Record<string, any>, yaml: string}} Generation */
const WHOLE = ["max_tokens", "top_k"];
let shown = "";
let drawn = "";

const page = () => byId("rc-review");
const form = () => /** @type {HTMLFormElement | null} */ (document.getElementById("rc-choice"));
const key = () => `${entryOf(shown)?.state} ${entryOf(shown)?.note}`;

/** @param {string} model @param {{stay?: boolean}} [options] */
export async function show(model, { stay = false } = {}) {
  shown = model;
  const fresh = await html(`/models/review?model=${encodeURIComponent(model)}`);
  if (shown !== model) return;
  const top = page().scrollTop;
  page().replaceChildren(fragment(fresh));
  page().scrollTop = stay ? top : 0;
  drawn = key();
}

/** What can be done follows the model's state. */
export async function update() {
  const place = page().querySelector(".review-state");
  const entry = entryOf(shown);
  if (!place || !entry) return;
  if (drawn === key() && entry.state !== "downloading") return;
  drawn = key();
  const fresh = await html(`/models/state?model=${encodeURIComponent(shown)}`).catch(() => "");
  if (!fresh || !place.isConnected) return;
  const focused = place.contains(document.activeElement) && document.activeElement instanceof HTMLElement ? document.activeElement.dataset.action : null;
  place.replaceWith(fragment(fresh));
  if (!focused) return;
  const now = page().querySelector(".review-state");
  /** @type {HTMLElement | null | undefined} */ (now?.querySelector(`[data-action="${focused}"]`) ?? now?.querySelector("button"))?.focus();
}

/** @param {Element | null} line @param {string} text */
function complain(line, text) {
  if (!(line instanceof HTMLElement)) return;
  line.textContent = text;
  line.hidden = !text;
}

/** @param {string} part @returns {HTMLInputElement[]} */
const fields = (part) => [...(form()?.querySelectorAll(`input[data-part="${part}"]`) ?? [])].map((field) => /** @type {HTMLInputElement} */ (field));

/** The fields of one generation config. Throws with a sentence if one is wrong. @param {string} part */
function sampling(part) {
  /** @type {Record<string, number>} */
  const asked = {};
  for (const box of fields(part)) {
    const value = box.valueAsNumber;
    const whole = WHOLE.includes(box.name);
    const { badInput, rangeUnderflow, rangeOverflow } = box.validity;
    const wrong = badInput || rangeUnderflow || rangeOverflow || (whole && !Number.isNaN(value) && !Number.isInteger(value));
    box.setAttribute("aria-invalid", String(wrong));
    if (wrong) throw new Error(`${box.labels?.[0]?.textContent} is ${whole ? "a whole number" : "a number"} from ${box.min} to ${box.max}.`);
    if (!Number.isNaN(value)) asked[box.name] = value;
  }
  return asked;
}

/** Shows what is in force now. @param {Record<string, Generation>} told */
function fill(told) {
  for (const [part, { chosen, in_force: inForce, yaml }] of Object.entries(told)) {
    for (const box of fields(part)) {
      if (box !== document.activeElement) box.value = String(chosen[box.name] ?? "");
      box.placeholder = String(inForce[box.name] ?? "not set");
    }
    const text = form()?.querySelector(`[data-part="${part}"] .yaml textarea`);
    if (text instanceof HTMLTextAreaElement && text !== document.activeElement) text.value = yaml;
  }
}

/** @param {Event} event */
async function save(event) {
  const box = event.target;
  if (!form()?.contains(/** @type {Node} */ (box)) || (box instanceof HTMLTextAreaElement && !box.name)) return;
  const model = shown;
  const line = byId("rc-choice-error");
  try {
    const data = new FormData(/** @type {HTMLFormElement} */ (form()));
    const asked = { model, answer: sampling("answer"), summary: sampling("summary"), summary_prompt: data.get("summary_prompt") ?? "", multi_gpu: data.has("multi_gpu"), way: data.get("way") ?? "auto" };
    complain(line, "");
    const told = await inTurn("/models/choice", () => post("/models/choice", asked));
    if (shown !== model) return;
    fill(told);
    if (box instanceof HTMLInputElement && ["way", "multi_gpu"].includes(box.name)) await again(box);
    saved("Kept.");
  } catch (error) {
    complain(line, /** @type {Error} */ (error).message);
    saved("");
  }
}

/** Another way to run it changes what else is said of it. @param {HTMLInputElement} box */
async function again({ name, value }) {
  await show(shown, { stay: true });
  const same = form()?.querySelector(`[name="${name}"][value="${value}"]`) ?? form()?.querySelector(`[name="${name}"]`);
  /** @type {HTMLElement | null | undefined} */ (same)?.focus();
}

/** @param {string} text */
function saved(text) {
  const line = document.getElementById("rc-choice-saved");
  if (line) line.textContent = text;
}

/** @param {HTMLElement} element */
async function applyYaml(element) {
  const box = /** @type {HTMLElement} */ (element.closest(".generation"));
  const text = /** @type {HTMLTextAreaElement | null} */ (box.querySelector(".yaml textarea"))?.value ?? "";
  const line = box.querySelector(".field-error");
  const model = shown;
  try {
    const told = await post("/models/choice/yaml", { model, part: box.dataset.part, text });
    if (shown !== model) return;
    fill(told);
    complain(line, "");
    saved("Kept.");
  } catch (error) {
    complain(line, /** @type {Error} */ (error).message);
  }
}

export function start() {
  page().addEventListener("change", (event) => void save(event));
  page().addEventListener("submit", (event) => event.preventDefault());
  onAction("apply-yaml", applyYaml);
  onAction("reset-choice", async () => {
    const model = shown;
    try {
      await post("/models/choice/reset", { model });
      if (shown !== model) return;
      await show(model, { stay: true });
      saved("All as the model has it.");
    } catch (error) {
      complain(byId("rc-choice-error"), /** @type {Error} */ (error).message);
    }
  });
  onAction("ask-model", async (element) => {
    await choose(shown);
    /** @type {HTMLDialogElement} */ (byId("rc-models")).close();
    composer.write(element.textContent ?? "");
    byId("rc-input").focus();
  });
}
