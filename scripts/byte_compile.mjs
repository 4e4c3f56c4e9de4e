// Replaces the Python files of zip archives by bytecode, made by the Python that a page has.
//   node scripts/byte_compile.mjs PYODIDE FOLDER     all *.zip in FOLDER, with Pyodide from npm
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [source, folder] = process.argv.slice(2).map((path) => resolve(path));
const { loadPyodide } = await import(pathToFileURL(join(source, "pyodide.mjs")));
const pyodide = await loadPyodide();
pyodide.mountNodeFS("/archives", folder);
try {
  pyodide.runPython(`
import io, py_compile, zipfile
from pathlib import Path

module = Path("/tmp/module.py")
unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH  # no time stamps: archives reproduce
for path in Path("/archives").glob("*.zip"):
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            entry.compress_type, entry.compress_level = zipfile.ZIP_DEFLATED, 9
            if entry.filename.endswith(".py"):
                module.write_bytes(data)
                made = py_compile.compile(
                    str(module), dfile=entry.filename, doraise=True, invalidation_mode=unchecked
                )
                data = Path(made).read_bytes()
                entry.filename += "c"
            new.writestr(entry, data)
    path.write_bytes(out.getvalue())
`);
} catch (error) {
  console.error(error.message); // uncaught, node prints the line that threw, all of Pyodide
  process.exit(1);
}
