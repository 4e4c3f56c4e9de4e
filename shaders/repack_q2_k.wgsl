// Raw Q2_K rows (blocks of 256 values) -> planes of crumbs, two sub-blocks of 32 a pack, and of (16 bytes of
// 4-bit scales and minima, f32 d and dmin) (lib/weight_q2_k).
// One invocation makes one pack of one row, and side words.
// use: raw, planes, half, repack_blocks
const BLOCK: u32 = 84u;
const PACKS: u32 = 4u;
const SIDES: u32 = 6u;
const SPAN: u32 = 1u;

fn pack_of(at: u32, p: u32) -> vec4<u32> {
  return crumbs_of_subs(at + 16u, 2u * p);
}

fn side_of(at: u32, word: u32) -> u32 {
  if word < 4u {
    return raw_u32(at + 4u * word);
  }
  return scale_at(at + 80u + 2u * (word - 4u));
}
