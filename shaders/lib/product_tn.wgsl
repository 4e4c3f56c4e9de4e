// What the kernels of out (M, N) += scale a (rows, M)^T b (rows, N) share.
struct Params {
  rows: u32, // which of step.counts
  m: u32,    // columns of a, rows of out
  n4: u32,   // vec4s in a row of b and of out
  out_row: u32, // first row of out that is added to
  scale: f32,
}
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;
