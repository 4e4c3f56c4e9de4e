// Y = act(G) U.
// One invocation computes four values.
// use: step, flat, elements, rows, activation=activation_silu
@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

fn element(at: u32) {
  y[at] = activate(gate[at]) * up[at];
}
