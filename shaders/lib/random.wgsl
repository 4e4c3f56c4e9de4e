// The finaliser of MurmurHash3; number i of a key's stream is mix(key ^ mix(i)), as in wgtrain/random.py.
fn mix_bits(x: u32) -> u32 {
  var h = x;
  h = (h ^ (h >> 16u)) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13u)) * 0xC2B2AE35u;
  return h ^ (h >> 16u);
}

fn random_bits(key: u32, index: u32) -> u32 {
  return mix_bits(key ^ mix_bits(index));
}
