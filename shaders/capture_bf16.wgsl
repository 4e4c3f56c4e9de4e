// Y = X rounded to bf16, in pairs: an activation kept for the backward pass in half the memory.
// One invocation packs four values.
// use: step, flat, elements, rows, pack_bf16
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec2<u32>>;

fn element(at: u32) {
  y[at] = pack_bf16(x[at]);
}
