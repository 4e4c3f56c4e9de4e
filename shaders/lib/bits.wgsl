// Four of 32 values of one bit: bit i is value i.
fn bits(word: u32, s: u32) -> vec4<u32> {
  return (vec4<u32>(word >> (4u * s)) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u);
}
