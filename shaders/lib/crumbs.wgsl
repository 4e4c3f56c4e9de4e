// Four of 32 values of two bits: crumb i of word h is value 16 h + i.
fn crumbs(words: vec2<u32>, s: u32) -> vec4<u32> {
  let word = select(words.x, words.y, s >= 4u) >> (8u * (s & 3u));
  return (vec4<u32>(word) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u);
}
