//! Bodies of fuzz targets, see `crate::fuzzing`: what this room reads of a file.

use super::{chain_key, file::Source};
use crate::crypto::seal::Sealer;

/// Master key of the corpus: SHA-256 of "jeton fuzz corpus".
const MASTER: [u8; 32] = [
    0x63, 0xff, 0x9e, 0xf9, 0x7a, 0x84, 0x7d, 0x77, 0xe7, 0x04, 0x0e, 0x7f, 0xa4, 0xb9, 0x03, 0xc1,
    0x84, 0x07, 0x80, 0x50, 0x79, 0xbf, 0x2d, 0xff, 0x54, 0x9e, 0xe1, 0x2c, 0x15, 0xd3, 0x41, 0x61,
];

/// The reader of exports, over a whole file. A file that it takes for signed is taken again, and
/// not with another byte in front of its last line.
pub fn export(data: &[u8]) {
    let sealer = Sealer::new(MASTER);
    let chain = chain_key(&sealer);
    let check = |data: &[u8]| {
        let checked = Source::copy(&mut &*data).and_then(|mut source| {
            let (checked, _) = source.check(&sealer, &chain)?;
            source.check(&sealer, &chain).map(|(again, _)| (checked, again))
        });
        checked.ok()
    };
    let Some((checked, again)) = check(data) else { return };
    assert_eq!((checked.counts, checked.sha256), (again.counts, again.sha256));
    if !checked.signed {
        return;
    }
    let lines = data.trim_ascii_end().rsplit(|byte| *byte == b'\n').skip(1);
    let length = lines.map(|line| line.len() + 1).sum::<usize>();
    let [high, low, ..] = checked.sha256;
    let at = usize::from(u16::from_be_bytes([high, low])) % length;
    let altered: Vec<u8> =
        data.iter().enumerate().map(|(place, byte)| byte ^ u8::from(place == at)).collect();
    assert!(check(&altered).is_none(), "an altered export is taken for whole");
}

#[cfg(test)]
mod tests {
    use super::{super::file::Lines, *};
    use crate::store::transfer::{ExportRecord, VERSION};

    /// The body reaches what it is for: an export that is whole and signed.
    #[test]
    fn a_signed_export_is_taken_and_no_altered_one() {
        let sealer = Sealer::new(MASTER);
        let mut lines = Lines::new(Vec::new(), Some(&sealer));
        lines.item(&ExportRecord::Export { version: VERSION }).unwrap();
        lines.item(&ExportRecord::End { chains: 0 }).unwrap();
        let written = lines.finish().unwrap();
        let checked = Source::copy(&mut &*written).unwrap().check(&sealer, &chain_key(&sealer));
        assert!(checked.is_ok_and(|(checked, _)| checked.signed));
        export(&written);
    }
}
