// Y = X back from bf16 pairs: the counterpart of capture_bf16.
// One invocation unpacks four values.
// use: step, flat, elements, rows, pack_bf16
@group(0) @binding(0) var<storage, read> x: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  y[at] = unpack_bf16(x[at]);
}
