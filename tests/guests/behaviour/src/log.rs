//! Lines for `/log`.

/// Line `number` (from 0): the number and a blank, filled with `x` or cut to `bytes`, without the line's end.
pub fn line(number: usize, bytes: usize) -> String {
    let mut line = format!("{number} ");
    line.truncate(bytes);
    line.extend(std::iter::repeat_n('x', bytes - line.len()));
    line
}

/// The one line on standard error.
pub fn summary(lines: usize, bytes: usize) -> String {
    format!("{lines} lines of {bytes} bytes")
}
