// What a step leaves on the GPU for the update, and for the host to read some steps later.
struct Totals { // of the accumulation window
  loss: f32, // sum over trained tokens
  count: u32, // trained tokens
}
struct Control {
  factor: f32, // what gradients are multiplied by: clipping and 1 / count
  latched: u32, // 1 from the first loss or gradient on that was not finite
}
struct Report {
  loss: f32, // mean over the window's trained tokens
  norm: f32, // of the mean gradient, before clipping
  count: u32,
  finite: u32, // 0 once control is latched
}
