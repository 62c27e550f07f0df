// SPDX-License-Identifier: MPL-2.0

//! Reads the fields of a message of Protocol Buffers.

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Number(u64),
    Single(f32),
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers, up to the first error.
pub(super) fn fields(
    mut bytes: &[u8],
) -> impl Iterator<Item = Result<(u64, Value<'_>), String>> + '_ {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes);
        if field.is_none() {
            bytes = &[];
        }
        Some(field.ok_or_else(|| "it is damaged or incomplete".to_string()))
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Number(varint(bytes)?),
        1 => Value::Number(u64::from_le_bytes(*bytes.split_off(..8)?.first_chunk()?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Value::Bytes(bytes.split_off(..length)?)
        }
        5 => Value::Single(f32::from_le_bytes(*bytes.split_off(..4)?.first_chunk()?)),
        _ => return None,
    };
    Some((key >> 3, value))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_fields() {
        let bytes = [0x08, 0x96, 0x01, 0x15, 0, 0, 0x80, 0x3f, 0x1a, 2, b'o', b'k'];
        let found: Vec<_> = fields(&bytes).map(Result::unwrap).collect();
        assert_eq!(
            found,
            [(1, Value::Number(150)), (2, Value::Single(1.0)), (3, Value::Bytes(b"ok"))]
        );
    }

    #[test]
    fn damaged_messages_end_with_an_error() {
        for bytes in [&[0x08][..], &[0x1a, 3, 0], &[0x0b], &[0x15, 0, 0], &[0xff; 11]] {
            let found: Vec<_> = fields(bytes).collect();
            assert!(found.len() == 1 && found[0].is_err(), "{bytes:?}: {found:?}");
        }
    }
}
