// Y += b, the same b for every row.
// One invocation adds four values.
// use: step, flat, elements, rows
@group(0) @binding(0) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  y[at] += bias[at % params.d4];
}
