// Raw Q4_0 or IQ4_NL rows (blocks of an f16 scale and 32 nibbles, the low ones first) -> planes of nibbles and
// f16 scales, two a word (lib/weight_q4_0, lib/weight_iq4_nl). FLIP makes two's complement of Q4_0's nibbles.
// One invocation makes one pack of one row, and side words.
// use: raw, planes, half, repack_blocks
const BLOCK: u32 = 18u;
const PACKS: u32 = 1u;
const SIDES: u32 = 1u;
const SPAN: u32 = 2u;
const FLIP: u32 = 2290649224u; // 8 in each nibble

fn pack_of(at: u32, p: u32) -> vec4<u32> {
  return nibbles_of_16(at + 2u) ^ vec4<u32>(FLIP);
}

fn side_of(at: u32, word: u32) -> u32 {
  return half_at(at);
}
