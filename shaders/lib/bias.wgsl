// A bias that a norm, or a product, adds.
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;

fn bias_at(i: u32) -> vec4<f32> {
  return bias[i];
}
