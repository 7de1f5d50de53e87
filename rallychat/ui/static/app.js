// @ts-check
/** Waits until Gradio has drawn the frame, then brings it to life. */
import * as actions from "./actions.js";
import * as composer from "./composer.js";
import * as context from "./context.js";
import * as conversation from "./conversation.js";
import { listen } from "./dom.js";
import * as keys from "./keys.js";
import * as library from "./library.js";
import * as menu from "./menu.js";
import * as models from "./models.js";
import * as personas from "./personas.js";
import * as review from "./review.js";
import * as settings from "./settings.js";
import * as sidebar from "./sidebar.js";
import * as theme from "./theme.js";
import * as transcript from "./transcript.js";

const FRAME = ["rc-stage", "rc-left", "rc-right", "rc-conversations", "rc-settings"];

/** @returns {Promise<void>} */
function framed() {
  const whole = () => FRAME.every((id) => document.getElementById(id));
  return new Promise((resolve) => {
    if (whole()) return resolve();
    const observer = new MutationObserver(() => {
      if (!whole()) return;
      observer.disconnect();
      resolve();
    });
    observer.observe(document.documentElement, { childList: true, subtree: true });
  });
}

async function main() {
  await framed();
  listen();
  theme.start();
  transcript.start();
  actions.start();
  composer.start();
  sidebar.start();
  library.start();
  models.start();
  menu.start();
  review.start();
  settings.start();
  personas.start();
  context.start();
  keys.start();
  await conversation.start();
  document.documentElement.dataset.ready = "true";
}

void main();
