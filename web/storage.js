// Checkpoints in the browser's private file system: run/step/file. A step counts once its state.json
// is there, which is written last; each file appears whole or not at all.
const LAST = "state.json";
const KEEP = 2;

const root = () => navigator.storage.getDirectory();

async function folder(run, create) {
  try {
    return await (await root()).getDirectoryHandle(run, { create });
  } catch (error) {
    if (error.name === "NotFoundError") return null;
    throw error;
  }
}

async function steps(directory) {
  const found = [];
  for await (const [name, step] of directory.entries()) {
    if (step.kind !== "directory") continue;
    try {
      await step.getFileHandle(LAST);
      found.push(Number(name));
    } catch (error) {
      if (error.name !== "NotFoundError") throw error;
    }
  }
  return found.sort((a, b) => a - b);
}

// Keeps `files` {name: Uint8Array} as those of `step`, and of older steps only the newest.
export async function save(run, step, files) {
  const directory = await folder(run, true);
  const target = await directory.getDirectoryHandle(String(step), { create: true });
  const names = Object.keys(files).sort((a, b) => (a === LAST) - (b === LAST));
  for (const name of names) {
    const writer = await (await target.getFileHandle(name, { create: true })).createWritable();
    await writer.write(files[name]);
    await writer.close();
  }
  for (const old of (await steps(directory)).slice(0, -KEEP)) {
    await directory.removeEntry(String(old), { recursive: true });
  }
}

// The newest step that is whole, 0 if there is none.
export async function latest(run) {
  const directory = await folder(run, false);
  return directory ? ((await steps(directory)).at(-1) ?? 0) : 0;
}

// {name: Uint8Array} of a step.
export async function load(run, step) {
  const directory = await (await folder(run, false)).getDirectoryHandle(String(step));
  const files = {};
  for await (const [name, handle] of directory.entries()) {
    files[name] = new Uint8Array(await (await handle.getFile()).arrayBuffer());
  }
  return files;
}

export async function remove(run) {
  if (await folder(run, false)) await (await root()).removeEntry(run, { recursive: true });
}
