// The page: it owns the worker in which Python and the GPU live, and asks it to run Python code.
import * as storage from "./storage.js";

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let last = 0;

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(result);
};

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
