// Four of 32 values of two bits, at bit `to` of theirs: crumb i of word h is value 16 h + i.
fn crumbs(words: vec2<u32>, s: u32, to: u32) -> vec4<u32> {
  let four = (select(words.x, words.y, s >= 4u) >> (8u * (s & 3u))) << to;
  return (vec4<u32>(four) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u << to);
}
