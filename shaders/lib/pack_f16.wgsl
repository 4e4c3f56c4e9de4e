// An f32 as the bits of the nearest f16, ties to even; infinities and NaN survive. pack2x16float may round
// either way, and flush what is small.
fn f16_bits(x: f32) -> u32 {
  let sign = (bitcast<u32>(x) >> 16u) & 0x8000u;
  let magnitude = bitcast<u32>(x) & 0x7FFFFFFFu;
  if magnitude >= 0x47800000u { // 65536
    return sign | 0x7C00u | select(0u, 0x0200u, magnitude > 0x7F800000u);
  }
  if magnitude < 0x38800000u { // 2^-14, where f16 has a fixed quantum
    return sign | u32(round(abs(x) * 16777216.0));
  }
  let rounded = magnitude + 0x0FFFu + ((magnitude >> 13u) & 1u);
  return sign | ((rounded - 0x38000000u) >> 13u);
}
