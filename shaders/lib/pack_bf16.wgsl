// Two f32 as bf16, rounded to nearest even; infinities and NaN survive.
fn bf16_bits(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  if (bits & 0x7F800000u) == 0x7F800000u {
    return (bits >> 16u) | select(0u, 1u, (bits & 0xFFFFu) != 0u && (bits & 0x7F0000u) == 0u);
  }
  return (bits + 0x7FFFu + ((bits >> 16u) & 1u)) >> 16u;
}

fn pack_bf16(v: vec4<f32>) -> vec2<u32> {
  return vec2<u32>(
    bf16_bits(v.x) | (bf16_bits(v.y) << 16u),
    bf16_bits(v.z) | (bf16_bits(v.w) << 16u),
  );
}

fn unpack_bf16(w: vec2<u32>) -> vec4<f32> {
  return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xFFFF0000u, w.y << 16u, w.y & 0xFFFF0000u));
}
