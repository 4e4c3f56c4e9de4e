// The sixteen values of NF4, by code. Selects, since an array indexed by a variable does not stay in registers.
fn nf4(code: vec4<u32>) -> vec4<f32> {
  let b0 = (code & vec4<u32>(1u)) != vec4<u32>(0u);
  let b1 = (code & vec4<u32>(2u)) != vec4<u32>(0u);
  let b2 = (code & vec4<u32>(4u)) != vec4<u32>(0u);
  let v0 = select(vec4<f32>(-1.0), vec4<f32>(-0.6961928009986877), b0);
  let v2 = select(vec4<f32>(-0.5250730514526367), vec4<f32>(-0.39491748809814453), b0);
  let v4 = select(vec4<f32>(-0.28444138169288635), vec4<f32>(-0.18477343022823334), b0);
  let v6 = select(vec4<f32>(-0.09105003625154495), vec4<f32>(0.0), b0);
  let v8 = select(vec4<f32>(0.07958029955625534), vec4<f32>(0.16093020141124725), b0);
  let v10 = select(vec4<f32>(0.24611230194568634), vec4<f32>(0.33791524171829224), b0);
  let v12 = select(vec4<f32>(0.44070982933044434), vec4<f32>(0.5626170039176941), b0);
  let v14 = select(vec4<f32>(0.7229568362236023), vec4<f32>(1.0), b0);
  let low = select(select(v0, v2, b1), select(v4, v6, b1), b2);
  let high = select(select(v8, v10, b1), select(v12, v14, b1), b2);
  return select(low, high, code >= vec4<u32>(8u));
}
