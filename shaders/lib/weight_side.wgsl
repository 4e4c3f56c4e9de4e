// The second plane of a weight: words beside the packs.
@group(0) @binding(9) var<storage, read> weight_side: array<u32>;

// Word `word` of row `row + next`.
fn side_word(row: u32, next: u32, word: u32) -> u32 {
  return weight_side[row * params.weight_side_stride + (next * params.weight_side_stride + word)];
}

fn side_f32(row: u32, next: u32, word: u32) -> f32 {
  return bitcast<f32>(side_word(row, next, word));
}

// int8 `at` of a word.
fn side_int8(word: u32, at: u32) -> f32 {
  return f32(bitcast<i32>(word << (24u - 8u * at)) >> 24u);
}
