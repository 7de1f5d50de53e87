// @ts-check
/** A model of one's own: its hub id or path is typed, and its prompt format chosen if it does not say it. */
import { html, post } from "./api.js";
import { byId, fragment } from "./dom.js";

/** @param {string} id */
const field = (id) => /** @type {HTMLInputElement | HTMLSelectElement} */ (byId(id));

/** @param {string} text */
function complain(text) {
  byId("rc-bring-error").textContent = text;
  byId("rc-bring-error").hidden = !text;
}

/** @param {{asks: string, families: {id: string, name: string}[]}} question */
function ask({ asks, families }) {
  byId("rc-bring-asks").textContent = `${asks} Which is it? Its model card says so.`;
  const options = families.map(({ id, name }) => Object.assign(document.createElement("option"), { value: id, textContent: name }));
  const none = Object.assign(document.createElement("option"), { value: "", textContent: "Choose a prompt format" });
  field("rc-bring-family").replaceChildren(none, ...options);
  byId("rc-bring-preview").replaceChildren();
  byId("rc-bring-question").hidden = false;
  field("rc-bring-family").focus();
}

async function preview() {
  const family = field("rc-bring-family").value;
  const fresh = family ? await html(`/families/preview?family=${encodeURIComponent(family)}`).catch(() => "") : "";
  if (family === field("rc-bring-family").value) byId("rc-bring-preview").replaceChildren(fragment(fresh));
}

/** @param {(model: string) => unknown} brought */
export function start(brought) {
  const menu = byId("rc-menu");
  menu.addEventListener("submit", async (event) => {
    const form = /** @type {HTMLElement} */ (event.target);
    if (form.id !== "rc-bring") return;
    event.preventDefault();
    const name = field("rc-bring-name").value.trim();
    const asked = !byId("rc-bring-question").hidden;
    const family = field("rc-bring-family").value;
    if (!name) return;
    if (asked && !family) return complain("Choose the prompt format first.");
    complain("");
    const button = form.querySelector("button");
    button?.setAttribute("disabled", "");
    try {
      const answer = await post("/models/bring", { name, family: asked ? family : null });
      if (answer.model) await brought(answer.model);
      else ask(answer);
    } catch (error) {
      complain(/** @type {Error} */ (error).message);
    } finally {
      button?.removeAttribute("disabled");
    }
  });
  menu.addEventListener("input", (event) => {
    const { id } = /** @type {HTMLElement} */ (event.target);
    if (id === "rc-bring-name") byId("rc-bring-question").hidden = true; // another model, another question
    if (id === "rc-bring-family") void preview();
  });
}
