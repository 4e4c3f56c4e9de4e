// Where repacked weights go: one buffer of a plane of packs (16 bytes each), then a plane of scales.
struct Params {
  slice_rows: u32, // rows in this slice of the file
  first_row: u32, // where they begin in the buffer
  columns: u32, // values in a row
  packs: u32, // in a row
  scale_stride: u32, // words of scales in a row
  scales_at: u32, // word at which the scales begin
  raw_offset: u32, // byte of `raw` at which the slice begins, even
  raw_row: u32, // bytes of a row in the file
}
@group(0) @binding(1) var<storage, read_write> planes: array<u32>;
@group(0) @binding(15) var<uniform> params: Params;
