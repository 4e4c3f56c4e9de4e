// Raw MXFP4 rows (blocks of an exponent byte and 32 nibbles, the low ones first) -> planes of nibbles and of
// exponents, four a word (lib/weight_mxfp4). From 253 on a value may overflow.
// One invocation makes one pack of one row, and side words.
// use: raw, planes, half, repack_blocks
const BLOCK: u32 = 17u;
const PACKS: u32 = 1u;
const SIDES: u32 = 1u;
const SPAN: u32 = 4u;

fn pack_of(at: u32, p: u32) -> vec4<u32> {
  return nibbles_of_16(at + 1u);
}

fn side_of(at: u32, word: u32) -> u32 {
  let exponent = raw_u8(at);
  if exponent >= 253u {
    mark(NOT_FINITE);
  }
  return exponent;
}
