// An adapter beside a product's base weight, as a few more steps of its sum: z (rows, R) or u (rows, R)
// times one of its matrices, B (N, R) or A (R, K), all f32; padding is zero.
@group(0) @binding(10) var<storage, read> lora: array<vec4<f32>>; // z, u
@group(0) @binding(11) var<storage, read> lora_matrix: array<vec4<f32>>;

// Steps of the sum: vec4s in a row of z or u.
fn lora_steps() -> u32 {
  return (params.lora_rank + 3u) / 4u;
}

// Vec4 `r` of a row of z or u, times s.
fn lora_input(row: u32, r: u32) -> vec4<f32> {
  return params.lora_scale * lora[row * lora_steps() + r];
}

// Vec4 `at` of a row of the matrix, rows of `stride` vec4s.
fn lora_weight(row: u32, stride: u32, at: u32) -> vec4<f32> {
  return lora_matrix[row * stride + at];
}
