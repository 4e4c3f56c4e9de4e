// What kernels that repack blocks share. Each has a BLOCK of so many bytes in the file that becomes PACKS packs and
// SIDES side words, or, of SPAN blocks that share a word, its part of one; and gives them for the block at byte `at`:
// `pack_of(at, p)` and `side_of(at, word)`.
// grid: ceil_div(weight_stride, 64), slice_rows
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= params.weight_stride {
    return;
  }
  let block = id.x / PACKS;
  let part = id.x % PACKS;
  let at = raw_start(id.y) + block * BLOCK;
  store_pack(id.y, id.x, pack_of(at, part));
  if SPAN == 1u {
    for (var word = part; word < SIDES; word += PACKS) {
      store_side(id.y, block * SIDES + word, side_of(at, word));
    }
  } else if part == 0u && block % SPAN == 0u {
    var word = 0u;
    for (var i = 0u; i < min(SPAN, params.weight_stride / PACKS - block); i++) {
      word |= side_of(at + i * BLOCK, 0u) << (i * (32u / SPAN));
    }
    store_side(id.y, block / SPAN, word);
  }
}

// The bits of the f16 at an even byte.
fn half_at(at: u32) -> u32 {
  let bits = raw_u16(at);
  if (bits & 0x7C00u) == 0x7C00u {
    mark(NOT_FINITE);
  }
  return bits;
}

// The same number as the bits of an f32.
fn scale_at(at: u32) -> u32 {
  return bitcast<u32>(from_half(half_at(at)));
}

// Two of them, the first one low.
fn half_pair_at(at: u32) -> u32 {
  return half_at(at) | (half_at(at + 2u) << 16u);
}

// Four bytes, one a component.
fn four_at(at: u32) -> vec4<u32> {
  return (vec4<u32>(raw_u32(at)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xFFu);
}

// Four bytes, each the two's complement of `values`, as a word.
fn word_of(values: vec4<u32>) -> u32 {
  let bytes = (values & vec4<u32>(0xFFu)) << vec4<u32>(0u, 8u, 16u, 24u);
  return bytes.x | bytes.y | bytes.z | bytes.w;
}

// Packs of 32 nibbles: nibble s of word c is value 4 s + c. Here of 16 bytes, all their low nibbles first.
fn nibbles_of_16(at: u32) -> vec4<u32> {
  var words = vec4<u32>();
  for (var s = 0u; s < 4u; s++) { // unroll
    let four = four_at(at + 4u * s);
    words |= (four & vec4<u32>(15u)) << vec4<u32>(4u * s);
    words |= (four >> vec4<u32>(4u)) << vec4<u32>(4u * s + 16u);
  }
  return words;
}

// And of 32 bytes, a nibble at bit `shift` of each.
fn nibbles_of_32(at: u32, shift: u32) -> vec4<u32> {
  var words = vec4<u32>();
  for (var s = 0u; s < 8u; s++) { // unroll
    words |= ((four_at(at + 4u * s) >> vec4<u32>(shift)) & vec4<u32>(15u)) << vec4<u32>(4u * s);
  }
  return words;
}

// The two bits at `shift` of 16 bytes: those of byte i at 2 i.
fn crumbs_of_16(at: u32, shift: u32) -> u32 {
  var word = 0u;
  for (var s = 0u; s < 4u; s++) { // unroll
    let four = ((four_at(at + 4u * s) >> vec4<u32>(shift)) & vec4<u32>(3u)) << vec4<u32>(0u, 2u, 4u, 6u);
    word |= (four.x | four.y | four.z | four.w) << (8u * s);
  }
  return word;
}

// Half `part` of the crumbs of sub-block `sub` of 32 values, four of which share 32 bytes.
fn crumbs_of_sub(at: u32, sub: u32, part: u32) -> u32 {
  return crumbs_of_16(at + 32u * (sub / 4u) + 16u * part, 2u * (sub % 4u));
}

// A pack of 64 crumbs: two sub-blocks.
fn crumbs_of_subs(at: u32, sub: u32) -> vec4<u32> {
  return vec4<u32>(
    crumbs_of_sub(at, sub, 0u),
    crumbs_of_sub(at, sub, 1u),
    crumbs_of_sub(at, sub + 1u, 0u),
    crumbs_of_sub(at, sub + 1u, 1u),
  );
}

// The bit at `shift` of 32 bytes: that of byte i at i.
fn bits_of_32(at: u32, shift: u32) -> u32 {
  var word = 0u;
  for (var s = 0u; s < 8u; s++) { // unroll
    let four = ((four_at(at + 4u * s) >> vec4<u32>(shift)) & vec4<u32>(1u)) << vec4<u32>(0u, 1u, 2u, 3u);
    word |= (four.x | four.y | four.z | four.w) << (4u * s);
  }
  return word;
}
