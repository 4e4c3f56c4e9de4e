// Files of a page as byte ranges: {name, size, readInto(data, start, n), pump(start, n, sink), close()}.
//
// `pump` hands the bytes to `sink(bytes, at)` in pieces whose lengths, but for the last, are
// multiples of four; a piece is only good until `sink` returns. The script's value is an object of
// the ways to open one: `blob` (a File), `url` (a server that knows ranges), `handle` (a sync access
// handle of the private file system, in a worker).
(() => {
  const PIECE = 1 << 20; // the browser copies pieces aside; smaller ones pile up less
  const AHEAD = 64 << 20; // the longest request that is made for more than was asked for

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

    // `data`: a Python buffer of n bytes, whose heap may move while this waits.
    readInto(data, start, n) {
      const put = (bytes, at) => {
        const view = data.getBuffer("u8");
        view.data.set(bytes, at);
        view.release();
      };
      return this.pump(start, n, put, n);
    }

    close() {}
  }

  // One that opens streams of bytes. A stream goes on beyond what is asked for, since slices mostly
  // follow one another, and a request for each of them would leave much behind to be collected.
  class Streamed extends Ranges {
    constructor(name, size, open) {
      super(name, size);
      this.open = open;
      this.buffer = new ArrayBuffer(PIECE);
      this.turn = Promise.resolve();
      this.reader = null; // stands at `position` of a stream that ends at `end`
    }

    pump(start, n, sink, ahead = AHEAD) {
      const done = this.turn.then(() => this.pumpNow(start, n, sink, ahead));
      this.turn = done.catch(() => {});
      return done;
    }

    async pumpNow(start, n, sink, ahead) {
      this.check(start, n);
      if (!n) return;
      let [at, filled] = [0, 0]; // bytes handed on, bytes in the buffer
      try {
        await this.goTo(start, n, ahead);
        while (at + filled < n) {
          const room = Math.min(PIECE - filled, n - at - filled);
          filled += await this.take(filled, room);
          if (filled === PIECE || at + filled === n) {
            sink(new Uint8Array(this.buffer, 0, filled), at);
            at += filled;
            filled = 0;
          }
        }
        if (this.position === this.end) this.close();
      } catch (error) {
        this.close();
        if (!this.buffer.byteLength) this.buffer = new ArrayBuffer(PIECE);
        throw error.kind ? error : failure(`${this.name}: cannot be read: ${error.message}`);
      }
    }

    // Reads up to `room` bytes of the stream to `filled` of the buffer; how many there were.
    async take(filled, room) {
      const view = new Uint8Array(this.buffer, filled, room);
      const { value, done } = await this.reader.read(view);
      if (value) this.buffer = value.buffer;
      if (done) throw new Error(`the stream ends at byte ${this.position}: cut short?`);
      this.position += value.byteLength;
      return value.byteLength;
    }

    async goTo(start, n, ahead) {
      const gap = start - this.position;
      if (this.reader && gap >= 0 && gap <= PIECE && start + n <= this.end) {
        while (this.position < start) await this.take(0, start - this.position);
        return;
      }
      this.close();
      const length = Math.max(n, Math.min(ahead, this.size - start));
      this.reader = (await this.open(start, length)).getReader({ mode: "byob" });
      [this.position, this.end] = [start, start + length];
    }

    close() {
      this.reader?.cancel().catch(() => {});
      this.reader = null;
    }
  }

  class Handle extends Ranges {
    constructor(name, handle) {
      super(name, handle.getSize());
      this.handle = handle;
      this.buffer = new Uint8Array(PIECE);
    }

    async pump(start, n, sink) {
      this.check(start, n);
      const { buffer } = this;
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
