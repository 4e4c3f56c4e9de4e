// What all kernels of y (rows, N) = scale * (x (rows, K) W^T + s z B^T) [+ y] share.
struct Params {
  rows: u32,          // which of step.counts
  n: u32,             // outputs
  k4: u32,            // vec4s in a row of x
  y_stride: u32,      // vec4s in a row of y
  y_column: u32,      // first vec4 of y that is written
  weight_row: u32,    // first row of W that is used
  weight_stride: u32, // packs in a row of W
  weight_side_stride: u32, // words in a row of its second plane; 0 = there is none
  scale: f32,
  add: u32,           // 1 = onto what is there
  lora_rank: u32,     // columns of z and of B; 0 = no adapter
  lora_row: u32,      // first row of B, and of the bias, that is used
  lora_scale: f32,    // s
  lora_first: u32,    // of several linears in z: first vec4 of this one in a row,
  lora_stride: u32,   // vec4s in a row (of z itself: of each linear),
  lora_outputs: u32,  // and rows of B
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(15) var<uniform> params: Params;

// Four columns of y from `col` on; those past N are stored as zero, they are padding.
fn store(row: u32, col: u32, sum: vec4<f32>) {
  if (col < params.n) {
    let at = row * params.y_stride + params.y_column + col / 4u;
    var out = params.scale * sum;
    if (params.add != 0u) {
      out += y[at];
    }
    y[at] = select(vec4<f32>(), out, vec4<u32>(col) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.n));
  }
}
