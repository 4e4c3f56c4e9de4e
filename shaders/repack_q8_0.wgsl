// Raw Q8_0 rows (blocks of an f16 scale and 32 int8) -> planes of quants, byte s of word c value 4 s + c of
// sixteen, and f16 scales, two a word (lib/weight_q8_0).
// One invocation makes one pack of one row, and side words.
// use: raw, planes, half, repack_blocks
const BLOCK: u32 = 34u;
const PACKS: u32 = 2u;
const SIDES: u32 = 1u;
const SPAN: u32 = 2u;

fn pack_of(at: u32, p: u32) -> vec4<u32> {
  var words = vec4<u32>();
  for (var s = 0u; s < 4u; s++) { // unroll
    words |= four_at(at + 2u + 16u * p + 4u * s) << vec4<u32>(8u * s);
  }
  return words;
}

fn side_of(at: u32, word: u32) -> u32 {
  return half_at(at);
}
