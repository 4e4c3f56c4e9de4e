// Four of 32 values of one bit, at bit `to` of theirs: bit i is value i.
fn bits(word: u32, s: u32, to: u32) -> vec4<u32> {
  return (vec4<u32>((word >> (4u * s)) << to) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u << to);
}
