// Raw Q6_K rows (blocks of 256 values) -> planes of nibbles, 32 values a pack, and of (16 words of high crumbs,
// 16 int8 scales, f32 d) (lib/weight_q6_k).
// One invocation makes one pack of one row, and side words.
// use: raw, planes, half, repack_blocks
const BLOCK: u32 = 210u;
const PACKS: u32 = 8u;
const SIDES: u32 = 21u;
const SPAN: u32 = 1u;

fn pack_of(at: u32, p: u32) -> vec4<u32> {
  return nibbles_of_32(at + 64u * (p / 4u) + 32u * (p % 2u), 4u * (p / 2u % 2u));
}

fn side_of(at: u32, word: u32) -> u32 {
  if word < 16u {
    return crumbs_of_sub(at + 128u, word / 2u, word % 2u);
  }
  if word < 20u {
    return raw_u32(at + 192u + 4u * (word - 16u));
  }
  return scale_at(at + 208u);
}
