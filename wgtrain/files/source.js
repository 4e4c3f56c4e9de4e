// Files of a page as byte ranges: {name, size, read(start, n), pump(start, n, sink), close()}.
//
// `pump` hands the bytes to `sink(bytes, at)` in pieces whose lengths, but for the last, are
// multiples of four; a piece is only good until `sink` returns. The script's value is an object of
// the ways to open one: `blob` (a File), `url` (a server that knows ranges), `handle` (a sync access
// handle of the private file system, in a worker).
(() => {
  const PIECE = 4 << 20;

  const failure = (message) => Object.assign(new Error(message), { kind: "file" });

  class Ranges {
    constructor(name, size) {
      this.name = name;
      this.size = size;
    }

    check(start, n) {
      if (start < 0 || n < 0 || start + n > this.size) {
        const asked = `bytes ${start} to ${start + n} asked for`;
        throw failure(`${this.name}: ${asked}, the file has ${this.size}`);
      }
    }

    async read(start, n) {
      const found = new Uint8Array(n);
      await this.pump(start, n, (bytes, at) => found.set(bytes, at));
      return found;
    }

    close() {}
  }

  // One that opens a stream of bytes for each range.
  class Streamed extends Ranges {
    constructor(name, size, open) {
      super(name, size);
      this.open = open;
    }

    async pump(start, n, sink) {
      this.check(start, n);
      if (!n) return;
      let stream;
      try {
        stream = await this.open(start, n);
      } catch (error) {
        throw error.kind ? error : failure(`${this.name}: cannot be read: ${error.message}`);
      }
      const reader = stream.getReader({ mode: "byob" });
      let buffer = new ArrayBuffer(Math.min(PIECE, (n + 3) & ~3));
      let [at, filled] = [0, 0]; // bytes handed on, bytes in the buffer
      try {
        while (at + filled < n) {
          const room = Math.min(buffer.byteLength - filled, n - at - filled);
          const { value, done } = await reader.read(new Uint8Array(buffer, filled, room));
          if (done) throw new Error(`${at + filled} bytes at ${start} instead of ${n}: cut short?`);
          buffer = value.buffer;
          filled += value.byteLength;
          if (filled === buffer.byteLength || at + filled === n) {
            sink(new Uint8Array(buffer, 0, filled), at);
            at += filled;
            filled = 0;
          }
        }
      } catch (error) {
        throw error.kind ? error : failure(`${this.name}: ${error.message}`);
      } finally {
        await reader.cancel().catch(() => {});
      }
    }
  }

  class Handle extends Ranges {
    constructor(name, handle) {
      super(name, handle.getSize());
      this.handle = handle;
    }

    async pump(start, n, sink) {
      this.check(start, n);
      const buffer = new Uint8Array(Math.min(PIECE, n));
      for (let at = 0; at < n; at += buffer.length) {
        const piece = buffer.subarray(0, Math.min(buffer.length, n - at));
        const got = this.handle.read(piece, { at: start + at });
        if (got !== piece.length) {
          throw failure(`${this.name}: ${at + got} bytes at ${start} instead of ${n}: cut short?`);
        }
        sink(piece, at);
      }
    }

    close() {
      this.handle.close();
    }
  }

  const range = (start, n) => ({ headers: { Range: `bytes=${start}-${start + n - 1}` } });

  async function url(address) {
    const ask = async (start, n) => {
      const answer = await fetch(address, { ...range(start, n), cache: "no-store" });
      if (answer.status !== 206) {
        const why = answer.ok ? "the server ignores ranges" : `status ${answer.status}`;
        await answer.body?.cancel();
        throw failure(`${address}: ${why}`);
      }
      return answer;
    };
    let first;
    try {
      first = await ask(0, 1);
    } catch (error) {
      throw error.kind ? error : failure(`${address}: cannot be fetched: ${error.message}`);
    }
    await first.body.cancel();
    const size = Number(/\/(\d+)$/.exec(first.headers.get("Content-Range") ?? "")?.[1]);
    if (!size) throw failure(`${address}: the server does not tell the file's size`);
    return new Streamed(address, size, async (start, n) => (await ask(start, n)).body);
  }

  return {
    url,
    blob: (file, name) =>
      new Streamed(name, file.size, async (start, n) => file.slice(start, start + n).stream()),
    handle: (handle, name) => new Handle(name, handle),
  };
})();
