// Of the side words of a block of Q4_K or Q5_K, the six that say how its eight sub-blocks are scaled: four of
// bytes, scale and minimum of two sub-blocks each, and the f32 d and dmin. `at`: f16 d and dmin, then
// twelve bytes of eight 6-bit scales and as many minima.
fn k_side(at: u32, word: u32) -> u32 {
  if word >= 4u {
    return scale_at(at + 2u * (word - 4u));
  }
  let first = raw_u32(at + 4u);
  let second = raw_u32(at + 8u);
  let shifts = vec4<u32>(0u, 0u, 8u, 8u) + vec4<u32>(16u * (word % 2u));
  let pairs = vec4<u32>(first, second, first, second) >> shifts;
  if word < 2u {
    return word_of(pairs & vec4<u32>(63u));
  }
  let low = (vec4<u32>(raw_u32(at + 12u)) >> (shifts + vec4<u32>(0u, 4u, 0u, 4u))) & vec4<u32>(15u);
  return word_of(low | ((pairs >> vec4<u32>(2u)) & vec4<u32>(48u)));
}
