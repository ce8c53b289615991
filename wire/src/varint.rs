//! Zig-zag varints, as records use them.

use bytes::BufMut;

/// Bytes that `value` takes.
pub fn encoded_len(value: i64) -> usize {
    let bits = 64 - zigzag(value).leading_zeros() as usize;
    bits.div_ceil(7).max(1)
}

/// Appends `value`.
pub fn put<B: BufMut>(buf: &mut B, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        buf.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    buf.put_u8(rest as u8);
}

/// Reads a value of up to 64 bits from the front of `bytes` and the number of bytes it took. `None` if it does not end
/// within `bytes` or does not fit.
pub fn get(bytes: &[u8]) -> Option<(i64, usize)> {
    let mut value: u64 = 0;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        if index == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(((value >> 1) as i64 ^ -((value & 1) as i64), index + 1));
        }
    }
    None
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_at_the_edges() {
        for value in
            [0, 1, -1, 63, 64, -64, -65, 8191, 8192, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN]
        {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            assert_eq!(bytes.len(), encoded_len(value), "{value}");
            assert_eq!(get(&bytes), Some((value, bytes.len())), "{value}");
            assert_eq!(get(&bytes[..bytes.len() - 1]), None, "{value} truncated");
        }
    }

    #[test]
    fn refuses_what_does_not_end_or_fit() {
        assert_eq!(get(&[0xff; 20]), None);
        assert_eq!(get(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None);
        assert_eq!(get(&[]), None);
    }
}
