// Packs of 16 bytes: the first plane of a quantised weight.
@group(0) @binding(8) var<storage, read> weight: array<vec4<u32>>;

fn weight_words(row: u32, next: u32, pack: u32) -> vec4<u32> {
  return weight[row * params.weight_stride + (next * params.weight_stride + pack)];
}
