// @ts-check
/** Requests to our own server, by relative addresses, so that a proxy may put a folder in front. Every failure is one sentence a person can read. */

export class ApiError extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** @param {string} path */
export const get = (path) => ask("GET", path);
/** `key`: sent again with it, the same is not done twice. @param {string} path @param {object} [body] @param {string} [key] */
export const post = (path, body = {}, key) => ask("POST", path, body, key);
/** @param {string} path @param {object} body */
export const patch = (path, body) => inTurn(path, () => ask("PATCH", path, body));
/** @param {string} path */
export const remove = (path) => ask("DELETE", path, {});

/** A key for `post`. Over plain http on a local network there is no `crypto.randomUUID`. */
export const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** @param {string} path @returns {Promise<string>} */
export async function html(path) {
  const response = await answered("GET", path);
  return response.text();
}

/** For what is asked again and again: replies may overtake one another. Each call stands for one asking, and gives
 * what says, once the reply is there, whether nothing that was asked later has come before it. */
export function latest() {
  let asked = 0;
  let come = 0;
  return () => {
    const mine = ++asked;
    return () => {
      if (mine < come) return false;
      come = mine;
      return true;
    };
  };
}

/** What is under way of each thing that is changed. @type {Map<string, Promise<unknown>>} */
const changes = new Map();

/** Changes of one thing, one after the other: what was said last is kept last.
 * @template T @param {string} thing @param {() => Promise<T>} change @returns {Promise<T>} */
export async function inTurn(thing, change) {
  const before = changes.get(thing);
  const mine = (async () => {
    await before?.catch(() => {});
    return change();
  })();
  changes.set(thing, mine);
  try {
    return await mine;
  } finally {
    if (changes.get(thing) === mine) changes.delete(thing);
  }
}

/** @param {string} method @param {string} path @param {object} [body] @param {string} [key] @returns {Promise<any>} */
async function ask(method, path, body, key) {
  const response = await answered(method, path, body, key);
  return response.json();
}

/** @param {string} method @param {string} path @param {object} [body] @param {string} [key] */
async function answered(method, path, body, key) {
  let response;
  try {
    response = await fetch(path.startsWith("/v1/") ? path.slice(1) : `ui${path}`, {
      method,
      headers: { ...(body && { "content-type": "application/json" }), ...(key && { "idempotency-key": key }) },
      body: body ? JSON.stringify(body) : undefined,
    });
  } catch {
    throw new ApiError("The server does not answer. Is RallyChat still running?", 0);
  }
  if (response.ok) return response;
  if (response.status === 401) location.assign("login");
  throw new ApiError(await sentence(response), response.status);
}

/** @param {Response} response */
async function sentence(response) {
  try {
    const { error } = await response.json();
    const end = /[.?!]$/.test(error.hint ?? "") ? "" : ".";
    const hint = error.hint ? ` ${error.hint[0].toUpperCase()}${error.hint.slice(1)}${end}` : "";
    return `${error.message}${hint}`;
  } catch {
    return `The server answered ${response.status}.`;
  }
}
