// Weights of type IQ4_XS: blocks of 256 indices into a codebook along K, 32 values a scale. side: three words a
// block, 8 int8 scales, f32 d.
// use: weight_words, weight_side, nibbles, codebook
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let side = 3u * (pack >> 3u);
  let four = side_word(row, next, side + ((pack & 7u) >> 2u));
  let scale = side_f32(row, next, side + 2u) * side_int8(four, pack & 3u);
  return WeightPack(weight_words(row, next, pack), scale);
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  return pack.scale * codebook(nibbles(pack.quants, s));
}
