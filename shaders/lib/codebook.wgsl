// The sixteen values of IQ4_NL and IQ4_XS, by nibble, as int8.
const CODEBOOK = vec4<u32>(0xBFAD9881u, 0xF6EADDCFu, 0x26190D01u, 0x71594535u);

fn codebook(nibble: vec4<u32>) -> vec4<f32> {
  let low = select(vec4<u32>(CODEBOOK.x), vec4<u32>(CODEBOOK.y), (nibble & vec4<u32>(4u)) != vec4<u32>(0u));
  let high = select(vec4<u32>(CODEBOOK.z), vec4<u32>(CODEBOOK.w), (nibble & vec4<u32>(4u)) != vec4<u32>(0u));
  let word = select(low, high, nibble >= vec4<u32>(8u));
  let byte = word << (vec4<u32>(24u) - 8u * (nibble & vec4<u32>(3u)));
  return vec4<f32>(bitcast<vec4<i32>>(byte) >> vec4<u32>(24u));
}
