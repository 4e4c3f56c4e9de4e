// Raw Q5_1 rows (blocks of f16 d and m, 32 high bits and 32 nibbles, the low ones first) -> planes of nibbles
// and of (high bits, (d, m)) (lib/weight_q5_1).
// One invocation makes one pack of one row, and side words.
// use: raw, planes, half, repack_blocks
const BLOCK: u32 = 24u;
const PACKS: u32 = 1u;
const SIDES: u32 = 2u;
const SPAN: u32 = 1u;

fn pack_of(at: u32, p: u32) -> vec4<u32> {
  return nibbles_of_16(at + 8u);
}

fn side_of(at: u32, word: u32) -> u32 {
  if word == 0u {
    return raw_u32(at + 4u);
  }
  return half_pair_at(at);
}
