// The page: it owns the worker in which Python and the GPU live, and asks it to run Python code.
import * as storage from "./storage.js";

const waiting = new Map();
let last = 0;
let timer;
let worker = begin();

function begin() {
  const begun = new Worker("worker.js", { type: "module" });
  begun.onmessage = ({ data: { id, result, error, rendering } }) => {
    if (rendering !== undefined) return watch(rendering);
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(result);
  };
  return begun;
}

// A chat template, which is a stranger's code, may take so many seconds; 0 when it is done.
function watch(seconds) {
  clearTimeout(timer);
  if (seconds) timer = setTimeout(end, seconds * 1000, seconds);
}

// Nothing but its end stops a worker that computes: all that its Python held is lost, and it begins anew.
function end(seconds) {
  worker.terminate();
  worker = begin();
  const error = new Error(`the chat template computes for more than ${Math.round(seconds)} s: Python was ended and begins anew`);
  for (const { reject } of waiting.values()) reject(error);
  waiting.clear();
}

// Runs Python code, in which `await` is allowed and `values` is what was passed; its last expression.
function python(code, values = {}) {
  return new Promise((resolve, reject) => {
    waiting.set(++last, { resolve, reject });
    worker.postMessage({ id: last, code, values });
  });
}

globalThis.wgtrain = { python, storage };
const state = document.getElementById("state");
python("import wgtrain; wgtrain.__version__").then(
  (version) => (state.textContent = `wgtrain ${version} is ready`),
  (error) => (state.textContent = error.message),
);
