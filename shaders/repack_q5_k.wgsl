// Raw Q5_K rows (blocks of 256 values) -> planes of nibbles, a sub-block of 32 a pack, and of what scales them
// and 8 words of high bits (lib/weight_q5_k).
// One invocation makes one pack of one row, and side words.
// use: raw, planes, half, repack_blocks, repack_k
const BLOCK: u32 = 176u;
const PACKS: u32 = 8u;
const SIDES: u32 = 14u;
const SPAN: u32 = 1u;

fn pack_of(at: u32, p: u32) -> vec4<u32> {
  return nibbles_of_32(at + 48u + 32u * (p / 2u), 4u * (p % 2u));
}

fn side_of(at: u32, word: u32) -> u32 {
  if word >= 6u {
    return bits_of_32(at + 16u, word - 6u);
  }
  return k_side(at, word);
}
