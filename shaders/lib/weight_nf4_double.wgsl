// Weights quantised to NF4 whose absmax are quantised too: absmax = map[code] * scales[i / 256] + offset, with i
// the number of the block in the whole matrix. side: (N, ceil(K / 256)) words of four 8-bit codes; then, from the
// end of the plane backwards, the map of 256 f32, the offset, i of the first block modulo 256, and the scales.
// use: weight_words, weight_side, nibbles, nf4
const WEIGHT_STEPS: u32 = 8u;
struct WeightPack { quants: vec4<u32>, scale: f32 }

fn weight_load(row: u32, next: u32, pack: u32) -> WeightPack {
  let block = pack >> 1u;
  let code = (side_word(row, next, block >> 2u) >> (8u * (block & 3u))) & 255u;
  let end = arrayLength(&weight_side);
  let group = (weight_side[end - 258u] + (row + next) * (params.weight_stride >> 1u) + block) >> 8u;
  let scaled = bitcast<f32>(weight_side[end - 256u + code]) * bitcast<f32>(weight_side[end - 259u - group]);
  return WeightPack(weight_words(row, next, pack), scaled + bitcast<f32>(weight_side[end - 257u]));
}

fn weight_at(pack: WeightPack, s: u32) -> vec4<f32> {
  return pack.scale * nf4(nibbles(pack.quants, s));
}
