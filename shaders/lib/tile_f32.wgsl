// Operands of a tiled product as they lie in workgroup memory: f32.
// Every tile_*.wgsl gives the same: `left` and `right` make four operands of four numbers, and
// multiply_add is sum + a.x w0 + a.y w1 + a.z w2 + a.w w3.
alias Left = vec4<f32>;
alias Right = vec4<f32>;

fn left(v: vec4<f32>) -> Left {
  return v;
}

fn right(v: vec4<f32>) -> Right {
  return v;
}

fn multiply_add(a: Left, w0: Right, w1: Right, w2: Right, w3: Right, sum: vec4<f32>) -> vec4<f32> {
  let two = fma(vec4<f32>(a.y), w1, fma(vec4<f32>(a.x), w0, sum));
  return fma(vec4<f32>(a.w), w3, fma(vec4<f32>(a.z), w2, two));
}
