// The module worker: Pyodide with this package, which finds navigator.gpu by itself.
// What is loaded from where stands in config.json, written by scripts/build_web.py.
import * as scripts from "./scripts.js"; // the package's own, which scripts/build_web.py writes
import * as storage from "./storage.js";

const booted = boot();

async function boot() {
  const config = await (await fetch("config.json")).json();
  const archives = config.unpack.map(load); // while Pyodide comes in
  const base = new URL(config.pyodide, location.href).href;
  const { loadPyodide } = await import(`${base}pyodide.mjs`);
  const pyodide = await loadPyodide({ indexURL: base });
  // What does not come, or is not what Pyodide's lock file says, is told by nothing but a callback.
  let refused = "";
  const errorCallback = (message) => (refused = message);
  await pyodide.loadPackage(config.load, { errorCallback });
  const missing = config.load.find((name) => !(name in pyodide.loadedPackages));
  if (missing) throw new Error(`${missing} does not come, or is not the one of Pyodide's lock file: ${refused}`);
  for (const archive of archives) pyodide.unpackArchive(await archive, "wheel");
  pyodide.registerJsModule("wgtrain_scripts", scripts);
  pyodide.registerJsModule("wgtrain_storage", storage);
  // Before a chat template runs, the page hears how long it may take; then nothing else gets through.
  pyodide.registerJsModule("wgtrain_watch", { rendering: (seconds) => postMessage({ rendering: seconds }) });
  return pyodide;
}

async function load(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: status ${answer.status}`);
  return answer.arrayBuffer();
}

// Each call has names of its own, so that those under way at one time do not mix.
onmessage = async ({ data: { id, code, values } }) => {
  let globals;
  try {
    const pyodide = await booted;
    globals = pyodide.globals.get("dict")();
    globals.set("values", values);
    const found = await pyodide.runPythonAsync(code, { globals });
    const options = { create_proxies: false, dict_converter: Object.fromEntries };
    const result = found?.toJs ? found.toJs(options) : found;
    found?.destroy?.();
    postMessage({ id, result });
  } catch (error) {
    postMessage({ id, error: error.message || String(error) });
  } finally {
    globals?.destroy();
  }
};
