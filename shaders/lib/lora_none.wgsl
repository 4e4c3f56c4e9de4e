// A product without an adapter; the same as lora.wgsl gives.
fn lora_steps() -> u32 {
  return 0u;
}

fn lora_input(row: u32, r: u32) -> vec4<f32> {
  return vec4<f32>();
}

fn lora_weight(row: u32, stride: u32, at: u32) -> vec4<f32> {
  return vec4<f32>();
}
