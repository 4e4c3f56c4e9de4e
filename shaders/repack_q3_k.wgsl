// Raw Q3_K rows (blocks of 256 values) -> planes of crumbs, two sub-blocks of 32 a pack, and of (8 words of
// high bits, 16 int8 scales, f32 d) (lib/weight_q3_k).
// One invocation makes one pack of one row, and side words.
// use: raw, planes, half, repack_blocks
const BLOCK: u32 = 110u;
const PACKS: u32 = 4u;
const SIDES: u32 = 13u;
const SPAN: u32 = 1u;

fn pack_of(at: u32, p: u32) -> vec4<u32> {
  return crumbs_of_subs(at + 32u, 2u * p);
}

fn side_of(at: u32, word: u32) -> u32 {
  if word < 8u {
    return bits_of_32(at, word);
  }
  if word == 12u {
    return scale_at(at + 108u);
  }
  let four = word - 8u; // of scales: the low four bits of each, then the high two
  let low = (four_at(at + 96u + 4u * (four % 2u)) >> vec4<u32>(4u * (four / 2u))) & vec4<u32>(15u);
  let high = (four_at(at + 104u) >> vec4<u32>(2u * four)) & vec4<u32>(3u);
  return word_of((low | (high << vec4<u32>(4u))) - vec4<u32>(32u));
}
