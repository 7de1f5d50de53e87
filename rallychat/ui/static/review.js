// @ts-check
/** The review page of one model. */
import { html } from "./api.js";
import { byId, fragment } from "./dom.js";
import { entryOf } from "./models.js";

let shown = "";
let drawn = "";

/** @param {string} model */
export async function show(model) {
  shown = model;
  const page = await html(`/models/review?model=${encodeURIComponent(model)}`);
  if (shown !== model) return;
  byId("rc-review").replaceChildren(fragment(page));
  byId("rc-review").scrollTop = 0;
  drawn = key();
}

const key = () => `${entryOf(shown)?.state} ${entryOf(shown)?.note}`;

/** What can be done follows the model's state. */
export async function update() {
  const place = byId("rc-review").querySelector(".review-state");
  const entry = entryOf(shown);
  if (!place || !entry) return;
  if (drawn === key() && entry.state !== "downloading") return;
  drawn = key();
  const fresh = await html(`/models/state?model=${encodeURIComponent(shown)}`).catch(() => "");
  if (!fresh || !place.isConnected) return;
  const focused = place.contains(document.activeElement) && document.activeElement instanceof HTMLElement ? document.activeElement.dataset.action : null;
  place.replaceWith(fragment(fresh));
  if (!focused) return;
  const now = byId("rc-review").querySelector(".review-state");
  /** @type {HTMLElement | null | undefined} */ (now?.querySelector(`[data-action="${focused}"]`) ?? now?.querySelector("button"))?.focus();
}

export function start() {}
