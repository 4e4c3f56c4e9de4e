// The first plane of a weight of crumbs: 32 values a pack of two words, packs of 16 bytes read by halves.
@group(0) @binding(8) var<storage, read> weight: array<vec2<u32>>;

fn weight_pair(row: u32, next: u32, pack: u32) -> vec2<u32> {
  return weight[2u * (row * params.weight_stride) + (2u * next * params.weight_stride + pack)];
}
