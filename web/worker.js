// The module worker: Pyodide with this package, which finds navigator.gpu by itself.
// What is loaded from where stands in config.json, written by scripts/build_web.py.
import * as storage from "./storage.js";

const booted = boot();

async function boot() {
  const config = await (await fetch("config.json")).json();
  const base = new URL(config.pyodide, location.href).href;
  const { loadPyodide } = await import(`${base}pyodide.mjs`);
  const pyodide = await loadPyodide({ indexURL: base });
  await pyodide.loadPackage(config.load);
  for (const path of config.unpack) {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(`${path}: status ${answer.status}`);
    pyodide.unpackArchive(await answer.arrayBuffer(), "wheel");
  }
  pyodide.registerJsModule("wgtrain_storage", storage);
  return pyodide;
}

onmessage = async ({ data: { id, code, values } }) => {
  try {
    const pyodide = await booted;
    pyodide.globals.set("values", values);
    const found = await pyodide.runPythonAsync(code);
    const options = { create_proxies: false, dict_converter: Object.fromEntries };
    const result = found?.toJs ? found.toJs(options) : found;
    found?.destroy?.();
    postMessage({ id, result });
  } catch (error) {
    postMessage({ id, error: error.message || String(error) });
  }
};
