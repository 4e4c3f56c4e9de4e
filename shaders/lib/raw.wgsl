// Bytes of a file as they were uploaded, at any alignment.
@group(0) @binding(0) var<storage, read> raw: array<u32>;

fn raw_u16(at: u32) -> u32 { // `at` even
  return (raw[at / 4u] >> ((at & 2u) * 8u)) & 0xFFFFu;
}

fn raw_u32(at: u32) -> u32 { // `at` even
  return raw_u16(at) | (raw_u16(at + 2u) << 16u);
}
