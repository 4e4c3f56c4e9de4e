// Raw IQ4_XS rows (blocks of 256 values) -> planes of nibbles, a sub-block of 32 a pack, and of (8 int8 scales,
// f32 d) (lib/weight_iq4_xs).
// One invocation makes one pack of one row, and side words.
// use: raw, planes, half, repack_blocks
const BLOCK: u32 = 136u;
const PACKS: u32 = 8u;
const SIDES: u32 = 3u;
const SPAN: u32 = 1u;

fn pack_of(at: u32, p: u32) -> vec4<u32> {
  return nibbles_of_16(at + 8u + 16u * p);
}

fn side_of(at: u32, word: u32) -> u32 {
  if word == 2u {
    return scale_at(at);
  }
  let low = (vec4<u32>(raw_u16(at + 4u + 2u * word)) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
  let high = (vec4<u32>(raw_u16(at + 2u)) >> (vec4<u32>(0u, 2u, 4u, 6u) + vec4<u32>(8u * word))) & vec4<u32>(3u);
  return word_of((low | (high << vec4<u32>(4u))) - vec4<u32>(32u));
}
