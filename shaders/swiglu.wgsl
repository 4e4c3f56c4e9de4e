// Y = silu(G) U with silu(g) = g / (1 + exp(-g)).
// One invocation computes four values.
// use: step, flat, elements, rows
@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  let g = gate[at];
  y[at] = g / (1.0 + exp(-g)) * up[at];
}
