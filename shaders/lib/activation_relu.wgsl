// relu(x) = max(x, 0), and NaN of NaN, which `max` might drop; its slope is 1 above 0, else 0.
fn activate(x: vec4<f32>) -> vec4<f32> {
  return select(x, vec4<f32>(0.0), x < vec4<f32>(0.0));
}

fn times_activated(d: vec4<f32>, x: vec4<f32>) -> vec4<f32> {
  return d * activate(x);
}

fn activate_back(x: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
  return select(vec4<f32>(0.0), d, x > vec4<f32>(0.0));
}
