// Adapters that are loaded beside a product's base weight, as a few more steps of its sum, one for each
// four ranks in use: z (rows, ranks of all linears that read x) times their strength, times B, of which
// four ranks of an output are a vec4: (ranks / 4, outputs). What no step names is never read.
@group(0) @binding(10) var<storage, read> lora: array<vec4<f32>>; // z
@group(0) @binding(11) var<storage, read> lora_matrix: array<vec4<f32>>; // B
@group(0) @binding(12) var<storage, read> lora_list: array<vec2<u32>>; // (steps, 0), (where, strength)...

fn lora_steps() -> u32 {
  return lora_list[0].x;
}

// The ranks of step `r` in a row of z, times their strength.
fn lora_input(row: u32, r: u32) -> vec4<f32> {
  let at = lora_list[r + 1u];
  return bitcast<f32>(at.y) * lora[row * params.lora_stride + params.lora_first + at.x];
}

// The ranks of step `at` in a row of B.
fn lora_weight(row: u32, stride: u32, at: u32) -> vec4<f32> {
  return lora_matrix[lora_list[at + 1u].x * params.lora_outputs + row];
}
