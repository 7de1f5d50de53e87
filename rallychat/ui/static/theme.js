// @ts-check
/** Light, dark, or as the system has it. Gradio knows dark by a class on the body; ours is on the document. */
import { onAction } from "./dom.js";

const CHOICES = ["system", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");

const chosen = () => localStorage.getItem("rallychat.theme") ?? "system";

function apply() {
  const choice = chosen();
  const dark = choice === "dark" || (choice === "system" && system.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.body.classList.toggle("dark", dark);
  for (const icon of document.querySelectorAll("[data-theme-icon]")) {
    /** @type {HTMLElement} */ (icon).hidden = icon.getAttribute("data-theme-icon") !== choice;
  }
  const label = `Colours: ${choice === "system" ? "as the system" : choice}`;
  for (const button of document.querySelectorAll('[data-action="theme"]')) {
    button.setAttribute("title", label);
    button.setAttribute("aria-label", label);
  }
}

export function start() {
  onAction("theme", () => {
    const next = CHOICES[(CHOICES.indexOf(chosen()) + 1) % CHOICES.length];
    localStorage.setItem("rallychat.theme", next);
    apply();
  });
  system.addEventListener("change", apply);
  window.addEventListener("storage", (event) => event.key === "rallychat.theme" && apply());
  apply();
}
