// What all kernels of dx (rows, K) = scale * (dy (rows, N) W + s u A) [+ dx] share.
struct Params {
  rows: u32,          // which of step.counts
  n: u32,             // columns of dy, rows of W
  k4: u32,            // vec4s in a row of dx
  dy_stride: u32,     // vec4s in a row of dy
  dy_column: u32,     // first vec4 of dy that is read
  weight_row: u32,    // first row of W that is used
  weight_stride: u32, // packs in a row of W
  weight_side_stride: u32, // words in a row of its second plane; 0 = there is none
  scale: f32,
  add: u32,           // 1 = onto what is there
  lora_rank: u32,     // columns of u, rows of A; 0 = no adapter
  lora_scale: f32,    // s
}
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

// Vec4 `col` of a row of dx.
fn store(row: u32, col: u32, sum: vec4<f32>) {
  if (col < params.k4) {
    let at = row * params.k4 + col;
    var out = params.scale * sum;
    if (params.add != 0u) {
      out += dx[at];
    }
    dx[at] = out;
  }
}
