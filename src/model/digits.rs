//! Hashes and codes as text: lower case hexadecimal, in one spelling.

use data_encoding::HEXLOWER;

/// Returns bytes as two digits each.
pub fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

/// Returns the 32 bytes that exactly 64 lower case digits spell; `None` for every other text.
pub fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != bytes.len() * 2 {
        return None;
    }
    HEXLOWER.decode_mut(text.as_bytes(), &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_reads_back() {
        for byte in 0..=u8::MAX {
            let text = hex(&[byte; 32]);
            assert_eq!(text, format!("{byte:02x}").repeat(32));
            assert_eq!(unhex(&text), Some([byte; 32]));
        }
    }

    /// O04: a hash has one spelling.
    #[test]
    fn no_other_text_is_a_hash() {
        let good = "0f".repeat(32);
        assert!(unhex(&good).is_some());
        for bad in [
            String::new(),
            good[1..].to_owned(),
            good[2..].to_owned(),
            format!("{good}0f"),
            good.to_uppercase(),
            good.replacen("0f", "+f", 1),
            good.replacen("0f", "0g", 1),
            good.replacen("0f", " f", 1),
            good.replacen("0f", "é", 1),
            good.replacen("0f", "0\0", 1),
        ] {
            assert_eq!(unhex(&bad), None, "{bad:?}");
        }
    }
}
