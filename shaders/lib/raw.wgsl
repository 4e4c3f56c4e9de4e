// Bytes of a file as they were uploaded, at any alignment.
@group(0) @binding(0) var<storage, read> raw: array<u32>;

fn raw_u8(at: u32) -> u32 {
  return (raw[at / 4u] >> ((at & 3u) * 8u)) & 0xFFu;
}

fn raw_u16(at: u32) -> u32 { // `at` even
  return (raw[at / 4u] >> ((at & 2u) * 8u)) & 0xFFFFu;
}

fn raw_u32(at: u32) -> u32 {
  let word = at / 4u;
  let shift = (at & 3u) * 8u;
  let next = raw[word + u32(shift != 0u)]; // never past the last byte that is wanted
  return (raw[word] >> shift) | ((next << (31u - shift)) << 1u);
}
