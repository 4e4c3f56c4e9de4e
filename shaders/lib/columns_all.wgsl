// Which columns of a product are made: all of them; the same as columns_used.wgsl gives.
fn columns_idle(first: u32, count: u32) -> bool {
  return false;
}
