// @ts-check
/** Personas: who the model is to be in a new chat. Chosen on the start page, written in a dialog. */
import { make } from "./actions.js";
import { get, latest, post, remove } from "./api.js";
import { byId, confirmed, entered, onAction, toast, use } from "./dom.js";
import { field, hint, read, write } from "./fields.js";
import { entries, prepare } from "./models.js";
import { chat, learn, on } from "./state.js";

/** @typedef {{id: string, name: string, system: string, model: string | null, sampling: Record<string, any>}} Persona */
/** @type {Persona[]} */
let all = [];
const asking = latest();
let chosen = "";
/** The one in the dialog; "": a new one. */
let edited = "";

const dialog = () => /** @type {HTMLDialogElement} */ (byId("rc-persona"));
const blank = () => /** @type {HTMLTemplateElement} */ (byId("rc-persona-form")).content;
const form = () => /** @type {HTMLFormElement} */ (dialog().querySelector("form"));

/** @param {string} id */
const personaOf = (id) => all.find((persona) => persona.id === id);

async function refresh() {
  if (chat.id !== null) return;
  const isLatest = asking();
  try {
    const { data } = await get("/v1/personas");
    if (!isLatest()) return;
    all = data;
  } catch {
    return; // that the server is away is said beside the model's name
  }
  draw();
}

function draw() {
  if (chosen && !personaOf(chosen)) chosen = "";
  byId("rc-personas").replaceChildren(...all.map(chip), adding());
}

/** @param {Persona} persona */
function chip(persona) {
  const on = persona.id === chosen;
  const box = Object.assign(document.createElement("span"), { className: "persona-chip" });
  const pick = Object.assign(document.createElement("button"), { type: "button", textContent: persona.name, title: persona.system.slice(0, 300) });
  pick.dataset.action = "choose-persona";
  pick.setAttribute("aria-pressed", String(on));
  const edit = Object.assign(document.createElement("button"), { type: "button", className: "action", title: "Edit" });
  edit.dataset.action = "edit-persona";
  edit.setAttribute("aria-label", `Edit ${persona.name}`);
  edit.append(use("edit"));
  box.dataset.persona = persona.id;
  box.append(pick, edit);
  return box;
}

function adding() {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "persona-new" });
  button.dataset.action = "new-persona";
  button.append(use("plus"), all.length ? "New" : "New persona");
  if (all.length) button.setAttribute("aria-label", "New persona");
  return button;
}

/** A second click takes it back. @param {string} id */
function choose(id) {
  const persona = personaOf(id === chosen ? "" : id);
  chosen = persona?.id ?? "";
  learn({ system: persona?.system ?? "", model: persona?.model ?? null, sampling: persona?.sampling ?? {} });
  void prepare(persona?.model ?? null);
  draw();
}

/** @param {string} id @param {Omit<Persona, "id">} persona */
function show(id, persona) {
  edited = id;
  dialog().replaceChildren(blank().cloneNode(true)); // its fields are named as those of the settings: only while it is open
  byId("rc-persona-title").textContent = id ? "Persona" : "New persona";
  byId("rc-persona-delete").hidden = !id;
  field(form(), "name").value = persona.name;
  field(form(), "system").value = persona.system;
  models(persona.model);
  write(form(), persona.sampling);
  hint(form());
  const details = form().querySelector("details");
  if (details) details.open = Object.keys(persona.sampling).length > 0;
  complain("");
  dialog().showModal();
}

/** @param {string | null} model */
function models(model) {
  const choices = [new Option("The one in use", ""), ...entries().map((entry) => new Option(entry.name, entry.id))];
  if (model && !entries().some((entry) => entry.id === model)) choices.push(new Option(`${model} (not here any more)`, model));
  const box = /** @type {HTMLSelectElement} */ (field(form(), "model"));
  box.replaceChildren(...choices);
  box.value = model ?? "";
}

/** @param {string} text */
function complain(text) {
  const line = byId("rc-persona-error");
  line.textContent = text;
  line.hidden = !text;
}

async function save() {
  try {
    const name = field(form(), "name").value.trim();
    if (!name) throw new Error("A persona needs a name.");
    const given = { name, system: field(form(), "system").value, model: field(form(), "model").value || null, sampling: read(form()) };
    const kept = await (edited ? post(`/v1/personas/${edited}`, given) : make("/v1/personas", given));
    dialog().close();
    await refresh();
    if (chat.id !== null) toast("Kept. It is offered where a new chat begins.");
    else if (kept.id === chosen || !edited) {
      chosen = "";
      choose(kept.id);
    }
  } catch (error) {
    complain(/** @type {Error} */ (error).message);
  }
}

async function erase() {
  const text = "Conversations that began with it stay as they are.";
  if (!(await confirmed({ title: `Delete ${personaOf(edited)?.name ?? "this persona"}?`, text, yes: "Delete" }))) return;
  try {
    await remove(`/v1/personas/${edited}`);
    dialog().close();
    if (edited === chosen) choose(edited);
    await refresh();
  } catch (error) {
    complain(/** @type {Error} */ (error).message);
  }
}

/** @param {HTMLElement} element */
const idOf = (element) => /** @type {HTMLElement} */ (element.closest("[data-persona]")).dataset.persona ?? "";

export function start() {
  onAction("choose-persona", (element) => choose(idOf(element)));
  onAction("edit-persona", (element) => {
    const persona = personaOf(idOf(element));
    if (persona) show(persona.id, persona);
  });
  onAction("new-persona", () => show("", { name: "", system: "", model: null, sampling: {} }));
  onAction("keep-as-persona", () => show("", { name: "", system: chat.system, model: chat.model, sampling: chat.sampling }));
  onAction("save-persona", save);
  onAction("delete-persona", erase);
  dialog().addEventListener("close", () => dialog().open || dialog().replaceChildren());
  dialog().addEventListener("submit", (event) => {
    const by = /** @type {HTMLButtonElement | null} */ (event.submitter);
    if (by?.value === "no") return;
    event.preventDefault();
  });
  dialog().addEventListener("keydown", (event) => {
    if (!entered(event) || !(event.target instanceof HTMLInputElement)) return;
    event.preventDefault();
    void save();
  });
  on("opened", () => {
    chosen = "";
    void refresh();
  });
}
