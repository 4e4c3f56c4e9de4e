// Scale and minimum of sub-block `pack` of 32 values of a block of Q4_K or Q5_K, whose side words begin
// at `first` (see repack_k).
fn k_scales(row: u32, next: u32, first: u32, pack: u32) -> vec2<f32> {
  let pair = side_word(row, next, first + ((pack & 7u) >> 1u)) >> (16u * (pack & 1u));
  let d = vec2<f32>(side_f32(row, next, first + 4u), side_f32(row, next, first + 5u));
  return d * vec2<f32>(vec2<u32>(pair, pair >> 8u) & vec2<u32>(255u));
}
