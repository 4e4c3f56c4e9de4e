// The GPU as `browser.py` drives it: one class over a GPUDevice. The script's value is the class.
//
// A call that queues work returns at once. What a browser reports late (error scopes, a lost device)
// is kept and thrown by the next call or read as an Error with a `kind`: "lost", "memory", "shader"
// or "device".
(() => {
  const MOST_QUERIES = 4096; // in a set
  const PIECE = 1 << 20; // larger writes go in pieces, so that staging memory stays small
  const MOST_PENDING = 16 << 20; // bytes on their way from a stream before the GPU is waited for
  const TYPES = { read: "read-only-storage", read_write: "storage", uniform: "uniform" };
  const SCOPES = { "out-of-memory": "memory", internal: "device", validation: "device" };

  const failure = (kind, message, more = {}) => Object.assign(new Error(message), { kind, ...more });

  class WgtrainDevice {
    // {adapter info, limits, features} of what this page would be given; null where there is none.
    static async find() {
      const adapter = await globalThis.navigator?.gpu?.requestAdapter({
        powerPreference: "high-performance",
      });
      if (!adapter) return null;
      const limits = {};
      for (const name in adapter.limits) limits[name] = adapter.limits[name];
      const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
      const info = { vendor, architecture, device, description, isFallbackAdapter };
      return { adapter, info, limits, features: [...adapter.features] };
    }

    // `features`: names with a space in between.
    static async open(adapter, requiredLimits, features) {
      const requiredFeatures = features.split(" ").filter(Boolean);
      const wanted = { requiredLimits, requiredFeatures, label: "wgtrain" };
      return new WgtrainDevice(await adapter.requestDevice(wanted));
    }

    constructor(device) {
      this.device = device;
      this.queue = device.queue;
      this.problem = null;
      this.told = 0; // problems thrown so far; what was queued before one mostly follows from it
      this.lost = false;
      this.pending = 0; // bytes streamed since the GPU was last waited for
      this.seconds = 0; // spent in `run`
      device.lost.then((info) => {
        this.lost = true;
        this.problem = failure("lost", info.message || info.reason);
      });
      device.onuncapturederror = (event) => this.keep("device", "", event.error);
    }

    keep(kind, doing, error) {
      this.problem ??= failure(kind, error.message, { doing });
    }

    // Throws what went wrong since the last call; a lost device stays lost.
    check() {
      const problem = this.problem;
      if (!problem) return;
      if (!this.lost) {
        this.problem = null;
        this.told++;
      }
      throw problem;
    }

    // Runs `call`; errors that the browser finds later are kept as those of `doing`.
    scoped(doing, call) {
      this.check();
      const { told } = this;
      const keep = (kind, error) => error && told === this.told && this.keep(kind, doing, error);
      for (const scope in SCOPES) this.device.pushErrorScope(scope);
      try {
        return call();
      } catch (error) {
        throw failure(error instanceof RangeError ? "memory" : "device", error.message);
      } finally {
        for (const kind of Object.values(SCOPES).reverse()) {
          this.device.popErrorScope().then((error) => keep(kind, error), () => {});
        }
      }
    }

    createBuffer(size, label, uniform) {
      const kind = uniform ? GPUBufferUsage.UNIFORM : GPUBufferUsage.STORAGE;
      const usage = kind | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
      const bytes = size.toLocaleString("en");
      return this.scoped(`creating buffer '${label}' of ${bytes} bytes`, () =>
        this.device.createBuffer({ size, usage, label }),
      );
    }

    // `data`: a Python buffer; its bytes are copied once, from the Python heap to the browser's.
    write(buffer, offset, data) {
      const view = data.getBuffer("u8");
      try {
        this.scoped(`writing buffer '${buffer.label}'`, () => this.put(buffer, offset, view.data));
      } finally {
        view.release();
      }
    }

    put(buffer, offset, bytes) {
      const whole = bytes.length & ~3;
      for (let at = 0; at < whole; at += PIECE) {
        const n = Math.min(PIECE, whole - at);
        this.queue.writeBuffer(buffer, offset + at, bytes, at, n);
        if (n === PIECE) this.queue.submit([]);
      }
      if (whole < bytes.length) {
        const tail = new Uint8Array(4);
        tail.set(bytes.subarray(whole));
        this.queue.writeBuffer(buffer, offset + whole, tail);
      }
    }

    // `size` bytes of a source (see files/source.js) from `start`, never through the Python heap.
    async writeFrom(source, start, size, buffer, offset) {
      await source.pump(start, size, (bytes, at) => {
        this.scoped(`writing buffer '${buffer.label}'`, () => this.put(buffer, offset + at, bytes));
      });
      this.pending += size;
      if (this.pending > MOST_PENDING) {
        this.pending = 0;
        await this.queue.onSubmittedWorkDone();
      }
    }

    async read(buffer, offset, size) {
      const doing = `reading buffer '${buffer.label}'`;
      const usage = GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ;
      const stage = this.scoped(doing, () => {
        const target = this.device.createBuffer({ size, usage });
        const encoder = this.device.createCommandEncoder();
        encoder.copyBufferToBuffer(buffer, offset, target, 0, size);
        this.queue.submit([encoder.finish()]);
        return target;
      });
      try {
        await stage.mapAsync(GPUMapMode.READ);
        this.check();
        return new Uint8Array(stage.getMappedRange()).slice();
      } catch (error) {
        throw await this.reason(error);
      } finally {
        stage.destroy();
      }
    }

    // Waits for what the browser says of all calls so far; scopes are answered in their order.
    async settle() {
      this.check();
      this.device.pushErrorScope("validation");
      try {
        await this.device.popErrorScope();
      } catch (error) {
        throw await this.reason(error);
      }
      this.check();
    }

    // Why an await failed: a loss or an error scope may be told a moment later.
    async reason(error) {
      if (error.kind) return error;
      const moment = new Promise((done) => setTimeout(done, 100));
      await Promise.race([this.device.lost, moment]);
      await null;
      if (!this.problem) return failure("device", error.message);
      try {
        this.check();
      } catch (problem) {
        return problem;
      }
    }

    // `accesses`: [[binding number, "read" | "read_write" | "uniform"], ...]
    async pipeline(name, code, accesses) {
      const entries = accesses.map(([binding, access]) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: TYPES[access] },
      }));
      const { module, layout } = this.scoped(`compiling kernel '${name}'`, () => ({
        module: this.device.createShaderModule({ code, label: name }),
        layout: this.device.createBindGroupLayout({ entries, label: name }),
      }));
      const messages = (await module.getCompilationInfo()).messages;
      const wrong = messages.find((message) => message.type === "error");
      if (wrong) {
        await this.device.queue.onSubmittedWorkDone(); // the scope tells the same error: let it pass
        if (!this.lost) this.problem = null;
        throw failure("shader", wrong.message, { line: wrong.lineNum });
      }
      try {
        return await this.device.createComputePipelineAsync({
          layout: this.device.createPipelineLayout({ bindGroupLayouts: [layout] }),
          compute: { module, entryPoint: "main" },
          label: name,
        });
      } catch (error) {
        const reason = await this.reason(error);
        throw reason.kind === "device" ? failure("shader", reason.message) : reason;
      }
    }

    // `numbers`: [slot, offset, size] of each of `buffers`.
    bind(pipeline, numbers, buffers) {
      const entries = buffers.map((buffer, i) => ({
        binding: numbers[3 * i],
        resource: { buffer, offset: numbers[3 * i + 1], size: numbers[3 * i + 2] },
      }));
      return this.scoped("binding buffers", () =>
        this.device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }),
      );
    }

    // Everything a replay needs: pipeline, bind group and row of the counts table of each dispatch.
    program(pipelines, groups, grids) {
      return { pipelines, groups, grids };
    }

    // One step: `counts` (grids x 3) and `ends` (of submits) are Python buffers of 32-bit numbers.
    run({ pipelines, groups, grids }, counts, ends) {
      const began = performance.now();
      const [sizes, cuts] = [counts.getBuffer("u32"), ends.getBuffer("u32")];
      try {
        this.scoped("running a plan", () => {
          let next = 0;
          for (const end of cuts.data) {
            const encoder = this.device.createCommandEncoder();
            const pass = encoder.beginComputePass();
            let current = null;
            for (; next < end; next++) {
              const at = 3 * grids[next];
              const [x, y, z] = [sizes.data[at], sizes.data[at + 1], sizes.data[at + 2]];
              if (!(x && y && z)) continue;
              if (pipelines[next] !== current) {
                current = pipelines[next];
                pass.setPipeline(current);
              }
              pass.setBindGroup(0, groups[next]);
              pass.dispatchWorkgroups(x, y, z);
            }
            pass.end();
            this.queue.submit([encoder.finish()]);
          }
        });
      } finally {
        sizes.release();
        cuts.release();
        this.seconds += (performance.now() - began) / 1000;
      }
    }

    // The nanoseconds of each dispatch, a pass each; a skipped one takes none.
    async profile({ pipelines, groups, grids }, counts, ends) {
      const [sizes, cuts] = [counts.getBuffer("u32"), ends.getBuffer("u32")];
      const [grid, stops] = [sizes.data.slice(), [...cuts.data]];
      sizes.release();
      cuts.release();
      for (let at = MOST_QUERIES / 2; at < grids.length; at += MOST_QUERIES / 2) stops.push(at);
      const times = new Float64Array(grids.length);
      let start = 0;
      for (const end of stops.sort((a, b) => a - b)) {
        if (end <= start) continue;
        const [n, first] = [end - start, start];
        const [querySet, resolved] = this.scoped("timing a plan", () => {
          const querySet = this.device.createQuerySet({ type: "timestamp", count: 2 * n });
          const usage = GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC;
          const resolved = this.device.createBuffer({ size: 16 * n, usage, label: "timestamps" });
          const encoder = this.device.createCommandEncoder();
          for (let i = 0; i < n; i++) {
            const timestampWrites = {
              querySet,
              beginningOfPassWriteIndex: 2 * i,
              endOfPassWriteIndex: 2 * i + 1,
            };
            const pass = encoder.beginComputePass({ timestampWrites });
            const size = grid.subarray(3 * grids[first + i], 3 * grids[first + i] + 3);
            if (size.every((count) => count)) {
              pass.setPipeline(pipelines[first + i]);
              pass.setBindGroup(0, groups[first + i]);
              pass.dispatchWorkgroups(...size);
            }
            pass.end();
          }
          encoder.resolveQuerySet(querySet, 0, 2 * n, resolved, 0);
          this.queue.submit([encoder.finish()]);
          return [querySet, resolved];
        });
        const stamps = new BigUint64Array((await this.read(resolved, 0, 16 * n)).buffer);
        for (let i = 0; i < n; i++) {
          const skipped = grid.subarray(3 * grids[first + i], 3 * grids[first + i] + 3).includes(0);
          const taken = Number(stamps[2 * i + 1] - stamps[2 * i]);
          times[first + i] = skipped ? 0 : Math.max(taken, 0);
        }
        querySet.destroy();
        resolved.destroy();
        start = end;
      }
      return times;
    }

    close() {
      this.device.onuncapturederror = null;
      this.device.destroy();
    }
  }
  return WgtrainDevice;
})();
