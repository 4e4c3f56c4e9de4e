// Four values of a pack of 32 nibbles: nibble s of word c is value 4 s + c.
fn nibbles(words: vec4<u32>, s: u32) -> vec4<u32> {
  return (words >> vec4<u32>(4u * s)) & vec4<u32>(15u);
}
